"""What is signed in the clear: the plan, one progress record per whole object, and the receipt.

Nothing here names a file or a digest of plaintext. `prev` chains the progress records: the SHA-256 of the bytes of the
record before, so that none can be left out or put elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from agent.custody.canonical import decode
from agent.job import Job

if TYPE_CHECKING:
    from collections.abc import Collection

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://impound.dev/acquisition/v1"
RECEIPT = "receipt.json"

_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
MAX_NAME = 1000


def is_object_name(name: str) -> bool:
    """Whether `name` is a relative path of components that impound writes: no dots in front, nothing that climbs."""
    return len(name) <= MAX_NAME and all(_COMPONENT.fullmatch(part) for part in name.split("/"))


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the progress records."""


class Plan(Record, tag="plan", frozen=True, forbid_unknown_fields=True):
    """What an attempt was asked to do. The first record of every attempt."""

    run: str
    attempt: int
    seq: int
    prev: str
    case: str
    host: str
    signer: str
    started: str
    tool: str
    machine: str
    """Which machine: SHA-256 over its machine id, so that `resume` can tell another one."""
    asked: list[str]
    """The acquirers that were asked, in order."""
    job: Job


class PartSum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of an object that was stored in parts: bytes, and their SHA-256."""

    size: int
    sha256: str


class Whole(Record, tag="object", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One object that is whole in the store."""

    run: str
    attempt: int
    seq: int
    prev: str
    object: str
    size: int
    sha256: str
    gaps: int
    flags: int
    members: int
    custody: str
    """Head of the custody log when the object was whole."""
    sealed: str
    """age, base64: the item's own record (plaintext digest and size, gaps), for an attempt that leaves no manifest."""
    parts: list[PartSum] = []
    """What it was stored in, where the store has parts: what a controller compares before it completes the object."""
    tree: str = ""
    """Root of the tree over its frames (`agent.sealing.merkle`), hex, which tells nothing of the plaintext; or ""."""
    frames: int = 0
    """How many frames, and leaves."""


class Head(Record, tag="head", frozen=True, forbid_unknown_fields=True):
    """Where the custody log stood, told while an object takes long: a log that is cut later does not reach it."""

    run: str
    attempt: int
    seq: int
    prev: str
    custody: str
    lines: int
    told: str


def parse_record(body: bytes, what: str) -> Plan | Whole | Head:
    """A progress record from its canonical bytes. Raises `DamagedError`."""
    kinds: dict[bytes, type[Plan | Whole | Head]] = {b"plan": Plan, b"head": Head}
    return decode(body, kinds.get(body[9:13], Whole), what)


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    size: int
    parts: list[PartSum] = []
    tree: str = ""
    """As in `Whole`, for every sealed object."""
    frames: int = 0


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto resource descriptor: one object of the store."""

    name: str
    digest: Digest
    annotations: Size


class Acquisition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicate: what was done, in what may be public."""

    run: str
    case: str
    host: str
    attempt: int
    outcome: str
    """complete, gaps, stopped or failed."""
    signer: str
    started: str
    ended: str
    tool: str
    authority: str
    recipients: list[str]
    items: int
    members: int
    gaps: int
    flags: int
    manifest_sha256: str
    """Of the plaintext of this attempt's manifest."""
    custody_head: str
    custody_lines: int
    earlier: list[str]
    """Signers of the attempts before, in order."""
    finished: bool
    """Whether this attempt ended the run: only then it is the run's receipt."""
    strays: list[str]
    """Objects that lay in the store when this attempt began and that no signed record named. Nobody vouches for what
    they hold: they are listed so that they are seen, and nothing opens them."""


_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SIGNER = re.compile(r"ed25519:[0-9a-f]{64}")
OUTCOMES = ("complete", "gaps", "stopped", "failed")


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run's id."""
    return _RUN.fullmatch(text) is not None


_CONTINUED = re.compile(r"(.+)\.[0-9]{4,}(?:-[0-9]+)?\.zst\.age")


def items_of(objects: Collection[str]) -> int:
    """How many items these whole objects are: what an item goes on in (`NAME.0002.zst.age`) is no other item.

    By their names alone, which is all that is known without a key; a name so long that it had to be cut counts again.
    """
    there = set(objects)
    return sum(not ((match := _CONTINUED.fullmatch(name)) and f"{match[1]}.zst.age" in there) for name in there)


def is_sound(said: Acquisition) -> bool:
    """Whether the fields are of the form that impound writes: what a stranger signed is printed, too."""
    return (
        is_run_id(said.run)
        and all(len(text) <= 100 and _COMPONENT.fullmatch(text) for text in (said.case, said.host))
        and said.outcome in OUTCOMES
        and (not said.finished or said.outcome in OUTCOMES[:2])
        and all(_SIGNER.fullmatch(signer) for signer in (said.signer, *said.earlier))
        and all(len(text) <= 100 for text in (said.started, said.ended, said.tool, said.authority))
        and 1 <= said.attempt <= 1_000_000
        and min(said.items, said.members, said.gaps, said.flags, said.custody_lines) >= 0
        and said.strays == sorted(set(said.strays))
    )


_ROOT = re.compile(r"[0-9a-f]{64}")


def is_tree(said: Whole | Size) -> bool:
    """Whether what is said of the tree over an object's frames can be: all or nothing, and fewer frames than bytes."""
    return (not said.tree and not said.frames) or bool(_ROOT.fullmatch(said.tree) and 1 <= said.frames <= said.size)


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto Statement v1: the receipt."""

    kind: str = msgspec.field(name="_type")
    subject: list[Subject] = msgspec.field()
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: Acquisition = msgspec.field()
