from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from acquirers.base import MAX_CHUNK, Buffer, Flag, FlagKind, Gap, Kind, Member, Reason
from acquirers.files import pax
from acquirers.files.archive import ArchiveWriter, LinkTable, archive, end_of_archive
from acquirers.files.entry import Entry
from acquirers.syscalls import Stat

MODES = {
    Kind.FILE: 0o100644,
    Kind.DIRECTORY: 0o40755,
    Kind.SYMLINK: 0o120777,
    Kind.FIFO: 0o10600,
    Kind.SOCKET: 0o140600,
    Kind.CHAR_DEVICE: 0o20600,
    Kind.BLOCK_DEVICE: 0o60600,
    Kind.UNKNOWN: 0o30000,
}
STAT = Stat(
    mode=0, uid=1000, gid=1000, size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=1, mtime_ns=2, ctime_ns=3,
    btime_ns=4, blocks=0, attributes=0, mnt_id=1,
)  # fmt: skip


@dataclass
class Bytes:
    """Content from memory. `given` is what it yields, when that is not what it promises."""

    data: bytes
    extents: Sequence[tuple[int, int]]
    given: bytes | None = None
    piece: int = MAX_CHUNK
    sha256: bytes | None = None
    true_size: int = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[memoryview]:
        stored = b"".join(self.data[offset : offset + length] for offset, length in self.extents)
        stored = stored if self.given is None else self.given
        buffer = bytearray(self.piece)  # one buffer for all chunks, as the real reader has
        for start in range(0, len(stored), self.piece):
            chunk = stored[start : start + self.piece]
            buffer[: len(chunk)] = chunk
            yield memoryview(buffer)[: len(chunk)]
        self.sha256 = hashlib.sha256(self.data).digest()
        self.true_size = len(self.data)


@dataclass
class Recorder:
    members: list[Member] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def member(self, member: Member) -> None:
        self.members.append(member)

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)


def entry(
    path: bytes,
    kind: Kind = Kind.FILE,
    content: Bytes | None = None,
    *,
    target: bytes | None = None,
    xattrs: dict[bytes, bytes] | None = None,
    **about: Any,
) -> Entry:
    return Entry(path, kind, replace(STAT, mode=MODES[kind], **about), xattrs or {}, target, content)


def file(
    path: bytes, data: bytes, extents: Sequence[tuple[int, int]] | None = None, piece: int = MAX_CHUNK, **about: Any
) -> Entry:
    whole = ((0, len(data)),) if data else ()
    content = Bytes(data, whole if extents is None else extents, piece=piece)
    return entry(path, content=content, size=len(data), **about)


def collect(chunks: Iterable[Buffer]) -> bytes:
    data = bytearray()
    for chunk in chunks:
        assert 0 < len(chunk) <= MAX_CHUNK
        data += chunk
    assert len(data) % 512 == 0
    return bytes(data)


def write(*entries: Entry, links: LinkTable | None = None) -> tuple[bytes, Recorder]:
    report = Recorder()
    return collect(archive(entries, report, links=links)), report


def read(data: bytes) -> dict[bytes, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    found = {os.fsencode(info.name): info for info in infos}
    assert len(found) == len(infos)
    return found


def content_of(data: bytes, name: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        stream = tar.extractfile(os.fsdecode(name))
        assert stream is not None
        return stream.read()


component = st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"s"))
texts = st.binary(max_size=150).map(lambda raw: raw.replace(b"\0", b"0"))  # the kernel ends a link's text at a zero
paths = st.lists(component, min_size=1, max_size=4).map(lambda parts: b"/" + b"/".join(parts))


@st.composite
def contents(draw: st.DrawFn) -> Bytes:
    """A file of up to a few blocks, some of it holes, read in pieces of any size."""
    pieces = draw(st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=1500)), max_size=4))
    data = bytearray()
    extents: list[tuple[int, int]] = []
    for hole, stored in pieces:
        hole = max(hole, 1) if extents else hole  # noqa: PLW2901
        data += bytes(hole)
        if stored:
            extents.append((len(data), len(stored)))
            data += stored
    data += bytes(draw(st.sampled_from([0, 0, 1, 700])))
    return Bytes(bytes(data), extents, piece=draw(st.sampled_from([1 << 20, 512, 100])))


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    found = []
    for path in draw(st.lists(paths, unique=True, max_size=12)):
        kind = draw(st.sampled_from([Kind.FILE, Kind.FILE, *MODES]))
        found.append(
            entry(
                path,
                kind,
                draw(st.none() | contents()) if kind is Kind.FILE else None,
                target=draw(st.none() | texts) if kind is Kind.SYMLINK else None,
                xattrs=draw(st.dictionaries(component, st.binary(max_size=50), max_size=2)),
                rdev=draw(st.sampled_from([0, os.makedev(8, 1), (1 << 64) - 1])),
                ino=draw(st.integers(1, 4)),
                nlink=draw(st.integers(1, 4)),
                btime_ns=draw(st.integers(4, 5)),
            )
        )
    return found


def names_in_archive(member: Member) -> bytes:
    parts = [b"%2E%2E" if part == b".." else part for part in (b"[root]" + member.path).split(b"/")]
    return b"/".join(parts)


@given(trees())
@settings(deadline=None)
def test_any_tree_reads_back_as_reported(tree: list[Entry]) -> None:
    data, report = write(*tree)
    assert sorted(member.path for member in report.members) == sorted(found.path for found in tree)
    stored = {names_in_archive(member): member for member in report.members if member.offset is not None}
    infos = read(data)
    assert set(infos) == set(stored)
    given_content = {found.path: found.content for found in tree}
    for name, member in stored.items():
        info = infos[name]
        assert info.offset == member.offset
        assert (info.mode, info.uid, info.gid) == (member.stat.mode & 0o7777, 1000, 1000)
        if member.kind is Kind.FILE:
            content = given_content[member.path]
            assert isinstance(content, Bytes)
            assert content_of(data, name) == content.data
            assert member.sha256 == hashlib.sha256(content.data).digest()
            assert (member.size, member.stored) == (len(content.data), sum(length for _, length in content.extents))
        elif member.kind is Kind.HARDLINK:
            assert member.target is not None
            assert os.fsencode(info.linkname) == names_in_archive(replace(member, path=member.target))
            assert infos[os.fsencode(info.linkname)].isreg()
        elif member.kind is Kind.SYMLINK:
            assert os.fsencode(info.linkname) == member.target
    for member in report.members:
        if member.offset is None:
            assert (member.sha256, member.size, member.stored) == (None, None, None)
            assert member.kind in {Kind.FILE, Kind.SYMLINK, Kind.SOCKET, Kind.UNKNOWN}


def test_names_stand_under_the_root() -> None:
    data, _ = write(entry(b"/", Kind.DIRECTORY), entry(b"/etc", Kind.DIRECTORY), file(b"/etc/passwd", b"root"))
    assert list(read(data)) == [b"[root]", b"[root]/etc", b"[root]/etc/passwd"]
    assert data[512 * 2 :].startswith(b"[root]/\0")
    assert data.endswith(end_of_archive())


def test_no_name_leads_out_of_the_root() -> None:
    data, report = write(file(b"/../../etc/passwd", b"evil"), entry(b"/a/..", Kind.DIRECTORY), file(b"/a/..b", b"fine"))
    assert set(read(data)) == {b"[root]/%2E%2E/%2E%2E/etc/passwd", b"[root]/a/%2E%2E", b"[root]/a/..b"}
    assert [(flag.kind, flag.where) for flag in report.flags] == [
        (FlagKind.FINDING, b"/../../etc/passwd"),
        (FlagKind.FINDING, b"/a/.."),
    ]
    assert report.members[0].path == b"/../../etc/passwd"


@pytest.mark.parametrize("length", [4096, 100_000, 1_000_000, 1_048_576])
def test_enormous_paths(length: int) -> None:
    path = b"/" + (b"d" * 255 + b"/") * (length // 256)
    tree = [entry(path[:-1], Kind.DIRECTORY, ino=2), file(path + b"a", b"A"), file(path + b"b", b"B")]
    data, report = write(*tree, file(b"/after", b"after"))
    infos = read(data)
    assert len(infos) == 4
    contents = [content_of(data, name) for name, info in infos.items() if info.isreg()]
    assert contents == [b"A", b"B", b"after"]
    too_long = length > pax.NAME_LIMIT
    assert [flag.kind for flag in report.flags] == [FlagKind.ELSEWHERE] * (3 if too_long else 0)
    assert report.members[1].path == path + b"a"


def test_enormous_attributes_stay_in_the_record() -> None:
    xattrs = {b"user.%d" % number: bytes(65536) for number in range(30)}
    data, report = write(entry(b"/f", content=Bytes(b"f", [(0, 1)]), xattrs=xattrs), file(b"/after", b"after"))
    assert content_of(data, b"[root]/after") == b"after"
    assert report.members[0].xattrs == xattrs
    assert [flag.kind for flag in report.flags] == [FlagKind.ELSEWHERE]


def test_what_a_tar_cannot_hold_is_only_recorded() -> None:
    data, report = write(
        entry(b"/socket", Kind.SOCKET),
        entry(b"/unknown", Kind.UNKNOWN),
        entry(b"/unreadable"),
        entry(b"/link-unread", Kind.SYMLINK),
        entry(b"/link-empty", Kind.SYMLINK, target=b""),
        entry(b"/link-endless", Kind.SYMLINK, target=b"x" * (pax.NAME_LIMIT + 1)),
    )
    assert data == end_of_archive()
    assert [(member.path, member.offset, member.sha256, member.size) for member in report.members] == [
        (path, None, None, None)
        for path in (b"/socket", b"/unknown", b"/unreadable", b"/link-unread", b"/link-empty", b"/link-endless")
    ]
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.UNSUPPORTED, b"/unknown")]
    assert [(flag.kind, flag.where) for flag in report.flags] == [
        (FlagKind.FINDING, b"/link-empty"),
        (FlagKind.FINDING, b"/link-endless"),
    ]


@pytest.mark.parametrize("yielded", [b"", b"1234", b"12345678", b"x" * (MAX_CHUNK + 600)])
@pytest.mark.parametrize("size", [5, 2_500_000])
def test_content_that_breaks_its_promise_does_not_break_the_archive(yielded: bytes, size: int) -> None:
    broken = entry(b"/broken", content=Bytes(bytes(size), [(0, size)], given=yielded))
    data, report = write(broken, file(b"/after", b"after"))
    assert content_of(data, b"[root]/broken") == yielded[:size].ljust(size, b"\0")
    assert content_of(data, b"[root]/after") == b"after"
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.INTERNAL, b"/broken")]
    assert report.gaps[0].missing == abs(size - len(yielded))
    assert report.members[0].sha256 is None


@pytest.mark.parametrize("extents", [[(0, 11)], [(5, 3), (0, 2)], [(0, 5), (4, 2)], [(-1, 2)], [(4, -1)]])
def test_extents_that_cannot_be_are_not_stored(extents: list[tuple[int, int]]) -> None:
    data, report = write(entry(b"/broken", content=Bytes(bytes(10), extents, given=b"12345")), file(b"/after", b"A"))
    assert set(read(data)) == {b"[root]/after"}
    assert [(gap.reason, gap.missing) for gap in report.gaps] == [(Reason.INTERNAL, 10)]
    assert report.members[0].offset is None


def test_a_sparse_file_with_many_extents() -> None:
    data = b"\0d" * 30_000
    tar, report = write(file(b"/many", data, [(start, 1) for start in range(1, 60_000, 2)]), file(b"/after", b"A"))
    assert content_of(tar, b"[root]/many") == data
    assert content_of(tar, b"[root]/after") == b"A"
    assert (report.members[0].size, report.members[0].stored) == (60_000, 30_000)


def test_an_inode_is_stored_once() -> None:
    data, report = write(
        file(b"/a", b"content", ino=7, nlink=3),
        file(b"/b", b"content", ino=7, nlink=3),
        file(b"/other", b"other", ino=8, nlink=2),
        file(b"/c", b"content", ino=7, nlink=3),
    )
    assert [(member.path, member.kind, member.target) for member in report.members] == [
        (b"/a", Kind.FILE, None),
        (b"/b", Kind.HARDLINK, b"/a"),
        (b"/other", Kind.FILE, None),
        (b"/c", Kind.HARDLINK, b"/a"),
    ]
    infos = read(data)
    assert (infos[b"[root]/c"].islnk(), infos[b"[root]/c"].linkname) == (True, "[root]/a")
    assert data.count(b"content") == 1
    assert report.members[1].offset == infos[b"[root]/b"].offset
    assert not report.flags


def test_an_unreadable_name_of_an_inode_is_not_what_the_others_link_to() -> None:
    _, report = write(entry(b"/a", nlink=3), file(b"/b", b"content", nlink=3), entry(b"/c", nlink=3))
    assert [(member.kind, member.target, member.offset is None) for member in report.members] == [
        (Kind.FILE, None, True),
        (Kind.FILE, None, False),
        (Kind.HARDLINK, b"/b", False),
    ]


def test_an_inode_number_given_to_another_file_is_no_link() -> None:
    data, report = write(file(b"/old", b"old", nlink=2, btime_ns=1), file(b"/new", b"new", nlink=2, btime_ns=2))
    assert content_of(data, b"[root]/new") == b"new"
    assert [member.kind for member in report.members] == [Kind.FILE, Kind.FILE]


def test_a_link_to_what_has_changed_since_says_so() -> None:
    _, report = write(file(b"/a", b"then", nlink=2, mtime_ns=1), file(b"/b", b"now!", nlink=2, mtime_ns=2))
    assert report.members[1].kind is Kind.HARDLINK
    assert [(flag.kind, flag.where) for flag in report.flags] == [(FlagKind.CHANGED, b"/b")]


@pytest.mark.parametrize("bound", [{"inodes": 1}, {"path_bytes": 20}])
def test_beyond_the_table_links_are_copies(bound: dict[str, int]) -> None:
    links = LinkTable(**bound)
    tree = [file(b"/%d%d" % (number, name), b"data", ino=number, nlink=2) for name in (1, 2) for number in (1, 2)]
    data, report = write(*tree, links=links)
    assert [member.kind for member in report.members] == [Kind.FILE, Kind.FILE, Kind.HARDLINK, Kind.FILE]
    assert [(flag.kind, flag.where) for flag in report.flags] == [(FlagKind.COPY, b"/21")]
    assert content_of(data, b"[root]/22") == b"data"


def test_the_table_forgets_what_is_complete() -> None:
    links = LinkTable(inodes=1)
    tree = [file(b"/%d-%d" % (ino, name), b"data", ino=ino, nlink=2) for ino in range(50) for name in (1, 2)]
    _, report = write(*tree, links=links)
    assert [member.kind for member in report.members] == [Kind.FILE, Kind.HARDLINK] * 50
    assert not report.flags
    assert len(links) == 0


@pytest.mark.parametrize("kind", [Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SYMLINK])
def test_other_inodes_with_several_names_come_back_as_themselves(kind: Kind) -> None:
    """The whiteouts of an overlay share one inode, and each hides another name."""
    tree = [entry(b"/%d" % number, kind, nlink=3, target=b"t" if kind is Kind.SYMLINK else None) for number in range(3)]
    data, report = write(*tree)
    assert [member.kind for member in report.members] == [kind] * 3
    assert {info.type for info in read(data).values()} == {read(data)[b"[root]/0"].type}
    assert not any(info.islnk() or info.devmajor or info.devminor for info in read(data).values())


def test_device_numbers_beyond_the_field_are_flagged() -> None:
    data, report = write(entry(b"/d", Kind.CHAR_DEVICE, rdev=(1 << 64) - 1), entry(b"/e", Kind.CHAR_DEVICE, rdev=259))
    assert [(flag.kind, flag.where) for flag in report.flags] == [(FlagKind.FINDING, b"/d")]
    assert (read(data)[b"[root]/e"].devmajor, read(data)[b"[root]/e"].devminor) == (1, 3)


def test_several_trees_make_one_archive() -> None:
    report = Recorder()
    writer = ArchiveWriter(report, start=1024)
    data = bytearray(1024)
    for chunks in (
        writer.add([entry(b"/one", Kind.DIRECTORY), file(b"/one/a", b"A" * 5000, nlink=2)]),
        writer.add_bytes(b"uac.log", b"made by impound", 5_000_000_000),
        writer.add([file(b"/two/a", b"A" * 5000, nlink=2)]),
        writer.add([file(b"/one/a", b"B", ino=9)], prefix=b"live"),
        writer.close(),
    ):
        for chunk in chunks:
            data += chunk
    assert writer.offset == len(data)
    infos = read(bytes(data[1024:]))
    assert list(infos) == [b"[root]/one", b"[root]/one/a", b"uac.log", b"[root]/two/a", b"live/one/a"]
    assert infos[b"[root]/two/a"].linkname == "[root]/one/a"
    assert content_of(bytes(data[1024:]), b"uac.log") == b"made by impound"
    assert infos[b"uac.log"].mtime == 5
    assert [member.offset for member in report.members] == [
        info.offset + 1024 for name, info in infos.items() if name != b"uac.log"
    ]


def test_a_tree_that_is_met_twice_is_no_link_to_itself() -> None:
    _, report = write(file(b"/a", b"A", nlink=2), file(b"/a", b"A", nlink=2), file(b"/b", b"A", nlink=2))
    assert [member.kind for member in report.members] == [Kind.FILE, Kind.FILE, Kind.HARDLINK]


def test_small_files_are_gathered() -> None:
    report = Recorder()
    chunks = [len(chunk) for chunk in archive((file(b"/%d" % n, b"x" * 1024, ino=n) for n in range(5000)), report)]
    assert len(chunks) < 60
    assert len(report.members) == 5000


def test_large_chunks_are_not_copied() -> None:
    content = Bytes(b"x" * (2 * MAX_CHUNK), [(0, 2 * MAX_CHUNK)])
    chunks = list(archive([entry(b"/f", content=content)], Recorder()))
    assert [type(chunk) for chunk in chunks] == [bytearray, memoryview, memoryview, bytearray]


def test_a_chunk_may_be_kept_by_a_slow_consumer() -> None:
    """A view of a chunk that is still held must not stop the writer."""
    tree = [file(b"/%d" % number, b"x" * 3000, ino=number) for number in range(500)]
    views = [memoryview(chunk) for chunk in archive(tree, Recorder())]
    assert len(read(b"".join(views))) == 500


def test_a_member_is_reported_when_its_last_byte_was_taken() -> None:
    """So that an item that breaks off has told of whole members only."""
    report = Recorder()
    tree = [file(b"/%d" % size, b"x" * size, ino=size) for size in (0, 1, 10_000, 70_000, 3_000_000, 300_000, 9)]
    taken = 0
    for chunk in archive(tree, report):
        assert all((member.offset or 0) + (member.stored or 0) < taken for member in report.members)
        taken += len(chunk)
    assert len(report.members) == len(tree)


def test_no_chunk_is_too_long() -> None:
    """Neither when a large header follows what was gathered, nor when the content yields more at a time."""
    attributes = {b"user.%d" % number: bytes(60_000) for number in range(17)}
    tree = [
        *(file(b"/%d" % number, b"x" * 1024, ino=number) for number in range(120)),
        entry(b"/attributes", content=Bytes(b"x" * 1000, [(0, 1000)]), xattrs=attributes),
        file(b"/large", b"x" * (2 * MAX_CHUNK + 5), piece=3 * MAX_CHUNK),
    ]
    data, report = write(*tree)
    assert content_of(data, b"[root]/large") == b"x" * (2 * MAX_CHUNK + 5)
    assert not report.flags


def test_nothing_is_kept_of_a_tree() -> None:
    """Sockets have no bytes in the archive that would make room for their records."""
    report = Recorder()
    writer = ArchiveWriter(report)
    tree = (entry(b"/%d" % number, Kind.SOCKET) for number in range(1000))
    assert list(writer.add(tree)) == []
    assert len(report.members) == 1000
    assert writer.offset == 0
