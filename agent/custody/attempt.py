"""One attempt's own account: manifest and custody log as sealed streams, progress records, and the receipt.

What lies in the store is DESIGN 4.2. The plan is written before anything is read, a progress record after each object
that is whole, and the receipt last; the run's `receipt.json` only when the run is finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from agent import __version__
from agent.custody.canonical import encode_base64
from agent.custody.log import CustodyLog
from agent.custody.manifest import ManifestWriter
from agent.custody.records import PREDICATE, STATEMENT, Acquisition, Digest, Plan, Size, Statement, Subject, Whole
from agent.custody.signing import PROGRESS_TYPE, STATEMENT_TYPE, AttemptKey
from agent.sealing import seal_bytes
from agent.stores.sealed import SealedObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.job import Job
    from agent.sealing import Recipient, Sealed
    from agent.stores.base import Store

TOOL = f"impound {__version__}"
RECEIPT = "receipt.json"
MAX_SEALED_GAPS = 100


def now() -> str:
    """Wall clock, UTC, with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def progress_name(seq: int) -> str:
    return f"progress/{seq:06d}.json"


@dataclass(slots=True)
class Counts:
    """What an attempt, or one item of it, has met."""

    items: int = 0
    members: int = 0
    gaps: int = 0
    flags: int = 0


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
    ) -> None:
        """`asked` names the acquirers that will be asked, in order."""
        earlier = job.earlier
        self.number = earlier.attempt + 1 if earlier else 1
        self.key = AttemptKey()
        self.run, self.host, self.case = run, host, job.case
        self._store, self._recipients = store, recipients
        self._signers = list(earlier.signers) if earlier else []
        self._strays = sorted(one.object for one in earlier.strays) if earlier else []
        self._seq = earlier.progress if earlier else 0
        self._prev = earlier.progress_head if earlier else ""
        self._subjects: list[Subject] = []
        self.counts = Counts()
        if earlier:
            for stored in (*earlier.listed, *earlier.strays):
                self._subject(stored.object, stored.size, stored.sha256)
            for one in earlier.whole:
                self._subject(one.object, one.size, one.sha256)
                self.counts.items += 1
                self.counts.members += one.members
                self.counts.gaps += one.gaps
                self.counts.flags += one.flags
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
        self._manifest = SealedObject(store, self._own("manifest.jsonl"), recipients)
        try:
            self._custody = SealedObject(store, self._own("custody.jsonl"), recipients)
        except BaseException:
            self._manifest.abort()
            raise
        self.manifest = ManifestWriter(self._manifest.write)
        self.log = CustodyLog(self._custody.write)

    def _own(self, name: str) -> str:
        return f"attempt-{self.number}/{name}"

    def _subject(self, name: str, size: int, sha256: str) -> None:
        self._subjects.append(Subject(name, Digest(sha256), Size(size)))

    def _put(self, name: str, data: bytes) -> None:
        upload = self._store.begin(name)
        try:
            upload.write(data)
        except BaseException:
            upload.abort()
            raise
        upload.commit()

    def _progress(self, record: Plan | Whole) -> None:
        data = self.key.sign(PROGRESS_TYPE, record)
        name = progress_name(self._seq)
        self._put(name, data)
        self._prev = hashlib.sha256(data).hexdigest()
        self._subject(name, len(data), self._prev)
        self._seq += 1

    def whole(self, name: str, sealed: Sealed, counts: Counts, record: dict[str, object]) -> None:
        """Notes that an item's object is whole. `record` is its `stored` line, with its first gaps."""
        self._subject(name, sealed.ciphertext_size, sealed.ciphertext_sha256.hex())
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
            self._subject(self._manifest.name, manifest.ciphertext_size, manifest.ciphertext_sha256.hex())
            self.log.add("attempt-ended", {"outcome": outcome})
            custody = self._custody.commit()
        except BaseException:
            self.abort()
            raise
        self._subject(self._custody.name, custody.ciphertext_size, custody.ciphertext_sha256.hex())
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
            authority="local",
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
