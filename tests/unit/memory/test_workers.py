"""Readers that die, hang, or talk nonsense: the others go on, what they read is right, and nothing is left over."""

from __future__ import annotations

import gc
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.memory import child, workers
from acquirers.memory.block import PAGE, Block, Why
from acquirers.memory.ranges import Ranges, Span
from acquirers.memory.workers import Pool, cut
from tests.support.memory_sources import MIB, Fake, FakeReader, memory

if TYPE_CHECKING:
    from acquirers.memory.source import Source

SIZE = MIB
RAM = Ranges([(0x1000, 0x9F000), (MIB, 9 * MIB)])


class Bad(Fake):
    """What its reader does before it reads certain frames: in the process of the reader."""

    def __init__(self, name: str, covers: Ranges, acts: dict[int, Callable[[], None]]) -> None:
        super().__init__(name, covers)
        self.acts = acts

    def open(self) -> FakeReader:
        return BadReader(self)


class BadReader(FakeReader):
    def __init__(self, source: Bad) -> None:
        super().__init__(source)
        self._acts = source.acts

    def read(self, address: int, into: memoryview) -> None:
        for frame in range(address // PAGE, -(-(address + len(into)) // PAGE)):
            if frame in self._acts:
                self._acts[frame]()
        super().read(address, into)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def buffers() -> int:
    """Bytes of shared anonymous maps: those that readers and this process have in common."""
    gc.collect()
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if " rw-s " in line and "/dev/zero" in line:
            start, end = line.split()[0].split("-")
            total += int(end, 16) - int(start, 16)
    return total


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    processes, fds, maps = children(), len(os.listdir("/proc/self/fd")), buffers()
    yield
    assert children() == processes
    assert len(os.listdir("/proc/self/fd")) == fds
    assert buffers() == maps


class Opened:
    """A pool that is closed in the end."""

    def __init__(self, *sources: Source, count: int = 2, size: int = SIZE, deadline: float = 10.0) -> None:
        self.pool = Pool(list(sources), workers=count, size=size, deadline=deadline)

    def __enter__(self) -> Pool:
        return self.pool

    def __exit__(self, *_: object) -> None:
        self.pool.close()


def checked(block: Block) -> tuple[Span, tuple[tuple[int, int, Why], ...]]:
    """Where it is and what is missing; what is there is what lies there."""
    for start, end in block.pieces():
        assert block.data[start - block.start : end - block.start] == memory(start, end)
    return Span(block.start, block.end), tuple((one.start, one.end, one.why) for one in block.holes)


def blocks(pool: Pool, ram: Ranges = RAM, size: int = SIZE) -> list[tuple[Span, tuple[tuple[int, int, Why], ...]]]:
    return [checked(block) for block in pool.blocks(cut(ram, size))]


# -- what is cut and what comes ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), max_size=6),
    st.sampled_from([1, 7, 16, 64]),
)
def test_blocks_cover_all_of_it_and_end_where_they_should(parts: list[tuple[int, int]], size: int) -> None:
    ram = Ranges((start, start + length) for start, length in parts)
    found = list(cut(ram, size))
    assert Ranges(found) == ram
    assert found == sorted(found)
    assert sum(span.size for span in found) == ram.total
    ends = {end for _, end in ram}
    starts = {start for start, _ in ram}
    for span in found:
        assert 0 < span.size <= size
        assert span.start % size == 0 or span.start in starts
        assert span.end % size == 0 or span.end in ends


@pytest.mark.parametrize("count", [1, 2, 5])
def test_blocks_come_in_their_order_however_many_read(count: int) -> None:
    """The first ones are the slowest."""

    def slow() -> None:
        time.sleep(0.2)

    with Opened(Bad("slow", RAM, {1: slow, 0x100: slow}), count=count) as pool:
        assert blocks(pool) == [(span, ()) for span in cut(RAM, SIZE)]


def test_nothing_to_read() -> None:
    with Opened(Fake("one", RAM)) as pool:
        assert list(pool.blocks(iter(()))) == []
        assert blocks(pool) == [(span, ()) for span in cut(RAM, SIZE)]


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, 8 * 256 - 1), max_size=40), st.sampled_from([1, 2, 3]))
def test_whatever_fails_is_a_hole_and_nothing_else_is(failing: set[int], count: int) -> None:
    ram = Ranges([(MIB, 9 * MIB)])
    frames = {256 + one for one in failing}
    with Opened(Fake("one", ram, fails=frames), count=count) as pool:
        holes = [hole for _, missing in blocks(pool, ram) for hole in missing]
    assert Ranges(one[:2] for one in holes) == Ranges((frame * PAGE, (frame + 1) * PAGE) for frame in frames)
    assert {one[2] for one in holes} <= {Why.ERROR}


# -- readers that go wrong --------------------------------------------------------------------------------------------


def die(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def hang() -> None:
    while True:
        time.sleep(10)


def line() -> int:
    """The socket of this reader: all else it let go of."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                return int(name)
        except OSError:
            continue
    raise AssertionError("it has no socket")


def answers(data: bytes, then: Callable[[], None] = hang) -> Callable[[], None]:
    def act() -> None:
        os.write(line(), data)
        then()

    return act


def raises() -> None:
    raise RuntimeError("a fault of ours")


NONSENSE = {
    "killed": die(),
    "a bus error": die(signal.SIGBUS),
    "leaves": lambda: os._exit(0),
    "raises": raises,
    "no answer format": answers(struct.pack("<I", 8) + b"\xff" * 8),
    "another type": answers(struct.pack("<I", 4) + b"\x81\xa5hole"),
    "too large": answers(struct.pack("<I", workers.MAX_ANSWER + 1)),
    "as large as it gets": answers(b"\xff" * 4),
    "half a size, then the end": answers(b"\1\0", lambda: os._exit(0)),
    "half an answer, then the end": answers(struct.pack("<I", 100) + b"half", lambda: os._exit(0)),
}


@pytest.mark.parametrize("how", NONSENSE)
def test_one_reader_that_goes_wrong_costs_its_block(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """And another one takes its place."""
    with Opened(Bad("bad", RAM, {0x310: NONSENSE[how]})) as pool:
        before = set(pool.pids)
        found = blocks(pool)
        expected = list(cut(RAM, SIZE))
        assert [span for span, _ in found] == expected
        lost = {span: missing for span, missing in found if missing}
        assert lost == {Span(3 * MIB, 4 * MIB): ((3 * MIB, 4 * MIB, Why.ERROR),)}
        assert len(set(pool.pids) - before) == 1
        assert pool.strikes == 1


def test_one_that_hangs_costs_its_time_and_its_block() -> None:
    with Opened(Bad("bad", RAM, {0x310: hang}), deadline=0.5) as pool:
        began = time.monotonic()
        found = blocks(pool)
        assert time.monotonic() - began < 10
        assert [one for one in found if one[1]] == [(Span(3 * MIB, 4 * MIB), ((3 * MIB, 4 * MIB, Why.STUCK),))]


def test_half_an_answer_that_goes_no_further_is_late() -> None:
    with Opened(Bad("bad", RAM, {0x310: answers(struct.pack("<I", 100) + b"half")}), deadline=0.5) as pool:
        found = blocks(pool)
    assert [one for one in found if one[1]] == [(Span(3 * MIB, 4 * MIB), ((3 * MIB, 4 * MIB, Why.STUCK),))]


def test_every_reader_hangs_at_once() -> None:
    with Opened(Bad("bad", RAM, dict.fromkeys((1, 0x100, 0x200), hang)), deadline=0.4) as pool:
        lost = [span.start for span, missing in blocks(pool) if missing]
    assert lost == [0x1000, MIB, 2 * MIB]


def test_an_abandoned_reader_does_not_write_into_what_is_read_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be killed, and wakes up when another one has its place: its buffer is nobody's any more."""

    def late() -> None:
        signal.sigtimedwait([signal.SIGUSR1], 30)

    with Opened(Bad("bad", RAM, {0x101: late}), count=1, deadline=0.4) as pool:
        pid = pool.pids[0]
        with monkeypatch.context() as deaf:
            deaf.setattr(child, "REAP_SECONDS", 0.05)
            deaf.setattr(os, "kill", lambda *_: None)
            stream = pool.blocks(cut(RAM, SIZE))
            assert not checked(next(stream))[1]
            assert checked(next(stream))[1] == ((MIB, 2 * MIB, Why.STUCK),)
            assert checked(next(stream)) == (Span(2 * MIB, 3 * MIB), ())
        block = next(stream)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.1)  # it fills its buffer, and finds nobody to tell
        assert checked(block) == (Span(3 * MIB, 4 * MIB), ())
        assert [missing for _, missing in map(checked, stream) if missing] == []
    until = time.monotonic() + 5
    while not child.end(pid):
        assert time.monotonic() < until


def test_a_source_that_kills_again_and_again_is_not_asked_any_more() -> None:
    first = Bad("first", RAM, {frame: die() for frame in range(0x100, 0x900)})
    ram = Ranges([(MIB, MIB + 40 * 16 * PAGE)])
    with Opened(first, Fake("second", RAM), count=1, size=16 * PAGE) as pool:
        found = blocks(pool, ram, 16 * PAGE)
        assert pool.notes == [f"first is not asked any more: {workers.STRIKES} reads did not return"]
    assert [bool(missing) for _, missing in found] == [True] * workers.STRIKES + [False] * (40 - workers.STRIKES)


def test_the_last_source_is_never_given_up() -> None:
    ram = Ranges([(MIB, MIB + 20 * 16 * PAGE)])
    dying = {frame: die() for frame in range(0x100, 0x100 + 12 * 16)}
    with Opened(Bad("only", RAM, dying), count=2, size=16 * PAGE) as pool:
        found = blocks(pool, ram, 16 * PAGE)
    assert [bool(missing) for _, missing in found] == [True] * 12 + [False] * 8


# -- again, in small pieces -------------------------------------------------------------------------------------------


def test_read_again_only_the_page_that_hangs_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LATE_DEADLINE", 0.3)
    with Opened(Bad("bad", RAM, {0x123: hang})) as pool:
        found = [checked(block) for block in pool.small(Span(MIB, MIB + 256 * 1024))]
    missing = [hole for _, holes in found for hole in holes]
    assert missing == [(0x123 * PAGE, 0x124 * PAGE, Why.STUCK)]
    assert Ranges(span for span, _ in found) == Ranges([(MIB, MIB + 256 * 1024)])


@pytest.mark.parametrize("span", [Span(MIB + 100, MIB + 101), Span(MIB + 100, MIB + 70_000), Span(MIB - 1, MIB + 1)])
def test_odd_spans_are_read_again_whole(span: Span) -> None:
    with Opened(Fake("one", Ranges([(0, 4 * MIB)]))) as pool:
        found = [checked(block) for block in pool.small(span)]
    assert Ranges(one for one, _ in found) == Ranges([span])
    assert not [hole for _, holes in found for hole in holes]


def test_too_many_that_hang_end_the_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LATE_DEADLINE", 0.05)
    monkeypatch.setattr(workers, "LATE_STRIKES", 4)
    everything = dict.fromkeys(range(0x100, 0x200), hang)
    began = time.monotonic()
    with Opened(Bad("bad", RAM, everything), count=1) as pool:
        found = [checked(block) for block in pool.small(Span(MIB, 2 * MIB))]
    assert time.monotonic() - began < 10
    assert Ranges(one[:2] for _, holes in found for one in holes) == Ranges([(MIB, 2 * MIB)])


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [hang, lambda: time.sleep(0.3)], ids=["stuck", "busy"])
def test_closing_while_they_read(act: Callable[[], None]) -> None:
    pool = Pool([Bad("bad", RAM, dict.fromkeys((0x200, 0x300), act))], workers=2, size=SIZE, deadline=60)
    for block in pool.blocks(cut(RAM, SIZE)):
        checked(block)
        break
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 2
    assert pool.pids == []
    pool.close()


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_a_stream_that_is_left_early_leaves_no_answer_for_the_next(taken: int) -> None:
    """What was asked for the one must not pass for what the other wants."""

    def right(block: Block) -> bool:
        return not block.holes and bytes(block.data) == memory(block.start, block.end)

    with Opened(Fake("one", RAM)) as pool:
        for number, block in enumerate(pool.blocks(cut(RAM, SIZE)), 1):
            checked(block)
            if number == taken:
                break
        time.sleep(0.3)  # they have answered meanwhile
        found = [right(block) for block in pool.small(Span(8 * MIB, 8 * MIB + 65536))]
        found += [right(block) for block in pool.blocks(cut(RAM, SIZE))]
        del block
    assert all(found)


def test_where_no_process_can_be_started_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.fork, [2]

    def fork() -> int:
        left[0] -= 1
        if left[0] < 0:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BlockingIOError):
        Pool([Fake("one", RAM)], workers=4, size=SIZE)


def test_a_reader_holds_nothing_of_this_process(tmp_path: Path) -> None:
    """One that hangs must not keep a channel or an object open."""
    with (tmp_path / "object").open("wb") as kept, Opened(Fake("one", RAM), count=1) as pool:
        assert blocks(pool)
        held = [os.readlink(one) for one in Path(f"/proc/{pool.pids[0]}/fd").iterdir()]
        assert str(tmp_path / "object") not in held
        assert len([one for one in held if not one.startswith("socket:")]) == 0
        assert kept.fileno() >= 0


def test_buffers_are_locked_where_that_is_allowed() -> None:
    with Opened(Fake("one", RAM), size=64 << 10) as pool:
        locked = int(Path("/proc/self/status").read_text().split("VmLck:")[1].split()[0])
        assert pool.locked == (locked >= 2 * 64)
