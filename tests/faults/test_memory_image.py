"""Whatever the machine's memory does, the image is whole but for holes that are told, and no byte in it is made up."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.base import Item, Scope, State
from acquirers.memory import workers
from acquirers.memory.block import PAGE
from acquirers.memory.pageflags import BUDDY, HWPOISON, NOPAGE, OFFLINE
from acquirers.memory.physical import Physical
from acquirers.memory.ranges import Ranges
from acquirers.memory.source import Survey
from tests.support.memory_sources import MIB, Fake, Machine, Told, iomem_of, memory, page, records, survey

RAM = Ranges([(0x1000, 0x9FC00), (0x100000, 0x100000 + 33 * MIB), (64 * MIB + 0x400, 65 * MIB)])
ODD_ENDS = 0x9F  # the frame of the first odd end


class Taken:
    """What an acquisition gave."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.data: dict[str, bytes] = {}
        self.told: dict[str, Told] = {}
        self.says: dict[str, str] = {}
        for item in items:
            told = self.told[item.path] = Told()
            self.data[item.path] = b"".join(bytes(chunk) for chunk in item.read(told))
            self.says.update(item.says)
        self.lines = [json.loads(one) for one in self.data["memory/pages.jsonl"].splitlines()]
        assert self.lines[-1]["type"] == "end"

    @property
    def image(self) -> dict[int, bytes]:
        """Both images together: record by its address. Nothing twice."""
        found = [*records(self.data["memory/physical.lime"]), *records(self.data.get("memory/late.lime", b""))]
        spans = sorted((start, start + len(data)) for start, data in found)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        return dict(found)

    def covered(self) -> Ranges:
        return Ranges((start, start + len(data)) for start, data in self.image.items())

    def holes(self) -> dict[str, Ranges]:
        """What is missing in the end, by reason."""
        covered = self.covered()
        found: dict[str, Ranges] = {}
        for one in self.lines:
            if one["type"] == "hole":
                missing = Ranges([(one["start"], one["end"])]).subtract(covered)
                found[one["why"]] = found.get(one["why"], Ranges()).union(missing)
        return {why: ranges for why, ranges in found.items() if ranges}

    def check(self, ram: Ranges = RAM) -> None:
        """Every byte of RAM is there as it is in memory, or in a hole; nothing else is there."""
        for start, data in self.image.items():
            assert data == memory(start, start + len(data)), hex(start)
        holes = Ranges()
        for ranges in self.holes().values():
            holes = holes.union(ranges)
        assert self.covered().union(holes) == ram

    def reasons(self) -> dict[str, list[str]]:
        return {name: [str(gap.reason) for gap in told.gaps] for name, told in self.told.items() if told.gaps}


def take(machine: Machine, *sources: Fake, ram: Ranges = RAM, told_iomem: bool = True) -> Taken:
    ask = survey(ram, *sources, iomem=iomem_of(ram) if told_iomem else b"")
    acquirer = Physical(ask)
    assert acquirer.probe(machine.host, Scope()).state is State.AVAILABLE
    return Taken(acquirer.items(machine.host, Scope()))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", RAM)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())  # servers of other tests
    yield
    assert set(children.read_text().split()) <= before


def test_ranges_with_odd_ends_are_whole(machine: Machine) -> None:
    taken = take(machine, Fake("bpf", RAM))
    taken.check()
    assert taken.holes() == {}
    assert taken.reasons() == {}
    assert taken.lines[0]["ram"] == [list(span) for span in RAM]
    assert sum(one["end"] - one["start"] for one in taken.lines if one["type"] == "block") == RAM.total


def test_a_second_source_gives_what_the_first_one_cannot(machine: Machine) -> None:
    """kcore gives whole pages only: the odd ends come from the other one."""
    core, other = Fake("kcore", RAM.rounded_in(PAGE), zero_fills=True), Fake("bpf", RAM)
    taken = take(machine, core, other)
    taken.check()
    assert taken.holes() == {}
    end = taken.lines[-1]["sources"]
    assert end["kcore"] == RAM.rounded_in(PAGE).total
    alone = take(machine, core)
    alone.check()
    assert alone.holes() == {"not-covered": RAM.subtract(RAM.rounded_in(PAGE))}
    assert alone.reasons() == {"memory/physical.lime": ["denied"]}


FAILING = [0x101, 0x300, 0x301, 0x302, 0x1234, 33 * 256 + 0x9F]


def test_single_pages_that_fail_are_single_holes(machine: Machine) -> None:
    """The kernels of 6.12 give EFAULT for a page of zeros: nothing around it is lost."""
    taken = take(machine, Fake("kcore", RAM.rounded_in(PAGE), fails=FAILING), Fake("bpf", RAM, fails=FAILING))
    taken.check()
    assert taken.holes() == {"error": Ranges((one * PAGE, (one + 1) * PAGE) for one in FAILING)}
    details = {one["detail"] for one in taken.lines if one["type"] == "hole" and one["in"] == "late"}
    assert details == {"EFAULT from kcore"}
    assert taken.reasons() == {"memory/late.lime": ["io-error"]}
    gap = taken.told["memory/late.lime"].gaps[0]
    assert gap.missing == len(FAILING) * PAGE


def test_pages_that_fail_in_one_source_come_from_the_other(machine: Machine) -> None:
    taken = take(machine, Fake("kcore", RAM.rounded_in(PAGE), fails=FAILING), Fake("bpf", RAM))
    taken.check()
    assert taken.holes() == {}
    assert "memory/late.lime" not in taken.data
    assert taken.lines[-1]["sources"]["bpf"] == len(FAILING) * PAGE + RAM.subtract(RAM.rounded_in(PAGE)).total


def test_a_read_that_hangs_costs_its_pages_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DEADLINE", 0.5)
    monkeypatch.setattr(Physical, "_deadline", 0.5, raising=False)
    monkeypatch.setattr(workers, "LATE_DEADLINE", 0.3)
    hanging = [0x180, 0x1900]
    began = time.monotonic()
    taken = take(machine, Fake("kcore", RAM, hangs=hanging))
    assert time.monotonic() - began < 60
    taken.check()
    assert taken.holes() == {"stuck": Ranges((one * PAGE, (one + 1) * PAGE) for one in hanging)}
    assert taken.reasons() == {"memory/late.lime": ["stuck"]}
    late = sum(len(data) for _, data in records(taken.data["memory/late.lime"]))
    assert late >= 31 * MIB - 2 * PAGE


def test_pages_that_must_not_be_touched_are_not(machine: Machine, tmp_path: Path) -> None:
    """Not by any source, and not by a read of what lies beside them."""
    bad = {0x150: HWPOISON, 0x151: HWPOISON, 0x200: OFFLINE, 0x1000: NOPAGE}
    machine.flags = {frame: 1 << bit for frame, bit in bad.items()}
    machine.write_flags()
    touched = tmp_path / "touched"
    taken = take(machine, Fake("kcore", RAM, touched=touched))
    taken.check()
    frames = {int.from_bytes(word, "little") for word in _words(touched.read_bytes())}
    assert frames.isdisjoint(bad)
    assert taken.holes() == {
        "hwpoison": Ranges([(0x150 * PAGE, 0x152 * PAGE)]),
        "offline": Ranges([(0x200 * PAGE, 0x201 * PAGE)]),
        "nopage": Ranges([(0x1000 * PAGE, 0x1001 * PAGE)]),
    }
    assert taken.reasons() == {"memory/physical.lime": ["io-error"]}  # of the poisoned ones; the rest is no loss
    assert len(taken.told["memory/physical.lime"].flags) == 2


def _words(data: bytes) -> list[bytes]:
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def test_zeros_that_stand_for_an_error_are_found_out(machine: Machine) -> None:
    """kcore fills with zeros what it cannot read: the second source tells which zeros are true."""
    hidden, lying = [0x400, 0x401], [0x501]
    core = Fake("kcore", RAM.rounded_in(PAGE), zero_fills=True, zeros=[*hidden, *lying])
    taken = take(machine, core, Fake("bpf", RAM, fails=hidden))
    taken.check()
    assert taken.holes() == {"unmapped": Ranges([(0x400 * PAGE, 0x402 * PAGE)])}
    assert taken.image  # frame 0x501 is checked against the truth, which the second source gave
    assert taken.reasons() == {"memory/physical.lime": ["io-error"]}


def test_zeros_that_nobody_confirms_are_counted(machine: Machine) -> None:
    taken = take(machine, Fake("kcore", RAM.rounded_in(PAGE), zero_fills=True), ram=RAM.rounded_in(PAGE))
    zeros = sum(
        1 for span in RAM.rounded_in(PAGE) for at in range(span.start, span.end, PAGE) if not any(page(at // PAGE))
    )
    assert sum(one["zeros"] for one in taken.lines if one["type"] == "block") == zeros
    machine.flags = dict.fromkeys(range(0x100, 0x2200), 1 << BUDDY)
    machine.write_flags()
    taken = take(machine, Fake("kcore", RAM.rounded_in(PAGE), zero_fills=True), ram=RAM.rounded_in(PAGE))
    assert sum(one["zeros"] for one in taken.lines if one["type"] == "block") < zeros / 10


def test_memory_that_is_plugged_in_midway_is_read_late(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Ranges([(128 * MIB, 130 * MIB)])
    now = RAM.union(more)
    machine.plug(now)
    core = Fake("kcore", now)
    monkeypatch.setattr("acquirers.memory.physical.sources.survey", survey(now, core))
    taken = take(machine, core)
    taken.check(now)
    assert Ranges((start, start + len(data)) for start, data in records(taken.data["memory/late.lime"])) == more
    assert next(one for one in taken.lines if one["type"] == "ram-changed")["plugged"] == [list(span) for span in more]
    assert taken.reasons() == {}


def test_without_page_flags_it_is_taken_and_said(machine: Machine) -> None:
    (machine.proc / "kpageflags").unlink()
    taken = take(machine, Fake("bpf", RAM))
    taken.check()
    assert taken.holes() == {}
    assert taken.reasons() == {"memory/pages.jsonl": ["denied"]}
    assert taken.lines[0]["page_flags"] is False


def test_what_is_stopped_says_where(machine: Machine) -> None:
    acquirer = Physical(survey(RAM, Fake("bpf", RAM)))
    acquirer.probe(machine.host, Scope())
    items = acquirer.items(machine.host, Scope())
    first, told = next(items), Told()
    chunks = first.read(told)
    read = b"".join(bytes(next(chunks)) for _ in range(20))
    chunks.close()  # type: ignore[attr-defined]
    assert [str(gap.reason) for gap in told.gaps] == ["stopped"]
    for item in items:
        if item.path.endswith("pages.jsonl"):
            lines = [json.loads(one) for one in b"".join(bytes(one) for one in item.read(told)).splitlines()]
    assert lines[-1]["missing"]["stopped"] + len(read) >= RAM.total - 17 * MIB
    assert read


def test_a_resumed_run_that_has_the_image_says_what_it_lacks(machine: Machine) -> None:
    acquirer = Physical(survey(RAM, Fake("bpf", RAM)))
    acquirer.probe(machine.host, Scope())
    read = {}
    for item in acquirer.items(machine.host, Scope()):
        if item.path == "memory/physical.lime":
            continue  # whole already
        told = Told()
        read[item.path] = b"".join(bytes(one) for one in item.read(told)), told
    assert list(read) == ["memory/pages.jsonl"]
    data, told = read["memory/pages.jsonl"]
    assert json.loads(data)["type"] == "end"
    assert [str(gap.reason) for gap in told.gaps] == ["stopped"]


@pytest.mark.parametrize("why", ["masked", "zeroed", "nothing"])
def test_a_machine_that_gives_nothing_says_why(tmp_path: Path, why: str) -> None:
    machine = Machine(tmp_path / "machine", RAM)
    if why == "masked":
        (machine.proc / "kcore").symlink_to("/dev/null")
    if why == "zeroed":
        (machine.proc / "iomem").write_text("00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n")
    found = Physical(lambda _: Survey(Ranges(), b"", (), "no source", "run it on the host")).probe(
        machine.host, Scope()
    )
    assert (found.state, found.reason, found.remedy) == (State.UNAVAILABLE, "no source", "run it on the host")
    real = Physical().probe(machine.host, Scope())
    if why == "zeroed":
        assert real.state is State.UNAVAILABLE
        assert real.reason


def test_no_reader_outlives_an_agent_that_is_killed() -> None:
    code = (
        "import time\n"
        "from acquirers.memory.ranges import Ranges\n"
        "from acquirers.memory.workers import Pool\n"
        "from tests.support.memory_sources import Fake\n"
        "pool = Pool([Fake('x', Ranges([(0, 1 << 20)]))])\n"
        "print(*pool.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        assert len(pids) == 2
        agent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@settings(max_examples=6, deadline=None)
@given(
    fails=st.sets(st.integers(0x100, 0x500), max_size=30),
    zeros=st.sets(st.integers(0x100, 0x500), max_size=30),
    blind=st.sets(st.integers(0x100, 0x500), max_size=30),
    end=st.integers(1, 3 * MIB),
)
def test_any_mixture_of_faults(
    tmp_path_factory: pytest.TempPathFactory, fails: set[int], zeros: set[int], blind: set[int], end: int
) -> None:
    ram = Ranges([(0x100000, 0x100000 + end)])
    machine = Machine(tmp_path_factory.mktemp("m"), ram)
    core = Fake("kcore", ram.rounded_in(PAGE), zero_fills=True, fails=fails, zeros=zeros)
    taken = take(machine, core, Fake("bpf", ram, fails=blind), ram=ram)
    taken.check(ram)
    frames = range(
        ram.rounded_out(PAGE).clip(0, 1 << 40).__iter__().__next__().start // PAGE, (0x100000 + end) // PAGE + 1
    )
    lost = {one for one in frames if one in blind and (one in fails or one in zeros or not any(page(one)))}
    whole = {
        at // PAGE for ranges in taken.holes().values() for span in ranges for at in range(span.start, span.end, PAGE)
    }
    assert whole <= {*lost, end // PAGE + 0x100}
