"""A filesystem whose server hangs, under a process that runs from it: the snapshot goes on, and says what it lacks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquirers.base import Reason, Scope
from acquirers.snapshot import Executables, Processes, watch
from acquirers.snapshot.watch import Patience, Watch
from tests.unit.snapshot import deadfs
from tests.unit.snapshot.helpers import (
    NO_SCOPE,
    Remembered,
    content,
    here,
    in_own_mounts,
    may_administer,
    process,
    records,
    running,
    snapshot,
    until,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not may_administer(), reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse"),
]
PATIENCE = Patience(first=0.5)


@contextlib.contextmanager
def served(tmp_path: Path) -> Iterator[tuple[Path, int, int]]:
    """A program on a FUSE filesystem, which runs, and the pid of its daemon."""
    point = tmp_path / "mnt"
    point.mkdir()
    with running([sys.executable, deadfs.__file__, point, "/bin/cat"], ready=b"ready") as daemon:
        program, (reading, writing) = point / "program", os.pipe()
        try:
            os.write(writing, b"ready\n")
            with running([program, "-u", "-"], stdin=reading, ready=b"ready") as child:
                try:
                    yield program, child.pid, daemon.pid
                finally:
                    daemon.kill()  # the kernel gives up what is asked of it
        finally:
            os.close(reading)
            os.close(writing)
            until(reaped)


def reaped() -> bool:
    """Whoever was left behind ends when the kernel lets go, and is taken off the process table with the next run."""
    nothing: Watch[str] = Watch(lambda _: iter(()), patience=PATIENCE)
    list(nothing.run(["nothing"]))
    return not watch._left_behind


@in_own_mounts
def test_an_executable_on_a_dead_filesystem(tmp_path: Path) -> None:
    processes = Processes(PATIENCE)
    with served(tmp_path) as (program, child, daemon), running(["sleep", "60"]) as other:
        os.kill(daemon, signal.SIGUSR1)
        report = Remembered()
        started = time.monotonic()
        lines = snapshot(here(), Scope(pids=(child, other.pid)), report, processes)
        assert time.monotonic() - started < 5
        found = process(lines, child)
        assert found["not_read"] == ["executable"]
        assert found["exe"] == str(program)
        assert found["cmdline"][1:] == ["-u", "-"]
        assert "environ" in found
        assert "not_read" not in process(lines, other.pid)
        assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.STUCK, b"/proc/%d" % child)]
        assert [held.comm for held in processes.holdings.files()] == [b"sleep"]
        left = {Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in watch._left_behind}
        assert left == {"D"}, "the reading child is beyond the reach of SIGKILL, and nobody waits for it"
        processes.close()


@in_own_mounts
def test_a_filesystem_that_dies_before_the_hashing(tmp_path: Path) -> None:
    """What lies on FUSE is not held: closing it would ask the daemon, and the agent could hang in its own exit."""
    processes = Processes(PATIENCE)
    with served(tmp_path) as (program, child, daemon), running(["sleep", "60"]) as other:
        snapshot(here(), Scope(pids=(child, other.pid)), processes=processes)
        assert sorted(held.fd >= 0 for held in processes.holdings.files()) == [False, True]
        os.kill(daemon, signal.SIGUSR1)
        report = Remembered()
        started = time.monotonic()
        (item,) = Executables(processes, PATIENCE).items(here(), NO_SCOPE)
        table = {line["path"]: line for line in records(content(item, report))}
        assert time.monotonic() - started < 5
        assert table[str(program)]["sha256"] is None
        assert sum(line["sha256"] is not None for line in table.values()) == 1
        assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.STUCK, os.fsencode(program))]


@in_own_mounts
def test_a_filesystem_that_answers_is_read_like_any_other(tmp_path: Path) -> None:
    processes = Processes()
    with served(tmp_path) as (_, child, _):
        snapshot(here(), Scope(pids=(child,)), processes=processes)
        report = Remembered()
        (item,) = Executables(processes).items(here(), NO_SCOPE)
        (line,) = records(content(item, report))
        assert len(line["sha256"]) == 64
        assert report.gaps == []
