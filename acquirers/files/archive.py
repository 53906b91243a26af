"""The archive writer: what the walker found, as a pax tar that streams.

Nothing is staged and nothing is kept of a member once it is written, a bounded table of hard links aside. Whatever a
file turns out to be, the archive around it stays whole: a member is as long as its header says.

What cannot stand in a tar is only recorded (`Member.offset` is None): sockets; files of no known type; a regular file
or a symbolic link that could not be read, which as an empty one would pass off a gap as success; a symbolic link
without text, for which GNU tar fails and bsdtar makes an empty file.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import MAX_CHUNK, Buffer, Flag, FlagKind, Gap, Kind, Member, Reason
from acquirers.files import pax, sparse
from acquirers.files.pax import end_of_archive
from acquirers.syscalls import Stat

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.files.entry import Content, Entry

__all__ = ["ROOT", "ArchiveWriter", "LinkTable", "archive", "end_of_archive"]

ROOT = b"[root]"
"""What native absolute paths stand under."""

# Small pieces are gathered into chunks of this size: 20,000 empty files make 120 chunks instead of 20,000.
_GATHER = 1 << 18
# From this size content is handed on as it is. Below it, copying costs less than two chunks more downstream.
_LARGE = 1 << 16

_TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHAR_DEVICE: tarfile.CHRTYPE,
    Kind.BLOCK_DEVICE: tarfile.BLKTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}


class _Link(msgspec.Struct):
    """An inode that is in the archive and may have further names."""

    path: bytes
    name: bytes
    stat: Stat
    seen: int = 1


class LinkTable:
    """Which inodes with several names are stored already, by (device, inode).

    An inode leaves when all its names were seen. The table is bounded by inodes and by the bytes of their paths; what
    finds no place is stored as a copy under each of its names.
    """

    def __init__(self, inodes: int = 100_000, path_bytes: int = 1 << 24) -> None:
        self._inodes = inodes
        self._room = path_bytes
        self._links: dict[tuple[int, int], _Link] = {}

    def __len__(self) -> int:
        return len(self._links)

    def find(self, stat: Stat, name: bytes) -> _Link | None:
        """The name under which this inode is stored. Counts `name` as seen."""
        key = (stat.dev, stat.ino)
        link = self._links.get(key)
        if link is None:
            return None
        # The number of a deleted inode is given to the next file: another birth time is another file. And a name that
        # is met again (overlapping trees) is no link to itself.
        if link.stat.btime_ns != stat.btime_ns or link.name == name:
            self._forget(key, link)
            return None
        link.seen += 1
        if link.seen >= stat.nlink:
            self._forget(key, link)
        return link

    def add(self, stat: Stat, path: bytes, name: bytes) -> bool:
        """Notes an inode that is now stored as `name`. False when there is no place for it."""
        size = len(path) + len(name)
        if len(self._links) >= self._inodes or size > self._room:
            return False
        self._room -= size
        self._links[stat.dev, stat.ino] = _Link(path, name, stat)
        return True

    def _forget(self, key: tuple[int, int], link: _Link) -> None:
        del self._links[key]
        self._room += len(link.path) + len(link.name)


class ArchiveWriter:
    """One archive made of any number of trees; offsets and hard links are tracked across them.

        writer = ArchiveWriter(report)
        for tree in trees:
            yield from writer.add(walk(tree))
        yield from writer.close()

    Each iterator must be exhausted before the next one is begun. Chunks are as `base.Buffer` says: valid until the next
    one is asked for, at most `MAX_CHUNK` bytes. A member is reported when its last byte was taken, so that an item that
    breaks off has told of whole members only.
    """

    def __init__(self, report: Report, *, links: LinkTable | None = None, start: int = 0) -> None:
        """`start` is the offset in the item at which this archive begins; `links` must be of this archive alone."""
        self._report = report
        self._links = LinkTable() if links is None else links
        self._offset = start
        self._pending = bytearray()
        self._begun = start  # where the file began that is being stored
        self._waiting: list[Member] = []  # those whose end is in `_pending`

    @property
    def offset(self) -> int:
        """Where in the item the next member will begin."""
        return self._offset

    def add(self, entries: Iterable[Entry], *, prefix: bytes = ROOT) -> Iterator[Buffer]:
        """The members of one tree. `prefix` is the directory of the archive that its paths stand under."""
        for entry in entries:
            if entry.kind is Kind.FILE:
                stored = self._file(entry, self._name(entry, prefix))
                if stored is None or entry.content is None:
                    pass  # a link, or only its record
                elif stored <= _LARGE:
                    self._small(entry, entry.content, stored)
                else:
                    yield from self._large(entry, entry.content, stored)
            else:
                self._bare(entry, prefix)
            if len(self._pending) >= _GATHER:
                yield from self._flush()
        yield from self._flush()

    def add_bytes(self, name: bytes, data: bytes, mtime_ns: int) -> Iterator[Buffer]:
        """A small member that impound made itself, under its own name. It is no evidence: nothing is reported."""
        stat = Stat(
            mode=0o644, uid=0, gid=0, size=len(data), nlink=1, ino=0, dev=0, rdev=0, atime_ns=mtime_ns,
            mtime_ns=mtime_ns, ctime_ns=mtime_ns, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
        )  # fmt: skip
        head, _ = pax.encode(pax.Header(name, tarfile.REGTYPE, stat, size=len(data)))
        self._append(head + data + pax.padding(len(data)))
        yield from self._flush()

    def close(self) -> Iterator[Buffer]:
        """The end of the archive."""
        self._append(end_of_archive())
        yield from self._flush()

    def _bare(self, entry: Entry, prefix: bytes) -> None:
        """A file without content."""
        kind, stat, report = entry.kind, entry.stat, self._report
        if kind is Kind.SOCKET:
            self._only_record(entry)
            return
        if kind is Kind.SYMLINK and not (entry.target and len(entry.target) <= pax.NAME_LIMIT):
            if entry.target is not None:  # None: the walker has reported why
                detail = f"a symbolic link with a text of {len(entry.target)} bytes: only recorded"
                report.flag(Flag(FlagKind.FINDING, detail, entry.path))
            self._only_record(entry)
            return
        if kind not in _TYPES or kind is Kind.HARDLINK:
            report.gap(Gap(Reason.UNSUPPORTED, f"a file of unknown type (mode {stat.mode:#o})", entry.path))
            self._only_record(entry)
            return
        header = pax.Header(self._name(entry, prefix), _TYPES[kind], stat, entry.target or b"", xattrs=entry.xattrs)
        if kind is Kind.CHAR_DEVICE or kind is Kind.BLOCK_DEVICE:
            header.device = os.major(stat.rdev), os.minor(stat.rdev)
            if not pax.device_fits(header.device):
                detail = f"device numbers {header.device[0]}:{header.device[1]} are cut to 21 bits in the archive"
                report.flag(Flag(FlagKind.FINDING, detail, entry.path))
        self._waiting.append(
            Member(entry.path, kind, stat, target=entry.target, xattrs=entry.xattrs, offset=self._offset)
        )
        self._head(entry, header)

    def _file(self, entry: Entry, name: bytes) -> int | None:
        """What stands before the content of a regular file, and how many bytes of that are to follow.

        None where there is nothing to follow: a link, where it is in the archive already, or only its record.
        """
        stat, content = entry.stat, entry.content
        if stat.nlink > 1:
            link = self._links.find(stat, name)
            if link is not None:
                self._hard_link(entry, name, link)
                return None
        if content is None:
            self._only_record(entry)
            return None
        size = content.size
        try:
            stored = sparse.stored_size(content.extents, size)
        except ValueError as error:
            self._report.gap(Gap(Reason.INTERNAL, f"not stored: {error}", entry.path, size))
            self._only_record(entry)
            return None
        if stat.nlink > 1 and not self._links.add(stat, entry.path, name):
            detail = f"the table of hard links is full: stored under each of its {stat.nlink} names"
            self._report.flag(Flag(FlagKind.COPY, detail, entry.path))

        self._begun = self._offset
        header = pax.Header(name, tarfile.REGTYPE, stat, size=stored, xattrs=entry.xattrs)
        extents = b""
        if stored < size:
            extents = sparse.sparse_map(content.extents, size)
            header.real_size = size
            header.size += len(extents)
        self._head(entry, header)
        if extents:
            self._append(extents)
        return stored

    def _ends(self, entry: Entry, content: Content, stored: int, *, whole: bool) -> None:
        """What stands behind the content."""
        padding = pax.padding(stored)
        self._pending += padding
        self._offset += stored + len(padding)
        self._waiting.append(
            Member(
                entry.path,
                Kind.FILE,
                entry.stat,
                sha256=content.sha256 if whole else None,
                size=content.true_size,
                xattrs=entry.xattrs,
                offset=self._begun,
                stored=stored,
            )
        )

    def _hard_link(self, entry: Entry, name: bytes, link: _Link) -> None:
        stat = entry.stat
        if (stat.mtime_ns, stat.size) != (link.stat.mtime_ns, link.stat.size):
            detail = "changed after its content was stored under another name"
            self._report.flag(Flag(FlagKind.CHANGED, detail, entry.path))
        self._waiting.append(
            Member(entry.path, Kind.HARDLINK, stat, target=link.path, xattrs=entry.xattrs, offset=self._offset)
        )
        self._head(entry, pax.Header(name, tarfile.LNKTYPE, stat, link.name, xattrs=entry.xattrs))

    def _only_record(self, entry: Entry) -> None:
        self._report.member(Member(entry.path, entry.kind, entry.stat, target=entry.target, xattrs=entry.xattrs))

    def _head(self, entry: Entry, header: pax.Header) -> None:
        head, left_out = pax.encode(header)
        self._append(head)
        if left_out:
            detail = f"{len(left_out)} extended attributes are too large for an archive: the record has them"
            self._report.flag(Flag(FlagKind.ELSEWHERE, detail, entry.path))

    def _name(self, entry: Entry, prefix: bytes) -> bytes:
        """The member's name: the native path below `prefix`, which it cannot leave."""
        name = prefix + entry.path
        if b"/.." in name:
            # No kernel says so; a damaged or crafted filesystem may.
            parts = [b"%2E%2E" if part == b".." else part for part in name.split(b"/")]
            if b"/".join(parts) != name:
                name = b"/".join(parts)
                self._report.flag(Flag(FlagKind.FINDING, "a path with '..', stored as '%2E%2E'", entry.path))
        # To every reader a slash at the end says "directory".
        name = name.rstrip(b"/") + (b"/" if entry.kind is Kind.DIRECTORY else b"")
        if len(name) > pax.NAME_LIMIT:
            name = pax.cut_name(name)
            detail = f"a path of {len(entry.path)} bytes, stored as {os.path.basename(name.rstrip(b'/')).decode()}"
            self._report.flag(Flag(FlagKind.ELSEWHERE, detail, entry.path))
        return name

    def _small(self, entry: Entry, content: Content, stored: int) -> None:
        """Exactly `stored` bytes, at most `_LARGE`, are gathered."""
        left, surplus = stored, 0
        for chunk in content.chunks():
            if len(chunk) > left:
                surplus += len(chunk) - left
                chunk = chunk[:left]  # noqa: PLW2901
            left -= len(chunk)
            self._pending += chunk
        if left or surplus:
            self._told_wrong(entry, left, surplus)
            self._pending += bytes(left)
        self._ends(entry, content, stored, whole=not (left or surplus))

    def _large(self, entry: Entry, content: Content, stored: int) -> Iterator[Buffer]:
        """Exactly `stored` bytes."""
        left, surplus = stored, 0
        for chunk in content.chunks():
            if len(chunk) > left:
                surplus += len(chunk) - left
                chunk = chunk[:left]  # noqa: PLW2901
            left -= len(chunk)
            if len(chunk) < _LARGE:
                self._pending += chunk
                if len(self._pending) >= _GATHER:
                    yield from self._flush()
            else:
                yield from self._flush()
                yield from _pieces(chunk)
        whole = not (left or surplus)
        if not whole:
            self._told_wrong(entry, left, surplus)
        while left:
            zeros = min(left, MAX_CHUNK)
            yield from self._flush()
            self._pending += bytes(zeros)
            left -= zeros
        self._ends(entry, content, stored, whole=whole)

    def _told_wrong(self, entry: Entry, left: int, surplus: int) -> None:
        fault = f"{left} bytes fewer, filled with zeros" if left else f"{surplus} bytes more, cut off"
        self._report.gap(Gap(Reason.INTERNAL, f"the content gave {fault}", entry.path, left or surplus))

    def _append(self, data: bytes) -> None:
        self._pending += data
        self._offset += len(data)

    def _flush(self) -> Iterator[Buffer]:
        """What was gathered, and then the members that end in it."""
        if self._pending:
            # A new one, because a consumer that still looks at the old one would forbid to empty it.
            pending, self._pending = self._pending, bytearray()
            yield from _pieces(pending)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for member in waiting:
                self._report.member(member)


def _pieces(data: bytearray | memoryview) -> Iterator[Buffer]:
    if len(data) <= MAX_CHUNK:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(view), MAX_CHUNK):
        yield view[start : start + MAX_CHUNK]


def archive(
    entries: Iterable[Entry],
    report: Report,
    *,
    prefix: bytes = ROOT,
    links: LinkTable | None = None,
    start: int = 0,
) -> Iterator[Buffer]:
    """One tree as a whole archive. For several trees, or members of impound's own, use `ArchiveWriter`."""
    writer = ArchiveWriter(report, links=links, start=start)
    yield from writer.add(entries, prefix=prefix)
    yield from writer.close()
