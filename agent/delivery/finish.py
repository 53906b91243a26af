"""Completing what a host has put into the bucket and could not complete itself.

With authority `session` and nobody at the other end of the channel, a host leaves every object as an upload whose parts
are all there. Nothing in it is believed because it lies there: an upload is completed only where its parts, as the
bucket has them, are those of a signed record. That record is the receipt where its SHA-256 is known from elsewhere (the
result line of the run), else the chain of progress records, each completed in its turn.

What nobody vouches for stays unfinished and is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agent.custody.attempt import progress_name
from agent.custody.records import RECEIPT, PartSum, is_run_id
from agent.custody.stored import MAX_PROGRESS, MAX_RECEIPT, parse_receipt, read_run
from agent.errors import ObjectExistsError, OutOfReachError, SourceError, StoreError
from agent.stores.base import Part
from agent.stores.s3.control import code_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent.custody.records import Statement
    from agent.custody.stored import StoredRun
    from agent.stores.base import Source
    from agent.stores.s3.control import Control, ListedPart, ListedUpload

_ATTEMPT_RECEIPT = re.compile(r"attempt-[1-9]\d{0,6}/receipt\.json")

_OF_ONE_UPLOAD = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"}
"""What S3 says where an upload was aborted, or a part of it was put again, since it was listed."""
LEFT_OVER = "left over from another attempt"

Watch = Callable[[str], None]


class Expected(msgspec.Struct, frozen=True):
    """An object as a signed record has it."""

    size: int
    sha256: str
    parts: tuple[PartSum, ...] = ()


class Finished(msgspec.Struct):
    """What `complete_uploads` did."""

    completed: list[str] = msgspec.field(default_factory=list)
    left: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """Uploads that stay unfinished: name, and why."""
    unchecked: list[str] = msgspec.field(default_factory=list)
    """Completed by sizes alone, since the server keeps no SHA-256 of parts: to be read before anything is said."""


def complete_uploads(
    control: Control,
    read: Callable[[], Source],
    *,
    receipts: Collection[str] = (),
    follow: bool = False,
    watch: Watch = lambda _name: None,
) -> Finished:
    """Completes every upload of a run that a signed record vouches for. `receipts`: SHA-256 of receipts, known before.

    Records that are not stored yet can only be believed by their names, where no receipt is known: whoever could begin
    uploads could have begun those. Only with `follow`, and never once a receipt is stored, this is done.
    `read` opens the run as it is in the bucket at that moment. Raises `StoreError`, `SourceError`, `DamagedError`.
    """
    work = _Work(control, watch, follow=follow and not receipts)
    work.receipts_known_before(receipts, _read(read))
    while work.pending and work.step(read):
        pass
    run = _read(read)
    whole = set(run.names) & set(run.listed()) if run is not None else set()
    for name, uploads in sorted(work.pending.items()):
        why = work.reasons.get(name, "no signed record names it")
        if name in whole:
            why = f"{LEFT_OVER}: the object itself is whole"
        work.finished.left += [(name, why) for _ in uploads]
    return work.finished


class _Work:
    def __init__(self, control: Control, watch: Watch, *, follow: bool) -> None:
        self._control, self._watch, self._follow = control, watch, follow
        self.finished = Finished()
        self.reasons: dict[str, str] = {}
        self.pending: dict[str, list[ListedUpload]] = {}
        for upload in control.uploads():
            self.pending.setdefault(upload.name, []).append(upload)
        self._known: dict[str, Expected] = {}
        """What a receipt names that was known before."""

    def receipts_known_before(self, receipts: Collection[str], run: StoredRun | None) -> None:
        """A receipt is a single part, so that the checksum of the part is that of the receipt."""
        if run is not None and run.receipt is not None and run.receipt_sha256 in receipts:
            _add(self._known, run.receipt)
        for statement, _, sha256 in run.receipts.values() if run is not None else ():
            if sha256 in receipts:
                _add(self._known, statement)
        for name in sorted(self.pending):
            if name == RECEIPT or _ATTEMPT_RECEIPT.fullmatch(name):
                for upload in self.pending[name]:
                    parts = self._parts(upload)
                    if len(parts) == 1 and parts[0].sha256 is not None and parts[0].sha256.hex() in receipts:
                        self._complete(upload, parts)
                        break
        for name in self.finished.completed:
            statement, _ = parse_receipt(self._control.get(name, MAX_RECEIPT), name)
            _add(self._known, statement)

    def step(self, read: Callable[[], Source]) -> bool:
        """Completes what can be told now. Whether anything was."""
        before = len(self.finished.completed)
        run = _read(read)
        vouched = (_vouched(run) if run is not None else {}) | self._known
        for name in sorted(set(vouched) & set(self.pending)):
            self._match(name, vouched[name])
        if run is not None:
            self._final(run)
        if len(self.finished.completed) == before and self._follow and (run is None or not run.finished):
            # One record after the other; what it is worth is the verdict's to say.
            if run is None or not run.progress.problem:
                self._chain(0 if run is None else len(run.progress.digests))
            if len(self.finished.completed) == before and run is not None:
                self._receipts(run)
        return len(self.finished.completed) > before

    def _chain(self, seq: int) -> None:
        while (name := progress_name(seq)) in self.pending and self._only(name, MAX_PROGRESS):
            seq += 1

    def _receipts(self, run: StoredRun) -> None:
        for number in range(1, len(run.progress.plans) + 1):
            name = f"attempt-{number}/{RECEIPT}"
            if name in self.pending:
                self._only(name, MAX_RECEIPT)

    def _final(self, run: StoredRun) -> None:
        """The run's receipt: the very bytes of an attempt's receipt that says it finished the run."""
        for statement, size, sha256 in run.receipts.values():
            if RECEIPT in self.pending and statement.predicate.finished:
                self._match(RECEIPT, Expected(size, sha256))

    def _only(self, name: str, limit: int) -> bool:
        """Completes the one upload of a name that holds one small part."""
        found = []
        for upload in self.pending[name]:
            parts = self._parts(upload)
            if len(parts) == 1 and parts[0].size <= limit:
                found.append((upload, parts))
        if len(found) != 1:
            self.reasons[name] = f"{len(found)} uploads of that name hold one part: which of them is meant is not known"
            return False
        return self._complete(*found[0])

    def _match(self, name: str, expected: Expected) -> None:
        for upload in list(self.pending[name]):
            parts = self._parts(upload)
            why = _difference(parts, expected)
            if why:
                self.reasons[name] = why
                continue
            if self._complete(upload, parts) and any(part.sha256 is None for part in parts):
                self.finished.unchecked.append(name)
            return

    def _parts(self, upload: ListedUpload) -> list[ListedPart]:
        try:
            return list(self._control.parts(upload.name, upload.upload_id))
        except StoreError as error:
            if code_of(error) != "NoSuchUpload":
                raise
            return []  # aborted meanwhile, or completed by somebody else: it holds nothing that was signed for

    def _complete(self, upload: ListedUpload, parts: list[ListedPart]) -> bool:
        name = upload.name
        sums, etags = [Part(one.size, one.sha256 or b"") for one in parts], [one.etag for one in parts]
        others = [other for other in self.pending.pop(name) if other is not upload]
        try:
            self._control.complete(name, upload.upload_id, sums, etags)
        except ObjectExistsError:
            self.finished.left.append((name, "an object of that name is there already, and it is not overwritten"))
            return False
        except StoreError as error:
            if code_of(error) not in _OF_ONE_UPLOAD:
                raise
            self.finished.left.append((name, f"it changed while it was completed ({code_of(error)})"))
            return False
        self.finished.left += [(name, "another upload than the one that was signed for") for _ in others]
        self.finished.completed.append(name)
        self._watch(name)
        return True


def runs_below(control: Control) -> list[str]:
    """The runs that have unfinished uploads below a place: their paths, relative to it. Raises `StoreError`."""
    found = set()
    for upload in control.uploads():
        parts = upload.name.split("/")
        found |= {"/".join(parts[: number + 1]) for number, part in enumerate(parts[:-1]) if is_run_id(part)}
    return sorted(found)


def _read(read: Callable[[], Source]) -> StoredRun | None:
    try:
        return read_run(read())
    except OutOfReachError:
        raise
    except SourceError:
        return None  # nothing is complete yet


def _vouched(run: StoredRun) -> dict[str, Expected]:
    found = {whole.object: Expected(whole.size, whole.sha256, tuple(whole.parts)) for whole in run.progress.whole}
    for statement, _, _ in run.receipts.values():
        _add(found, statement)
    return found


def _add(found: dict[str, Expected], statement: Statement) -> None:
    for one in statement.subject:
        parts = tuple(one.annotations.parts)
        if one.name not in found or parts:
            found[one.name] = Expected(one.annotations.size, one.digest.sha256, parts)


def _difference(parts: list[ListedPart], expected: Expected) -> str:
    """How the parts in the bucket differ from what was signed; "" where they do not."""
    wanted = expected.parts or (PartSum(expected.size, expected.sha256),)
    if [one.number for one in parts] != list(range(1, len(wanted) + 1)):
        return f"it has {len(parts)} parts, and {len(wanted)} were signed for"
    for have, want in zip(parts, wanted, strict=True):
        if have.size != want.size:
            return f"part {have.number} has {have.size} bytes, and {want.size} were signed for"
        if have.sha256 is not None and have.sha256.hex() != want.sha256:
            return f"part {have.number} is not the one that was signed for: it was put again, by somebody else"
    return ""
