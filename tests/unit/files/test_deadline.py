from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from acquirers.base import Reason
from acquirers.files.deadline import Deadlined, Direct, StuckError, guard_for, reason
from tests.rigs.trees import run_python


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


def test_a_call_returns_or_raises_as_without_a_guard() -> None:
    for guard in (Direct(), Deadlined(10)):
        assert guard.call(divmod, 7, 2) == (3, 1)
        assert guard.call(sorted, [1, 2], reverse=True) == [2, 1]
        with pytest.raises(FileNotFoundError) as caught:
            guard.call(os.stat, "/nothing/here")
        assert reason(caught.value) is Reason.VANISHED
        assert not guard.given_up
        guard.close()


def test_a_call_that_does_not_return_is_left_behind(release: threading.Event) -> None:
    guard = Deadlined(0.05)
    started = time.monotonic()
    with pytest.raises(StuckError, match=r"within 0\.05 s") as caught:
        guard.call(release.wait, 10)
    assert time.monotonic() - started < 5
    assert reason(caught.value) is Reason.STUCK
    assert guard.call(int, "7") == 7  # another worker serves the rest
    assert not guard.given_up
    release.set()
    guard.close()


def test_a_late_answer_is_not_taken_for_that_of_the_next_call(release: threading.Event) -> None:
    guard = Deadlined(0.2)
    done = threading.Event()

    def late() -> str:
        release.wait(10)
        done.set()
        return "late"

    with pytest.raises(StuckError):
        guard.call(late)
    release.set()
    assert done.wait(10)
    assert [guard.call(str, number) for number in range(50)] == [str(number) for number in range(50)]
    guard.close()


def test_after_some_stuck_calls_nothing_further_is_asked(release: threading.Event) -> None:
    guard = Deadlined(0.02, strikes=3)
    for _ in range(3):
        assert not guard.given_up
        with pytest.raises(StuckError):
            guard.call(release.wait, 10)
    assert guard.given_up
    called = threading.Event()
    started = time.monotonic()
    with pytest.raises(StuckError, match="not tried"):
        guard.call(called.set)
    assert time.monotonic() - started < 0.02
    assert not called.is_set()
    release.set()


def test_workers_end(release: threading.Event) -> None:
    guard = Deadlined(0.02)
    with pytest.raises(StuckError):
        guard.call(release.wait, 10)
    guard.call(int)
    release.set()
    guard.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "deadlined" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_dropping_a_descriptor_closes_it_and_waits_for_nobody(release: threading.Event) -> None:
    guard = Deadlined(10)
    fd = os.open("/", os.O_RDONLY)
    guard.drop(fd)
    guard.call(int)  # the worker does one thing after the other
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
    guard.drop(fd)  # closing fails: nobody is told, and the worker lives
    assert guard.call(int) == 0
    guard.close()
    Direct().drop(fd)


def test_a_stuck_worker_does_not_keep_the_process() -> None:
    code = (
        "import threading, time\n"
        "from acquirers.files.deadline import Deadlined, StuckError\n"
        "guard = Deadlined(0.05)\n"
        "try:\n"
        "    guard.call(time.sleep, 600)\n"
        "except StuckError:\n"
        "    print('left')\n"
    )
    assert run_python(code) == "left\n"


def test_a_disk_of_this_machine_is_called_directly(tmp_path: Path) -> None:
    before = threading.active_count()
    for path, expected in ((tmp_path, Direct), ("/proc", Deadlined)):
        fd = os.open(path, os.O_RDONLY)
        guard = guard_for(fd)
        os.close(fd)
        assert isinstance(guard, expected)
        guard.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_filesystem_that_does_not_even_tell_its_type_has_a_deadline(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    monkeypatch.setattr("acquirers.files.deadline.syscalls.filesystem_type", lambda _fd: release.wait(10))
    guard = guard_for(0, 0.02)
    assert isinstance(guard, Deadlined)
    release.set()
    guard.close()
