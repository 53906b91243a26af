"""A run of a few objects in memory, signed, for tests of range proofs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from agent.analysis.proof import make
from agent.custody.records import PREDICATE, RECEIPT, STATEMENT, Acquisition, Digest, Size, Statement, Subject
from agent.custody.signing import STATEMENT_TYPE, AttemptKey
from agent.custody.stored import Progress, StoredRun
from agent.sealing import BytesSource, Sealer, generate

if TYPE_CHECKING:
    from agent.sealing import Sealed

MIB = 1 << 20
IDENTITY = generate()


class Blob(BytesSource):
    """An object in memory."""

    def close(self) -> None:
        """Nothing is open."""


class Memory:
    """What a run is read from."""

    location = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def open(self, name: str) -> Blob:
        return Blob(self.objects[name])


def seal(data: bytes) -> tuple[Sealed, bytes]:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend)
    sealer.write(data)
    return sealer.finish(), bytes(sealed)


def subject(name: str, sealed: Sealed) -> Subject:
    said = Size(sealed.ciphertext_size, tree=sealed.tree_root.hex(), frames=sealed.frames)
    return Subject(name, Digest(sealed.ciphertext_sha256.hex()), said)


def acquisition(key: AttemptKey, **other: Any) -> Acquisition:
    fields: dict[str, Any] = {
        "run": "01890a5d-ac96-774b-bcce-b302099a8057",
        "case": "C-1",
        "host": "h",
        "attempt": 1,
        "outcome": "complete",
        "signer": key.signer,
        "started": "",
        "ended": "",
        "tool": "",
        "authority": "local",
        "recipients": [],
        "items": 1,
        "members": 0,
        "gaps": 0,
        "flags": 0,
        "manifest_sha256": "",
        "custody_head": "",
        "custody_lines": 0,
        "earlier": [],
        "finished": True,
        "strays": [],
    }
    return Acquisition(**(fields | other))


def sign(subjects: list[Subject], **other: Any) -> tuple[Statement, bytes]:
    """A receipt, and its bytes."""
    key = AttemptKey()
    ordered = sorted(subjects, key=lambda one: one.name)
    statement = Statement(STATEMENT, ordered, PREDICATE, acquisition(key, **other))
    return statement, key.sign(STATEMENT_TYPE, statement)


def run_of(objects: dict[str, bytes]) -> StoredRun:
    """A finished run of objects: plaintext name -> plaintext."""
    source = Memory()
    subjects = []
    for plain, data in objects.items():
        sealed, source.objects[f"{plain}.zst.age"] = seal(data)
        subjects.append(subject(f"{plain}.zst.age", sealed))
    statement, receipt = sign(subjects)
    source.objects[RECEIPT] = receipt
    names = {name: len(data) for name, data in source.objects.items()}
    stored: Any = source
    run = StoredRun(stored, names, [], [], Progress())
    run.receipt, run.receipt_sha256 = statement, hashlib.sha256(receipt).hexdigest()
    return run


def prove(run: StoredRun, name: str, first: int, last: int) -> bytes:
    return make(run, [name], [IDENTITY], first, last)
