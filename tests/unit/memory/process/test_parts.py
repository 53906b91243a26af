"""Parsers and layouts: maps, pagemap, notes, and where everything stands in a core."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.memory.process import maps, pagemap
from acquirers.memory.process.backing import Backing
from acquirers.memory.process.elf import CONTENT, EM_AARCH64, EM_X86_64, MAX_SEGMENTS, SPARE, Layout, Segments
from acquirers.memory.process.examine import lines_of
from acquirers.memory.process.maps import Area
from acquirers.memory.process.notes import FileNote, Task, prpsinfo, prstatus
from acquirers.memory.process.pagemap import ABSENT, GUARD, PRESENT, SWAPPED, VANISHED, Run
from acquirers.memory.process.reading import Batches
from acquirers.memory.process.threads import task_of
from acquirers.memory.process.told import Lines
from acquirers.memory.ranges import Ranges
from tests.unit.memory.process.helpers import PAGE, Core

FAKE = b"00020000-7ffffffff000 r--p 00000000 00:00 0 [vvar]"
HOSTILE = b"7f0000000000-7f0000001000 rw-p 00000000 fe:00 42                         /tmp/a\\012b (deleted) \x1b[31m"


def test_areas() -> None:
    text = b"\n".join(
        [
            b"55d0c0000000-55d0c0001000 r-xp 00002000 fe:01 1234                       /usr/bin/some thing",
            HOSTILE,
            b"7f0000000000-7f0000002000 rw-p 00000000 fe:00 42 /x",  # overlaps: the map changed while it was read
            b"nonsense",
            b"7f0000003000-7f0000003000 rw-p 00000000 00:00 0 ",
            b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
        ]
    )
    everything = list(maps.areas(io.BytesIO(text)))
    assert everything.count(None) == 2  # lines that are no areas are told
    found = [area for area in everything if area is not None]
    assert found[0] == Area(0x55D0C0000000, 0x55D0C0001000, b"r-xp", 0x2000, b"fe:01", 1234, b"/usr/bin/some thing")
    assert found[0].segment_flags == 5
    assert found[1].name == b"/tmp/a\\012b (deleted) \x1b[31m"
    assert (found[2].start, found[2].end, found[2].offset) == (0x7F0000001000, 0x7F0000002000, 0x1000)
    assert [area.name for area in found[3:]] == [b"[vsyscall]"]
    assert maps.why_never(found[3], None) == "kernel"


@pytest.mark.parametrize(
    "rest", [b"x" * 50_000, b"x" * (32768 - 53) + b"00020000-7ffffffff000 r--p 00000000 00:00 0 [vvar]"]
)
def test_the_rest_of_a_line_is_no_line(tmp_path: Path, rest: bytes) -> None:
    """A path may be longer than what is kept of a line, and its owner chooses what stands there."""
    first = b"00010000-00011000 r--p 00000000 fe:00 42             /"
    assert len(first) == 54
    last = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 "
    (tmp_path / "maps").write_bytes(first + rest + b"\n" + last + b"\n")
    found = list(maps.areas(lines_of(os.open(tmp_path / "maps", os.O_RDONLY))))
    assert [area and area.start for area in found] == [0x10000, 0x7F0000000000]


def test_an_area_that_does_not_ascend_takes_no_other_along() -> None:
    text = b"2000-4000 rw-p 0 00:00 0 \n1000-2000 rw-p 0 00:00 0 \n5000-6000 rw-p 0 00:00 0 \n"
    assert [area and area.start for area in maps.areas(io.BytesIO(text))] == [0x2000, None, 0x5000]


def test_memory_of_devices_is_never_read() -> None:
    text = b"""7f0000000000-7f0000001000 rw-s 00000000 00:06 42 /dev/uio0
Rss:                   0 kB
Swap:                  0 kB
VmFlags: rd wr sh mr mw me ms pf io de dd
7f0000002000-7f0000004000 rw-p 00000000 00:00 0
Rss:                   4 kB
Swap:                  4 kB
VmFlags: rd wr mr mw me ac sd
7f0000004000-7f0000006000 rw-p 00000000 00:00 0
Rss:                   0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me um
"""
    known = maps.known(io.BytesIO(text))
    device, heap, handled = (area for area in maps.areas(io.BytesIO(text)) if area is not None)
    assert maps.why_never(device, known[device.start]) == "device"
    assert maps.why_never(device, None) == "device"
    assert maps.why_never(device._replace(name=b"/dev/shm/x"), None) == ""
    assert known[heap.start].resident == 8192
    assert maps.zero_where_absent(heap, known[heap.start])
    assert not maps.zero_where_absent(heap, None)  # nobody said who fills it
    assert not maps.zero_where_absent(handled, known[handled.start])
    assert not maps.zero_where_absent(heap._replace(perms=b"rw-s"), known[heap.start])


@given(st.binary(max_size=300))
def test_hostile_maps(text: bytes) -> None:
    for area in maps.areas(io.BytesIO(text)):
        assert area is None or area.start < area.end
    maps.known(io.BytesIO(text))


def entry(state: int) -> bytes:
    top = {PRESENT: 0x80, SWAPPED: 0x40, ABSENT: 0, GUARD: 0x44, VANISHED: 0}[state]
    return bytes([1, 2, 3, 4, 5, 6, 0x80, top])  # a frame number and soft-dirty, which say nothing here


@given(st.lists(st.tuples(st.sampled_from([PRESENT, SWAPPED, ABSENT, GUARD]), st.integers(1, 50)), min_size=1))
def test_runs_of_pages(states: list[tuple[int, int]]) -> None:
    expected: list[Run] = []
    at = 1 << 30
    for state, count in states:
        end = at + count * PAGE
        if expected and expected[-1].state == state:
            expected[-1] = expected[-1]._replace(end=end)
        else:
            expected.append(Run(state, at, end))
        at = end
    data = b"".join(entry(state) * count for state, count in states)
    start = (1 << 30) // PAGE * 8

    def few(length: int, offset: int) -> bytes:
        return data[offset - start :][: min(length, 24)]

    assert [run for run in pagemap.runs(few, 1 << 30, at) if run is not None] == expected


def test_what_the_page_map_does_not_tell_has_vanished() -> None:
    found = [run for run in pagemap.runs(lambda *_: b"", 0, 10 * PAGE) if run is not None]
    assert found == [Run(VANISHED, 0, 10 * PAGE)]


def test_guard_regions_are_markers_that_look_swapped() -> None:
    """And before Linux 4.3 the size of a page stood in the same bits: 12 in bits 55 to 60, of whatever page."""
    assert pagemap.classes(b"".join(bytes(7) + bytes([top]) for top in (0x44, 0x04, 0x46, 0x06, 0x86, 0x40))) == bytes(
        [GUARD, GUARD, SWAPPED, ABSENT, PRESENT, SWAPPED]
    )


def test_flags_are_learnt_with_signs_of_life() -> None:
    text = b"".join(b"%x-%x rw-p 0 00:00 0 \nVmFlags: rd wr\n" % (at << 12, (at + 1) << 12) for at in range(1, 101))
    found: dict[int, maps.Known] = {}
    signs = maps.learn(io.BytesIO(text), found, 50)
    next(signs)
    assert len(found) == 1  # whoever has no more time goes on with what there is
    assert len(list(signs)) == 49
    assert len(found) == 50


@pytest.mark.parametrize(
    "name",
    [
        b"/sys/devices/pci0000:00/0000:00:02.0/resource1",
        b"/elsewhere/0000:00:02.0/resource0_wc",
        b"/proc/bus/pci/00/02.0",
        b"anon_inode:[perf_event]",
        b"/dev/mem",
    ],
)
def test_devices_are_known_by_their_names_where_flags_are_not(name: bytes) -> None:
    area = Area(0x1000, 0x2000, b"rw-s", 0, b"00:15", 7, name)
    assert maps.why_never(area, None) == "device"
    assert maps.why_never(area, maps.Known(0x2000, frozenset({b"rd"}), 0)) == ""


def test_devices_are_known_by_their_filesystems(tmp_path: Path) -> None:
    """Wherever they are mounted, and whatever they are called."""
    mounts = b"30 1 0:21 / /x rw - sysfs sysfs rw\n31 1 0:44 / /t rw shared:1 - tmpfs tmpfs rw\n"
    mounts += b"32 1 254:1 / / rw - ext4 x rw\n"
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        backing = Backing(directory, mounts)
        area = Area(0x1000, 0x2000, b"rw-s", 0, b"00:15", 7, b"/x/config")
        assert backing.why_never(area) == "device"
        assert backing.why_never(area._replace(device=b"fe:01")) == ""
        assert backing.why_never(area._replace(device=b"00:2c")) == ""
        assert backing.why_never(area._replace(device=b"00:99")) == "unknown"
        assert backing.shared_memory(area._replace(device=b"00:2c"), frozenset())
        assert not backing.shared_memory(area._replace(device=b"fe:01"), frozenset())
        (tmp_path / "map_files").mkdir()
        (tmp_path / "map_files/1000-2000").symlink_to("/dev/null")
        assert backing.why_never(area._replace(device=b"fe:01", name=b"/innocent")) == "device"
    finally:
        os.close(directory)


def test_notes_are_as_long_as_the_kernels() -> None:
    """struct elf_prstatus: 336 bytes on x86-64, 392 on arm64; its registers begin at 112."""
    task = Task(42, 1, 42, 42, utime=250, pending=1, held=2)
    for registers, size in ((bytes(216), 336), (bytes(272), 392)):
        note = prstatus(task, registers, 100, floating=True)
        name, length, kind = struct.unpack_from("<III", note)
        assert (name, length, kind, note[12:17]) == (5, size, 1, b"CORE\0")
        assert struct.unpack_from("<i", note, 20 + 32) == (42,)
        assert struct.unpack_from("<qq", note, 20 + 48) == (2, 500_000)
        assert struct.unpack_from("<i", note, 20 + 112 + len(registers)) == (1,)
    info = prpsinfo(task, 0xFFFFFFFF, 5, b"a\nname) that is long"[:15], b"a\0b c\0\xff" * 40)
    assert struct.unpack_from("<III", info) == (5, 136, 3)


def test_a_name_with_parentheses_and_newlines() -> None:
    stat = b"7 (a) S 1) R\n) S 3 7 7 0 -1 4194304 9 0 0 0 25 5 0 0 20 -5 1 0 99 1 1\n"
    found = task_of(stat, b"Name:\tx\nSigPnd:\t0000000000000001\nSigBlk:\tffffffffffffffff\n")
    assert found == Task(7, 3, 7, 7, "S", -5, 4194304, 25, 5, 1, 0xFFFFFFFFFFFFFFFF)
    assert task_of(b"7 (a) S", b"") is None
    assert task_of(b"7 (a) S" + b" 99999999999999999999" * 30, b"") is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_hostile_stat(stat: bytes, status: bytes) -> None:
    task_of(b"1 (a) S " + stat, b"SigPnd:\t" + status)


def test_the_note_of_files_is_bounded() -> None:
    note = FileNote()
    for index in range(2000):
        note.add(Area(index << 12, (index + 1) << 12, b"r--p", 0, b"fe:00", 1, b"/" + b"x" * 4094))
    assert note.left_out > 900
    assert len(note.data()) <= 4 << 20


def test_lines_come_back() -> None:
    lines = Lines()
    text = b"".join(
        b'{"number":%d,"random":"%s"}\n' % (number, os.urandom(20).hex().encode()) for number in range(90_000)
    )
    for start in range(0, len(text), 5000):
        lines.add(text[start : start + 5000])
    found = list(lines.chunks())
    assert b"".join(found) == text
    assert lines.size == len(text)
    assert max(map(len, found)) <= 1 << 20


@st.composite
def planned(draw: st.DrawFn) -> tuple[Segments, list[tuple[int, int]]]:
    segments = Segments()
    lost = []
    at = draw(st.integers(1, 1000)) * PAGE
    for _ in range(draw(st.integers(0, 12))):
        size = draw(st.integers(1, 40)) * PAGE
        content = draw(st.booleans())
        segments.add(at, at + size, draw(st.integers(0, 7)), content=content)
        if content:
            first = draw(st.integers(0, size // PAGE - 1))
            step = draw(st.integers(1, 4))
            many = draw(st.integers(0, 20))
            lost += [
                (at + page * PAGE, at + (page + 1) * PAGE)
                for page in range(first, min(size // PAGE, first + many * step), step)
            ]
        at += size + draw(st.integers(0, 3)) * PAGE
    return segments, lost


def written(segments: Segments, lost: Ranges, notes: bytes = b"", machine: int = EM_X86_64) -> tuple[Core, Ranges]:
    """A core in which every page that was read holds its own address."""
    layout = Layout(machine, len(notes), segments)
    lost = layout.fitting(lost)
    data = layout.head() + notes
    data += bytes(layout.data - len(data))
    for start, size, kind in segments:
        if kind & CONTENT:
            for page in range(start, start + size, PAGE):
                data += bytes(PAGE) if page in lost else struct.pack("<Q", page) * (PAGE // 8)
    pages = b'{"type":"end"}\n'
    return Core(data + b"".join(layout.tail(lost, len(pages))) + pages), lost


@settings(deadline=None)
@given(planned())
def test_segments_say_exactly_what_was_read(plan: tuple[Segments, list[tuple[int, int]]]) -> None:
    segments, pages = plan
    core, lost = written(segments, Ranges(pages))
    assert all(page in lost for page, _ in pages)
    assert (
        Layout(EM_X86_64, 0, segments).covered(lost)
        == sum(
            page in lost
            for start, size, kind in segments
            if kind & CONTENT
            for page in range(start, start + size, PAGE)
        )
        * PAGE
    )
    if len(pages) <= SPARE:
        assert lost == Ranges(pages)  # nothing is given up without need
    assert core.count == 1 + len(segments) + SPARE
    for start, size, kind in segments:
        for page in range(start, start + size, PAGE):
            if not kind & CONTENT:
                assert core.at(page, PAGE) == bytes(PAGE)
            elif page in lost:
                assert core.at(page, PAGE) is None
            else:
                assert core.at(page, PAGE) == struct.pack("<Q", page) * (PAGE // 8)
    for _, _, offset, address, physical, filesz, memsz, align in core.loads:
        assert filesz in {0, memsz}
        assert physical == address
        assert offset % align == address % align == 0


def test_more_segments_than_sixteen_bits_hold() -> None:
    segments = Segments()
    for index in range(70_000):
        segments.add((2 * index + 1) * PAGE, (2 * index + 2) * PAGE, 6, content=index % 1000 == 0)
    core, _ = written(segments, Ranges(), machine=EM_AARCH64)
    assert core.count == 1 + 70_000
    assert len(core.loads) == 70_000
    assert core.machine == 183
    assert struct.unpack_from("<H", core.data, 56) == (0xFFFF,)
    assert core.at((2 * 69_000 + 1) * PAGE, 8) == struct.pack("<Q", (2 * 69_000 + 1) * PAGE)
    assert MAX_SEGMENTS > 0xFFFF


def test_thousands_of_lost_pages_take_no_others_along() -> None:
    segments = Segments()
    segments.add(PAGE, (100_000 + 1) * PAGE, 6, content=True)
    lost = Ranges((page * PAGE, (page + 1) * PAGE) for page in range(16, 100_000, 16))
    layout = Layout(EM_X86_64, 0, segments)
    assert layout.fitting(lost) == lost
    assert layout.covered(lost) == lost.total
    assert layout.spare * 56 * 500 < segments.content


def test_room_for_lost_pages_beyond_sixteen_bits() -> None:
    segments = Segments()
    for index in range(60_000):
        segments.add((4 * index + 1) * PAGE, (4 * index + 4) * PAGE, 6, content=True)
    lost = Ranges(((4 * index + 2) * PAGE, (4 * index + 3) * PAGE) for index in range(10_000))
    layout = Layout(EM_X86_64, 0, segments)
    assert layout.fitting(lost) == lost
    assert struct.unpack_from("<H", layout.head(), 56) == (0xFFFF,)
    assert struct.unpack_from("<I", next(layout.tail(lost, 0)), 44) == (70_001,)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=30), st.booleans())
def test_batches_are_the_content_in_its_order(sizes: list[tuple[int, bool]], apart: bool) -> None:
    segments = Segments()
    at = PAGE
    for pages, content in sizes:
        segments.add(at, at + pages * PAGE, 6, content=content)
        at += pages * PAGE
    batches = Batches(segments, 8 * PAGE, apart=apart)

    def pages_of(pieces: Iterator[tuple[int, int]]) -> list[int]:
        return [page for address, size in pieces for page in range(address, address + size, PAGE)]

    found = [page for index in range(len(batches)) for page in pages_of(batches.pieces(batches[index]))]
    assert found == pages_of((start, size) for start, size, kind in segments if kind & CONTENT)
    assert all(len(list(batches.pieces(batches[index]))) == 1 for index in range(len(batches)) if apart)
    assert sum(batches[index].size for index in range(len(batches))) == segments.content
