"""What a controller does for a host that asks: each request checked, noted, done, in this order.

Methods take a request and give its answer, or raise `StoreError`, which becomes a refusal. They may be called by
several threads; the ledger's lock is held while something is checked and noted, and never while S3 is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from agent.channel import messages as say
from agent.custody.records import RECEIPT
from agent.custody.stored import MAX_RECEIPT, parse_receipt, receipt_name
from agent.delivery.grants import difference
from agent.delivery.notes import Appeared, Begun, Completing, Minted, PartSigned, Storing, Unmade
from agent.delivery.session import session_name
from agent.errors import (
    AuthorityError,
    DamagedError,
    ObjectExistsError,
    SourceError,
    StoreError,
    StoreFullError,
    UnreachableError,
)
from agent.stores.base import Part
from agent.stores.s3.client import READ_TIMEOUT_S
from agent.stores.s3.control import SETTLE_S, Control, composite_sha256, one_sha256

if TYPE_CHECKING:
    from agent.custody.records import Acquisition
    from agent.delivery.grants import Bounds, Grants
    from agent.delivery.ledger import Ledger
    from agent.delivery.session import Minter
    from agent.job import Job
    from agent.stores.s3.place import Place


class Service:
    """The requests of one host, once it has said which run it is."""

    def __init__(
        self,
        client: Any,
        place: Place,
        job: Job,
        ledger: Ledger,
        grants: Grants,
        minter: Minter | None,
        find: Callable[[str], None],
        bounds: Bounds,
    ) -> None:
        """`place`: of the run. `find`: takes a finding."""
        self.place = place
        self._control = Control(client, place, job.s3)
        self._ledger, self._grants, self._minter, self._find = ledger, grants, minter, find
        self._case, self._run = job.case, ledger.state.run
        self._renewals = bounds.renewals
        self._renewals_s, self._renewed = bounds.renewals_s, time.monotonic()
        self._minting = threading.Lock()
        self.receipts: dict[str, Acquisition] = {}
        """What sound receipts say that were stored, by their names."""

    def begin(self, request: say.Begin) -> say.Begun:
        with self._alone(request.name, lambda: self._grants.begin(request.name)):
            upload = self._control.begin(request.name)
            self._ledger.note(Begun(self._run, request.name, upload))
        return say.Begun(request.id, upload)

    def sign(self, request: say.Sign) -> say.Signed:
        """Notes the part, and only then signs it. The same part again is signed again."""
        if self._minter is not None:
            raise AuthorityError("this run has session credentials: its host signs for itself")
        part = Part(request.part.size, bytes.fromhex(request.part.sha256))
        with self._ledger.lock:
            if self._grants.sign(request.name, request.upload, request.number, part):
                self._ledger.note(
                    PartSigned(self._run, request.name, request.upload, request.number, part.size, request.part.sha256)
                )
        url, headers = self._control.presign_part(request.name, request.upload, request.number, part)
        if not _binds(url):
            raise StoreError("this configuration of AWS signs URLs that do not bind length and digest: none is given")
        return say.Signed(request.id, "PUT", url, headers)

    def put(self, request: say.Put) -> say.Done:
        name, data = request.name, request.data
        if len(data) > say.MAX_SMALL_OBJECT:
            raise AuthorityError(f"{name[:100]} has {len(data)} bytes: too many to hand over in one piece")
        digest = hashlib.sha256(data)
        with self._alone(name, lambda: self._grants.put(name, data, digest.hexdigest())):
            self._ledger.note(Storing(self._run, name, len(data), digest.hexdigest()))
            self._make(name, lambda: self._control.put(name, data), len(data), one_sha256(digest.digest()))
            self._account(name, lambda: data)
        return say.Done(request.id)

    def complete(self, request: say.Complete) -> say.Done:
        """Compares what the bucket has with what was notified, and only then completes."""
        name, upload, wanted = request.name, request.upload, list[Part]()

        def check() -> None:
            wanted.extend(self._grants.complete(name, upload, request.parts, signed=self._minter is None))

        with self._alone(name, check):
            listed = list(self._control.parts(name, upload))
            why, by_somebody = difference(listed, wanted)
            if why:
                if by_somebody:
                    self._find(f"{name}: {why}")
                raise StoreError(f"{name} is not completed: {why}")
            known = all(part.sha256 is not None for part in listed)
            size, checksum = sum(part.size for part in wanted), composite_sha256(wanted)
            whole = wanted[0].sha256.hex() if len(wanted) == 1 else ""
            checked = "sha256" if known else "size"
            self._ledger.note(Completing(self._run, name, upload, len(wanted), size, checksum, checked, whole))
            # By the ETags, and the digests where the bucket has any, so that a part put meanwhile is refused.
            sums = [Part(part.size, part.sha256 or b"") for part in listed]
            etags = [part.etag for part in listed]
            self._make(name, lambda: self._control.complete(name, upload, sums, etags), size, checksum)
            self._account(name, lambda: self._control.get(name, MAX_RECEIPT))
        return say.Done(request.id)

    def renew(self, request: say.Renew) -> say.Renewed:
        if self._minter is None:
            raise AuthorityError("this run has no credentials: every part is signed for it")
        with self._minting:
            moment = time.monotonic()
            earned = int((moment - self._renewed) * self._renewals_s)
            if earned:
                self._renewals, self._renewed = min(self._renewals + earned, 1000), moment
            if self._renewals <= 0:
                raise UnreachableError("credentials were renewed too often: ask again later")
            self._renewals -= 1
            session = session_name(self._case, self._run)
            credentials = self._minter.mint(self.place, session)
            self._ledger.note(Minted(self._minter.role, session, str(self.place), credentials.expires))
        return say.Renewed(request.id, credentials)

    def _make(self, name: str, call: Callable[[], None], size: int, checksum: str) -> None:
        """Makes an object appear, by a call that may have been answered by nobody and done all the same."""
        began = time.monotonic()
        try:
            call()
        except StoreError as error:
            if isinstance(error, ObjectExistsError) and time.monotonic() - began >= READ_TIMEOUT_S:
                # Asked twice, since the first answer took so long: it may still be completing what it says exists.
                with contextlib.suppress(StoreError):
                    self._control.comes_to_be(name, (size, checksum), patience_s=SETTLE_S)
            there = self._is_there(name, size, checksum)
            if there is False and not isinstance(error, UnreachableError):
                self._ledger.note(Unmade(self._run, name, str(error)[:1000]))
            if not there:
                raise
        self._ledger.note(Appeared(self._run, name))

    def _account(self, name: str, read: Callable[[], bytes]) -> None:
        """Remembers what a receipt says that was just stored. One that is not sound is a finding, and stays."""
        if name not in {RECEIPT, receipt_name(self._ledger.state.attempt)}:
            return
        try:
            self.receipts[name] = parse_receipt(read(), name)[0].predicate
        except (DamagedError, SourceError, StoreError) as error:
            self._find(f"the host stored a receipt that is none: {str(error)[:900]}")

    def _is_there(self, name: str, size: int, checksum: str) -> bool | None:
        """Whether just this object is there; `None` where the bucket does not tell."""
        try:
            if not self._control.exists(name):
                return False
            found, digest = self._control.checksum(name)
        except StoreError:
            return None
        if not digest and found == size:
            return None
        return (found, digest) == (size, checksum)

    @contextlib.contextmanager
    def _alone(self, name: str, check: Callable[[], None]) -> Iterator[None]:
        """One request at a time works on a name, after `check`."""
        with self._ledger.lock:
            check()
            self._grants.busy.add(name)
        try:
            yield
        finally:
            with self._ledger.lock:
                self._grants.busy.discard(name)


def _binds(url: str) -> bool:
    """Whether a signed URL is worth nothing without the length and the digest that were noted."""
    signed = parse_qs(urlsplit(url).query).get("X-Amz-SignedHeaders", [""])[0].split(";")
    return {"content-length", "host", "x-amz-checksum-sha256"} <= set(signed)


def kind_of(error: StoreError) -> str:
    """The word by which a host knows what to raise (`Refused`)."""
    kinds: list[tuple[type[StoreError], str]] = [
        (ObjectExistsError, "exists"),
        (AuthorityError, "authority"),
        (UnreachableError, "unreachable"),
        (StoreFullError, "full"),
    ]
    return next((kind for one, kind in kinds if isinstance(error, one)), "store")
