"""The seek table: its bytes, its lookups, and numbers that lie."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, ImpoundError
from agent.sealing import seek_table
from agent.sealing.seek_table import (
    FOOTER_SIZE,
    MAX_FRAME_SIZE,
    MAX_FRAMES,
    Entry,
    SeekTable,
    SeekTableBuilder,
    SeekTableCheck,
    compress_bound,
    parse_footer,
    table_size,
)

MAGIC, END = 0x184D2A5E, 0x8F92EAB1


def build(entries: list[tuple[int, int, int]]) -> bytes:
    builder = SeekTableBuilder()
    for entry in entries:
        builder.add(*entry)
    return b"".join(builder.pieces())


def raw(
    entries: list[tuple[int, int, int]], *, head: tuple[int, int] | None = None, foot: bytes | None = None
) -> bytes:
    """A table from numbers that the builder would not write."""
    first = head or (MAGIC, 12 * len(entries) + 9)
    last = foot if foot is not None else struct.pack("<IBI", len(entries), 0x80, END)
    return struct.pack("<II", *first) + b"".join(struct.pack("<III", *entry) for entry in entries) + last


def check(entries: list[tuple[int, int, int]], table: bytes) -> None:
    """Hold `table`, less its magic, against frames that were read."""
    checker = SeekTableCheck()
    for entry in entries:
        checker.add(*entry)
    rest = table[4:]

    def take(count: int) -> bytes:
        nonlocal rest
        if len(rest) < count:
            raise DamagedError("no more")
        taken, rest = rest[:count], rest[count:]
        return taken

    checker.check(take)
    assert not rest


def test_the_bytes_are_those_of_the_format() -> None:
    entries = [(100, 1 << 20, 7), (200, 5, 0xFFFFFFFF)]
    table = build(entries)
    assert table == raw(entries)
    assert len(table) == table_size(2) == 8 + 24 + 9
    assert table[:4] == bytes.fromhex("5e2a4d18")
    assert table[-4:] == bytes.fromhex("b1ea928f")
    assert parse_footer(table[-FOOTER_SIZE:]) == 2


sizes = st.integers(1, MAX_FRAME_SIZE)
frames = st.lists(st.tuples(st.integers(1, 60), sizes, st.integers(0, (1 << 32) - 1)), min_size=1, max_size=50)


@given(frames, st.data())
@settings(deadline=None, max_examples=100)
def test_lookups_find_the_frames_that_hold_a_range(entries: list[tuple[int, int, int]], draw: st.DataObject) -> None:
    table = SeekTable(build(entries), sum(entry[0] for entry in entries))
    expected: list[Entry] = []
    compressed = offset = 0
    for entry in entries:
        expected.append(Entry(compressed, entry[0], offset, entry[1], entry[2]))
        compressed, offset = compressed + entry[0], offset + entry[1]
    assert (len(table), table.size, table.compressed_size) == (len(entries), offset, compressed)
    assert list(table.entries(0, table.size)) == expected
    start = draw.draw(st.integers(0, table.size))
    end = draw.draw(st.integers(start, table.size))
    held = [entry for entry in expected if entry.offset < end and entry.offset + entry.size > start]
    assert list(table.entries(start, end)) == (held if start < end else [])
    check(entries, build(entries))


def test_lookups_in_a_table_that_is_longer_than_one_stride() -> None:
    count = 5000
    table = SeekTable(build([(10, 1000, number) for number in range(count)]), 10 * count)
    for number in (0, 1, 1023, 1024, 1025, 2047, 2048, 4999):
        (entry,) = table.entries(1000 * number, 1000 * number + 1)
        assert entry == Entry(10 * number, 10, 1000 * number, 1000, number)
        assert len(list(table.entries(1000 * number + 999, 1000 * number + 1001))) == (2 if number < 4999 else 1)
    assert list(table.entries(5, 5)) == list(table.entries(table.size, table.size)) == []


def test_an_empty_frame_stands_alone() -> None:
    assert SeekTable(build([(13, 0, 0x51D8E999)]), 13).size == 0
    assert list(SeekTable(build([(13, 0, 0x51D8E999)]), 13).entries(0, 0)) == []
    with pytest.raises(DamagedError, match="frame 1 an impossible size"):
        SeekTable(build([(13, 1, 0), (13, 0, 0)]), 26)


@pytest.mark.parametrize(
    ("table", "compressed"),
    [
        (b"", 0),
        (b"\x00" * 17, 0),
        (raw([(10, 10, 0)])[1:], 10),
        (raw([(10, 10, 0)]) + b"\x00", 10),
        (b"\x00" + raw([(10, 10, 0)]), 10),
        (raw([(10, 10, 0)], head=(MAGIC + 1, 21)), 10),
        (raw([(10, 10, 0)], head=(MAGIC, 20)), 10),
        (raw([(10, 10, 0)], head=(MAGIC, 0xFFFFFFFF)), 10),
        (raw([(10, 10, 0)], foot=struct.pack("<IBI", 2, 0x80, END)), 10),
        (raw([(10, 10, 0)], foot=struct.pack("<IBI", 0, 0x80, END)), 10),
        (raw([(10, 10, 0)], foot=struct.pack("<IBI", 1, 0x00, END)), 10),
        (raw([(10, 10, 0)], foot=struct.pack("<IBI", 1, 0x84, END)), 10),
        (raw([(10, 10, 0)], foot=struct.pack("<IBI", 1, 0x80, END + 1)), 10),
        (raw([]), 0),
        (raw([(10, 10, 0)]), 9),
        (raw([(10, 10, 0)]), 11),
        (raw([(0, 10, 0)]), 0),
        (raw([(0xFFFFFFFF, 10, 0)]), 0xFFFFFFFF),
        (raw([(10, MAX_FRAME_SIZE + 1, 0)]), 10),
        (raw([(10, 0xFFFFFFFF, 0)]), 10),
        (raw([(compress_bound(10) + 1, 10, 0)]), compress_bound(10) + 1),
        (raw([(5, 0, 0), (5, 0, 0)]), 10),
    ],
)
def test_a_table_that_lies_is_refused(table: bytes, compressed: int) -> None:
    with pytest.raises(DamagedError):
        SeekTable(table, compressed)


@pytest.mark.parametrize("count", [0, MAX_FRAMES + 1, 0xFFFFFFFF])
def test_an_impossible_number_of_frames_is_refused_before_anything_is_read(count: int) -> None:
    with pytest.raises(DamagedError, match="frames"):
        parse_footer(struct.pack("<IBI", count, 0x80, END))
    assert parse_footer(struct.pack("<IBI", MAX_FRAMES, 0x80, END)) == MAX_FRAMES


def test_a_table_that_is_not_of_the_frames_before_it_is_refused() -> None:
    entries = [(10, 1000, 1), (20, 2000, 2), (30, 3000, 3)]
    good = build(entries)
    check(entries, good)
    for at in range(4, len(good)):
        changed = bytearray(good)
        changed[at] ^= 1
        with pytest.raises(DamagedError):
            check(entries, bytes(changed))
    for other in (entries[:2], entries[::-1], [*entries, (1, 1, 1)]):
        with pytest.raises(DamagedError):
            check(entries, build(other))
    for cut in range(4, len(good)):
        with pytest.raises(DamagedError):
            check(entries, good[:cut])


def test_a_long_table_is_compared_in_pieces() -> None:
    entries = [(10, 1000, number) for number in range(20000)]
    check(entries, build(entries))


def test_neither_side_goes_beyond_the_greatest_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek_table, "MAX_FRAMES", 3)
    builder, checker = SeekTableBuilder(), SeekTableCheck()
    for _ in range(3):
        builder.add(1, 1, 1)
        checker.add(1, 1, 1)
    with pytest.raises(ImpoundError, match="at most 3 frames"):
        builder.add(1, 1, 1)
    with pytest.raises(DamagedError, match="more than 3 frames"):
        checker.add(1, 1, 1)


@given(st.binary(max_size=200), st.integers(0, 1000))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_table_or_damaged(data: bytes, compressed: int) -> None:
    with pytest.raises(DamagedError):
        SeekTable(data, compressed)


@given(
    st.lists(st.tuples(*[st.integers(0, 0xFFFFFFFF) | st.integers(0, 300)] * 3), max_size=8),
    st.integers(0, 2000),
)
@settings(deadline=None, max_examples=300)
def test_any_numbers_in_the_shape_of_a_table_are_consistent_or_damaged(
    entries: list[tuple[int, int, int]], compressed: int
) -> None:
    try:
        table = SeekTable(raw(entries), compressed)
    except DamagedError:
        return
    assert sum(entry[0] for entry in entries) == compressed
    assert sum(entry[1] for entry in entries) == table.size
    assert all(entry[1] <= MAX_FRAME_SIZE for entry in entries)
