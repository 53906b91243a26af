"""The list of tasks: found, walked while it changes, broken by hostile hands, and compared with /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acquirers.host import Host, Mode
from acquirers.memory import views
from acquirers.memory.tasks import Listing, Offsets, Task, TasksError
from tests.support.fake_kernel import BASE, INIT, SIZE, WHERE, Machine


def pids(listing: Listing) -> list[int]:
    return [task.pid for task in listing.tasks]


def test_the_list_is_walked_to_its_end_with_one_read_for_each() -> None:
    machine = Machine()
    machine.filled(range(1, 200))
    listing = machine.memory.walk(machine.start(), 5)
    assert (pids(listing), listing.why, listing.uneven) == (list(range(1, 200)), "", [])
    assert (listing.tasks[41].name, listing.tasks[41].physical) == (b"task-42", 0x20_0000 + 0x1000 * 42)
    assert machine.reads < 205


@pytest.mark.parametrize(
    ("symbol", "current", "how"),
    [
        (True, False, "its symbol in /proc/kallsyms"),
        (False, True, "the parents of this process"),
        (False, False, "its name in the kernel's data"),
    ],
)
def test_init_task_is_found_with_and_without_symbols(symbol: bool, current: bool, how: str) -> None:
    machine = Machine()
    ring = machine.filled(range(1, 9))
    for child, parent in zip(ring[1:], ring, strict=False):
        machine.put(child, WHERE.real_parent, parent)
    machine.ram[0x11_0000:0x11_000A] = b"swapper/0\0"  # a text in the kernel's data that is no task
    found, by = machine.memory.init(symbol=machine.init if symbol else None, current=ring[-1] if current else None)
    assert (found.address, found.physical, by) == (machine.init, INIT, how)


def test_a_symbol_or_a_parent_that_lies_is_not_believed() -> None:
    machine = Machine()
    ring = machine.filled(range(1, 9))
    machine.put(ring[1], WHERE.real_parent, ring[2])
    machine.put(ring[2], WHERE.real_parent, ring[1])  # parents without end
    found, by = machine.memory.init(symbol=ring[0], current=ring[1])
    assert (found.address, by) == (machine.init, "its name in the kernel's data")
    machine.ram[INIT + WHERE.comm] = 0
    with pytest.raises(TasksError, match=r"symbol in /proc/kallsyms: nothing.*no end after 4096 parents.*its name"):
        machine.memory.init(symbol=ring[0], current=ring[1])


def test_a_list_that_loops_or_leads_out_of_ram_ends_with_a_reason() -> None:
    machine = Machine()
    ring = machine.filled(range(1, 9))
    machine.put(ring[5], WHERE.tasks, ring[3] + WHERE.tasks)
    assert "loops" in machine.memory.walk(machine.start(), 5).why
    for nowhere in (0, 8, BASE + SIZE, 0xFFFFFFFF_FFFFFFF8, 0xFFFF9999_00000000, BASE + 0x20_0001):
        machine.chain(ring)
        machine.put(ring[5], WHERE.tasks, nowhere)
        listing = machine.memory.walk(machine.start(), 5)
        assert "not in RAM (after 6 tasks)" in listing.why
        assert pids(listing) == [1, 2, 3, 4, 5, 6]


def test_a_list_without_end_meets_its_limit_or_its_deadline() -> None:
    machine = Machine()
    machine.filled(range(1, 100))
    assert machine.memory.walk(machine.start(), 5, limit=50).why == "more than 50 tasks (after 50 tasks)"
    machine.before = lambda _: time.sleep(0.01)
    began = time.monotonic()
    assert "too long" in machine.memory.walk(machine.start(), 0.2).why
    assert time.monotonic() - began < 1


def test_tasks_that_end_while_the_list_is_walked_do_not_break_it() -> None:
    machine = Machine()
    ring = machine.filled(range(1, 9))
    done: list[int] = []

    def once(gone: int, at: int) -> Callable[[int], None]:
        def act(physical: int) -> None:
            if physical == machine.physical(at) and not done:
                done.append(gone)
                machine.unlink(ring, gone)

        return act

    machine.before = once(ring[4], ring[4])  # it ends when it is about to be read: its forward link still leads on
    assert pids(machine.memory.walk(machine.start(), 5)) == [1, 2, 3, 4, 6, 7, 8]
    done.clear()
    machine.chain(ring)
    machine.before = once(ring[4], ring[5])  # it ends when it has been read
    listing = machine.memory.walk(machine.start(), 5)
    assert (pids(listing), listing.why, listing.uneven) == ([1, 2, 3, 4, 6, 7, 8], "", [])


def test_links_that_do_not_fit_for_good_are_told_and_the_list_goes_on() -> None:
    machine = Machine()
    ring = machine.filled(range(1, 9))
    machine.put(ring[3], WHERE.tasks, ring[5] + WHERE.tasks)  # number 5 unhooked forwards only
    listing = machine.memory.walk(machine.start(), 5)
    assert pids(listing) == [1, 2, 3, 4, 6, 7, 8]
    assert ([task.pid for task in listing.uneven], listing.why) == ([6], "")


def test_without_its_members_in_btf_there_is_a_reason() -> None:
    class Types:
        def offset(self, struct: str, member: str) -> int:
            return {"tasks": 8, "pid": 1 << 20, "tgid": 4, "comm": 16, "real_parent": 40}[member]

    with pytest.raises(TasksError, match="more than"):
        Offsets.of(Types())

    class Fewer(Types):
        def offset(self, struct: str, member: str) -> int:
            raise KeyError(member)

    with pytest.raises(TasksError, match="tasks"):
        Offsets.of(Fewer())


# -- /proc ------------------------------------------------------------------------------------------------------------


def host_of(tmp_path: Path, pids: list[int]) -> Host:
    (tmp_path / "etc").mkdir()
    for pid in pids:
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_bytes(b"comm-%d\n" % pid)
    return Host(Mode.HOST, root=os.fsencode(tmp_path), proc=os.fsencode(tmp_path / "proc"))


def listing_of(*pids: int) -> Listing:
    return Listing([Task(BASE + pid, pid, pid, pid, b"x\0", 0, 0, 0) for pid in pids])


def test_what_only_one_view_shows_twice_is_hidden(tmp_path: Path) -> None:
    host = host_of(tmp_path, [1, 2, 3, 7])
    walks = iter([listing_of(1, 2, 5, 6), listing_of(1, 2, 5)])  # 6 has ended
    listing, found = views.compare(host, lambda: next(walks))
    assert len(listing.tasks) == 3
    assert [(one.pid, one.missing, one.comm) for one in found] == [
        (3, "tasks", b"comm-3"),
        (7, "tasks", b"comm-7"),
        (5, "proc", b"x"),
    ]


def test_what_begins_or_ends_in_between_is_not(tmp_path: Path) -> None:
    host = host_of(tmp_path, [1, 2, 3])
    walks = iter([listing_of(1, 2, 9), listing_of(1, 2, 3, 10)])
    assert views.compare(host, lambda: next(walks))[1] == []
    walks = iter([listing_of(1, 2, 3)])
    assert views.compare(host, lambda: next(walks))[1] == []


def test_a_pid_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    host = host_of(tmp_path, [1])
    other = Listing([listing_of(1).tasks[0], Task(BASE + 99, 99, 5, 5, b"y", 0, 0, 0)])
    walks = iter([listing_of(1, 5), other])
    assert views.compare(host, lambda: next(walks))[1] == []


def test_a_list_that_was_not_walked_whole_accuses_nobody(tmp_path: Path) -> None:
    host = host_of(tmp_path, [1, 2, 3])
    broken = listing_of(1)
    broken.why = "it took too long"
    assert views.compare(host, lambda: broken) == (broken, [])


def test_only_a_proc_of_the_whole_machine_is_compared(tmp_path: Path) -> None:
    host = host_of(tmp_path, [1, 2])
    assert "another PID namespace" in views.comparable(host)
    stat = b"2 (kthr) eadd) S 0 0 0 0 -1 %d 0 0"
    (tmp_path / "proc/2/stat").write_bytes(stat % 0x00208040)
    assert views.comparable(host) == ""
    (tmp_path / "proc/2/stat").write_bytes(stat % 0x00400040)
    assert "another PID namespace" in views.comparable(host)
