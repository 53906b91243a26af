"""A block is read as whole as it can be, and what it says of itself is true to the byte."""

from __future__ import annotations

import hashlib
import itertools
import math
import mmap
import os
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory.block import PAGE, Why
from acquirers.memory.pageflags import BAD, BUDDY, HWPOISON, LRU, NOPAGE, OFFLINE, PGTABLE
from acquirers.memory.ranges import Ranges
from acquirers.memory.reading import STEP, Answer, BlockReader
from tests.support.memory_sources import Fake, FakeReader, memory, page

if TYPE_CHECKING:
    import pytest

    from acquirers.memory.source import Source

PAGES = 40
FIRST = 2 * STEP // PAGE - PAGES // 2
"""Frames `FIRST` to `FIRST + PAGES` are what is read here: there is an end of a step in the middle of them."""
START, END = FIRST * PAGE, (FIRST + PAGES) * PAGE


class Watched(Fake):
    """Keeps what it was asked for: (address, bytes). `locked`: it cannot be opened."""

    def __init__(self, name: str, covers: Ranges, *, locked: bool = False, **more: object) -> None:
        super().__init__(name, covers, **more)  # type: ignore[arg-type]
        self.locked, self.asked, self.opened = locked, list[tuple[int, int]](), 0

    def open(self) -> WatchedReader:
        self.opened += 1
        if self.locked:
            raise PermissionError(13, "no")
        return WatchedReader(self)

    def frames(self) -> set[int]:
        return {frame for at, size in self.asked for frame in range(at // PAGE, -(-(at + size) // PAGE))}


class WatchedReader(FakeReader):
    def __init__(self, source: Watched) -> None:
        super().__init__(source)
        self._watched = source

    def read(self, address: int, into: memoryview) -> None:
        self._watched.asked.append((address, len(into)))
        into[:] = b"\xee" * len(into)  # what an error leaves there counts for nothing
        super().read(address, into)


def whole(name: str = "bpf", **more: object) -> Watched:
    return Watched(name, Ranges([(START, END)]), **more)  # type: ignore[arg-type]


def flags_file(top: Path, flags: dict[int, int]) -> bytes:
    path = top / "kpageflags"
    with path.open("wb") as file:
        for frame, word in flags.items():
            file.seek(frame * 8)
            file.write(struct.pack("=Q", word))
        file.truncate((FIRST + PAGES + 5) * 8)
    return os.fsencode(path)


def read(
    sources: Sequence[Source], start: int = START, end: int = END, flags: bytes | None = None, **more: object
) -> tuple[Answer, bytes]:
    reader = BlockReader(sources, flags, **more)  # type: ignore[arg-type]
    with mmap.mmap(-1, PAGES * PAGE) as buffer:
        answer = reader.read(start, end, buffer)
        reader.close()
        return answer, buffer[: end - start]


def holes(answer: Answer) -> dict[Why, Ranges]:
    """By reason; fails where they are not in order."""
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(answer.holes))
    return {
        why: Ranges(one[:2] for one in answer.holes if one[2] is why) for why in {one[2] for one in answer.holes}
    }  # fmt: skip


def pages(frames: Iterable[int]) -> Ranges:
    return Ranges((frame * PAGE, (frame + 1) * PAGE) for frame in frames)


some_frames = st.sets(st.integers(FIRST, FIRST + PAGES - 1), max_size=12)
some_bytes = st.lists(st.tuples(st.integers(START, END), st.integers(START, END)), min_size=1, max_size=3).map(
    lambda pairs: Ranges((min(pair), max(pair)) for pair in pairs)
)


@given(
    span=st.tuples(st.integers(START, END - 1), st.integers(START + 1, END)).filter(lambda one: one[0] < one[1]),
    covers=st.tuples(some_bytes, some_bytes),
    fails=st.tuples(some_frames, some_frames),
    lies=some_frames,
    kinds=st.dictionaries(
        st.integers(FIRST, FIRST + PAGES - 1), st.sampled_from([HWPOISON, OFFLINE, NOPAGE, BUDDY]), max_size=8
    ),
    single=st.booleans(),
)
def test_every_byte_is_the_machine_s_or_in_a_hole_with_its_reason(
    tmp_path_factory: pytest.TempPathFactory,
    span: tuple[int, int],
    covers: tuple[Ranges, Ranges],
    fails: tuple[set[int], set[int]],
    lies: set[int],
    kinds: dict[int, int],
    single: bool,
) -> None:
    """kcore, which gives whole pages of RAM and fills with zeros, before eBPF, which gives any byte or an error."""
    start, end = span
    core = Watched("kcore", covers[0].clip(*span).rounded_in(PAGE), zero_fills=True, fails=fails[0], zeros=lies)
    other = Watched("bpf", covers[1], fails=fails[1])
    path = flags_file(tmp_path_factory.mktemp("f"), {frame: 1 << bit for frame, bit in kinds.items()})
    answer, data = read([core, other], start, end, path, single=single)

    untouchable = {frame for frame, bit in kinds.items() if 1 << bit & BAD}
    assert not (core.frames() | other.frames()) & untouchable

    assert all(at % PAGE == size % PAGE == 0 for at, size in core.asked)

    all_of_it = Ranges([span])
    bad = pages(untouchable).intersect(all_of_it)
    left = all_of_it.subtract(bad)
    from_core = left.intersect(core.covers).subtract(pages(fails[0]))
    from_other = left.subtract(from_core).intersect(other.covers).subtract(pages(fails[1]))
    missing = left.subtract(from_core).subtract(from_other)
    failed = missing.intersect(core.covers.intersect(pages(fails[0])).union(other.covers.intersect(pages(fails[1]))))
    doubted = {
        frame
        for frame in range(FIRST, FIRST + PAGES)
        if from_core.covers(frame * PAGE, (frame + 1) * PAGE)
        and (frame in lies or not any(page(frame)))
        and kinds.get(frame) != BUDDY
    }
    unmapped = pages(doubted & fails[1]).intersect(other.covers)
    unproved = pages(doubted).subtract(other.covers)

    found = holes(answer)
    assert found.pop(Why.ERROR, Ranges()) == failed
    assert found.pop(Why.NOT_COVERED, Ranges()) == missing.subtract(failed)
    assert found.pop(Why.UNMAPPED, Ranges()) == unmapped
    told = Ranges().union(found.pop(Why.HWPOISON, Ranges())).union(found.pop(Why.OFFLINE, Ranges()))
    assert told.union(found.pop(Why.NOPAGE, Ranges())) == bad
    assert not found

    there = all_of_it.subtract(Ranges(one[:2] for one in answer.holes))
    believed = unproved.union(pages(frame for frame in lies if kinds.get(frame) == BUDDY).intersect(from_core))
    for piece in there.subtract(believed):
        assert data[piece.start - start : piece.end - start] == memory(*piece), hex(piece.start)
    for piece in there.intersect(believed):
        assert not any(data[piece.start - start : piece.end - start])
    assert answer.zeros == unproved.total // PAGE


def test_one_bad_page_costs_few_reads_and_nothing_beside_it() -> None:
    core = Watched("bpf", Ranges([(0, 2 * STEP)]), fails=[700])
    with mmap.mmap(-1, 2 * STEP) as buffer:
        answer = BlockReader([core]).read(0, 2 * STEP, buffer)
    assert answer.holes == [(700 * PAGE, 701 * PAGE, Why.ERROR, "EFAULT from bpf")]
    assert len(core.asked) <= 2 + 2 * math.log2(STEP // PAGE)
    assert max(size for _, size in core.asked) == STEP
    assert answer.sources == {"bpf": 2 * STEP - PAGE}


def test_parts_of_pages_are_read_by_who_can() -> None:
    core, other = whole("kcore", zero_fills=True), whole("bpf")
    core.covers = Ranges([(START + PAGE, END - PAGE)])
    answer, data = read([core, other], START + 0x400, END - 1)
    assert data == memory(START + 0x400, END - 1)
    assert answer.holes == []
    assert (START + 0x400, 0xC00) in other.asked
    assert (END - PAGE, PAGE - 1) in other.asked


def test_errors_say_what_the_first_source_said() -> None:
    core, other = whole("kcore", fails=[FIRST + 3]), whole("bpf", fails=[FIRST + 3, FIRST + 9])
    core.covers = core.covers.subtract(pages([FIRST + 9]))
    answer, _ = read([core, other])
    assert answer.holes == [
        (START + 3 * PAGE, START + 4 * PAGE, Why.ERROR, "EFAULT from kcore"),
        (START + 9 * PAGE, START + 10 * PAGE, Why.ERROR, "EFAULT from bpf"),
    ]


def test_a_source_that_cannot_be_opened_is_asked_once() -> None:
    locked, other = whole("kcore", locked=True), whole("bpf")
    reader = BlockReader([locked, other])
    with mmap.mmap(-1, PAGES * PAGE) as buffer:
        for _ in range(3):
            assert reader.read(START, END, buffer).sources == {"bpf": PAGES * PAGE}
        assert buffer[:] == memory(START, END)
    assert (locked.opened, other.opened) == (1, 1)
    answer, _ = read([whole("kcore", locked=True)])
    assert answer.holes == [(START, END, Why.ERROR, "EACCES from kcore")]


def test_guard_pages_have_no_content_to_lose() -> None:
    """Every second page of KFENCE is unmapped: kcore gives zeros, eBPF an error."""
    guarded, hidden = FIRST + 4, FIRST + 9
    core = whole("kcore", zero_fills=True, zeros=[guarded, hidden])
    other = whole("bpf", fails=[guarded, hidden])
    answer, _ = read([core, other], guards=pages(range(FIRST + 2, FIRST + 6)))
    found = holes(answer)
    assert found[Why.GUARD].covers(guarded * PAGE, (guarded + 1) * PAGE)
    assert found[Why.UNMAPPED].covers(hidden * PAGE, (hidden + 1) * PAGE)
    assert {one[3] for one in answer.holes} == {"zeros, and EFAULT from bpf"}


def test_a_page_that_only_begins_with_zeros_is_not_asked_for_again() -> None:
    class Late(Watched):
        def open(self) -> WatchedReader:
            return LateReader(self)

    class LateReader(WatchedReader):
        def read(self, address: int, into: memoryview) -> None:
            into[:] = bytes(len(into))
            for at in range(0, len(into), PAGE):
                into[at + PAGE - 1] = 1

    other = whole("bpf")
    answer, data = read([Late("kcore", Ranges([(START, END)]), zero_fills=True), other])
    assert other.asked == []
    assert answer.zeros == 0
    assert data.count(1) == PAGES


def test_states_are_told_before_and_after(tmp_path: Path) -> None:
    path = flags_file(tmp_path, {FIRST + 1: 1 << LRU, FIRST + 2: 1 << PGTABLE, FIRST + 3: 1 << PGTABLE})

    class Busy(Watched):
        def open(self) -> WatchedReader:
            with open(path, "r+b") as file:
                for frame in (FIRST + 1, FIRST + 30):
                    file.seek(frame * 8)
                    file.write(struct.pack("=Q", 1 << BUDDY))
            return super().open()

    answer, data = read([Busy("bpf", Ranges([(START, END)]))], flags=path)
    assert answer.classes == {"other": PAGES - 3, "file": 1, "page-table": 2}
    assert answer.changed == 2
    assert answer.digests == [
        (frame, "page-table", hashlib.blake2b(page(frame), digest_size=8).digest()) for frame in (FIRST + 2, FIRST + 3)
    ]
    assert data == memory(START, END)


def test_digests_are_of_whole_pages_that_were_read(tmp_path: Path) -> None:
    """Wanted ones and page tables, each once; none of a page that is in a hole or not all in the block."""
    asked: list[tuple[int, int]] = []

    def wanted(first: int, end: int) -> Iterable[int]:
        asked.append((first, end))
        return [FIRST, FIRST + 5, FIRST + 7, FIRST + 8, FIRST + PAGES - 1]

    path = flags_file(tmp_path, {FIRST + 8: 1 << PGTABLE, FIRST + 9: 1 << PGTABLE, FIRST + 5: 1 << HWPOISON})
    source = whole(fails=[FIRST + 7])
    answer, _ = read([source], START + 8, END - 8, path, wanted=wanted)
    assert asked == [(FIRST, FIRST + PAGES)]
    assert [(frame, name) for frame, name, _ in answer.digests] == [
        (FIRST + 8, "page-table"),
        (FIRST + 9, "page-table"),
    ]
    answer, _ = read([whole()], flags=None, wanted=wanted)
    assert [frame for frame, _, _ in answer.digests] == [FIRST, FIRST + 5, FIRST + 7, FIRST + 8, FIRST + PAGES - 1]
    assert all(made == hashlib.blake2b(page(frame), digest_size=8).digest() for frame, _, made in answer.digests)


def test_without_page_flags_all_of_it_is_read(tmp_path: Path) -> None:
    answer, data = read([whole()], flags=os.fsencode(tmp_path / "missing"))
    assert (answer.classes, answer.changed, answer.holes) == ({}, 0, [])
    assert data == memory(START, END)


def test_one_that_reads_single_pages_asks_for_no_more() -> None:
    source = whole()
    reader = BlockReader([source])
    small = reader.in_single_pages()
    with mmap.mmap(-1, PAGES * PAGE) as buffer:
        small.read(START + 7, END, buffer)
        assert buffer[: PAGES * PAGE - 7] == memory(START + 7, END)
    assert max(size for _, size in source.asked) == PAGE
    assert source.asked[0] == (START + 7, PAGE - 7)
    assert source.opened == 1


def test_thousands_of_bad_pages_do_not_take_minutes() -> None:
    """Kernel 6.12 gives EFAULT for pages of zeros, and they are many. The work must not grow with their square."""

    class Holey:
        name, zero_fills, covers = "kcore", False, Ranges([(0, 64 << 20)])
        direct_map: int | None = None

        def open(self) -> Holey:
            return self

        def read(self, address: int, into: memoryview) -> None:
            if len(into) > PAGE or address // PAGE % 2:
                raise OSError(14, "Bad address")

        def close(self) -> None: ...

    with mmap.mmap(-1, 64 << 20) as buffer:
        began = time.process_time()
        answer = BlockReader([Holey()]).read(0, 64 << 20, buffer)
        used = time.process_time() - began
    assert len(answer.holes) == (32 << 20) // PAGE
    assert used < 5
