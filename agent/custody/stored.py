"""A stored run, read: its names, its chain of progress records, its receipt.

Everything in the store is hostile until a signature and a digest say otherwise, and a signature says only that bytes
are as their signer left them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import msgspec

from agent.custody.attempt import progress_name
from agent.custody.canonical import decode
from agent.custody.countersign import COUNTERSIGNATURE, MAX_COUNTERSIGNATURE, parse_countersignature
from agent.custody.records import (
    PREDICATE,
    RECEIPT,
    STATEMENT,
    Head,
    Plan,
    Statement,
    Whole,
    is_object_name,
    is_sound,
    is_tree,
    parse_record,
)
from agent.custody.signing import PROGRESS_TYPE, STATEMENT_TYPE, open_envelope
from agent.errors import DamagedError, SourceError
from agent.stores.base import Part
from agent.stores.directory import PARTIAL

if TYPE_CHECKING:
    from agent.custody.countersign import Countersigned
    from agent.stores.base import Source

MAX_RECEIPT = 256 << 20
MAX_PROGRESS = 8 << 20
MAX_CHAIN = 512 << 20
"""Bytes of all progress records of a run: what they say is held while it is read."""
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


class Progress(msgspec.Struct):
    """The chain of progress records, as far as it is right."""

    plans: list[Plan] = msgspec.field(default_factory=list)
    whole: list[Whole] = msgspec.field(default_factory=list)
    heads: list[Head] = msgspec.field(default_factory=list)
    digests: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)
    """Of the records themselves: name -> size, SHA-256."""
    head: str = ""
    problem: str = ""
    """What broke the chain."""


def read_progress(source: Source, names: dict[str, int]) -> Progress:
    """Follows the chain from the first record on."""
    progress = Progress()
    total = 0
    source.prefetch(sorted(name for name in names if name.startswith("progress/")))
    while (name := progress_name(len(progress.digests))) in names:
        if total + names[name] > MAX_CHAIN:
            progress.problem = f"{name}: with it the progress records hold more than impound writes"
            return progress
        try:
            data = read_whole(source, name, min(MAX_PROGRESS, MAX_CHAIN - total))
            total += len(data)
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
    if isinstance(record, Head):
        progress.heads.append(record)
        return
    sound = is_object_name(record.object) and _HEX.fullmatch(record.sha256) and record.size >= 0 and is_tree(record)
    if not sound:
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
        and all(is_tree(one.annotations) for one in statement.subject)
    )
    if not right:
        raise DamagedError(f"{what}: not a receipt that impound wrote")
    return statement, signer


class StoredRun(msgspec.Struct):
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
    countersigned: Countersigned | None = None
    """What the countersignature says: it is of this very receipt, and its signature is right."""
    countersign_problem: str = ""
    problems: dict[str, str] = msgspec.field(default_factory=dict)
    """What the store itself tells against an object, by its name."""
    receipts: dict[int, tuple[Statement, int, str]] = msgspec.field(default_factory=dict)
    """Of attempts, signed by the key that the attempt's plan names: attempt -> statement, size and SHA-256 of it."""
    _trees: dict[str, tuple[int, str]] | None = None

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

    def contradiction(self) -> str:
        """Where the receipt and the chain of progress records do not belong together; "" where they do.

        An attempt that was killed left no receipt, so that its plan and its records are known by what the receipt of
        the run lists, and by nothing else.
        """
        plans = self.progress.plans
        if self.receipt is not None:
            said = self.receipt.predicate
            if not plans or (said.run, said.case, said.host) != (plans[0].run, plans[0].case, plans[0].host):
                return f"{RECEIPT}: does not belong to the plan that is stored with it"
            if said.attempt != len(plans) or said.signer != plans[-1].signer:
                return f"{RECEIPT}: is not of the last attempt"
            if said.earlier != [plan.signer for plan in plans[:-1]]:
                return f"{RECEIPT}: does not name the attempts before"
        listed = {name: said for name, said in self.listed().items() if name.startswith("progress/")}
        for name in sorted(listed.keys() | self.progress.digests.keys()):
            if name not in self.progress.digests:
                return f"{name}: missing"
            if listed.get(name) != self.progress.digests[name]:
                return f"{name}: is not the record that the receipt lists"
        return ""

    def trees(self) -> dict[str, tuple[int, str]]:
        """What the tree over each object's frames must be, where that was signed: name -> frames, root as hex."""
        if self._trees is None:
            said = self._trees = {one.object: (one.frames, one.tree) for one in self.progress.whole if one.tree}
            for statement in [statement for statement, _, _ in self.receipts.values()] + [self.receipt]:
                for one in statement.subject if statement is not None else ():
                    if one.annotations.tree:
                        said[one.name] = one.annotations.frames, one.annotations.tree
        return self._trees

    def parts(self) -> dict[str, list[Part]]:
        """The parts that objects were stored in, as they were signed. Where no signed record has them, nothing."""
        statements = [self.receipt] if self.receipt is not None else [one for one, _, _ in self.receipts.values()]
        said = [(one.name, one.annotations.parts) for statement in statements for one in statement.subject]
        said += [(one.object, one.parts) for one in self.progress.whole]
        listed = self.listed()
        found: dict[str, list[Part]] = {}
        for name, sums in said:
            whole = name in listed and sum(one.size for one in sums) == listed[name][0]
            if sums and whole and name not in found and all(_HEX.fullmatch(one.sha256) for one in sums):
                found[name] = [Part(one.size, bytes.fromhex(one.sha256)) for one in sums]
        return found


def receipt_name(attempt: int) -> str:
    return f"attempt-{attempt}/{RECEIPT}"


def read_run(source: Source) -> StoredRun:
    """Reads the account of a stored run; what is wrong with it is noted, not raised. Raises `SourceError`."""
    names: dict[str, int] = {}
    problems: dict[str, str] = {}
    strange, partials = [], []
    for listed in source.names():
        if listed.problem:
            problems[listed.name] = listed.problem
        leaf = listed.name.rpartition("/")[2]
        if listed.regular and leaf.startswith(PARTIAL):
            partials.append(listed.name)
        elif listed.regular and is_object_name(listed.name):
            names[listed.name] = listed.size
        else:
            strange.append(listed.name)
    run = StoredRun(source, names, strange, partials, read_progress(source, names))
    run.problems = problems
    _read_receipts(run)
    _read_countersignature(run)
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


def _read_countersignature(run: StoredRun) -> None:
    if COUNTERSIGNATURE not in run.names:
        return
    try:
        said, receipt = parse_countersignature(read_whole(run.source, COUNTERSIGNATURE, MAX_COUNTERSIGNATURE))
    except DamagedError as error:
        run.countersign_problem = str(error)
        return
    if receipt != run.receipt_sha256 or run.receipt is None or said.run != run.receipt.predicate.run:
        run.countersign_problem = f"{COUNTERSIGNATURE}: is not of this receipt"
        return
    run.countersigned = said


def _receipt_of(plan: Plan, attempt: int, data: bytes, name: str) -> Statement:
    """The receipt of one attempt, by the key that its plan names. Raises `DamagedError`."""
    statement, signer = parse_receipt(data, name)
    said = statement.predicate
    if (signer, said.run, said.attempt) != (plan.signer, plan.run, attempt):
        raise DamagedError(f"{name}: is not of this attempt")
    return statement
