"""How many threads there are by default, and that they work."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agent.sealing.attendance import Attendance
from agent.sealing.cores import MAX_WORKERS, cpu_quota, default_workers

CORES = len(os.sched_getaffinity(0))


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "fs", tmp_path / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        # A container that sees its own cgroup at the top, and the path of the host.
        ("0::/kubepods/pod1/c1\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        # What makes no sense is no limit, and nothing is looked for outside.
        ("0::/../../x\n", {"cpu.max": "100000 0\n", "x/cpu.max": "1 1\n"}, None),
        ("0::/\n", {"cpu.max": "9" * 5000 + " 1\n"}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
        ("garbage\n\x00::\n", {}, None),
    ],
)
def test_the_quota_of_the_cgroup(membership: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    cgroups, of_process = cgroup(tmp_path, membership, files)
    assert cpu_quota(cgroups=cgroups, membership=of_process) == quota
    expected = CORES if quota is None else min(CORES, max(1, int(quota + 0.999)))
    assert default_workers(cgroups=cgroups, membership=of_process) == min(expected, MAX_WORKERS)


def test_the_default_is_within_its_bounds() -> None:
    assert 1 <= default_workers() <= min(CORES, MAX_WORKERS)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.wall = self.cpu = 100.0

    def monotonic(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.cpu


def spend(attendance: Attendance, clock: Clock, blocks: int, *, waiting: float, working: float, inside: float) -> bool:
    for _ in range(blocks):
        attendance.leaves()
        clock.wall += waiting + working
        clock.cpu += working
        attendance.comes()
        clock.wall += inside  # waiting for room is no waiting for the source
    return attendance.away


def test_a_reader_that_waits_is_away_and_one_that_works_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("agent.sealing.attendance.time", clock)
    attendance = Attendance()
    assert not spend(attendance, clock, 50, waiting=0, working=0.001, inside=0.001)
    assert not spend(attendance, clock, 1, waiting=0.01, working=0.001, inside=0.001)  # once is no habit
    assert spend(attendance, clock, 20, waiting=0.002, working=0.001, inside=0.001)
    assert spend(attendance, clock, 20, waiting=0.001, working=0.001, inside=0.003)  # in between nothing changes
    assert not spend(attendance, clock, 20, waiting=0.0001, working=0.001, inside=0.001)
    assert not spend(attendance, clock, 50, waiting=0, working=0, inside=0.001)


def test_another_thread_is_no_reader_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("agent.sealing.attendance.time", clock)
    attendance = Attendance()
    for _ in range(20):
        attendance.leaves()
        clock.wall += 0.01
        thread = threading.Thread(target=attendance.comes)
        thread.start()
        thread.join()
    assert not attendance.away
