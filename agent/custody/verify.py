"""`impound verify`: whether every byte is as it was sealed and signed, and what is missing.

Without a key: signatures, names, sizes and digests of the ciphertext. With an identity also the plaintext: every
object opens, to the digest that the manifest gives; the manifest is whole; the custody log's chain holds.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from agent.custody.countersign import COUNTERSIGNATURE
from agent.custody.plaintext import check_plaintext
from agent.custody.records import RECEIPT, items_of
from agent.custody.stored import StoredRun, read_run
from agent.errors import DamagedError, OutOfReachError, SourceError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.sealing import Identity
    from agent.stores.base import Source

CHUNK = 1 << 20
MAX_FINDINGS = 1000
OTHER_SIGNER = "not by the signer that was given"

Watch = Callable[[str, int], None]
"""Told the name of an object and the bytes of it that were just checked."""


class Verdict(enum.StrEnum):
    INTACT = "intact"
    PARTIAL = "partial"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong: which object, and how."""

    name: str
    problem: str


class RunVerdict(msgspec.Struct):
    """What `verify` says of one run."""

    location: str
    verdict: Verdict = Verdict.INTACT
    run: str = ""
    case: str = ""
    host: str = ""
    attempt: int = 0
    signer: str = ""
    signers: list[str] = msgspec.field(default_factory=list)
    """Of all attempts."""
    signer_known: bool = False
    signer_other: bool = False
    """It is not among those that were given."""
    countersigner: str = ""
    """Who countersigned this receipt, known or not."""
    countersigned_at: str = ""
    receipt_sha256: str = ""
    receipts: list[str] = msgspec.field(default_factory=list)
    """Of all attempts that left one, also of those that were stopped."""
    outcome: str = ""
    objects: int = 0
    bytes: int = 0
    items: int = 0
    members: int = 0
    gaps: int = 0
    opened: bool = False
    """With an identity: the plaintext was checked, too."""
    missing: list[str] = msgspec.field(default_factory=list)
    asked: list[str] = msgspec.field(default_factory=list)
    """Of a partial run: the acquirers that were asked. What is not among the whole items of these is missing."""
    unaccounted: list[str] = msgspec.field(default_factory=list)
    """Of a partial run: objects that no signed record names."""
    strays: list[str] = msgspec.field(default_factory=list)
    """Objects that the receipt lists, and that nobody vouches for."""
    findings: list[Finding] = msgspec.field(default_factory=list)

    def damage(self, name: str, problem: str) -> None:
        self.verdict = Verdict.DAMAGED
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(name, problem))

    @property
    def exit_code(self) -> int:
        return {Verdict.INTACT: 0, Verdict.UNREADABLE: 3}.get(self.verdict, 4)

    @property
    def pins(self) -> set[str]:
        """What a person could pin this run by: its receipt, and the signers of all its attempts."""
        return {self.receipt_sha256, self.signer, self.countersigner, *self.signers, *self.receipts}

    @property
    def words(self) -> str:
        """The verdict as a person reads it."""
        if self.verdict is Verdict.INTACT and not self.signer_known:
            return "intact, signer unknown"
        if self.signer_other and self.verdict is Verdict.DAMAGED:
            return OTHER_SIGNER if len(self.findings) == 1 else f"damaged, and {OTHER_SIGNER}"
        return str(self.verdict)


def verify(
    source: Source,
    *,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    identities: Sequence[Identity] = (),
    compared: Collection[str] = (),
    watch: Watch = lambda _name, _size: None,
) -> RunVerdict:
    """Checks one run. Raises `SourceError` when it cannot be read, `IdentityError` when no identity opens it.

    `compared` names objects whose digests the caller has compared by other means: they are not read.
    """
    run = read_run(source)
    verdict = RunVerdict(source.location)
    _head(run, verdict, signers, receipts)
    expected = run.listed()
    for name, problem in run.problems.items():
        verdict.damage(name, f"added: {problem}")
    for name in run.strange:
        verdict.damage(name, "added: not an object that impound writes")
    if run.progress.problem:
        name, _, problem = run.progress.problem.partition(": ")
        verdict.damage(name, problem)
    if run.receipt is not None:
        own = {RECEIPT, COUNTERSIGNATURE, f"attempt-{verdict.attempt}/{RECEIPT}"}
        for name in sorted(set(run.names) - set(expected) - own):
            verdict.damage(name, "added: the receipt does not name it")
        for name in run.partials:
            verdict.damage(name, "added: the receipt does not name it")
    elif not run.finished:
        _partial(run, verdict, expected)
    source.prefetch(one for one, (size, _) in expected.items() if run.names.get(one) == size and one not in compared)
    for name, (size, sha256) in expected.items():
        _check_object(run, verdict, name, size, sha256 if name not in compared else None, watch)
    if identities and run.progress.plans and verdict.verdict is not Verdict.DAMAGED:
        check_plaintext(run, identities, verdict.damage, watch)
        verdict.opened = True
    return verdict


def _head(run: StoredRun, verdict: RunVerdict, signers: Collection[str], receipts: Collection[str]) -> None:
    """Who, when, under which key, and whether that key is the one that was pinned."""
    plans = run.progress.plans
    verdict.signer, verdict.receipt_sha256, verdict.strays = run.signer, run.receipt_sha256, sorted(run.strays)
    verdict.signers = [plan.signer for plan in plans]
    verdict.receipts = [sha256 for _, _, sha256 in run.receipts.values()]
    if plans:
        verdict.run, verdict.case, verdict.host, verdict.attempt = (
            plans[0].run,
            plans[0].case,
            plans[0].host,
            len(plans),
        )
    if run.receipt_problem:
        name, _, problem = run.receipt_problem.partition(": ")
        verdict.damage(name, problem)
    if run.receipt is not None:
        said = run.receipt.predicate
        verdict.outcome, verdict.items, verdict.members, verdict.gaps = (
            said.outcome,
            said.items,
            said.members,
            said.gaps,
        )
        if not plans or (said.run, said.case, said.host) != (verdict.run, verdict.case, verdict.host):
            verdict.damage(RECEIPT, "does not belong to the plan that is stored with it")
        elif said.attempt != len(plans) or said.signer != plans[-1].signer:
            verdict.damage(RECEIPT, "is not of the last attempt")
        elif said.earlier != [plan.signer for plan in plans[:-1]]:
            verdict.damage(RECEIPT, "does not name the attempts before")
        verdict.run, verdict.case, verdict.host, verdict.attempt = said.run, said.case, said.host, said.attempt
    own = os.path.basename(run.source.location.rstrip("/"))
    if verdict.run and own != verdict.run and _is_uuid(own):
        verdict.damage(RECEIPT if run.finished else "progress/000000.json", f"is of the run {verdict.run}, not {own}")
    if run.receipt is None and not plans and not verdict.findings:
        verdict.damage("progress/000000.json", "missing")
    if run.countersign_problem:
        verdict.damage(COUNTERSIGNATURE, run.countersign_problem.partition(": ")[2])
    if run.countersigned is not None:
        verdict.countersigner, verdict.countersigned_at = run.countersigned.countersigner, run.countersigned.at
    if verdict.signer:
        # A stopped attempt prints the digest of its own receipt.
        digests = {verdict.receipt_sha256} | (
            {sha for _, _, sha in run.receipts.values()} if not run.finished else set()
        )
        if {verdict.signer, verdict.countersigner or verdict.signer} & set(signers) or digests & set(receipts):
            verdict.signer_known = True
        elif signers:
            earlier = set(signers) & {plan.signer for plan in plans}
            hint = "; the given key signed an earlier attempt: give the one that `resume` printed" if earlier else ""
            name = RECEIPT if run.finished else "progress/000000.json"
            verdict.signer_other = True
            verdict.damage(name, f"signed by {verdict.signer}, not as given{hint}")
    if receipts and verdict.receipt_sha256 not in receipts and not verdict.signer_known:
        verdict.damage(RECEIPT, "is not the receipt that was given by its SHA-256")


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _partial(run: StoredRun, verdict: RunVerdict, expected: dict[str, tuple[int, str]]) -> None:
    if verdict.verdict is Verdict.INTACT:
        verdict.verdict = Verdict.PARTIAL
    verdict.missing.append(RECEIPT)
    verdict.unaccounted = sorted(set(run.names) - set(expected)) + run.partials
    verdict.items = items_of([one.object for one in run.progress.whole])
    verdict.members = sum(one.members for one in run.progress.whole)
    verdict.gaps = sum(one.gaps for one in run.progress.whole)
    if run.progress.plans:
        verdict.asked = list(run.progress.plans[-1].asked)


def _check_object(run: StoredRun, verdict: RunVerdict, name: str, size: int, sha256: str | None, watch: Watch) -> None:
    if name not in run.names:
        verdict.damage(name, "missing")
        return
    if run.names[name] != size:
        verdict.damage(name, f"has {run.names[name]} bytes, not {size}")
        return
    try:
        found = digest(run.source, name, watch) if sha256 is not None else None
    except OutOfReachError:
        raise
    except SourceError as error:
        verdict.damage(name, str(error))
        return
    if found != sha256:
        verdict.damage(name, "changed: its bytes are not those that were signed")
        return
    verdict.objects += 1
    verdict.bytes += size


def digest(source: Source, name: str, watch: Watch = lambda _name, _size: None) -> str:
    """SHA-256 of one object as it is stored, hex. Raises `SourceError`."""
    blob = source.open(name)
    state = hashlib.sha256()
    try:
        offset = 0
        while data := blob.read_at(offset, CHUNK):
            state.update(data)
            offset += len(data)
            watch(name, len(data))
    finally:
        blob.close()
    return state.hexdigest()


__all__ = ["DamagedError", "Finding", "RunVerdict", "Verdict", "digest", "verify"]
