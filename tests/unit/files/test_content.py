from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers import syscalls
from acquirers.base import MAX_CHUNK, FlagKind, Reason
from acquirers.files import content as content_module
from acquirers.files.content import MAX_BAD_PAGES, MAX_GAPS, PAGE, FileContent, Reader, find_extents
from acquirers.files.deadline import Deadlined, Direct, Guard
from tests.rigs.trees import Recorder, sha256

MIB = 1 << 20
PATH = b"/native/file"


class Opened:
    """One file, opened as the walker opens it."""

    def __init__(self, path: Path, guard: Guard | None = None, *, in_place: bool = False, noatime: bool = True) -> None:
        self.report = Recorder()
        self.reader = Reader(guard or Direct(), self.report, in_place)
        self.fd = os.open(path, os.O_RDONLY | (os.O_NOATIME if noatime else 0))
        self.content = FileContent(self.reader, self.fd, PATH, syscalls.statx(self.fd, b""))

    def read(self, meanwhile: Callable[[int], None] | None = None) -> bytes:
        """The stored bytes. `meanwhile` is called with the number of each chunk after it was given."""
        parts = []
        for number, chunk in enumerate(self.content.chunks()):
            assert 0 < len(chunk) <= MAX_CHUNK
            parts.append(bytes(chunk))
            if meanwhile is not None:
                meanwhile(number)
        stored = b"".join(parts)
        assert len(stored) == sum(length for _, length in self.content.extents)
        return stored

    @property
    def gap(self) -> tuple[Reason, int | None]:
        (gap,) = self.report.gaps
        assert gap.where == PATH
        return gap.reason, gap.missing

    @property
    def flags(self) -> list[FlagKind]:
        assert all(flag.where == PATH for flag in self.report.flags)
        return [flag.kind for flag in self.report.flags]

    @property
    def nothing_noticed(self) -> bool:
        return not self.report.gaps and not self.report.flags


@contextmanager
def opened(path: Path, guard: Guard | None = None, **how: bool) -> Iterator[Opened]:
    file = Opened(path, guard, **how)
    try:
        yield file
    finally:
        file.content.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def pattern(size: int, seed: int = 7) -> bytes:
    """Bytes that are nowhere zero and differ from page to page."""
    block = bytes((seed + number * 31) % 255 + 1 for number in range(4099))
    return (block * (size // len(block) + 1))[:size]


def write_sparse(path: Path, size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """A file of that size with the pieces; returns what it holds, unless it is too large for that."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
    if size > 64 * MIB:
        return b""
    whole = bytearray(size)
    for offset, data in pieces:
        whole[offset : offset + len(data)] = data
    return bytes(whole)


# -- whole files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
def test_a_file_comes_whole(path: Path, size: int) -> None:
    data = pattern(size)
    path.write_bytes(data)
    with opened(path) as file:
        assert file.content.size == size
        assert file.read() == data
        assert file.content.sha256 == sha256(data)
        assert file.content.true_size == size
        assert file.nothing_noticed


def test_all_files_of_a_walk_share_one_buffer(path: Path) -> None:
    path.write_bytes(pattern(5 * MIB))
    with opened(path) as file:
        assert {id(chunk.obj) for chunk in file.content.chunks()} == {id(file.reader.buffer.obj)}


def test_a_file_without_holes_is_not_asked_for_them(path: Path) -> None:
    path.write_bytes(b"x" * 1000)
    with opened(path) as file, mock.patch.object(os, "lseek", side_effect=AssertionError):
        assert file.content.extents == ((0, 1000),)


def test_nothing_is_thrown_out_of_the_page_cache(path: Path) -> None:
    path.write_bytes(pattern(2 * MIB))
    advice: list[int] = []
    with (
        opened(path) as file,
        mock.patch.object(os, "posix_fadvise", lambda _fd, _offset, _length, kind: advice.append(kind)),
    ):
        file.read()
    assert advice == [os.POSIX_FADV_NOREUSE]


# -- holes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "pieces", "extents"),
    [
        (8 * MIB, [], []),
        (8 * MIB, [(0, PAGE)], [(0, PAGE)]),
        (8 * MIB, [(4 * MIB, PAGE)], [(4 * MIB, PAGE)]),
        (8 * MIB, [(8 * MIB - PAGE, PAGE)], [(8 * MIB - PAGE, PAGE)]),
        (8 * MIB + 1, [(8 * MIB, 1)], [(8 * MIB, 1)]),
        (8 * MIB, [(0, PAGE), (MIB, 2 * MIB), (5 * MIB, PAGE)], [(0, PAGE), (MIB, 2 * MIB), (5 * MIB, PAGE)]),
    ],
    ids=["all hole", "at the beginning", "in the middle", "at the end", "last byte", "several"],
)
def test_only_data_is_stored_and_holes_count_as_zeros(
    path: Path, size: int, pieces: list[tuple[int, int]], extents: list[tuple[int, int]]
) -> None:
    whole = write_sparse(path, size, [(offset, pattern(length, offset)) for offset, length in pieces])
    with opened(path) as file:
        assert list(file.content.extents) == extents
        assert file.read() == b"".join(whole[offset : offset + length] for offset, length in extents)
        assert file.content.sha256 == sha256(whole)
        assert file.content.true_size == size
        assert file.nothing_noticed


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 300_000), pieces=st.lists(st.tuples(st.integers(0, 299_999), st.integers(1, 9000))))
def test_any_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, pieces: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "layout"
    inside = [(offset, pattern(min(length, size - offset), offset)) for offset, length in pieces if offset < size]
    whole = write_sparse(path, size, inside)
    with opened(path) as file:
        stored = file.read()
        again = bytearray(size)
        end = -1
        for offset, length in file.content.extents:
            assert offset > end  # ascending, not touching
            assert length > 0
            end = offset + length
            again[offset:end], stored = stored[:length], stored[length:]
        assert bytes(again) == whole
        assert file.content.sha256 == sha256(whole)
        assert file.nothing_noticed


def test_ten_tebibytes_of_nothing_take_no_time(path: Path) -> None:
    size = 10 << 40
    pieces = [(0, b"first"), (5 << 40, b"middle"), (size - 4, b"last")]
    write_sparse(path, size, pieces)
    started = time.perf_counter()
    with opened(path) as file:
        stored = file.read()
        assert time.perf_counter() - started < 1
        assert file.content.size == file.content.true_size == size
        assert len(stored) == sum(length for _, length in file.content.extents) <= 3 * PAGE
        assert all(text in stored for _, text in pieces)
        assert file.content.sha256 is None
        assert file.flags == [FlagKind.DIGEST_OF_EXTENTS]
        assert not file.report.gaps


def test_holes_are_digested_up_to_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MAX_DIGESTED_HOLES", 4 * MIB)
    whole = write_sparse(path, 4 * MIB + PAGE, [(MIB, pattern(PAGE))])
    with opened(path) as file:
        file.read()
        assert file.content.sha256 == sha256(whole)
        assert file.nothing_noticed
    os.truncate(path, 4 * MIB + PAGE + 1)
    with opened(path) as file:
        file.read()
        assert file.content.sha256 is None
        assert file.flags == [FlagKind.DIGEST_OF_EXTENTS]


def test_of_too_many_holes_the_smallest_are_stored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MAX_EXTENTS", 10)
    offset, pieces = 0, []
    for number in range(30):
        pieces.append((offset, pattern(PAGE, number)))
        offset += PAGE * (2 if number % 10 else 40)
    whole = write_sparse(path, offset, pieces)
    with opened(path) as file:
        extents = file.content.extents
        assert len(extents) <= 10
        assert [offset for offset, _ in extents][:2] == [0, PAGE * 40]  # the wide holes are still holes
        stored = file.read()
        assert stored == b"".join(whole[offset : offset + length] for offset, length in extents)
        assert file.content.sha256 == sha256(whole)
        assert file.flags == [FlagKind.HOLES_MERGED]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=3, max_size=60), st.data())
def test_merging_keeps_the_widest_holes(lengths: list[tuple[int, int]], data: st.DataObject) -> None:
    extents, position = [], 0
    for hole, length in lengths:
        extents.append((position + hole, position + hole + length))
        position += hole + length
    count = data.draw(st.integers(1, len(extents) - 1))
    merged = content_module._without_smallest_holes(extents, count)
    assert len(merged) == count
    assert (merged[0][0], merged[-1][1]) == (extents[0][0], extents[-1][1])
    holes = sorted(after[0] - before[1] for before, after in pairwise(extents))
    kept = sorted(after[0] - before[1] for before, after in pairwise(merged))
    assert kept == holes[len(holes) - len(kept) :]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_filesystem_that_does_not_know_holes_has_one_extent(path: Path, number: int) -> None:
    whole = write_sparse(path, MIB, [(0, b"x")])
    with opened(path) as file, mock.patch.object(os, "lseek", side_effect=OSError(number, "no")):
        assert file.content.extents == ((0, MIB),)
        assert file.read() == whole
        assert file.content.sha256 == sha256(whole)


def test_a_filesystem_cannot_keep_us_asking_for_extents(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "_MAX_ASKED", 5000)

    def an_extent_per_two_bytes(_fd: int, position: int, whence: int) -> int:
        return position + 1 - position % 2 if whence == os.SEEK_DATA else position + 1

    path.touch()
    with opened(path) as file, mock.patch.object(os, "lseek", an_extent_per_two_bytes):
        extents, merged = find_extents(Direct(), file.fd, 1 << 50, 100)
    assert merged
    assert len(extents) <= 100
    assert sum(extents[-1]) == 1 << 50


@pytest.mark.parametrize("answer", [-5, 0, 3])
def test_answers_that_make_no_sense_cost_no_data(path: Path, answer: int) -> None:
    """`SEEK_HOLE` behind the data that it was asked from, `SEEK_DATA` before it."""
    path.touch()
    with opened(path) as file, mock.patch.object(os, "lseek", return_value=answer):
        extents, _ = find_extents(Direct(), file.fd, 100, 10)
    assert extents == ((0, 100),)


@settings(deadline=None)
@given(
    size=st.integers(1, 40_000),
    pieces=st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 3000)), max_size=8),
)
def test_extents_are_whole_blocks_with_all_data_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, size: int, pieces: list[tuple[int, int]]
) -> None:
    """GNU tar reads a sparse member wrong where an extent before the last ends inside of a block."""
    data = {byte for offset, length in pieces for byte in range(offset, min(offset + length, size))}

    def seek(_fd: int, position: int, whence: int) -> int:
        """A filesystem with extents of single bytes."""
        if position >= size or (whence == os.SEEK_DATA and not any(byte >= position for byte in data)):
            raise OSError(errno.ENXIO, "no such address")
        if whence == os.SEEK_DATA:
            return min(byte for byte in data if byte >= position)
        return next(byte for byte in range(position, size + 1) if byte not in data)

    path = tmp_path_factory.getbasetemp() / "blocks"
    path.touch()
    with opened(path) as file, mock.patch.object(os, "lseek", seek):
        extents, merged = find_extents(Direct(), file.fd, size, 1000)
    assert not merged
    assert all(offset % 512 == 0 for offset, _ in extents)
    assert all(length % 512 == 0 for _, length in extents[:-1])
    covered = {byte // 512 for offset, length in extents for byte in range(offset, offset + length)}
    assert covered == {byte // 512 for byte in data}
    assert all(before[0] + before[1] < after[0] for before, after in pairwise(extents))
    assert not extents or sum(extents[-1]) <= size


# -- files that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "true"), [(MIB + 5000, MIB + 5000), (MIB, MIB), (100, MIB), (0, MIB)])
def test_a_file_that_shrinks_is_filled_up(path: Path, cut: int, true: int) -> None:
    data = pattern(3 * MIB)
    path.write_bytes(data)
    with opened(path) as file:
        stored = file.read(lambda number: os.truncate(path, cut) if number == 0 else None)
        assert stored == data[:true] + bytes(3 * MIB - true)
        assert file.content.true_size == true
        assert file.content.sha256 == sha256(data[:true])
        assert file.gap == (Reason.SHORT, 3 * MIB - true)
        assert file.flags == []


def test_a_file_that_is_emptied_before_it_is_read(path: Path) -> None:
    path.write_bytes(pattern(10_000))
    with opened(path) as file:
        os.truncate(path, 0)
        assert file.read() == bytes(10_000)
        assert file.content.true_size == 0
        assert file.content.sha256 == sha256(b"")
        assert file.gap == (Reason.SHORT, 10_000)


@pytest.mark.parametrize(("cut", "true"), [(3 * MIB, 3 * MIB), (PAGE, PAGE), (10, PAGE), (8 * MIB, 8 * MIB)])
def test_a_file_that_shrinks_in_a_hole(path: Path, cut: int, true: int) -> None:
    whole = write_sparse(path, 9 * MIB, [(0, pattern(PAGE)), (8 * MIB, pattern(PAGE))])
    with opened(path) as file:
        stored = file.read(lambda number: os.truncate(path, cut) if number == 0 else None)
        assert stored == pattern(PAGE) + bytes(PAGE)
        assert file.content.true_size == true
        assert file.content.sha256 == sha256(whole[:true])
        assert file.gap == (Reason.SHORT, 9 * MIB - true)


def test_a_file_that_shrinks_in_the_hole_at_its_end(path: Path) -> None:
    whole = write_sparse(path, 9 * MIB, [(0, pattern(PAGE))])
    with opened(path) as file:
        file.read(lambda _: os.truncate(path, MIB))
        assert file.content.true_size == MIB
        assert file.content.sha256 == sha256(whole[:MIB])
        assert file.gap == (Reason.SHORT, 8 * MIB)


def test_a_file_that_shrinks_when_all_was_read_has_changed(path: Path) -> None:
    data = pattern(PAGE)
    path.write_bytes(data)
    with opened(path) as file:
        assert file.read(lambda _: os.truncate(path, 0)) == data
        assert file.content.true_size == PAGE
        assert file.content.sha256 == sha256(data)
        assert not file.report.gaps
        assert file.flags == [FlagKind.CHANGED]


def test_a_file_that_grows_without_end_is_read_as_far_as_it_declared(path: Path) -> None:
    data = pattern(3 * MIB)
    path.write_bytes(data)

    def append(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more" * 1000)

    with opened(path) as file:
        assert file.read(append) == data
        assert file.content.true_size == 3 * MIB
        assert file.content.sha256 == sha256(data)
        assert not file.report.gaps
        assert file.flags == [FlagKind.GREW]


def test_an_empty_file_that_grows(path: Path) -> None:
    path.touch()
    with opened(path) as file:
        path.write_bytes(b"now it has content")
        assert file.read() == b""
        assert file.content.sha256 == sha256(b"")
        assert file.flags == [FlagKind.GREW]


def test_a_file_that_is_rewritten_has_changed_once(path: Path) -> None:
    path.write_bytes(pattern(2 * MIB))
    with opened(path) as file:
        file.read(lambda _: os.utime(path, ns=(5, 5)))
        assert not file.report.gaps
        assert file.flags == [FlagKind.CHANGED]
        assert file.content.sha256 == sha256(pattern(2 * MIB))


def test_a_mode_that_changes_is_a_change(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0o600)
    with opened(path) as file:
        time.sleep(0.02)
        path.chmod(0o640)
        file.read()
        assert file.flags == [FlagKind.CHANGED]


@pytest.mark.parametrize("in_place", [True, False])
def test_an_access_time_that_moves_is_told_where_we_may_have_moved_it(path: Path, *, in_place: bool) -> None:
    path.write_bytes(b"read me")
    os.utime(path, ns=(1_000, 2_000))
    with opened(path, in_place=in_place, noatime=False) as file:
        file.read()
        assert file.flags == ([FlagKind.ATIME_MOVED] if in_place else [])
    assert path.stat().st_atime_ns > 1_000


# -- files that cannot be read ----------------------------------------------------------------------------------------


class BadDisk:
    """`os.preadv` of a file with unreadable pages, as the page cache answers, or as one that fails a whole request."""

    def __init__(self, bad: Sequence[int], *, whole: bool = False, number: int = errno.EIO) -> None:
        self.bad = frozenset(bad)
        self.whole = whole
        self.number = number
        self.failed = 0
        self.real = os.preadv

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        (buffer,) = buffers
        last = offset + len(buffer)
        for page in range(offset // PAGE, (last - 1) // PAGE + 1):
            if page in self.bad:
                if self.whole or page == offset // PAGE:
                    self.failed += 1
                    raise OSError(self.number, os.strerror(self.number))
                return self.real(fd, [buffer[: page * PAGE - offset]], offset)
        return self.real(fd, buffers, offset)


def with_bad_pages(data: bytes, bad: Sequence[int]) -> bytes:
    whole = bytearray(data)
    for page in bad:
        length = min(PAGE, len(data) - page * PAGE)
        whole[page * PAGE : page * PAGE + length] = bytes(length)
    return bytes(whole)


@pytest.mark.parametrize("whole", [False, True], ids=["page cache", "whole request"])
@pytest.mark.parametrize(
    ("bad", "ranges"),
    [
        ([0], [(0, PAGE)]),
        ([100], [(100 * PAGE, PAGE)]),
        ([7, 8, 9], [(7 * PAGE, 3 * PAGE)]),
        ([255, 256], [(255 * PAGE, 2 * PAGE)]),
        ([3, 5, 300], [(3 * PAGE, PAGE), (5 * PAGE, PAGE), (300 * PAGE, PAGE)]),
        ([512], [(512 * PAGE, 17)]),
        (list(range(513)), [(0, 2 * MIB + 17)]),
    ],
    ids=["first", "middle", "neighbours", "across chunks", "several", "last and short", "all"],
)
def test_an_unreadable_page_costs_one_page(
    path: Path, bad: list[int], ranges: list[tuple[int, int]], *, whole: bool
) -> None:
    data = pattern(2 * MIB + 17)
    path.write_bytes(data)
    disk = BadDisk(bad, whole=whole)
    with opened(path) as file, mock.patch.object(os, "preadv", disk):
        assert file.read() == with_bad_pages(data, bad)
        assert [(gap.reason, gap.missing) for gap in file.report.gaps] == [
            (Reason.IO_ERROR, length) for _, length in ranges
        ]
        for gap, (start, length) in zip(file.report.gaps, ranges, strict=True):
            assert f"bytes {start} to {start + length - 1}" in gap.detail
        assert file.content.sha256 is None
        assert file.content.true_size == len(data)
        assert file.flags == []
    if not whole:
        assert disk.failed <= 2 * len(bad)


@pytest.mark.parametrize("number", [errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO])
def test_other_words_for_a_bad_page(path: Path, number: int) -> None:
    data = pattern(MIB)
    path.write_bytes(data)
    with opened(path) as file, mock.patch.object(os, "preadv", BadDisk([9], number=number)):
        assert file.read() == with_bad_pages(data, [9])
        assert file.gap == (Reason.IO_ERROR, PAGE)
        assert os.strerror(number) in file.report.gaps[0].detail


def test_the_gaps_of_one_file_have_an_end(path: Path) -> None:
    bad = list(range(0, 400, 2))
    data = pattern(400 * PAGE)
    path.write_bytes(data)
    with opened(path) as file, mock.patch.object(os, "preadv", BadDisk(bad)):
        assert file.read() == with_bad_pages(data, bad)
    assert len(file.report.gaps) == MAX_GAPS + 1
    assert file.report.gaps[-1].missing == (200 - MAX_GAPS) * PAGE
    assert sum(gap.missing or 0 for gap in file.report.gaps) == 200 * PAGE


def test_a_disk_that_is_gone_is_not_asked_for_every_page(path: Path) -> None:
    data = pattern(MIB)
    write_sparse(path, 100 * MIB, [(0, data), (50 * MIB, data), (90 * MIB, pattern(8 * MIB))])
    disk = BadDisk(range(128, 100 * MIB // PAGE))
    with opened(path) as file, mock.patch.object(os, "preadv", disk):
        stored = file.read()
        assert stored == data[: 128 * PAGE] + bytes(10 * MIB - 128 * PAGE)
        (given_up,) = (gap for gap in file.report.gaps if "in a row" in gap.detail)
        counted = [gap for gap in file.report.gaps if gap is not given_up]
        read_to = 90 * MIB + (MAX_BAD_PAGES - 128 - 256) * PAGE
        assert given_up.missing == 100 * MIB - read_to
        assert sum(gap.missing or 0 for gap in counted) == MAX_BAD_PAGES * PAGE
        assert file.content.true_size == read_to
        assert file.content.sha256 is None
    assert disk.failed <= MAX_BAD_PAGES + 2


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, Reason.DENIED), (errno.ESTALE, Reason.VANISHED), (errno.EINVAL, Reason.IO_ERROR)],
)
def test_an_error_that_is_not_about_a_page_ends_the_file(path: Path, number: int, reason: Reason) -> None:
    data = pattern(3 * MIB)
    path.write_bytes(data)
    disk = BadDisk([300], number=number)
    with opened(path) as file, mock.patch.object(os, "preadv", disk):
        assert file.read() == data[: 300 * PAGE] + bytes(3 * MIB - 300 * PAGE)
        assert file.gap == (reason, 3 * MIB - 300 * PAGE)
        assert file.content.true_size == 300 * PAGE
        assert file.content.sha256 is None
    assert disk.failed == 1


def test_a_file_that_shrinks_behind_a_bad_page(path: Path) -> None:
    data = pattern(3 * MIB)
    path.write_bytes(data)
    with opened(path) as file, mock.patch.object(os, "preadv", BadDisk([2])):
        file.read(lambda number: os.truncate(path, 0) if number == 0 else None)
        assert {gap.reason for gap in file.report.gaps} == {Reason.IO_ERROR, Reason.SHORT}
        assert file.content.sha256 is None


# -- reads that do not return -----------------------------------------------------------------------------------------


class StuckDisk:
    """`os.preadv` that does not return from the given offset on until it is let go, and then fills its buffer."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.release = threading.Event()
        self.returned = threading.Event()
        self.real = os.preadv

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset < self.offset:
            return self.real(fd, buffers, offset)
        self.release.wait(10)
        buffers[0][:] = b"!" * len(buffers[0])
        self.returned.set()
        return len(buffers[0])


def test_a_read_that_is_stuck_ends_the_file_and_cannot_touch_the_next(path: Path) -> None:
    data = pattern(3 * MIB)
    path.write_bytes(data)
    disk = StuckDisk(MIB)
    file = Opened(path, Deadlined(0.05))
    try:
        with mock.patch.object(os, "preadv", disk):
            assert file.read() == data[:MIB] + bytes(2 * MIB)
        assert file.gap == (Reason.STUCK, 2 * MIB)
        assert file.content.true_size == MIB
        assert file.content.sha256 is None
        file.content.close()
        os.fstat(file.fd)  # left to the call that is stuck in it

        # The next file of the walk, whose chunk is in our hands when the stuck call returns.
        fd = os.open(path, os.O_RDONLY)
        following = FileContent(file.reader, fd, PATH, syscalls.statx(fd, b""))
        chunk = next(iter(following.chunks()))
        disk.release.set()
        assert disk.returned.wait(10)
        assert chunk == data[:MIB]
        following.close()
    finally:
        disk.release.set()
        file.reader.guard.close()
        os.close(file.fd)


def test_extents_that_are_stuck_take_no_space(path: Path) -> None:
    write_sparse(path, 1 << 40, [(0, b"x")])
    release = threading.Event()
    file = Opened(path, Deadlined(0.05))
    try:
        with mock.patch.object(content_module, "_seek", side_effect=lambda *_: release.wait(10)):
            assert file.read() == b""
        assert file.content.extents == ()
        assert file.gap == (Reason.STUCK, 1 << 40)
        assert (file.content.true_size, file.content.sha256) == (0, None)
    finally:
        release.set()
        file.reader.guard.close()
        os.close(file.fd)


def test_content_that_is_read_too_late_is_not_that_of_another_file(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"first")
    (tmp_path / "other").write_bytes(b"other")
    file = Opened(path)
    file.content.close()
    other = os.open(tmp_path / "other", os.O_RDONLY)
    try:
        assert other == file.fd  # the kernel gives the number to the next file
        assert file.read() == bytes(5)
        assert file.gap == (Reason.IO_ERROR, 5)
    finally:
        os.close(other)
