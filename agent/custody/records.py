"""What is signed in the clear: the plan, one progress record per whole object, and the receipt.

Nothing here names a file or a digest of plaintext. `prev` chains the progress records: the SHA-256 of the bytes of the
record before, so that none can be left out or put elsewhere.
"""

from __future__ import annotations

import re

import msgspec

from agent.custody.canonical import decode
from agent.job import Job

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://impound.dev/acquisition/v1"

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


class Whole(Record, tag="object", frozen=True, forbid_unknown_fields=True):
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


def parse_record(body: bytes, what: str) -> Plan | Whole:
    """A progress record from its canonical bytes. Raises `DamagedError`."""
    kind: type[Plan | Whole] = Plan if body.startswith(b'{"type":"plan",') else Whole
    return decode(body, kind, what)


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int


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


def is_sound(said: Acquisition) -> bool:
    """Whether the fields are of the form that impound writes: what a stranger signed is printed, too."""
    return (
        _RUN.fullmatch(said.run) is not None
        and all(len(text) <= 100 and _COMPONENT.fullmatch(text) for text in (said.case, said.host))
        and said.outcome in OUTCOMES
        and (not said.finished or said.outcome in OUTCOMES[:2])
        and all(_SIGNER.fullmatch(signer) for signer in (said.signer, *said.earlier))
        and all(len(text) <= 100 for text in (said.started, said.ended, said.tool, said.authority))
        and 1 <= said.attempt <= 1_000_000
        and min(said.items, said.members, said.gaps, said.flags, said.custody_lines) >= 0
        and said.strays == sorted(set(said.strays))
    )


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto Statement v1: the receipt."""

    kind: str = msgspec.field(name="_type")
    subject: list[Subject] = msgspec.field()
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: Acquisition = msgspec.field()
