"""The job: what a run is asked to do. On a host it arrives on standard input, never in arguments or the environment."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from agent.errors import UsageError

MAX_JOB = 16 << 20
PROFILES = ("full", "memory", "containers", "triage")
_CASE = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is taken. Empty lists mean everything that the profile holds."""

    profile: str = "full"
    only: list[str] = []
    skip: list[str] = []
    containers: list[str] = []
    pids: list[Positive] = []
    layers: str = "all"


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which machine: a mounted disk, the live host seen from a pod, the container itself, or (all empty) this one."""

    root: str = ""
    live_root: str = ""
    inside: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the run may cost."""

    deadline_s: Positive | None = None
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10


class WholeObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that an earlier attempt left whole."""

    object: str
    size: int
    sha256: str
    attempt: int
    gaps: int
    flags: int
    members: int
    sealed: str


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something else that an earlier attempt left in the store."""

    object: str
    size: int
    sha256: str


class Earlier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What earlier attempts of the same run left, as the controller read it."""

    run: str
    host: str
    machine: str
    attempt: Positive
    """Of the last one."""
    signers: list[str]
    whole: list[WholeObject]
    listed: list[Stored]
    """What else is vouched for: progress records, and what the receipts of earlier attempts name."""
    strays: list[Stored]
    """What lies in the store and no signed record names."""
    progress: int
    """How many progress records there are."""
    progress_head: str


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A validated job document, version 1."""

    case: str
    to: str
    recipients: list[str]
    version: int = 1
    selection: Selection = Selection()
    where: Where = Where()
    limits: Limits = Limits()
    earlier: Earlier | None = None


def parse(data: bytes) -> Job:
    """A job document from standard input. Raises `UsageError`."""
    if len(data) > MAX_JOB:
        raise UsageError(f"the job is larger than {MAX_JOB} bytes")
    try:
        job = msgspec.json.decode(data, type=Job)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the job is not valid: {error}") from error
    return validate(job)


def validate(job: Job) -> Job:
    """What the types cannot say. Recipients, selection and places are checked where they are used."""
    if job.version != 1:
        raise UsageError(f"the job has version {job.version}; this impound reads version 1")
    check_case(job.case)
    check_destination_name(job.to)
    if job.selection.profile not in PROFILES:
        raise UsageError(f"there is no profile {job.selection.profile!r}: choose one of {', '.join(PROFILES)}")
    if job.selection.layers == "changed":
        raise UsageError("--layers changed needs the proof of image layers, which this version does not have yet")
    if job.selection.layers not in {"all", "upper"}:
        raise UsageError(f"--layers is all, upper or changed, not {job.selection.layers!r}")
    chosen = [name for name, value in (("--root", job.where.root), ("--live-root", job.where.live_root)) if value]
    if len(chosen) > 1 or (chosen and job.where.inside):
        raise UsageError("--root, --live-root and --inside exclude each other")
    if not job.recipients:
        raise UsageError("no recipient: give --recipient age1… (`impound keygen` makes a key pair)")
    return job


def check_destination_name(to: str) -> None:
    """The form of a destination; whether it can be written to is the store's to say."""
    try:
        to.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the destination has a name that is not UTF-8") from None
    if not (to.startswith(("/", "s3://")) and to.isprintable()):
        raise UsageError(f"the destination {to[:80]!r} is no absolute path without control characters")


def check_case(case: str) -> str:
    if not _CASE.fullmatch(case):
        raise UsageError(f"the case id {case[:80]!r} is not 1 to 64 of A-Z a-z 0-9 . _ - without a leading dot")
    return case
