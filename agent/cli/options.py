"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli import places
from agent.errors import UsageError
from agent.job import Job, Selection, Where, check_case, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.job import S3
    from agent.sealing import Identity
    from agent.stores.sources import OpenSource

F = TypeVar("F", bound="Callable[..., Any]")

MAX_KEY_FILE = 1 << 20
_MAX_LAYERS = 8 << 20
"""Characters of a file of known layers."""


def selection(function: F) -> F:
    """SELECTION and where."""
    for option in reversed(
        (
            click.option(
                "--profile",
                default="full",
                show_default=True,
                metavar="full|memory|containers|triage",
                help="Which acquirers; triage is everything but memory and image layers.",
            ),
            click.option(
                "--only", multiple=True, metavar="ACQUIRER", help="Only this acquirer, or all under a prefix."
            ),
            click.option("--skip", multiple=True, metavar="ACQUIRER", help="All but this one."),
            click.option("--container", "containers", multiple=True, metavar="ID|NAME", help="Only this container."),
            click.option("--pid", "pids", multiple=True, type=int, metavar="PID", help="Only this process."),
            click.option(
                "--layers",
                default="all",
                show_default=True,
                metavar="all|upper|changed",
                help="Image layers: all, none but what containers wrote, or all but known ones that are unchanged.",
            ),
            click.option(
                "--known-layers",
                metavar="FILE",
                help="With --layers changed: DiffIDs of published layers, one to a line.",
            ),
            click.option("--freeze", is_flag=True, help="Hold containers still while their processes are read."),
            click.option("--fault-in", is_flag=True, help="Read pages of processes that were not in memory, too."),
            click.option("--remote", is_flag=True, help="Read what containers mount from servers, NFS or FUSE, too."),
            click.option("--root", default="", metavar="DIR", help="A mounted disk instead of this machine."),
            click.option("--live-root", default="", metavar="DIR", help="The live host, seen from a privileged pod."),
            click.option("--inside", is_flag=True, help="The container that impound runs in."),
        )
    ):
        function = option(function)
    return function


def make_selection(values: dict[str, Any]) -> tuple[Selection, Where]:
    """Takes the options of `selection` out of a verb's values. Raises `UsageError`."""
    pids = values.pop("pids")
    if not all(0 < pid < 1 << 31 for pid in pids):
        raise UsageError("a process id is a positive number")
    for option, names in (("--only", "only"), ("--skip", "skip"), ("--container", "containers")):
        if not all(name.strip() for name in values[names]):
            raise UsageError(f"{option} is empty: it wants a name")
    chosen = Selection(
        profile=values.pop("profile"),
        only=list(values.pop("only")),
        skip=list(values.pop("skip")),
        containers=list(values.pop("containers")),
        pids=list(pids),
        layers=values.pop("layers"),
        known_layers=_read_layers(values.pop("known_layers")),
        freeze=values.pop("freeze"),
        fault_in=values.pop("fault_in"),
        remote=values.pop("remote"),
    )
    where = Where(
        root=_utf8(values.pop("root"), "--root"),
        live_root=_utf8(values.pop("live_root"), "--live-root"),
        inside=values.pop("inside"),
    )
    # What a job's selection must be holds for a plan as well: the rest of this job is of no account.
    validate(Job(case="plan", to="/", recipients=["none"], selection=chosen, where=where))
    return chosen, where


def read_recipients_files(paths: Sequence[str]) -> list[str]:
    """Public keys, one to a line; lines that begin with # are comments. Raises `UsageError`, also for an empty file."""
    from agent.sealing import parse_recipient

    found: list[str] = []
    for path in paths:
        lines = [line.strip() for line in read_key_file(path, "recipients file").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise UsageError(f"the recipients file {path!r} holds no key: one to a line, age1…")
        for key in keys:
            try:
                parse_recipient(key)
            except UsageError as error:
                raise UsageError(f"in the recipients file {path!r}: {error}") from error
        found += keys
    return found


def check_own_keys(recipients: Sequence[str]) -> None:
    """Refuses what an example says in place of a key. Raises `UsageError`."""
    for text in recipients:
        if "..." in text or "…" in text:
            raise UsageError("age1... stands for a public key of your own: `impound keygen -o case.key` makes one")


def _read_layers(path: str | None) -> list[str]:
    """Digests, one to a line; what follows a blank is a comment."""
    if not path:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_LAYERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UsageError(f"the file of known layers {path!r} cannot be read: {why}") from error
    if len(text) > _MAX_LAYERS:
        raise UsageError(f"the file of known layers {path!r} is larger than {_MAX_LAYERS} bytes")
    words = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [word if word.startswith("sha256:") else f"sha256:{word}" for word in dict.fromkeys(words)]


def _utf8(text: str, option: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{option} has a name that is not UTF-8: reach it under another one") from None
    return text


json_option = click.option("--json", "as_json", is_flag=True, help="Only JSON on standard output.")
identity_option = click.option(
    "--identity", "-i", "identities", multiple=True, metavar="FILE", help="Key file; repeated ones add up."
)


signer_option = click.option(
    "--signer", "signers", multiple=True, metavar="KEY", help="The signer that must have signed (ed25519:…)."
)
receipt_option = click.option(
    "--receipt-sha256", "receipts", multiple=True, metavar="HEX", help="The receipt that it must be."
)


def parse_pins(signers: Sequence[str], receipts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Signers and receipts that a person gives. Raises `UsageError`."""
    from agent.custody.signing import parse_signer

    digests = [text.strip().lower() for text in receipts]
    if not all(re.fullmatch(r"[0-9a-f]{64}", text) for text in digests):
        raise UsageError("--receipt-sha256 is 64 hex digits, as the result of `acquire` prints it")
    return [parse_signer(text) for text in signers], digests


def parse_once(_context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option of which two would contradict each other."""
    if len(values) > 1:
        raise UsageError(f"{option.opts[0]} was given {len(values)} times: which one is meant?")
    return values[0] if values else None


def parse_case(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    value = parse_once(context, option, values)
    return None if value is None else check_case(value)


case_option = click.option(
    "--case", multiple=True, callback=parse_case, metavar="ID", help="Case id: 1 to 64 of A-Z a-z 0-9 . _ -"
)


def destination_option(words: str) -> Callable[[F], F]:
    """Where the run is stored."""
    return click.option("--to", multiple=True, callback=parse_once, metavar="DEST", help=words)


def parse_duration(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Seconds from `90`, `90s`, `30m`, `2h`."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,6})([smh]?)", value.strip())
    if not match:
        raise UsageError(f"a duration is written 90s, 30m or 2h, not {value!r}")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_range(text: str | None) -> tuple[int, int] | None:
    """First and last byte of a range, both included, as a person gives it. Raises `UsageError`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,18})-(\d{1,18})", text)
    if not match or int(match[1]) > int(match[2]):
        raise UsageError("--range is A-B: first and last byte, A not beyond B")
    return int(match[1]), int(match[2])


def read_key_file(path: str, what: str) -> str:
    """The text of a small key file. Raises `UsageError`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise UsageError(f"the {what} {path!r} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"the {what} {path!r} is not a text file") from None
    if len(data) > MAX_KEY_FILE:
        raise UsageError(f"the {what} {path!r} is too large to be one")
    return text


def read_identities(paths: Sequence[str]) -> list[Identity]:
    """The keys that open evidence, those that a service is asked for last. Raises `UsageError`."""
    from agent.sealing import KmsIdentity, parse_identity_file

    found: list[Identity] = []
    for path in paths:
        try:
            found += parse_identity_file(read_key_file(path, "identity file"))
        except UsageError as error:
            raise UsageError(f"{path!r}: {error}" if repr(path) not in str(error) else str(error)) from error
    return sorted(found, key=lambda identity: isinstance(identity, KmsIdentity))


def one_run(source: str, s3: S3 | None = None) -> OpenSource:
    """The one run at or below SRC. Raises `SourceError` when there is none, `UsageError` when there are more."""
    from agent.stores.sources import find_runs, open_source

    places.check_source(source)
    if os.path.isfile(source):
        raise places.no_run(source)
    runs = find_runs(source, s3)
    if not runs:
        raise places.no_run(source)
    if len(runs) > 1:
        raise UsageError(f"there are {len(runs)} runs in {source!r}: name one, such as {runs[-1].location}")
    return open_source(runs[0])
