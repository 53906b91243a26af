"""A stored run, read: its names, its chain of progress records, its receipt.

Everything in the store is hostile until a signature and a digest say otherwise, and a signature says only that bytes
are as their signer left them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.custody.attempt import RECEIPT, progress_name
from agent.custody.canonical import decode
from agent.custody.records import PREDICATE, STATEMENT, Plan, Statement, Whole, is_object_name, is_sound, parse_record
from agent.custody.signing import PROGRESS_TYPE, STATEMENT_TYPE, open_envelope
from agent.errors import DamagedError, SourceError
from agent.stores.directory import PARTIAL

if TYPE_CHECKING:
    from agent.stores.base import Source

MAX_RECEIPT = 256 << 20
MAX_PROGRESS = 8 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def read_whole(source: Source, name: str, limit: int) -> bytes:
    """One small object. Raises `SourceError`, or `DamagedError` when it is larger than anything impound writes."""
    blob = source.open(name)
    try:
        if blob.size > limit:
            raise DamagedError(f"{name}: larger than anything that impound writes there")
        return blob.read_at(0, blob.size)
    finally:
        blob.close()


@dataclass(slots=True)
class Progress:
    """The chain of progress records, as far as it is right."""

    plans: list[Plan] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Of the records themselves: name -> size, SHA-256."""
    head: str = ""
    problem: str = ""
    """What broke the chain."""


def read_progress(source: Source, names: dict[str, int]) -> Progress:
    """Follows the chain from the first record on."""
    progress = Progress()
    while (name := progress_name(len(progress.digests))) in names:
        try:
            data = read_whole(source, name, MAX_PROGRESS)
            _follow(progress, name, data)
        except DamagedError as error:
            progress.problem = str(error)
            return progress
        progress.head = hashlib.sha256(data).hexdigest()
        progress.digests[name] = (len(data), progress.head)
    beyond = sorted(other for other in names if other.startswith("progress/") and other not in progress.digests)
    if beyond:
        progress.problem = f"{name}: missing, although {beyond[0]} is there"
    return progress


def _follow(progress: Progress, name: str, data: bytes) -> None:
    body, signer = open_envelope(data, PROGRESS_TYPE, name)
    record = parse_record(body, name)
    plans = progress.plans
    if record.seq != len(progress.digests) or record.prev != progress.head:
        raise DamagedError(f"{name}: not the record that follows the one before")
    if plans and (record.run != plans[0].run):
        raise DamagedError(f"{name}: belongs to another run")
    if isinstance(record, Plan):
        if record.attempt != len(plans) + 1 or record.signer != signer:
            raise DamagedError(f"{name}: not a plan of this run's next attempt")
        if plans and (record.case, record.host) != (plans[0].case, plans[0].host):
            raise DamagedError(f"{name}: belongs to another case or host")
        plans.append(record)
        return
    if not plans or record.attempt != len(plans) or signer != plans[-1].signer:
        raise DamagedError(f"{name}: not signed by the attempt that it names")
    if not is_object_name(record.object) or not _HEX.fullmatch(record.sha256) or record.size < 0:
        raise DamagedError(f"{name}: not a record that impound wrote")
    progress.whole.append(record)


def parse_receipt(data: bytes, what: str = RECEIPT) -> tuple[Statement, str]:
    """The statement of a receipt and its signer. Raises `DamagedError`."""
    body, signer = open_envelope(data, STATEMENT_TYPE, what)
    statement = decode(body, Statement, what)
    names = [subject.name for subject in statement.subject]
    right = (
        statement.kind == STATEMENT
        and statement.predicate_type == PREDICATE
        and statement.predicate.signer == signer
        and is_sound(statement.predicate)
        and set(statement.predicate.strays) <= set(names)
        and names == sorted(set(names))
        and all(is_object_name(name) and name != RECEIPT for name in names)
        and all(_HEX.fullmatch(one.digest.sha256) and one.annotations.size >= 0 for one in statement.subject)
    )
    if not right:
        raise DamagedError(f"{what}: not a receipt that impound wrote")
    return statement, signer


@dataclass(slots=True)
class StoredRun:
    """What lies in the store of one run, by name, with everything that could be read of its account."""

    source: Source
    names: dict[str, int]
    """Regular objects: name -> size."""
    strange: list[str]
    """What is no regular object: links, devices, names that impound does not write."""
    partials: list[str]
    """Leavings of writers that died, on filesystems without unnamed files."""
    progress: Progress
    receipt: Statement | None = None
    """Of the run: that of the attempt which finished it."""
    receipt_sha256: str = ""
    receipt_problem: str = ""
    receipts: dict[int, tuple[Statement, int, str]] = field(default_factory=dict)
    """Of attempts, signed by the key that the attempt's plan names: attempt -> statement, size and SHA-256 of it."""

    @property
    def finished(self) -> bool:
        return RECEIPT in self.names

    @property
    def signer(self) -> str:
        if self.receipt is not None:
            return self.receipt.predicate.signer
        return self.progress.plans[-1].signer if self.progress.plans else ""

    @property
    def strays(self) -> frozenset[str]:
        """Objects that the receipt lists without vouching for what they hold."""
        return frozenset(self.receipt.predicate.strays) if self.receipt is not None else frozenset()

    def listed(self) -> dict[str, tuple[int, str]]:
        """What must be there, byte for byte: name -> size, SHA-256."""
        if self.receipt is not None:
            return {one.name: (one.annotations.size, one.digest.sha256) for one in self.receipt.subject}
        listed = dict(self.progress.digests)
        listed |= {one.object: (one.size, one.sha256) for one in self.progress.whole}
        for number, (statement, size, sha256) in self.receipts.items():
            listed |= {one.name: (one.annotations.size, one.digest.sha256) for one in statement.subject}
            listed[receipt_name(number)] = size, sha256
        return listed


def receipt_name(attempt: int) -> str:
    return f"attempt-{attempt}/{RECEIPT}"


def read_run(source: Source) -> StoredRun:
    """Reads the account of a stored run; what is wrong with it is noted, not raised. Raises `SourceError`."""
    names: dict[str, int] = {}
    strange, partials = [], []
    for listed in source.names():
        leaf = listed.name.rpartition("/")[2]
        if listed.regular and leaf.startswith(PARTIAL):
            partials.append(listed.name)
        elif listed.regular and is_object_name(listed.name):
            names[listed.name] = listed.size
        else:
            strange.append(listed.name)
    run = StoredRun(source, names, strange, partials, read_progress(source, names))
    _read_receipts(run)
    if not run.finished and not run.progress.digests and not names:
        raise SourceError(f"{source.location}: there is no run")
    return run


def _read_receipts(run: StoredRun) -> None:
    plans = run.progress.plans
    try:
        for number, plan in enumerate(plans, 1):
            if (name := receipt_name(number)) in run.names:
                data = read_whole(run.source, name, MAX_RECEIPT)
                statement = _receipt_of(plan, number, data, name)
                run.receipts[number] = statement, len(data), hashlib.sha256(data).hexdigest()
        if not run.finished:
            return
        data = read_whole(run.source, RECEIPT, MAX_RECEIPT)
        run.receipt_sha256 = hashlib.sha256(data).hexdigest()
        run.receipt, _ = parse_receipt(data)
        attempt = run.receipt.predicate.attempt
        own = receipt_name(attempt)
        if not run.receipt.predicate.finished:
            run.receipt_problem = f"{RECEIPT}: is of an attempt that did not finish the run"
        elif own not in run.names or read_whole(run.source, own, MAX_RECEIPT) != data:
            run.receipt_problem = f"{own}: missing, or not the same as {RECEIPT}"
    except DamagedError as error:
        run.receipt_problem = str(error)


def _receipt_of(plan: Plan, attempt: int, data: bytes, name: str) -> Statement:
    """The receipt of one attempt, by the key that its plan names. Raises `DamagedError`."""
    statement, signer = parse_receipt(data, name)
    said = statement.predicate
    if (signer, said.run, said.attempt) != (plan.signer, plan.run, attempt):
        raise DamagedError(f"{name}: is not of this attempt")
    return statement
