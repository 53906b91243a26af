"""One attempt's own account: manifest and custody log as sealed streams, progress records, and the receipt.

What lies in the store is DESIGN 4.2. The plan is written before anything is read, a progress record after each object
that is whole, and the receipt last; the run's `receipt.json` only when the run is finished.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent import __version__
from agent.custody.canonical import encode_base64
from agent.custody.log import CustodyLog
from agent.custody.manifest import ManifestWriter
from agent.custody.records import (
    PREDICATE,
    RECEIPT,
    STATEMENT,
    Acquisition,
    Digest,
    Head,
    PartSum,
    Plan,
    Size,
    Statement,
    Subject,
    Whole,
    items_of,
)
from agent.custody.signing import PROGRESS_TYPE, STATEMENT_TYPE, AttemptKey
from agent.sealing import seal_bytes
from agent.stores.sealed import SealedObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.job import Job, Stored, WholeObject
    from agent.sealing import Recipient, Sealed
    from agent.sealing.pipeline import Pipeline
    from agent.stores.base import Part, Store

TOOL = f"impound {__version__}"
MAX_SEALED_GAPS = 100
ACCOUNT_ESTIMATE = 1 << 20
"""Bytes that a manifest or a custody log is expected to have: what is more takes more parts, and small ones."""
BEAT_S = 30.0
"""How long the head of the custody log may go untold."""


def now() -> str:
    """Wall clock, UTC, with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def progress_name(seq: int) -> str:
    return f"progress/{seq:06d}.json"


class Counts(msgspec.Struct):
    """What an attempt, or one item of it, has met."""

    items: int = 0
    members: int = 0
    gaps: int = 0
    flags: int = 0


def _sums(parts: Sequence[Part]) -> list[PartSum]:
    return [PartSum(part.size, part.sha256.hex()) for part in parts]


class Attempt:
    """The account of one attempt. Methods raise `StoreError`."""

    def __init__(
        self,
        store: Store,
        recipients: Sequence[Recipient],
        *,
        run: str,
        host: str,
        machine: str,
        job: Job,
        asked: Sequence[str],
        key: AttemptKey | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """`asked` names the acquirers that will be asked, in order. `key`: where it had to be known before."""
        earlier = job.earlier
        self.number = earlier.attempt + 1 if earlier else 1
        self.key = key or AttemptKey()
        self.run, self.host, self.case = run, host, job.case
        self._store, self._recipients = store, recipients
        self._signers = list(earlier.signers) if earlier else []
        self._strays = sorted(one.object for one in earlier.strays) if earlier else []
        self._seq = earlier.progress if earlier else 0
        self._prev = earlier.progress_head if earlier else ""
        self._subjects: list[Subject] = []
        self._told = time.monotonic()
        self.counts = Counts()
        if earlier:
            for stored in (*earlier.listed, *earlier.strays):
                self._left(stored)
            for one in earlier.whole:
                self._left(one)
                self.counts.members += one.members
                self.counts.gaps += one.gaps
                self.counts.flags += one.flags
            self.counts.items = items_of([one.object for one in earlier.whole])
        self.started = now()
        plan = Plan(
            run=run,
            attempt=self.number,
            seq=self._seq,
            prev=self._prev,
            case=job.case,
            host=host,
            signer=self.key.signer,
            started=self.started,
            tool=TOOL,
            machine=machine,
            asked=list(asked),
            job=msgspec.structs.replace(job, earlier=None),
        )
        self._progress(plan)
        self._manifest = SealedObject(
            store, self._own("manifest.jsonl"), recipients, estimate=ACCOUNT_ESTIMATE, pipeline=pipeline
        )
        try:
            self._custody = SealedObject(
                store, self._own("custody.jsonl"), recipients, estimate=ACCOUNT_ESTIMATE, pipeline=pipeline
            )
        except BaseException:
            self._manifest.abort()
            raise
        self.manifest = ManifestWriter(self._manifest.write)
        self.log = CustodyLog(self._custody.write)

    def _own(self, name: str) -> str:
        return f"attempt-{self.number}/{name}"

    def _subject(self, name: str, size: int, sha256: str) -> None:
        self._subjects.append(Subject(name, Digest(sha256), Size(size)))

    def _left(self, stored: WholeObject | Stored) -> None:
        said = Size(stored.size, tree=stored.tree, frames=stored.frames)
        self._subjects.append(Subject(stored.object, Digest(stored.sha256), said))

    def _sealed(self, name: str, sealed: Sealed, parts: Sequence[Part]) -> None:
        said = Size(sealed.ciphertext_size, _sums(parts), sealed.tree_root.hex(), sealed.frames)
        self._subjects.append(Subject(name, Digest(sealed.ciphertext_sha256.hex()), said))

    def _put(self, name: str, data: bytes) -> None:
        upload = self._store.begin(name, estimate=len(data))
        try:
            upload.write(data)
        except BaseException:
            upload.abort()
            raise
        upload.commit()

    def _progress(self, record: Plan | Whole | Head) -> None:
        data = self.key.sign(PROGRESS_TYPE, record)
        name = progress_name(self._seq)
        self._put(name, data)
        self._prev = hashlib.sha256(data).hexdigest()
        self._subject(name, len(data), self._prev)
        self._seq += 1
        self._told = time.monotonic()

    def beat(self) -> None:
        """Tells where the custody log stands, if nothing was told for `BEAT_S`. Cheap: to be called often."""
        if time.monotonic() - self._told < BEAT_S:
            return
        self.log.add("beat")
        self._progress(
            Head(
                run=self.run,
                attempt=self.number,
                seq=self._seq,
                prev=self._prev,
                custody=self.log.head,
                lines=self.log.lines,
                told=now(),
            )
        )

    def whole(
        self, name: str, sealed: Sealed, parts: Sequence[Part], counts: Counts, record: dict[str, object]
    ) -> None:
        """Notes that an item's object is whole. `record` is its `stored` line, with its first gaps."""
        self._sealed(name, sealed, parts)
        self.log.add("object-whole", {"object": name, "size": sealed.ciphertext_size})
        self._progress(
            Whole(
                run=self.run,
                attempt=self.number,
                seq=self._seq,
                prev=self._prev,
                object=name,
                size=sealed.ciphertext_size,
                sha256=sealed.ciphertext_sha256.hex(),
                gaps=counts.gaps,
                flags=counts.flags,
                members=counts.members,
                custody=self.log.head,
                sealed=encode_base64(seal_bytes(msgspec.json.encode(record), self._recipients)),
                parts=_sums(parts),
                tree=sealed.tree_root.hex(),
                frames=sealed.frames,
            )
        )

    def close(self, outcome: str, *, finished: bool) -> str:
        """Closes manifest and log, writes the receipt, and gives its SHA-256. `finished` ends the run, too."""
        counts = self.counts
        self.manifest.add(
            {
                "type": "end",
                "outcome": outcome,
                "items": counts.items,
                "members": counts.members,
                "gaps": counts.gaps,
                "flags": counts.flags,
            }
        )
        try:
            manifest = self._manifest.commit()
            self._sealed(self._manifest.name, manifest, self._manifest.parts)
            self.log.add("attempt-ended", {"outcome": outcome})
            custody = self._custody.commit()
        except BaseException:
            self.abort()
            raise
        self._sealed(self._custody.name, custody, self._custody.parts)
        acquisition = Acquisition(
            run=self.run,
            case=self.case,
            host=self.host,
            attempt=self.number,
            outcome=outcome,
            signer=self.key.signer,
            started=self.started,
            ended=now(),
            tool=TOOL,
            authority=self._store.authority,
            recipients=[recipient.text for recipient in self._recipients],
            items=counts.items,
            members=counts.members,
            gaps=counts.gaps,
            flags=counts.flags,
            manifest_sha256=manifest.plaintext_sha256.hex(),
            custody_head=self.log.head,
            custody_lines=self.log.lines,
            earlier=self._signers,
            finished=finished,
            strays=self._strays,
        )
        subjects = sorted(self._subjects, key=lambda subject: subject.name)
        receipt = self.key.sign(STATEMENT_TYPE, Statement(STATEMENT, subjects, PREDICATE, acquisition))
        self._put(self._own(RECEIPT), receipt)
        if finished:
            self._put(RECEIPT, receipt)
        return hashlib.sha256(receipt).hexdigest()

    def abort(self) -> None:
        """Gives up what is open. Never raises."""
        self._manifest.abort()
        self._custody.abort()
