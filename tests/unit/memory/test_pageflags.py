"""What the kernel says of each page: counted, searched and compared as if word by word."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory import pageflags
from acquirers.memory.block import PAGE, Why
from acquirers.memory.pageflags import BAD, Flags, PageFlags, page_class
from tests.unit.snapshot.helpers import needs_root

BITS = (
    pageflags.LRU, pageflags.SLAB, pageflags.BUDDY, pageflags.MAPPED, pageflags.ANON, pageflags.HUGE,
    pageflags.HWPOISON, pageflags.NOPAGE, pageflags.KSM, pageflags.OFFLINE, pageflags.ZERO_PAGE, pageflags.PGTABLE,
    pageflags.RESERVED, 63,
)  # fmt: skip
words_of_a_page = st.sets(st.sampled_from(BITS), max_size=2).map(lambda bits: sum(1 << bit for bit in bits))
# As in a real machine: runs of one kind, longer and shorter than what is looked at together, and mixtures.
runs = st.lists(st.tuples(words_of_a_page, st.integers(1, 200)), max_size=8).map(
    lambda found: [word for word, count in found for _ in range(count)]
)
REASONS = {pageflags.HWPOISON: Why.HWPOISON, pageflags.OFFLINE: Why.OFFLINE, pageflags.NOPAGE: Why.NOPAGE}


def packed(words: list[int]) -> bytes:
    return struct.pack(f"={len(words)}Q", *words)


@given(words=runs, first=st.integers(0, 1 << 40))
def test_pages_are_counted_by_class(words: list[int], first: int) -> None:
    assert Flags(first, packed(words)).counts() == Counter(words)
    assert Flags(first, packed(words)).classes() == Counter(map(page_class, words))


@given(words=runs, first=st.integers(0, 1 << 40), bit=st.sampled_from(BITS))
def test_pages_are_found_by_their_flags(words: list[int], first: int, bit: int) -> None:
    flags = Flags(first, packed(words))
    expected = [frame for frame, word in enumerate(words, first) if word & 1 << bit]
    assert flags.having(1 << bit) == expected
    assert flags.any(1 << bit) == bool(expected)


@given(words=runs, first=st.integers(0, 1 << 40))
def test_what_must_not_be_touched_is_told_in_runs(words: list[int], first: int) -> None:
    found = Flags(first, packed(words)).bad()
    told = {frame: why for start, count, why in found for frame in range(start, start + count)}
    assert sorted(told) == [frame for frame, word in enumerate(words, first) if word & BAD]
    for frame, why in told.items():
        assert any(words[frame - first] & 1 << bit for bit, reason in REASONS.items() if reason is why)
    assert all(
        one[0] + one[1] < other[0] or (one[0] + one[1] == other[0] and one[2] is not other[2])
        for one, other in itertools.pairwise(found)
    )


def test_a_poisoned_page_is_called_that_whatever_else_it_is() -> None:
    word = 1 << pageflags.HWPOISON | 1 << pageflags.OFFLINE | 1 << pageflags.BUDDY
    assert Flags(7, packed([word])).bad() == [(7, 1, Why.HWPOISON)]
    assert page_class(word) == "hwpoison"


@given(words=runs, changes=st.dictionaries(st.integers(0, 1599), words_of_a_page, max_size=20), cut=st.integers(0, 90))
def test_what_changed_is_counted(words: list[int], changes: dict[int, int], cut: int) -> None:
    """Frames that are beyond the end of the file in one of the two differ, too: memory was plugged."""
    now = [changes.get(index, word) for index, word in enumerate(words)][: max(0, len(words) - cut)]
    expected = sum(one != other for one, other in itertools.zip_longest(words, now))
    before, after = Flags(0, packed(words)), Flags(0, packed(now))
    assert before.differing(after) == after.differing(before) == expected


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        ((), "other"),
        ((pageflags.LRU, pageflags.MAPPED), "file"),
        ((pageflags.LRU, pageflags.MAPPED, pageflags.ANON), "anonymous"),
        ((pageflags.KSM, pageflags.LRU), "anonymous"),
        ((pageflags.BUDDY,), "free"),
        ((pageflags.SLAB,), "slab"),
        ((pageflags.PGTABLE, pageflags.MAPPED), "page-table"),
        ((pageflags.HUGE, pageflags.MAPPED), "hugetlb"),
        ((pageflags.ZERO_PAGE, pageflags.RESERVED), "zero-page"),
        ((pageflags.RESERVED,), "reserved"),
        ((63,), "other"),
    ],
)
def test_classes(bits: tuple[int, ...], name: str) -> None:
    assert page_class(sum(1 << bit for bit in bits)) == name


def test_the_file_is_read_by_frame(tmp_path: Path) -> None:
    """Frames beyond its end have no flags; what is no whole word is nothing."""
    path = tmp_path / "kpageflags"
    path.write_bytes(packed(list(range(100, 400))) + b"\1\2\3")
    flags = PageFlags(os.fsencode(path))
    assert list(flags.read(10, 5).words) == [110, 111, 112, 113, 114]
    end = flags.read(298, 10)
    assert list(end.words) == [398, 399]
    assert [end.of(frame) for frame in (297, 298, 299, 300)] == [0, 398, 399, 0]
    assert flags.read(5000, 10).counts() == Counter()
    flags.close()


@needs_root
def test_the_kernel_says_what_our_own_pages_are() -> None:
    area = mmap.mmap(-1, 256 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = b"x" * len(area)
    where = ctypes.addressof(ctypes.c_char.from_buffer(area))
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(where // PAGE * 8)
        frames = [word & ((1 << 55) - 1) for word in struct.unpack("=256Q", file.read(256 * 8))]
    flags = PageFlags(b"/proc/kpageflags")
    classes = Counter(name for frame in frames for name in flags.read(frame, 1).classes())
    flags.close()
    assert classes["anonymous"] > 240  # a page may be on its way from one list of the kernel to another
