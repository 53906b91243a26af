"""A child does the reading; one that hangs is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Received, Watch
from tests.unit.snapshot.helpers import QUICK, children, in_child, open_files

DONE, STUCK, DIED, SKIPPED = Outcome.DONE, Outcome.STUCK, Outcome.DIED, Outcome.SKIPPED


def outcomes(watch: Watch[str], tasks: list[str]) -> list[tuple[str, Outcome]]:
    return [(event.task, event.outcome) for event in watch.run(tasks) if isinstance(event, Ended)]


def work(task: str) -> Iterator[Part]:
    """`hang` never returns, `ignore` does not even end at a signal that could be handled, `fail` is a fault."""
    if task == "hang":
        signal.pause()
    if task == "fail":
        raise ValueError("a fault of impound")
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    yield Part(task.encode(), b"notes", last=True)


def test_what_is_read_comes_in_order() -> None:
    events = list(Watch(work, patience=QUICK).run(["a", "b"]))
    assert events == [
        Received("a", b"a", b"notes", -1),
        Ended("a", DONE),
        Received("b", b"b", b"notes", -1),
        Ended("b", DONE),
    ]


def test_a_task_that_hangs_is_left_out_and_the_next_is_done() -> None:
    before = children()
    started = time.monotonic()
    assert outcomes(Watch(work, patience=QUICK), ["a", "hang", "b"]) == [("a", DONE), ("hang", STUCK), ("b", DONE)]
    assert QUICK.first <= time.monotonic() - started < QUICK.first + 2
    assert children() == before


def test_a_fault_or_a_killed_child_costs_one_task() -> None:
    events = [
        event for event in Watch(work, patience=QUICK).run(["fail", "a", "kill", "b"]) if isinstance(event, Ended)
    ]
    assert [(event.task, event.outcome) for event in events] == [
        ("fail", DIED),
        ("a", DONE),
        ("kill", DIED),
        ("b", DONE),
    ]
    assert events[0].detail == "ValueError: a fault of impound"


def test_thousands_that_hang_do_not_take_hours() -> None:
    patience = Patience(first=0.2, later=0.02, generous=1, most=3)
    watch = Watch(work, patience=patience, risky=lambda task: task == "hang")
    found = outcomes(watch, ["hang", "a"] * 1000)
    assert [outcome for task, outcome in found if task == "hang"] == [STUCK] * 3 + [SKIPPED] * 997
    assert {outcome for task, outcome in found if task == "a"} == {DONE}


def test_even_what_should_not_hang_is_given_up_in_the_end() -> None:
    patience = Patience(first=0.1, later=0.01, generous=1, most=2)
    found = outcomes(Watch(work, patience=patience, risky=lambda _: False), ["hang"] * 10)
    assert [outcome for _, outcome in found] == [STUCK] * 4 + [SKIPPED] * 6


def test_large_parts_arrive_whole() -> None:
    def large(task: int) -> Iterator[Part]:
        for number in range(task):
            yield Part(memoryview(bytes([number]) * 3_000_000))

    events = list(Watch(large, patience=QUICK).run([3]))
    assert [len(event.data) for event in events if isinstance(event, Received)] == [3_000_000] * 3
    assert events[-1] == Ended(3, DONE)


def test_a_slow_reader_is_no_stuck_task() -> None:
    """Time counts only while the parent waits: a store that is slow must not look like a process that hangs."""

    def many(task: str) -> Iterator[Part]:
        for _ in range(20):
            yield Part(bytes(100_000))

    patience = Patience(first=0.1)
    found = []
    for event in Watch(many, patience=patience).run(["a"]):
        time.sleep(0.02)
        found.append(event)
    assert found[-1] == Ended("a", DONE)
    assert len(found) == 21


def test_descriptors_come_over_and_belong_to_the_parent() -> None:
    def opened(task: str) -> Iterator[Part]:
        yield Part(task.encode(), fd=os.open(task, os.O_RDONLY))

    before = open_files()
    found = {}
    for event in Watch(opened, patience=QUICK).run(["/dev/null", "/etc", "/proc/self"]):
        if isinstance(event, Received):
            found[event.task] = os.fstat(event.fd).st_ino
            assert not os.get_inheritable(event.fd)
            os.close(event.fd)
    assert found["/etc"] == os.stat("/etc").st_ino
    assert found["/dev/null"] == os.stat("/dev/null").st_ino
    assert open_files() == before


def test_the_child_holds_nothing_it_was_not_told_to_keep() -> None:
    """One that hangs must not hold the channel of a deployment open."""
    reading, writing = os.pipe()
    try:

        def hang(task: str) -> Iterator[Part]:
            yield Part(" ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode())
            yield Part(b" ".join(os.fsencode(os.readlink(f"/proc/self/fd/{fd}")) for fd in range(3)), last=True)

        events = [
            event for event in Watch(hang, keep=[reading], patience=QUICK).run(["x"]) if isinstance(event, Received)
        ]
        fds = set(map(int, events[0].data.split()))
        assert reading in fds
        assert writing not in fds
        assert events[1].data == b"/dev/null /dev/null /dev/null"
    finally:
        os.close(reading)
        os.close(writing)


def test_closing_ends_the_child_and_leaves_no_descriptor() -> None:
    before, files = children(), open_files()
    events = Watch(work, patience=Patience(first=60)).run(["a", "hang"])
    assert next(events) == Received("a", b"a", b"notes", -1)
    assert len(children() - before) == 1
    events.close()
    assert children() == before
    assert open_files() == files


def test_the_child_does_not_outlive_its_parent() -> None:
    """The parent is killed while the child hangs where only a signal reaches it."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:

            def hang(task: str) -> Iterator[Part]:
                os.write(writing, b"x")
                signal.pause()
                yield Part()

            list(Watch(hang, keep=[writing], patience=Patience(first=0.4)).run(["x"]))
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    poll = select.poll()  # select() takes no descriptor above 1023, and a whole suite may have as many
    poll.register(reading)
    ready = poll.poll(10_000)
    assert ready, "the child is still there"
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_it_works_beside_other_threads_and_warns_of_nothing() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert outcomes(Watch(work, patience=QUICK), ["a", "hang", "b"]) == [("a", DONE), ("hang", STUCK), ("b", DONE)]
    finally:
        stop.set()
        thread.join()


def test_interrupts_are_the_parents_to_decide() -> None:
    def interrupted(task: str) -> Iterator[Part]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        yield Part(b"still here", last=True)

    events = list(Watch(interrupted, patience=QUICK).run(["a"]))
    assert events == [Received("a", b"still here", b"", -1), Ended("a", DONE)]


def test_a_descriptor_that_the_limit_drops_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    def opened(task: str) -> Iterator[Part]:
        # Of several pieces, so that the end of one message comes together with the descriptor of the next.
        yield Part(bytes(300_000), fd=os.open(task, os.O_RDONLY))

    tasks = [str(tmp_path / str(number)) for number in range(20)]
    for task in tasks:
        Path(task).touch()

    def look() -> object:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        filled = []
        with contextlib.suppress(OSError):
            while True:
                filled.append(os.dup(0))
        for _ in range(8):
            os.close(filled.pop())
        found = []
        for event in Watch(opened, patience=QUICK).run(tasks):
            if isinstance(event, Received):
                found.append([event.task, os.readlink(f"/proc/self/fd/{event.fd}") if event.fd >= 0 else "dropped"])
                if len(found) == 12:
                    os.close(filled.pop())
        return found

    found = in_child(look)
    assert [task for task, _ in found] == tasks
    assert all(target in {task, "dropped"} for task, target in found)
    assert "dropped" in {target for _, target in found[:12]}
    assert "dropped" not in {target for _, target in found[:4]}
    assert [target for _, target in found[12:]].count("dropped") < len(found[12:])
