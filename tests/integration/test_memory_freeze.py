"""`--freeze`, from the command line to the manifest, on control groups of both versions: what is read stood still.

The process that is read counts as fast as it can, into the first and into the last page of a large area. Where it stood
still, both pages say the same.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Scope
from acquirers.memory import freezer
from acquirers.memory.process import ProcessMemory
from acquirers.memory.process import windows as process_windows
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen
from tests.unit.memory.process.helpers import HERE, Core, Remembered, running, state, table

pytestmark = pytest.mark.root

HIERARCHIES = {1: Path("/sys/fs/cgroup/freezer"), 2: Path("/sys/fs/cgroup/unified")}
if not HIERARCHIES[2].is_dir():
    HIERARCHIES[2] = Path("/sys/fs/cgroup")
SIZE = 64 << 20

COUNTER = """
import ctypes, mmap, os, socket, sys, tempfile
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
size = int(sys.argv[2])
area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block = os.urandom(1 << 20)
for at in range(0, size, len(block)):
    area[at : at + len(block)] = block
held = tempfile.TemporaryFile()
held.write(b"nobody's name")
held.flush()
listening = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listening.getsockname())
there, _ = listening.accept()
print(os.getpid(), ctypes.addressof(ctypes.c_char.from_buffer(area)), listening.getsockname()[1], flush=True)
words, told, last, n = memoryview(area).cast("Q"), memoryview(shared).cast("Q"), (size - 4096) // 8, 0
while True:
    n += 1
    words[0] = n
    words[last] = n
    told[0] = n
"""


@dataclass
class Busy:
    """A process in a container's control group, which counts."""

    pid: int
    group: Path
    version: int
    shared: Path
    area: int
    port: int

    def count(self) -> int:
        return int.from_bytes(self.shared.read_bytes()[:8], "little")

    def moves(self, seconds: float = 0.2) -> bool:
        before = self.count()
        time.sleep(seconds)
        return self.count() != before

    def frozen(self) -> bool:
        """It stands still, as the kernel says."""
        if self.version == 2:
            return "frozen 1" in (self.group / "cgroup.events").read_text()
        return (self.group / "freezer.state").read_text().strip() == "FROZEN"

    def thaw(self) -> None:
        if self.version == 2:
            (self.group / "cgroup.freeze").write_text("0")
        else:
            (self.group / "freezer.state").write_text("THAWED")

    def counters(self, core: Core) -> tuple[int, int]:
        first, last = core.at(self.area, 8), core.at(self.area + SIZE - 4096, 8)
        assert first is not None
        assert last is not None
        return int.from_bytes(first, "little"), int.from_bytes(last, "little")


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Busy]:
    if os.geteuid():
        pytest.skip("needs root")
    version: int = request.param
    base = HIERARCHIES[version]
    if not (base / "cgroup.procs").exists():
        pytest.skip(f"needs control groups of version {version} with a freezer")
    parent = base / f"impound-test-{secrets.token_hex(4)}"
    group = parent / secrets.token_hex(32)
    group.mkdir(parents=True)
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(8))
    made = Busy(0, group, version, shared, 0, 0)
    try:
        with running([sys.executable, "-c", COUNTER, str(shared), str(SIZE)]) as target:
            (group / "cgroup.procs").write_text(str(target.pid))
            made = Busy(target.pid, group, version, shared, *target.said)
            try:
                wait_for(made.moves)
                yield made
            finally:
                made.thaw()
    finally:
        for directory in (group, parent):
            for _ in range(200):
                try:
                    directory.rmdir()
                    break
                except OSError:
                    time.sleep(0.01)


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@dataclass
class Run:
    """One run that was opened again."""

    result: dict[str, Any]
    manifest: list[dict[str, Any]]
    core: Core
    table: list[dict[str, Any]]
    out: Path

    def flags(self) -> list[str]:
        return [one["detail"] for one in self.manifest if one["type"] == "flag"]

    def windows(self) -> list[dict[str, Any]]:
        """As the manifest lists them."""
        (item,) = [
            one for one in self.manifest if one["type"] == "item" and one["item"] == "memory/process/processes.jsonl"
        ]
        found: list[dict[str, Any]] = item["about"].get("windows", [])
        return found


class Agent:
    """`impound acquire --only memory.process --pid N --freeze` as a process of its own."""

    def __init__(self, busy: Busy, tmp_path: Path, *, prefix: tuple[str, ...] = (), freeze: bool = True) -> None:
        self.key, recipient = keygen(tmp_path)
        self.to, self.out = tmp_path / "ev", tmp_path / "opened"
        command = [*prefix, *agent_command(), "acquire", "--case", "C-1", "--to", str(self.to), "-r", recipient]
        command += ["--only", "memory.process", "--pid", str(busy.pid), *(["--freeze"] if freeze else [])]
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self) -> Run:
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode in {0, 1}, err
        result = json.loads(out.splitlines()[-1])
        assert impound("open", self.to, "-i", self.key, "-o", self.out)[0] == 0
        manifest = [json.loads(one) for one in (self.out / "attempt-1/manifest.jsonl").read_text().splitlines()]
        (core,) = self.out.glob("memory/process/*.core")
        lines = table((self.out / "memory/process/processes.jsonl").read_bytes())
        return Run(result, manifest, Core(core.read_bytes()), lines, self.out)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


def test_it_is_read_while_it_stands_still(busy: Busy, tmp_path: Path) -> None:
    run = Agent(busy, tmp_path).finish()
    assert busy.moves()
    assert not busy.frozen()
    first, last = busy.counters(run.core)
    (window,) = run.windows()
    assert first - last in {0, 1}
    assert window["version"] == busy.version
    assert window["container"] == busy.group.name
    assert window["pid"] == busy.pid
    assert 0 < window["frozen_ms"] <= window["held_ms"] <= 5000
    assert (window["thawed_by"], window["ended"], window["new"]) == ("agent", 0, 0)
    assert [one for one in run.table if one["type"] == "freeze"] == [window]
    assert [{**one, "read": 0} for one in run.core.lines if one["type"] == "freeze"] == [{**window, "read": 0}]
    assert run.core.process["frozen"] == "while it was read"
    assert run.core.process["registers"] == "all"
    assert run.result["frozen"].endswith(" s; no process of it ended")
    assert run.flags() == []


def test_descriptors_and_sockets_are_of_the_same_moment(busy: Busy, tmp_path: Path) -> None:
    run = Agent(busy, tmp_path).finish()
    (held,) = [one for one in run.core.lines if one["type"] == "descriptors"]
    assert held["pid"] == busy.pid
    kinds = [one["kind"] for one in held["fds"]]
    assert (kinds.count("socket"), kinds.count("deleted")) == (3, 1)
    sockets = [one for one in run.core.lines if one["type"] == "socket"]
    assert sorted(one["state"] for one in sockets) == ["ESTABLISHED", "ESTABLISHED", "LISTEN"]
    assert all(one["holders"][0]["pid"] == busy.pid for one in sockets)
    assert {one["inode"] for one in sockets} == {one["inode"] for one in held["fds"] if one["kind"] == "socket"}
    (archive,) = run.out.glob("memory/process/*.files.tar")
    assert b"nobody's name" in archive.read_bytes()


def test_without_freeze_nothing_is_frozen(busy: Busy, tmp_path: Path) -> None:
    run = Agent(busy, tmp_path, freeze=False).finish()
    assert run.windows() == []
    assert run.core.process["frozen"] == "no"
    assert "frozen" not in run.result
    first, last = busy.counters(run.core)
    assert last > first + 1  # what the other tests compare does differ where nothing stands still


def test_it_runs_on_when_the_agent_is_killed(busy: Busy, tmp_path: Path) -> None:
    agent = Agent(busy, tmp_path)
    try:
        wait_for(busy.frozen)
    finally:
        agent.kill()
    wait_for(lambda: not busy.frozen(), 6)
    assert busy.moves()


@pytest.mark.slow
def test_it_runs_on_when_the_agent_stands_still_itself(busy: Busy, tmp_path: Path) -> None:
    """After five seconds at the latest, whatever keeps the agent from it; and that is told."""
    agent = Agent(busy, tmp_path)
    try:
        wait_for(busy.frozen)
        began = time.monotonic()
        agent.process.send_signal(signal.SIGSTOP)
        assert not busy.moves()
        wait_for(lambda: not busy.frozen(), 6)
        assert 4 < time.monotonic() - began < 6
        assert busy.moves()
        agent.process.send_signal(signal.SIGCONT)
        run = agent.finish()
    finally:
        agent.kill()
    windows = run.windows()
    assert windows[0]["thawed_by"] == "dead-man"
    assert 4900 <= windows[0]["held_ms"] <= 5100
    assert [one["thawed_by"] for one in windows[1:]] == ["agent"] * (len(windows) - 1)
    assert busy.moves()


def test_never_the_group_of_the_agent(busy: Busy, tmp_path: Path) -> None:
    enter = f'echo $$ > {busy.group}/cgroup.procs; exec "$@"'
    agent = Agent(busy, tmp_path, prefix=("/bin/sh", "-c", enter, "sh"))
    seen = []
    while agent.process.poll() is None:
        seen.append(busy.frozen())
        assert len(seen) < 20_000
        time.sleep(0.005)
    run = agent.finish()
    assert not any(seen)
    assert run.windows() == []
    assert run.core.process["frozen"].startswith("no: its control group is impound's own")
    (flag,) = run.flags()
    assert f"process {busy.pid} was not frozen: its control group is impound's own" in flag


# -- more than one window ---------------------------------------------------------------------------------------------


def slowly(busy: Busy, report: Remembered, seconds: float) -> tuple[Core, list[dict[str, Any]]]:
    """Its core, by a reader that takes its time; and what the table says of windows."""
    items = ProcessMemory().items(HERE, Scope(pids=(busy.pid,), freeze=True))
    core = bytearray()
    for chunk in next(items).read(report):
        core += chunk
        time.sleep(seconds)
    *_, last = items
    lines = table(b"".join(bytes(chunk) for chunk in last.read(report)))
    return Core(bytes(core)), [one for one in lines if one["type"] == "freeze"]


def test_what_takes_longer_is_read_in_several_windows(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "WINDOW", 1.0)
    monkeypatch.setattr(freezer, "PAUSE", 0.1)
    report = Remembered()
    core, windows = slowly(busy, report, 0.02)
    assert len(windows) > 1
    assert core.process["frozen"] == f"while it was read, in {len(windows)} windows"
    for before, after in itertools.pairwise(windows):
        ran = (after["asked_ns"] - before["asked_ns"]) / 1e6 - before["held_ms"]
        assert ran >= before["held_ms"]
    assert all(one["held_ms"] <= 1000 and one["thawed_by"] == "agent" and not one["ended"] for one in windows)
    mine = [one for one in core.lines if one["type"] == "freeze"]
    assert sum(one["read"] for one in mine) == core.process["read"] + core.process["missing"]
    assert [one["asked_ns"] for one in mine] == [one["asked_ns"] for one in windows]
    assert not report.gaps
    first, last = busy.counters(core)
    assert last > first + 1  # of another window
    assert busy.moves()


def test_there_is_an_end_to_windows(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "WINDOW", 1.5)
    monkeypatch.setattr(process_windows, "MOST", 1)
    report = Remembered()
    core, windows = slowly(busy, report, 0.03)
    assert len(windows) == 1
    assert core.process["frozen"] == "while its first pages were read"
    (flag,) = report.flags
    assert flag.detail == f"process {busy.pid} was not frozen again: it was frozen 1 times"
    assert core.process["missing"] == 0
    assert busy.moves()


def test_a_container_that_ended_meanwhile_is_told(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a health check kills what did not answer. It is not frozen again."""
    monkeypatch.setattr(freezer, "WINDOW", 0.6)
    monkeypatch.setattr(freezer, "PAUSE", 0.1)
    report = Remembered()
    items = ProcessMemory().items(HERE, Scope(pids=(busy.pid,), freeze=True))
    for number, _ in enumerate(next(items).read(report)):
        if number == 1:
            os.kill(busy.pid, signal.SIGKILL)
        time.sleep(0.005)
    wait_for(lambda: state(busy.pid) in "ZX")
    *_, last = items
    windows: list[dict[str, object]] = last.about["windows"]  # type: ignore[assignment]
    # On a slow machine a second one may have begun before it was killed; what is told is who ended since each.
    assert 1 <= len(windows) <= 2
    assert windows[-1]["ended"] == 1
    assert last.says["frozen"].endswith("; since then 1 process of it ended, 0 new")
    assert only_vanished(report)


def only_vanished(report: Remembered) -> bool:
    return bool(report.gaps) and {str(gap.reason) for gap in report.gaps} == {"vanished"}
