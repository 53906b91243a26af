"""A stream of headers and contents: whole or damaged, however it is cut into chunks, and in a little memory."""

from __future__ import annotations

import errno
import io
import itertools
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import Kind
from acquirers.files import pax, sparse
from acquirers.syscalls import Stat
from agent.analysis.extract import extract
from agent.analysis.tarheader import BLOCK
from agent.analysis.tarstream import ByteStream, TarStream
from agent.errors import DamagedError, SourceError

END = bytes(2 * BLOCK)
STAT = Stat(
    mode=0o644, uid=0, gid=0, size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=1, mtime_ns=2, ctime_ns=3,
    btime_ns=None, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip


def member(name: bytes, content: bytes = b"", **more: Any) -> bytes:
    more.setdefault("typeflag", tarfile.REGTYPE)
    head, _ = pax.encode(pax.Header(name, stat=STAT, size=len(content), **more))
    return head + content + pax.padding(len(content))


def sparse_member(name: bytes, extents: list[tuple[int, int]], size: int, content: bytes) -> bytes:
    return member(name, sparse.sparse_map(extents, size) + content, real_size=size)


ARCHIVE = b"".join((
    member(b"[root]/d/", typeflag=tarfile.DIRTYPE),
    member(b"[root]/d/file", b"content"),
    member(b"[root]/d/" + b"long" * 300, b"x" * 1000, xattrs={b"user.a": b"1", b"trusted.overlay.metacopy": b""}),
    sparse_member(b"[root]/d/holes", [(4096, 512), (1 << 40, 100)], 1 << 41, b"a" * 512 + b"b" * 100),
    member(b"[root]/d/link", typeflag=tarfile.SYMTYPE, link_name=b"/etc"),
    END,
))  # fmt: skip


def read(stream: ByteStream) -> list[tuple[bytes, list[tuple[int, bytes]]]]:
    """Names and contents, with pieces that touch put together."""
    archive = TarStream(stream)
    found = []
    for header in archive:
        pieces: list[tuple[int, bytes]] = []
        for offset, piece in archive.content():
            if pieces and sum((pieces[-1][0], len(pieces[-1][1]))) == offset:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + bytes(piece)
            else:
                pieces.append((offset, bytes(piece)))
        found.append((header.name, pieces))
    return found


WHOLE = read(io.BytesIO(ARCHIVE))


def test_headers_and_contents() -> None:
    assert WHOLE == [
        (b"[root]/d/", []),
        (b"[root]/d/file", [(0, b"content")]),
        (b"[root]/d/" + b"long" * 300, [(0, b"x" * 1000)]),
        (b"[root]/d/holes", [(4096, b"a" * 512), (1 << 40, b"b" * 100)]),
        (b"[root]/d/link", []),
    ]


@given(cuts=st.lists(st.integers(0, len(ARCHIVE)), max_size=30))
def test_chunks_may_be_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ARCHIVE)]
    assert read([ARCHIVE[start:end] for start, end in itertools.pairwise(edges)]) == WHOLE


def test_a_chunk_may_be_used_again_by_its_maker() -> None:
    def chunks() -> Iterator[memoryview]:
        buffer = bytearray(700)
        for start in range(0, len(ARCHIVE), len(buffer)):
            piece = ARCHIVE[start : start + len(buffer)]
            buffer[:] = b"\xff" * len(buffer)
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    assert read(chunks()) == WHOLE


def test_what_is_not_taken_is_skipped_and_raw_is_the_archive_itself() -> None:
    assert [header.name for header in TarStream([ARCHIVE])] == [name for name, _ in WHOLE]
    archive = TarStream([ARCHIVE])
    copied = b"".join(archive.head + b"".join(archive.raw()) for _ in archive)
    assert copied + END == ARCHIVE
    partly = TarStream([ARCHIVE])
    names = [(header.name, next(partly.content(), None))[0] for header in partly]
    assert names == [name for name, _ in WHOLE]


def test_every_truncation_is_damage() -> None:
    for length in range(0, len(ARCHIVE), 7):
        with pytest.raises(DamagedError):
            read([ARCHIVE[:length]])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "breaks off at byte 0"),
        (member(b"f"), "breaks off"),
        (member(b"f") + bytes(BLOCK), "breaks off"),
        (member(b"f") + bytes(BLOCK) + member(b"g") + END, "single block of zeros"),
        (member(b"f") + END + member(b"g") + END, "behind the end"),
        (member(b"f") + END + bytes(9 * BLOCK) + b"x", "behind the end"),
        (member(b"f")[: 2 * BLOCK] + member(b"f") + END, "two extended headers"),
        (member(b"f") + b"junk" * 128 + END, f"the member at byte {3 * BLOCK}"),
    ],
)
def test_an_archive_that_is_not_whole_is_damaged(data: bytes, problem: str) -> None:
    with pytest.raises(DamagedError, match=problem):
        read([data])


def test_zeros_behind_the_end_are_padding() -> None:
    assert read([ARCHIVE, bytes(10_240), bytes(100)]) == WHOLE


def test_changed_bytes_are_another_archive_or_damage() -> None:
    generator = random.Random(4)
    for _ in range(2000):
        data = bytearray(ARCHIVE)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(len(data))] = generator.choice(b"\0 /019=x\xff")
        try:
            read([data])
        except DamagedError:
            pass  # anything else would fail the test


def test_what_the_stream_raises_goes_through() -> None:
    def breaks() -> Iterator[bytes]:
        yield ARCHIVE[:600]
        raise DamagedError("the ciphertext was changed")

    with pytest.raises(DamagedError, match="the ciphertext was changed"):
        read(breaks())


def test_an_archive_that_cannot_be_read_is_not_taken_for_damaged_or_for_a_full_output(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield member(b"f", b"x" * 1000)[:1600]
        raise OSError(errno.ENAMETOOLONG, "of the source")

    with pytest.raises(SourceError, match="cannot be read: of the source"):
        extract(breaks(), tmp_path / "output", on_note=lambda _: None)
    assert list((tmp_path / "output").iterdir()) == []


def test_files_beyond_the_octal_size() -> None:
    size = 9 << 30
    zeros = bytes(1 << 20)
    head, _ = pax.encode(pax.Header(b"big", tarfile.REGTYPE, STAT, size=size))
    archive = TarStream(itertools.chain([head], itertools.repeat(zeros, size >> 20), [member(b"after", b"!"), END]))
    assert [(header.name, header.size) for header in archive] == [(b"big", size), (b"after", 1)]


def test_memory_does_not_grow_with_members() -> None:
    one = member(b"[root]/a", b"x" * 600, xattrs={b"user.a": b"v" * 5000})

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in TarStream(itertools.chain(itertools.repeat(one, count), [END])):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < peak(100) + 50_000


def test_a_header_takes_no_memory_for_bytes_that_do_not_come() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 << 20
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="breaks off"):
            read([info.tobuf(tarfile.USTAR_FORMAT)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_kinds() -> None:
    types = [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        b"4",
    ]
    data = b"".join(member(b"n", typeflag=type_, link_name=b"l", device=(1, 3)) for type_ in types) + END
    assert [header.kind for header in TarStream([data])] == [
        Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO, Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE,
    ]  # fmt: skip
