"""A function in a process of its own: whatever becomes of it, the caller goes on in time and nothing is left over."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.memory import child
from acquirers.memory.child import ChildError, StuckError, call

HOUSE = Path(__file__).parents[3]


def children() -> list[str]:
    """Of the whole process, zombies included; a thread may end while it is asked."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += (task / "children").read_text().split()
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before, fds = set(children()), len(os.listdir("/proc/self/fd"))
    yield
    assert set(children()) == before
    assert len(os.listdir("/proc/self/fd")) == fds


def hang() -> bytes:
    while True:
        time.sleep(10)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=5000))
def test_what_it_gives_is_what_comes(data: bytes) -> None:
    assert call(lambda: data, 10) == data


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 5 << 20])
def test_answers_of_any_size(size: int) -> None:
    data = os.urandom(size)
    assert call(lambda: data, 20) == data


def test_one_that_is_too_large_is_refused_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_ANSWER", 1 << 20)
    began = time.monotonic()
    with pytest.raises(ChildError, match="too large: 1048577 bytes"):
        call(lambda: bytes((1 << 20) + 1), 20)
    assert time.monotonic() - began < 5
    assert len(call(lambda: bytes(1 << 20), 20)) == 1 << 20


def test_one_that_is_late_costs_its_time_and_no_more() -> None:
    began = time.monotonic()
    with pytest.raises(StuckError):
        call(hang, 0.3)
    assert 0.3 <= time.monotonic() - began < 2


def test_half_an_answer_is_none() -> None:
    """It says how much will come, gives some of it, and hangs, or dies."""

    def half(*, then: Callable[[], object]) -> Callable[[], bytes]:
        def work() -> bytes:
            out = max(int(name) for name in os.listdir("/proc/self/fd") if pipe(int(name)))
            os.write(out, child._HEAD.pack(b"+", 1000) + b"some")
            then()
            return b""

        return work

    with pytest.raises(StuckError):
        call(half(then=hang), 0.3)
    with pytest.raises(ChildError, match="died"):
        call(half(then=lambda: os.kill(os.getpid(), signal.SIGKILL)), 10)


def pipe(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:") and os.get_inheritable(fd) is False
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_one_that_is_killed_has_died(number: signal.Signals) -> None:
    def work() -> bytes:
        faulthandler.disable()  # the runner's, which would print the stack
        os.kill(os.getpid(), number)
        return hang()

    began = time.monotonic()
    with pytest.raises(ChildError, match="its process died") as raised:
        call(work, 10)
    assert not isinstance(raised.value, StuckError)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_what_stops_the_parent_does_not_stop_it(number: signal.Signals) -> None:
    """A terminal signals both: the parent decides."""

    def work() -> bytes:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        return b"still here"

    assert call(work, 10) == b"still here"


def test_a_signal_at_the_moment_of_the_fork_meets_the_parent_alone() -> None:
    """A handler that raises must not lead the child up into the work of its parent."""
    code = """
import os, signal
from acquirers.memory import child
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGTERM, stop)
parent, real = os.getpid(), os.fork
def fork():
    pid = real()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid
os.fork = fork
try:
    print(child.call(lambda: b"answer", 5).decode(), flush=True)
except (Stop, child.ChildError):
    os.write(1, b"the child went on" if os.getpid() != parent else b"it has no answer")
try:
    os.kill(parent, signal.SIGTERM)
except Stop:
    print("and the parent is stopped as before")
"""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "answer\nand the parent is stopped as before\n"


def fail(error: BaseException) -> bytes:
    raise error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(13, "Permission denied"), "PermissionError: Permission denied"),
        (ValueError("no\nsuch \udcff value"), "ValueError: no\nsuch \\udcff value"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_what_it_raises_is_told(error: BaseException, says: str) -> None:
    with pytest.raises(ChildError) as raised:
        call(lambda: fail(error), 10)
    assert str(raised.value) == says


def test_a_long_complaint_is_cut() -> None:
    with pytest.raises(ChildError) as raised:
        call(lambda: fail(ValueError("x" * 100_000)), 10)
    assert len(str(raised.value)) == 4096


@pytest.mark.parametrize("answer", ["text", None, 7])
def test_what_is_no_bytes_is_an_error(answer: object) -> None:
    with pytest.raises(ChildError, match="TypeError"):
        call(lambda: answer, 10)  # type: ignore[arg-type, return-value]


def test_its_exit_runs_nothing_of_the_parent(capfd: pytest.CaptureFixture[str]) -> None:
    """No `finally`, no buffered output, no exit handler of the parent happens twice."""
    code = """
import atexit, sys
from acquirers.memory.child import ChildError, call
atexit.register(lambda: print("exit handler"))
sys.stdout.write("buffered ")
try:
    call(lambda: sys.exit(1), 10)
except ChildError:
    pass
finally:
    sys.stdout.write("finally ")
"""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment)
    assert done.stdout == "buffered finally exit handler\n"


def test_where_nobody_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no)
    with pytest.raises(ChildError, match="no process could be started: Resource"):
        call(lambda: b"", 1)
    monkeypatch.undo()
    monkeypatch.setattr(os, "pipe2", no)
    with pytest.raises(ChildError, match="no process could be started: Resource"):
        call(lambda: b"", 1)


def test_one_that_cannot_be_killed_is_abandoned_and_taken_off_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs in the kernel does not hear SIGKILL: here nobody sends it."""
    monkeypatch.setattr(child, "REAP_SECONDS", 0.2)
    sent: list[int] = []
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "kill", lambda pid, _: sent.append(pid))
        began = time.monotonic()
        with pytest.raises(StuckError):
            call(hang, 0.2)
        assert time.monotonic() - began < 2
    (pid,) = sent
    assert str(pid) in children()  # it hangs on, and this process went on
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert call(lambda: b"next", 5) == b"next"
    assert str(pid) not in children()  # no zombie until the end of the run


def test_it_dies_with_its_parent() -> None:
    code = "import os, time\nfrom acquirers.memory.child import call\n"
    code += "call(lambda: (print(os.getpid(), flush=True), time.sleep(60)), 60)"
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 5
    while (place := Path(f"/proc/{pid}/stat")).exists() and place.read_bytes().rpartition(b") ")[2][:1] not in b"ZX":
        assert time.monotonic() < until
        time.sleep(0.01)


def test_where_the_children_of_this_process_are_not_kept() -> None:
    """SIGCHLD may be ignored by whoever started impound: then the kernel takes children away by itself."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert call(lambda: b"answer", 10) == b"answer"
        with pytest.raises(StuckError):
            call(hang, 0.1)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_several_threads_at_once() -> None:
    """Each child is born with the pipes of the others: an answer does not wait for the end of theirs."""
    found: dict[int, tuple[bytes, float]] = {}

    def one(number: int) -> None:
        began = time.monotonic()
        found[number] = call(lambda: b"%d" % number, 20), time.monotonic() - began

    def stuck() -> None:
        with pytest.raises(StuckError):
            call(hang, 3)

    slow = threading.Thread(target=stuck)
    slow.start()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in [*threads, slow]:
        thread.join()
    for number in range(8):
        answer, seconds = found[number]
        assert answer == b"%d" % number
        assert seconds < 2.5
