"""What a controller does for a host that has no way to a store but through it: it stores what comes, sealed as it is.

Each object is noted when it begins and when it is whole and durable, with the SHA-256 of the bytes as they came. The
host is told where one cannot be stored, and what it says is held against the same bounds as everywhere else. Called by
the one thread that hears the host: the order in which data comes is the order in which it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agent.channel import messages as say
from agent.custody.records import RECEIPT
from agent.custody.stored import MAX_RECEIPT, parse_receipt, receipt_name
from agent.delivery.notes import Appeared, Begun, Completing, Dropped, Unmade
from agent.delivery.service import kind_of
from agent.errors import AuthorityError, DamagedError, SourceError, StoreError
from agent.stores.s3.control import one_sha256

if TYPE_CHECKING:
    from agent.custody.records import Acquisition, Subject
    from agent.delivery.grants import Grants
    from agent.delivery.ledger import Ledger
    from agent.stores.base import Store, Upload

UPLOAD = "relay"
"""The id that every object on its way has."""


class _Coming:
    """An object on its way. `upload` is `None` once it failed: what still comes of it is thrown away."""

    def __init__(self, upload: Upload, *, keep: bool) -> None:
        self.upload: Upload | None = upload
        self.size = 0
        self.digest: Any = hashlib.sha256()
        self.kept: bytearray | None = bytearray() if keep else None
        self.error: StoreError | None = None


class Relaying:
    """The requests of one host, once it has said which run it is."""

    def __init__(
        self, store: Store, ledger: Ledger, grants: Grants, find: Callable[[str], None], earlier: Mapping[str, str]
    ) -> None:
        """`earlier`: what attempts before left, SHA-256 by name. `find`: takes a finding."""
        self.place = store.location
        self._store, self._ledger, self._grants, self._find, self._earlier = store, ledger, grants, find, earlier
        self._coming: dict[str, _Coming] = {}
        self._under_way = 0
        """Bytes of what is on its way."""
        self.receipts: dict[str, Acquisition] = {}
        """What sound receipts say that were stored, by their names."""

    def begin(self, request: say.Begin) -> say.Begun:
        name = request.name
        with self._ledger.lock:
            self._grants.begin(name)
            keep = name in {RECEIPT, receipt_name(self._ledger.state.attempt)}
            self._coming[name] = _Coming(self._store.begin(name), keep=keep)
            self._ledger.note(Begun(self._ledger.state.run, name, UPLOAD))
        return say.Begun(request.id, UPLOAD)

    def data(self, message: say.Data, payload: bytes) -> say.Broken | None:
        """Stores a piece. What to tell the host where that failed, once."""
        coming = self._of(message.name)
        self._grants.room(self._under_way + len(payload))
        self._under_way += len(payload)
        coming.size += len(payload)
        if coming.upload is None:
            return None
        coming.digest.update(payload)
        if coming.kept is not None and coming.size <= MAX_RECEIPT:
            coming.kept += payload
        try:
            coming.upload.write(payload)
        except StoreError as error:
            coming.upload.abort()
            coming.upload, coming.error = None, error
            return say.Broken(message.name, kind_of(error), str(error)[:1000])
        return None

    def whole(self, request: say.Whole) -> say.Done:
        """Makes the object appear. Raises `StoreError`."""
        name = request.name
        coming = self._of(name)
        self._forget(name)
        if coming.upload is None or coming.error is not None:
            raise coming.error or StoreError(f"{name} could not be stored")
        if coming.size != request.size:
            coming.upload.abort()
            raise AuthorityError(f"of {name} {coming.size} bytes came, and the host says that it sent {request.size}")
        digest = coming.digest.digest()
        run, checksum = self._ledger.state.run, one_sha256(digest)
        self._ledger.note(Completing(run, name, UPLOAD, 1, coming.size, checksum, "sha256", digest.hex()))
        try:
            coming.upload.commit()
        except StoreError as error:
            self._ledger.note(Unmade(run, name, str(error)[:1000]))
            raise
        self._ledger.note(Appeared(run, name))
        if coming.kept is not None:
            self._account(name, bytes(coming.kept))
        return say.Done(request.id)

    def drop(self, message: say.Drop) -> None:
        """The host gives an object up."""
        if message.name in self._coming:
            self._ledger.note(Dropped(self._ledger.state.run, message.name))
        self._give_up(message.name)

    def close(self) -> None:
        """What is still on its way is given up."""
        for name in list(self._coming):
            self._give_up(name)
        self._store.close()

    def _give_up(self, name: str) -> None:
        coming = self._forget(name)
        if coming is not None and coming.upload is not None:
            coming.upload.abort()

    def _forget(self, name: str) -> _Coming | None:
        coming = self._coming.pop(name, None)
        if coming is not None:
            self._under_way -= coming.size
        return coming

    def _of(self, name: str) -> _Coming:
        coming = self._coming.get(name)
        if coming is None:
            raise AuthorityError(f"the host sends what it has not begun: {name[:100]!r}")
        return coming

    def _account(self, name: str, data: bytes) -> None:
        """Remembers what a receipt says. What it names and did not come, or came otherwise, is a finding."""
        try:
            said = parse_receipt(data, name)[0]
        except (DamagedError, SourceError, StoreError) as error:
            self._find(f"the host stored a receipt that is none: {str(error)[:900]}")
            return
        self.receipts[name] = said.predicate
        for one in said.subject:
            self._compare(one, name)

    def _compare(self, one: Subject, receipt: str) -> None:
        came = self._ledger.state.objects.get(one.name)
        digest = came.sha256 if came is not None and came.sure else self._earlier.get(one.name)
        if digest is None:
            self._find(f"{receipt} names {one.name}, which did not come")
        elif digest != one.digest.sha256:
            self._find(f"{receipt} names another {one.name} than the one that came")
