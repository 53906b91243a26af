"""The job: what a run is asked to do. On a host it arrives on standard input, never in arguments or the environment."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from agent.errors import UsageError

MAX_JOB = 16 << 20
PROFILES = ("full", "memory", "containers", "triage")
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_KMS_KEY = re.compile(r"[A-Za-z0-9:/_-]{1,2048}")
_CASE = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")

_DIFF_ID = re.compile(r"sha256:[0-9a-f]{64}")
Positive = Annotated[int, msgspec.Meta(ge=1)]


# A signed plan holds these, and is accepted only in the very bytes that writing it again gives: a field that a later
# version adds must not be among them where nobody asked for it.
class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is taken. Empty lists mean everything that the profile holds."""

    profile: str = "full"
    only: list[str] = []
    skip: list[str] = []
    containers: list[str] = []
    pids: list[Positive] = []
    layers: str = "all"
    known_layers: Annotated[list[str], msgspec.Meta(max_length=100_000)] = []
    """With `changed`: DiffIDs of layers that are known, and left out where they are proved to be unchanged."""
    freeze: bool = False
    """Containers are held still while their processes are read, seconds at a time."""
    fault_in: bool = False
    """Pages of processes are read, too, that were not in memory."""
    remote: bool = False
    """Filesystems that may never answer, and lie on servers or in programs, are read where containers mount them."""


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which machine: a mounted disk, the live host seen from a pod, the container itself, or (all empty) this one."""

    root: str = ""
    live_root: str = ""
    inside: bool = False


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the run may cost."""

    deadline_s: Positive | None = None
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10
    io: str = "low"
    """I/O class: low (best effort, last), idle, or normal (as it was started)."""
    max_memory_mib: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] | None = None
    """Resident. 128 into a directory and 256 into S3 where it is not given."""
    max_mbit: Positive | None = None
    """Of what is stored, in 10^6 bits a second."""
    max_cpu: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """Percent of one core."""


class S3(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an evidence bucket is reached. Holds no secret: a job is stored, sealed, in the run that it describes."""

    endpoint_url: str = ""
    region: str = ""
    ca_bundle: str = ""
    """PEM certificates, the text itself: the machine's own files are not asked."""
    bucket_owner: str = ""
    """Twelve digits: the account that must own the bucket."""
    sse_kms_key: str = ""
    authority: str = ""
    """session, broker or ambient (`agent.stores.s3.authority`)."""


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
    tree: str = ""
    """Root of the tree over its frames, hex, and how many frames, as they were signed; or nothing."""
    frames: int = 0


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something else that an earlier attempt left in the store."""

    object: str
    size: int
    sha256: str
    tree: str = ""
    frames: int = 0


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
    s3: S3 = S3()
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
    _check_layers(job.selection)
    chosen = [name for name, value in (("--root", job.where.root), ("--live-root", job.where.live_root)) if value]
    if len(chosen) > 1 or (chosen and job.where.inside):
        raise UsageError("--root, --live-root and --inside exclude each other")
    check_s3(job.s3)
    if not job.recipients:
        raise UsageError("no recipient: give --recipient age1… (`impound keygen` makes a key pair)")
    return job


def _check_layers(selection: Selection) -> None:
    if selection.layers not in {"all", "upper", "changed"}:
        raise UsageError(f"--layers is all, upper or changed, not {selection.layers!r}")
    strange = next((one for one in selection.known_layers if not _DIFF_ID.fullmatch(one)), None)
    if strange is not None:
        raise UsageError(f"a known layer is sha256: and 64 digits, not {strange[:80]!r}")
    if selection.layers == "changed" and not selection.known_layers:
        raise UsageError("--layers changed leaves out layers that you know: name them with --known-layers FILE")
    if selection.layers != "changed" and selection.known_layers:
        raise UsageError("--known-layers is for --layers changed")


def check_destination_name(to: str) -> None:
    """The form of a destination; whether it can be written to is the store's to say."""
    try:
        to.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the destination has a name that is not UTF-8") from None
    if to == "-":  # the other end of the channel
        return
    if not (to.startswith(("/", "s3://")) and to.isprintable()):
        raise UsageError(f"the destination {to[:80]!r} is no absolute path without control characters")


def check_s3(s3: S3) -> S3:
    """How a bucket is reached, as far as its form goes. Raises `UsageError`, without the URL: it can hold secrets."""
    if s3.endpoint_url and not _is_endpoint(s3.endpoint_url):
        raise UsageError("--endpoint-url is https://HOST[:PORT], with no user, password or query in it")
    if s3.bucket_owner and not _OWNER.fullmatch(s3.bucket_owner):
        raise UsageError("--bucket-owner is the id of the account that owns the bucket: twelve digits")
    if s3.region and not _REGION.fullmatch(s3.region):
        raise UsageError(f"--region is written like eu-central-1, not {s3.region[:40]!r}")
    if s3.sse_kms_key and not _KMS_KEY.fullmatch(s3.sse_kms_key):
        raise UsageError("--sse-kms-key is the ARN of a KMS key: arn:aws:kms:REGION:ACCOUNT:key/ID")
    return s3


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return bool(
        url.isprintable()
        and " " not in url
        and parts.scheme in {"https", "http"}
        and parts.hostname
        and "@" not in parts.netloc
        and not (parts.query or parts.fragment)
        and port != 0
    )


def check_case(case: str) -> str:
    if not _CASE.fullmatch(case):
        raise UsageError(f"the case id {case[:80]!r} is not 1 to 64 of A-Z a-z 0-9 . _ - without a leading dot")
    return case
