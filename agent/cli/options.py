"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.errors import SourceError, UsageError
from agent.job import Selection, Where, check_case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.sealing import Identity
    from agent.stores.directory import DirectorySource

F = TypeVar("F", bound="Callable[..., Any]")

MAX_KEY_FILE = 1 << 20


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
                help="Image layers: all, or only what containers wrote.",
            ),
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
    if any(pid < 1 for pid in pids):
        raise UsageError("a process id is a positive number")
    chosen = Selection(
        profile=values.pop("profile"),
        only=list(values.pop("only")),
        skip=list(values.pop("skip")),
        containers=list(values.pop("containers")),
        pids=list(pids),
        layers=values.pop("layers"),
    )
    where = Where(
        root=_utf8(values.pop("root"), "--root"),
        live_root=_utf8(values.pop("live_root"), "--live-root"),
        inside=values.pop("inside"),
    )
    return chosen, where


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


def parse_case(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    return None if value is None else check_case(value)


def parse_duration(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Seconds from `90`, `90s`, `30m`, `2h`."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,6})([smh]?)", value.strip())
    if not match:
        raise UsageError(f"a duration is written 90s, 30m or 2h, not {value!r}")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


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
    """The keys that open evidence. Raises `UsageError`."""
    from agent.sealing import parse_identity_file

    found: list[Identity] = []
    for path in paths:
        found += parse_identity_file(read_key_file(path, "identity file"))
    return found


def one_run(source: str) -> DirectorySource:
    """The one run at or below SRC. Raises `SourceError` when there is none, `UsageError` when there are more."""
    from agent.stores.directory import DirectorySource, find_runs

    runs = find_runs(source)
    if not runs:
        raise SourceError(f"there is no run in {source!r}")
    if len(runs) > 1:
        raise UsageError(f"there are {len(runs)} runs in {source!r}: name one, such as {runs[-1]}")
    return DirectorySource(runs[0])
