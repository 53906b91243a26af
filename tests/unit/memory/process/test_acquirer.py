"""What is told of processes that could not be read, or not frozen: in the table at the end, and as gaps and flags."""

from __future__ import annotations

import pytest

from acquirers.base import Reason, Scope
from acquirers.memory.freezer import Group, Window
from acquirers.memory.process import ProcessMemory, acquirer
from acquirers.memory.process.chosen import Chosen, Process
from tests.unit.memory.process.helpers import HERE, QUICK, Remembered, core_of, end, python, read, table, taken

STILL = "tell(os.getpid())"


def test_a_named_process_that_ended_before_its_turn_is_a_gap() -> None:
    report = Remembered()
    with python(STILL) as first, python(STILL) as second:
        found = ProcessMemory(patience=QUICK).items(HERE, Scope(pids=(first.pid, second.pid)))
        read(next(found))
        end(max(first.pid, second.pid))  # they are read in the order of their pids
        *_, last = found
        lines = table(read(last, report))
    (gap,) = report.gaps
    assert gap.reason is Reason.VANISHED
    assert gap.detail == f"memory of process {max(first.pid, second.pid)}: it ended before it was its turn"
    assert [one["pid"] for one in lines if one.get("vanished")] == [max(first.pid, second.pid)]


def test_a_named_process_that_ended_after_it_was_announced_is_a_gap() -> None:
    """The run is prepared first, and reads what comes before this."""
    asked = ProcessMemory(patience=QUICK)
    with python(STILL) as target:
        scope = Scope(pids=(target.pid,))
        assert asked.probe(HERE, scope).matched == {str(target.pid)}
    ((_, data, report),) = taken(scope, asked)
    assert [gap.reason for gap in report.gaps] == [Reason.VANISHED]
    assert [one["pid"] for one in table(data) if one.get("vanished")] == [target.pid]


@pytest.mark.parametrize(("containers", "gaps", "flags"), [((), 0, 1), (("c" * 64,), 1, 0)])
def test_others_that_ended_are_told_once(
    containers: tuple[str, ...], gaps: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with python(STILL) as target:
        pid = target.pid
    gone = Chosen([Process(pid, start_ticks=number) for number in range(1, 41)])
    monkeypatch.setattr(acquirer, "choose", lambda *_: gone)
    ((_, data, report),) = taken(Scope(containers=containers))
    assert (len(report.gaps), len(report.flags)) == (gaps, flags)
    (said,) = [gap.detail for gap in report.gaps] + [flag.detail for flag in report.flags]
    assert "40 processes" in said
    assert len(said) < 300
    assert len([one for one in table(data) if one.get("vanished")]) == 40


def test_a_process_of_no_container_is_not_frozen_and_that_is_told() -> None:
    with python(STILL) as target:
        assert core_of(target, freeze=True).process["frozen"] == "no: it is in no container: only those are frozen"
        *_, (last, _, report) = taken(target, freeze=True)
        *_, (_, _, silent) = taken(target)
    assert last.path.endswith("processes.jsonl")
    (flag,) = report.flags
    assert flag.detail == f"process {target.pid} was not frozen: it is in no container: only those are frozen"
    assert silent.flags == []


@pytest.mark.parametrize(
    ("ended", "new", "said"),
    [
        (frozenset(), frozenset(), "no process of it ended"),
        (frozenset({(5, 50)}), frozenset({(7, 70), (8, 80)}), "since then 1 process of it ended, 2 new"),
        (None, None, "whether a process ended is not known"),
    ],
)
def test_what_is_said_of_who_was_frozen(
    ended: frozenset[tuple[int, int]] | None, new: frozenset[tuple[int, int]] | None, said: str
) -> None:
    group = Group(2, b"/nowhere", b"/nowhere", "c" * 64)
    twice = [Window(group, 5, before=None, ended=ended, new=new) for _ in range(2)]
    assert acquirer._fate(twice) == said
    if ended is not None:
        assert acquirer._fate([*twice, Window(group, 5)]).endswith("; not known for 1 window")
