"""The header parser reads back what our writer says, refuses what it does not write, and never fails otherwise."""

from __future__ import annotations

import stat as stat_module
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from acquirers.base import Kind
from acquirers.files import pax, sparse
from acquirers.syscalls import Stat
from agent.analysis import tarheader
from agent.analysis.tarheader import BLOCK, Header, parse_member, parse_records, parse_sparse_map, parse_time, type_of
from agent.errors import DamagedError

TIMES = st.integers(-(10**28), 10**28)
IDS = st.integers(0, 2**32 - 1)
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHAR_DEVICE: tarfile.CHRTYPE,
    Kind.BLOCK_DEVICE: tarfile.BLKTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}


KEYWORDS = [
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"comment", b"SCHILY.xattr.user.a",
    b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.map",
]  # fmt: skip
VALUES = [b"", b"0", b"1", b"-1", b"1.5", b"9" * 19, b"9" * 5000]


def stat(mtime_ns: int = 0, atime_ns: int = 0, uid: int = 0, gid: int = 0) -> Stat:
    return Stat(
        mode=stat_module.S_IFREG | 0o6755, uid=uid, gid=gid, size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=atime_ns,
        mtime_ns=mtime_ns, ctime_ns=3, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
    )  # fmt: skip


def read(head: bytes) -> Header:
    """The member of a whole head: records, if there are any, and the block."""
    records: dict[bytes, bytes] = {}
    if type_of(head[:BLOCK]) == tarheader.EXTENDED:
        size = tarheader.records_size(head[:BLOCK])
        records = parse_records(head[BLOCK : BLOCK + size])
        head = head[BLOCK + size + -size % BLOCK :]
    assert len(head) == BLOCK
    type_of(head)
    return parse_member(head, records)


def block(**fields: object) -> bytes:
    """A ustar block of a file called `f`, with fields of `TarInfo` set."""
    info = tarfile.TarInfo("f")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def blocks_of(text: bytes) -> Iterator[bytes]:
    text += bytes(-len(text) % BLOCK)
    return (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


@given(
    kind=st.sampled_from(list(TYPES)),
    name=NAMES,
    link_name=NAMES,
    times=st.tuples(TIMES, TIMES),
    ids=st.tuples(IDS, IDS),
    size=st.integers(0, 2**62),
    xattrs=st.dictionaries(NAMES, st.binary(max_size=200), max_size=3),
)
@example(Kind.FILE, b"f", b"l", (-1, -1_000_000_001), (2**21, 2**32 - 1), 8**11, {b"user.=%25%3D%": b"", b"u": b"\n"})
def test_what_the_writer_says_comes_back(
    kind: Kind,
    name: bytes,
    link_name: bytes,
    times: tuple[int, int],
    ids: tuple[int, int],
    size: int,
    xattrs: dict[bytes, bytes],
) -> None:
    size = size if kind is Kind.FILE else 0
    name += b"/" if kind is Kind.DIRECTORY else b""
    linked = kind in {Kind.HARDLINK, Kind.SYMLINK}
    written = pax.Header(name, TYPES[kind], stat(*times, *ids), link_name if linked else b"", size=size, xattrs=xattrs)
    if kind in {Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE}:
        written.device = 8, 65_536
    head, left_out = pax.encode(written)
    assert not left_out
    found = read(head)
    assert found.kind is kind
    assert found.name == name
    assert found.link_name == (link_name if linked else b"")
    assert (found.mtime_ns, found.atime_ns) == times
    assert (found.uid, found.gid) == ids
    assert (found.size, found.real_size) == (size, None)
    assert found.mode == 0o6755
    assert found.device == (written.device or (0, 0))
    assert found.xattrs == xattrs


@given(name=NAMES, size=st.integers(0, 2**62), real_size=st.integers(0, 2**63 - 1))
def test_a_sparse_member_has_its_own_name_and_both_sizes(name: bytes, size: int, real_size: int) -> None:
    head, _ = pax.encode(pax.Header(name, tarfile.REGTYPE, stat(), size=size, real_size=real_size))
    found = read(head)
    assert (found.name, found.size, found.real_size) == (name, size, real_size)


@given(st.lists(st.tuples(st.binary(min_size=1).filter(lambda key: b"=" not in key), st.binary())))
def test_records_come_back_and_the_last_of_a_keyword_counts(pairs: list[tuple[bytes, bytes]]) -> None:
    assert parse_records(b"".join(pax.record(*pair) for pair in pairs)) == dict(pairs)


@given(st.binary() | st.text("0123456789 =\nab").map(str.encode))
@example(b"5 a=\n-1 b=\n")
@example(b"0 a=b\n")
@example(b"3 \n")
@example(b"4 =\n")
def test_any_bytes_are_records_or_damaged(data: bytes) -> None:
    try:
        records = parse_records(data)
    except DamagedError:
        return
    assert sum(len(key) + len(value) for key, value in records.items()) <= len(data)


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.sampled_from([*TYPES.values(), b"x", b"L"]))
def test_any_block_with_a_right_checksum_is_a_member_or_damaged(data: bytes, type_: bytes) -> None:
    data = data[:148] + b" " * 8 + type_ + data[157:257] + b"ustar\x0000" + data[265:]
    data = data[:148] + b"%06o\0 " % sum(data) + data[156:]
    assert type_of(data) == type_
    try:
        found = parse_member(data, {})
    except DamagedError:
        return
    assert 0 <= found.size <= tarheader.MAX_SIZE


@given(st.dictionaries(st.sampled_from(KEYWORDS), st.binary(max_size=30) | st.sampled_from(VALUES)))
def test_any_values_of_records_are_a_member_or_damaged(records: dict[bytes, bytes]) -> None:
    try:
        found = parse_member(block(), records)
    except DamagedError:
        return
    assert found.kind is Kind.FILE


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"1.", 1_000_000_000),
        (b"-0.5", -500_000_000),
        (b"-1.000000001", -1_000_000_001),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1.0000000019", 1_000_000_001),
    ],
)
def test_times_are_exact(text: bytes, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize("text", [b"", b"-", b".5", b"1e9", b"nan", b"1.5 ", b"+1", b"9" * 21, b"\xd9\xa3"])
def test_what_is_no_time_is_damaged(text: bytes) -> None:
    with pytest.raises(DamagedError, match="time"):
        parse_time(text)


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        (bytes(BLOCK), "not a header"),
        (block().replace(b"ustar\x0000", b"ustar  \0"), "not a header"),  # GNU's own format
        (block().replace(b"f", b"g", 1), "checksum"),
        (block(type=b"g"), "type b'g'"),  # a global header would hold for the archives that are joined after it
        (block(type=b"L"), "type b'L'"),
        (block(type=b"S"), "type b'S'"),
        (block(type=b"\0"), "type"),
        (block(type=tarfile.DIRTYPE, size=512), "directory with 512 bytes"),
        (block(type=tarfile.LNKTYPE, size=1), "hardlink with 1 bytes"),
    ],
)
def test_what_our_writer_does_not_write_is_refused(damaged: bytes, problem: str) -> None:
    with pytest.raises(DamagedError, match=problem):
        read(damaged)


@pytest.mark.parametrize(
    "records",
    [
        {b"GNU.sparse.map": b"0,1"},
        {b"GNU.sparse.major": b"0", b"GNU.sparse.minor": b"1", b"GNU.sparse.name": b"f", b"GNU.sparse.realsize": b"1"},
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"f"},
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"1"},
        {b"size": b"-1"},
        {b"size": b"9223372036854775808"},
        {b"uid": b"root"},
    ],
)
def test_records_that_cannot_be_meant_are_refused(records: dict[bytes, bytes]) -> None:
    with pytest.raises(DamagedError):
        parse_member(block(), records)


def test_an_empty_record_stands_for_the_field_of_the_block() -> None:
    found = parse_member(block(size=7), {b"path": b"", b"size": b"", b"mtime": b"", b"atime": b""})
    assert (found.name, found.size, found.mtime_ns, found.atime_ns) == (b"f", 7, 0, None)


def test_headers_are_bounded() -> None:
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, tarheader.MAX_RECORDS + 1
    with pytest.raises(DamagedError, match="at most 8388608"):
        tarheader.records_size(huge.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(DamagedError, match="more than 16384"):
        parse_records(b"6 a=b\n" * (tarheader.MAX_RECORD_COUNT + 1))


EXTENTS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=60)


@given(gaps=EXTENTS, tail=st.integers(0, 10**6))
def test_the_sparse_map_that_the_writer_makes_comes_back(gaps: list[tuple[int, int]], tail: int) -> None:
    extents, end = [], 0
    for hole, length in gaps:
        extents.append((end + hole, length))
        end += hole + length
    size = end + tail
    text = sparse.sparse_map(extents, size)
    stored = sum(length for _, length in extents)
    header = Header(Kind.FILE, b"f", size=len(text) + stored, real_size=size)
    found = parse_sparse_map(blocks_of(text + b"content"), header)
    assert found.length == len(text)
    assert [extent for extent in found if extent[1]] == [extent for extent in extents if extent[1]]


@given(
    text=st.text("0123456789\n\0", max_size=2000).map(str.encode) | st.binary(max_size=2000), size=st.integers(0, 4096)
)
@example(b"\n", 4096)
@example(b"9" * 2000, 4096)
def test_any_sparse_map_is_one_or_damaged(text: bytes, size: int) -> None:
    def endless() -> Iterator[bytes]:
        yield from blocks_of(text)
        while True:
            yield bytes(BLOCK)

    header = Header(Kind.FILE, b"f", size=size, real_size=10**9)
    try:
        found = parse_sparse_map(endless(), header)
    except DamagedError:
        return
    assert found.length + sum(length for _, length in found) == size


@pytest.mark.parametrize(
    ("text", "stored", "problem"),
    [
        (b"2\n0\n10\n5\n10\n", 20, "overlap"),
        (b"1\n0\n101\n", 101, "end at 101"),
        (b"1\n0\n10\n", 11, "whose map says"),
        (b"1\n0\n10\nx", 10, "goes on"),
        (b"1\n0\n10\n7\n", 10, "goes on"),
        (b"1\n-1\n10\n", 10, "no number"),
        (b"1\n0\n99999999999999999999\n", 10, "no number"),
        (b"9999999\n", 10, "9999999 extents"),
        (b"400\n" + b"0\n" * 100, -300, "longer than the member"),
    ],
)
def test_a_map_that_cannot_be_true_is_refused(text: bytes, stored: int, problem: str) -> None:
    header = Header(Kind.FILE, b"f", size=BLOCK + stored, real_size=100)
    with pytest.raises(DamagedError, match=problem):
        parse_sparse_map(blocks_of(text + bytes(BLOCK)), header)


def test_a_map_is_aligned_when_all_tools_read_it_alike() -> None:
    for extents, aligned in (
        ([(0, 512), (4096, 1024), (9000, 7)], True),
        ([(0, 7), (8192, 0)], True),
        ([(0, 7), (4096, 512)], False),
    ):
        text = sparse.sparse_map(extents, 10_000)
        size = len(text) + sum(length for _, length in extents)
        header = Header(Kind.FILE, b"f", size=size, real_size=10_000)
        assert parse_sparse_map(blocks_of(text), header).aligned is aligned
