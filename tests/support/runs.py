"""A small run for tests of what lies behind the acquirers: a source whose bytes and gaps a test chooses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from acquirers import registry
from acquirers.base import (
    AcquirerError,
    Availability,
    Flag,
    FlagKind,
    Gap,
    Item,
    Kind,
    Member,
    Reason,
    Report,
    Scope,
    State,
    Subject,
)
from acquirers.syscalls import Stat
from agent.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from acquirers.host import Host

STAT = Stat(0o100644, 0, 0, 5, 1, 7, 8, 0, 1, 2, 3, 4, 8, 0, None)


@dataclass
class Script:
    """What one item does: chunks to yield, gaps and flags to tell, an error to raise."""

    path: str = "containers/docker/one.tar"
    chunks: list[bytes] = field(default_factory=lambda: [b"hello", b"world" * 1000])
    gaps: int = 0
    flags: int = 0
    error: Exception | None = None


class Scripted:
    """An acquirer that plays scripts."""

    name = "containers.docker"

    def __init__(self, scripts: list[Script], reads: tuple[bytes, ...] = ()) -> None:
        self.scripts = scripts
        self.reads = reads
        self.broken: Exception | None = None

    def probe(self, host: Host, scope: Scope) -> Availability:
        return Availability(
            State.AVAILABLE,
            subjects=(Subject("container", "ab" * 32, b"web", "running"),),
            matched=frozenset(one for one in scope.containers if one == "web"),
            reads=self.reads,
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        for script in self.scripts:
            yield Item(script.path, "application/x-tar", partial(_play, script))
        if self.broken is not None:
            raise self.broken


def _play(script: Script, report: Report) -> Iterator[bytes]:
    yield from script.chunks
    report.member(Member(b"/etc/pass\xffwd", Kind.FILE, STAT, sha256=b"\1" * 32, size=5, offset=0))
    for number in range(script.gaps):
        report.gap(Gap(Reason.DENIED, "permission denied", b"/secret/%d" % number, 5))
    for _ in range(script.flags):
        report.flag(Flag(FlagKind.CHANGED, "changed", b"/log"))
    if script.error is not None:
        raise script.error


def play(monkeypatch: pytest.MonkeyPatch, *scripts: Script, reads: tuple[bytes, ...] = ()) -> Scripted:
    """Makes the scripted acquirer the only one of this process."""
    acquirer = Scripted(list(scripts) or [Script()], reads)
    monkeypatch.setattr(registry, "acquirers", lambda: [acquirer])
    return acquirer


def impound(*arguments: str | Path) -> tuple[int, dict[str, object], str]:
    """Runs the command line in this process: exit code, the result line, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    lines = out.getvalue().splitlines()
    if lines:
        assert len(lines[-1]) < 2000
    return code, json.loads(lines[-1]) if lines else {}, err.getvalue()


def keygen(directory: Path) -> tuple[Path, str]:
    """A key file and its recipient."""
    path = directory / "case.key"
    code, result, _ = impound("keygen", "-o", path)
    assert code == 0
    return path, str(result["recipient"])


def acquire(to: Path, recipient: str, *more: str) -> tuple[int, dict[str, object], str]:
    return impound("acquire", "--case", "C-1", "--to", to, "-r", recipient, *more)


def only_run(to: Path) -> Path:
    """The directory of the one run below a destination."""
    [receipt_or_plan] = to.glob("*/*/*/progress/000000.json")
    return receipt_or_plan.parent.parent


def agent_command() -> list[str]:
    """The product as its own process."""
    return [sys.executable, "-m", "agent"]


ENVIRONMENT = {
    "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),  # whatever directory it is started in
}

__all__ = ["AcquirerError", "Script", "Scripted", "acquire", "agent_command", "impound", "keygen", "only_run", "play"]
