"""Counting what was refused; keeping executables open within a bound."""

from __future__ import annotations

import os
from pathlib import Path

from acquirers.base import Gap, Reason
from acquirers.snapshot.gaps import DENIED_NAMED, NAMED, GapCount
from acquirers.snapshot.holdings import MAX_PATHS, Holdings
from acquirers.snapshot.notes import Executable
from tests.unit.snapshot.helpers import Remembered, open_files


def test_what_one_process_refuses_is_one_gap_with_its_name() -> None:
    report = Remembered()
    gaps = GapCount(report)
    gaps.denied(1194, b"name\n\x1b", ["cwd", "environ", "exe"])
    gaps.denied(7, b"quiet", [])
    gaps.finish()
    assert report.gaps == [
        Gap(Reason.DENIED, "pid 1194 (name\\n\\x1b): cwd, environ, exe: permission denied", b"/proc/1194")
    ]


def test_what_many_processes_refuse_is_counted() -> None:
    report = Remembered()
    gaps = GapCount(report)
    for pid in range(312):
        gaps.denied(pid, b"", ["environ"])
    gaps.denied(500, b"x", ["fd", "environ"])
    gaps.finish()
    assert len(report.gaps) == DENIED_NAMED + 1
    assert report.gaps[0] == Gap(Reason.DENIED, "pid 0: environ: permission denied", b"/proc/0")
    assert report.gaps[-1] == Gap(Reason.DENIED, "308 more processes: environ of 308, fd of 1: permission denied")
    assert gaps.denied_counts == {"environ": 313, "fd": 1}


def test_the_first_of_a_kind_are_named_and_the_rest_counted() -> None:
    report = Remembered()
    gaps = GapCount(report)
    for pid in range(1000):
        gaps.one("cmdline", Gap(Reason.LIMIT, "cmdline is longer", b"/proc/%d" % pid))
    gaps.one("environ", Gap(Reason.LIMIT, "environ is longer", b"/proc/1"))
    gaps.finish()
    assert len(report.gaps) == NAMED + 2
    assert report.gaps[-1] == Gap(Reason.LIMIT, f"cmdline: {1000 - NAMED} more")


def executable(ino: int, path: bytes = b"/bin/x", nlink: int = 1) -> Executable:
    return Executable(dev=1, ino=ino, path=path, comm=b"x", size=10, nlink=nlink)


def test_one_file_is_held_once_however_many_run_it() -> None:
    before = open_files()
    held = Holdings(limit=10)
    for pid in range(100):
        fd = os.open("/dev/null", os.O_RDONLY) if pid < 3 else -1
        held.add(pid, executable(7, b"/%d" % pid), fd)
    (one,) = held.files()
    assert one.pids == list(range(100))
    assert len(one.paths) == MAX_PATHS
    assert (held.room, held.known) == (9, frozenset({(1, 7)}))
    assert open_files() == before + 1
    held.close()
    assert open_files() == before


def test_room_is_half_of_what_the_process_may_open(tmp_path: Path) -> None:
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < Holdings().room <= soft // 2


def test_what_could_not_be_opened_at_first_is_taken_when_it_comes() -> None:
    held = Holdings(limit=2)
    held.add(1, executable(7), -1)
    assert held.known == frozenset()
    held.add(2, executable(7), os.open("/dev/null", os.O_RDONLY))
    assert held.known == {(1, 7)}
    held.release(held.files()[0])
    held.release(held.files()[0])
    assert held.room == 2
    held.close()
