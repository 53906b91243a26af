"""Freezing real control groups, of both versions: what is frozen stands still, and never stays so."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acquirers.host import Host, Mode
from acquirers.memory import freezer
from acquirers.memory.freezer import CannotFreezeError, Freezer

pytestmark = pytest.mark.root

HIERARCHIES = {1: Path("/sys/fs/cgroup/freezer"), 2: Path("/sys/fs/cgroup/unified")}
if not HIERARCHIES[2].is_dir():
    HIERARCHIES[2] = Path("/sys/fs/cgroup")

COUNTER = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
n = 0
while True:
    n += 1
    shared[:8] = n.to_bytes(8, "little")
    time.sleep(0.002)
"""


@dataclass
class Busy:
    """A process in a container's control group, which counts."""

    process: subprocess.Popen[bytes]
    group: Path
    version: int
    shared: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def count(self) -> int:
        return int.from_bytes(self.shared.read_bytes()[:8], "little")

    def moves(self, seconds: float = 0.15) -> bool:
        before = self.count()
        time.sleep(seconds)
        return self.count() != before

    def frozen(self) -> bool:
        if self.version == 2:
            return (self.group / "cgroup.freeze").read_text().strip() == "1"
        return (self.group / "freezer.state").read_text().strip() != "THAWED"

    def freeze(self, *, on: bool) -> None:
        if self.version == 2:
            (self.group / "cgroup.freeze").write_text("1" if on else "0")
        else:
            (self.group / "freezer.state").write_text("FROZEN" if on else "THAWED")


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def busy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Busy]:
    if os.geteuid():
        pytest.skip("needs root")
    version: int = request.param
    file = "cgroup.procs"
    base = HIERARCHIES[version]
    if not (base / file).exists() or (version == 1 and not base.is_dir()):
        pytest.skip(f"needs control groups of version {version} with a freezer")
    parent = base / f"impound-test-{secrets.token_hex(4)}"
    group = parent / secrets.token_hex(32)
    group.mkdir(parents=True)
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(8))
    process = subprocess.Popen([sys.executable, "-c", COUNTER, str(shared)])
    made = Busy(process, group, version, shared)
    try:
        (group / file).write_text(str(process.pid))
        until = time.monotonic() + 10
        while not made.count() and time.monotonic() < until:
            time.sleep(0.01)
        yield made
    finally:
        made.freeze(on=False)
        process.kill()
        process.wait(timeout=10)
        for directory in (group, parent):
            for _ in range(200):
                try:
                    directory.rmdir()
                    break
                except OSError:
                    time.sleep(0.01)


def test_it_stands_still_and_goes_on(busy: Busy) -> None:
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid) as window:
        assert not busy.moves()
        assert 0 < window.left <= freezer.WINDOW
    assert busy.moves()
    assert not busy.frozen()
    line = freezing.windows[0].line()
    assert line["container"] == busy.group.name
    assert line["version"] == busy.version
    assert line["thawed_by"] == "agent"
    assert (line["ended"], line["new"]) == (0, 0)
    assert isinstance(line["held_ms"], float)
    assert 150 <= line["held_ms"] < 5000


def test_it_is_thawed_when_the_time_is_up(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "WINDOW", 0.4)
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid):
        assert not busy.moves()
        time.sleep(0.5)
        assert busy.moves()
    assert freezing.windows[0].by == "dead-man"
    assert 390 <= freezing.windows[0].held_ms < 600


def test_a_pause_lies_between_two_windows(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "PAUSE", 0.3)
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid):
        pass
    ended = time.monotonic()
    with freezing.window(busy.pid):
        assert time.monotonic() - ended >= 0.29


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_thawed_when_impound_is_killed(busy: Busy, number: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "from acquirers.host import Host, Mode\n"
        "from acquirers.memory.freezer import Freezer\n"
        "with Freezer(Host(Mode.HOST)).window(int(sys.argv[1])):\n"
        "    print('frozen', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(busy.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"frozen\n"
        assert busy.frozen()
        os.killpg(agent.pid, number)
        agent.wait(timeout=10)
    until = time.monotonic() + 2
    while busy.frozen() and time.monotonic() < until:
        time.sleep(0.01)
    assert not busy.frozen()
    assert busy.moves()


def test_what_somebody_else_froze_stays_frozen(busy: Busy) -> None:
    busy.freeze(on=True)
    with pytest.raises(CannotFreezeError, match="by somebody else"), Freezer(Host(Mode.HOST)).window(busy.pid):
        pass
    assert busy.frozen()


def test_what_somebody_else_froze_at_the_last_moment_stays_frozen(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_by = freezer._stand_by

    def late(fd: int, off: bytes) -> tuple[tuple[int, int], int]:
        found = stand_by(fd, off)
        busy.freeze(on=True)
        return found

    monkeypatch.setattr(freezer, "_stand_by", late)
    freezing = Freezer(Host(Mode.HOST))
    with pytest.raises(CannotFreezeError, match="by somebody else"), freezing.window(busy.pid):
        pass
    assert busy.frozen()
    assert freezing.windows == []


def test_what_is_in_no_container_is_not_frozen() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(CannotFreezeError, match="in no container"):
                Freezer(Host(Mode.HOST)).group_of(process.pid)
        finally:
            process.kill()


def test_its_own_group_is_never_frozen(busy: Busy) -> None:
    code = (
        "import sys\n"
        "from acquirers.host import Host, Mode\n"
        "from acquirers.memory.freezer import CannotFreezeError, Freezer\n"
        "open(sys.argv[2], 'w').write('0')\n"
        "try:\n"
        "    Freezer(Host(Mode.HOST)).window(int(sys.argv[1])).__enter__()\n"
        "except CannotFreezeError as error:\n"
        "    print(error)\n"
    )
    for below in ("", "deeper"):
        if below:
            (busy.group / below).mkdir()
        place = busy.group / below / "cgroup.procs"
        try:
            command = [sys.executable, "-c", code, str(busy.pid), str(place)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            assert "impound's own" in done.stdout, done.stderr
        finally:
            if below:
                (busy.group / below).rmdir()
    assert busy.moves()


def test_no_process_is_left_standing_by(busy: Busy) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid):
        assert set(children.read_text().split()) > before
    assert set(children.read_text().split()) <= before


def children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def test_a_child_that_was_stopped_holds_nobody_up(busy: Busy) -> None:
    before = children()
    freezing = Freezer(Host(Mode.HOST))

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    try:
        with freezing.window(busy.pid):
            (child,) = children() - before
            os.kill(child, signal.SIGSTOP)
            signal.alarm(8)
            began = time.monotonic()
        assert time.monotonic() - began < 3
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for one in children() - before:
            os.kill(one, signal.SIGKILL)
    assert busy.moves()
    assert children() <= before  # killed: it shall not thaw another window later on
    assert freezing.windows[0].by == "agent"


def test_who_ended_and_who_is_new(busy: Busy) -> None:
    """As when a supervisor in the container replaces the one that did not answer."""
    with subprocess.Popen(["sleep", "60"]) as other, subprocess.Popen(["sleep", "60"]) as replacement:
        try:
            (busy.group / "cgroup.procs").write_text(str(other.pid))
            freezing = Freezer(Host(Mode.HOST))
            with freezing.window(busy.pid) as window:
                pass
            assert (window.line()["ended"], window.line()["new"]) == (0, 0)
            busy.process.kill()
            busy.process.wait(10)
            (busy.group / "cgroup.procs").write_text(str(replacement.pid))
            freezing.settle()
            assert (window.line()["ended"], window.line()["new"]) == (1, 1)
            assert [pid for pid, _ in window.ended or ()] == [busy.pid]
            assert not window.restarted  # not the whole of it
        finally:
            other.kill()
            replacement.kill()


def test_who_only_left_the_group_has_not_ended(busy: Busy) -> None:
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid) as window:
        pass
    (busy.group.parent / "cgroup.procs").write_text(str(busy.pid))
    freezing.settle()
    assert (window.line()["ended"], window.line()["new"]) == (0, 0)


def test_who_ended_is_not_known_where_not_all_can_be_listed(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "_MAX_TASKS", 0)
    freezing = Freezer(Host(Mode.HOST))
    with freezing.window(busy.pid) as window:
        pass
    freezing.settle()
    assert (window.line()["ended"], window.line()["new"]) == (None, None)
