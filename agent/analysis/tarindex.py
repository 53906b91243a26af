"""The members of acquired archives by their native paths, on disk: what gives a tar the ways of a filesystem.

Nothing is kept in memory but a small cache of the database. Content is read from the archive where it lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat as stat_module
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import MAX_CHUNK, Kind
from acquirers.files.content import MAX_DIGESTED_HOLES
from acquirers.overlay.layer import Node
from acquirers.overlay.markers import FUSE_MARK, OVERLAY_MARKS
from acquirers.syscalls import Stat
from agent.analysis.notes import Note, NoteKind, OnNote, path_parts
from agent.analysis.tarheader import (
    BLOCK,
    EXTENDED,
    Header,
    parse_member,
    parse_records,
    parse_sparse_map,
    parse_time,
    records_size,
    type_of,
)
from agent.analysis.tarstream import TarStream
from agent.errors import DamagedError

if TYPE_CHECKING:
    from acquirers.base import Report
    from agent.stores.base import Blob

ROOT = b"[root]"
_BATCH = 2000
_LARGEST = (1 << 63) - 1
_CACHE_KIB = 16 << 10
_TABLE = (
    "CREATE TABLE members (directory BLOB, name BLOB, archive INT, start INT, head INT, links INT, meta BLOB, "
    "PRIMARY KEY (directory, name)) WITHOUT ROWID"
)
_ZEROS = memoryview(bytes(MAX_CHUNK))
_TYPES = {
    Kind.FILE: stat_module.S_IFREG,
    Kind.HARDLINK: stat_module.S_IFREG,
    Kind.DIRECTORY: stat_module.S_IFDIR,
    Kind.SYMLINK: stat_module.S_IFLNK,
    Kind.FIFO: stat_module.S_IFIFO,
    Kind.SOCKET: stat_module.S_IFSOCK,
    Kind.CHAR_DEVICE: stat_module.S_IFCHR,
    Kind.BLOCK_DEVICE: stat_module.S_IFBLK,
}


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a member beside its place."""

    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    btime_ns: int | None
    xattrs: dict[bytes, bytes]
    target: bytes | None = None
    link: bytes | None = None
    """Of a hard link the native path under which the content is stored."""
    problem: str = ""


class TarIndex:
    """`path` is a new file, for the database. To be closed."""

    def __init__(self, path: str, *, on_note: OnNote = lambda _note: None) -> None:
        self._on_note = on_note
        self._blobs: list[Blob] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Meta).decode
        self.fuse_marks = False
        """fuse-overlayfs has been at one of the members."""
        self._marks: set[bytes] = set()
        self._base = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA locking_mode = EXCLUSIVE",
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            _TABLE,
            "CREATE TABLE links (directory BLOB, name BLOB)",
        ):
            self._base.execute(statement)

    @property
    def only_user_marks(self) -> bool:
        """There are marks of an overlay, and none that only a privileged one makes."""
        return self._marks == {b"user."}

    def close(self) -> None:
        self._base.close()

    # -- making -------------------------------------------------------------------------------------------------------

    def add(self, blob: Blob) -> None:
        """All members of one archive, which stays open as long as this is used. Raises `DamagedError`, `SourceError`.

        Where a path comes twice, the first one counts: of archives, directories above what they hold do.
        """
        number = len(self._blobs)
        self._blobs.append(blob)
        tar = TarStream(_chunks(blob))
        rows: list[tuple[object, ...]] = []
        targets: list[tuple[bytes, bytes]] = []
        end = 0
        self._base.execute("BEGIN")
        for header in tar:
            start, length = end, len(tar.head)
            end += length + header.size + -header.size % BLOCK
            path = self._native(header)
            if path is None:
                continue
            meta = self._meta(header, tar.head)
            if meta is None:
                continue
            if meta.link is not None:
                targets.append(_split(meta.link))
            rows.append((*_split(path), number, start, length, 1, self._encode(meta)))
            if len(rows) >= _BATCH:
                self._insert(rows, targets)
        self._insert(rows, targets)
        self._base.execute(
            "UPDATE members SET links = 1 + (SELECT count(*) FROM links WHERE links.directory = members.directory AND "
            "links.name = members.name) WHERE (directory, name) IN (SELECT directory, name FROM links)"
        )
        self._base.execute("DELETE FROM links")
        self._base.execute("COMMIT")

    def add_recorded(self, path: bytes, meta: Meta) -> None:
        """Something that stands in no archive: a socket, or what could not be read."""
        self._insert([(*_split(path), -1, -1, 0, 1, self._encode(meta))], [])

    def _insert(self, rows: list[tuple[object, ...]], targets: list[tuple[bytes, bytes]]) -> None:
        self._base.executemany("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._base.executemany("INSERT INTO links VALUES (?, ?)", targets)
        rows.clear()
        targets.clear()

    def _native(self, header: Header) -> bytes | None:
        try:
            parts = path_parts(header.name)
        except ValueError as error:
            self._on_note(Note(NoteKind.REFUSED, header.name, str(error)))
            return None
        if parts[:1] != [ROOT]:
            return None
        return b"/" + b"/".join(parts[1:])

    def _meta(self, header: Header, head: bytes) -> Meta | None:
        link = None
        if header.kind is Kind.HARDLINK:
            try:
                parts = path_parts(header.link_name)
            except ValueError as error:
                self._on_note(Note(NoteKind.REFUSED, header.name, f"a hard link to {error}"))
                return None
            link = b"/" + b"/".join(parts[1:])
        try:
            device = os.makedev(*header.device)
        except (OverflowError, ValueError):
            self._on_note(Note(NoteKind.REFUSED, header.name, "device numbers that no system has"))
            return None
        records = _records(head)
        for name in header.xattrs:
            self.fuse_marks = self.fuse_marks or name.startswith(FUSE_MARK)
            if name.startswith(OVERLAY_MARKS):
                self._marks.add(name[:5])
        birth = records.get(b"LIBARCHIVE.creationtime")
        return Meta(
            mode=_TYPES[header.kind] | header.mode,
            uid=header.uid,
            gid=header.gid,
            size=header.size if header.real_size is None else header.real_size,
            rdev=device if header.kind in {Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE} else 0,
            mtime_ns=_bounded(header.mtime_ns),
            atime_ns=_bounded(header.mtime_ns if header.atime_ns is None else header.atime_ns),
            ctime_ns=_bounded(parse_time(records.get(b"ctime") or b"0")),
            btime_ns=_bounded(parse_time(birth)) if birth else None,
            xattrs=dict(header.xattrs),
            target=header.link_name if header.kind is Kind.SYMLINK else None,
            link=link,
        )

    # -- asking -------------------------------------------------------------------------------------------------------

    def node(self, path: bytes) -> Node | None:
        """What stands under a native path."""
        row = self._row(path)
        if row is None:
            return None
        archive, start, _, links, meta = row
        if meta.link is not None:
            target = self._row(meta.link)
            if target is None or target[4].link is not None or not stat_module.S_ISREG(target[4].mode):
                return Node(_stat(meta, archive, start, 1), meta.xattrs, None, "a hard link to what was not acquired")
            archive, start, _, links, meta = target
        return Node(_stat(meta, archive, start, links), meta.xattrs, meta.target, meta.problem)

    def names(self, path: bytes) -> Iterator[bytes]:
        """The names in a directory, ascending."""
        rows = self._base.execute("SELECT name FROM members WHERE directory = ? AND name > x''", (path.rstrip(b"/"),))
        for (name,) in rows:
            yield name

    def directories(self) -> Iterator[bytes]:
        """Native paths of all that has something in it."""
        for (directory,) in self._base.execute("SELECT DISTINCT directory FROM members"):
            yield directory

    def named(self, name: bytes) -> list[bytes]:
        """Native paths of all that is called so, wherever it lies: this looks at every member."""
        rows = self._base.execute("SELECT directory FROM members WHERE name = ? LIMIT 1000", (name,))
        return [directory + b"/" + name for (directory,) in rows]

    def content(self, path: bytes) -> TarContent:
        """Raises `FileNotFoundError` for what has no content here, `DamagedError`."""
        row = self._row(path)
        if row is not None and row[4].link is not None:
            row = self._row(row[4].link)
        if row is None or row[1] < 0 or row[4].link is not None or not stat_module.S_ISREG(row[4].mode):
            raise FileNotFoundError(2, "no content of it was acquired")
        archive, start, length, _, _ = row
        blob = self._blobs[archive]
        return TarContent(blob, start + length, parse_head(_exact(blob, start, length)))

    def read(self, path: bytes, limit: int) -> bytes | None:
        """A small file as a whole. None when it is not there or larger. Raises `DamagedError`."""
        try:
            content = self.content(path)
        except FileNotFoundError:
            return None
        if content.size > limit or sum(length for _, length in content.extents) != content.size:
            return None
        return b"".join(map(bytes, content.chunks()))

    def _row(self, path: bytes) -> tuple[int, int, int, int, Meta] | None:
        row = self._base.execute(
            "SELECT archive, start, head, links, meta FROM members WHERE directory = ? AND name = ?", _split(path)
        ).fetchone()
        return None if row is None else (*row[:4], self._decode(row[4]))


class TarContent:
    """`acquirers.files.entry.Content` of one member, from an archive that can be read anywhere."""

    def __init__(self, blob: Blob, start: int, header: Header) -> None:
        self._blob = blob
        self._start = start
        self.size = header.size if header.real_size is None else header.real_size
        self.extents: list[tuple[int, int]] = [(0, header.size)] if header.size else []
        if header.real_size is not None:
            found = parse_sparse_map(_blocks(blob, start), header)
            self._start += found.length
            self.extents = [extent for extent in found if extent[1]]
        self.sha256: bytes | None = None
        self.true_size = self.size

    def chunks(self) -> Iterator[memoryview]:
        """Raises `DamagedError` when the archive ends before the member does."""
        holes = self.size - sum(length for _, length in self.extents)
        digest = hashlib.sha256() if holes <= MAX_DIGESTED_HOLES else None
        position, place = 0, self._start
        for offset, length in self.extents:
            _zeros(digest, offset - position)
            position = offset + length
            while place_left := position - offset:
                piece = _exact(self._blob, place, min(place_left, MAX_CHUNK))
                offset += len(piece)  # noqa: PLW2901 - how far it was read
                place += len(piece)
                if digest is not None:
                    digest.update(piece)
                yield memoryview(piece)
        _zeros(digest, self.size - position)
        self.sha256 = digest.digest() if digest is not None else None


class TarLayer:
    """`acquirers.overlay.Layer`: what an index has below one native path."""

    def __init__(self, index: TarIndex, base: bytes, label: str) -> None:
        self.label = label
        self.base = base
        self._index = index

    def look(self, path: bytes) -> Node | None:
        return self._index.node(self._native(path))

    def names(self, path: bytes) -> Iterator[bytes]:
        return self._index.names(self._native(path))

    @contextlib.contextmanager
    def content(self, path: bytes, report: Report) -> Iterator[TarContent]:  # noqa: ARG002 - what is missing was told when it was acquired
        yield self._index.content(self._native(path))

    def _native(self, path: bytes) -> bytes:
        return self.base + b"/" + path if path else self.base


def parse_head(head: bytes) -> Header:
    """A member's header from all that stands before its content. Raises `DamagedError`."""
    return parse_member(head[-BLOCK:], _records(head))


def _records(head: bytes) -> dict[bytes, bytes]:
    if type_of(head[:BLOCK]) != EXTENDED:
        return {}
    return parse_records(head[BLOCK : BLOCK + records_size(head[:BLOCK])])


def _stat(meta: Meta, archive: int, start: int, links: int) -> Stat:
    """Device and inode are those of the archive: they say which members are one file."""
    return Stat(
        mode=meta.mode, uid=meta.uid, gid=meta.gid, size=meta.size, nlink=links, ino=start, dev=archive,
        rdev=meta.rdev, atime_ns=meta.atime_ns, mtime_ns=meta.mtime_ns, ctime_ns=meta.ctime_ns,
        btime_ns=meta.btime_ns, blocks=0, attributes=0, mnt_id=None,
    )  # fmt: skip


def _split(path: bytes) -> tuple[bytes, bytes]:
    directory, _, name = path.rpartition(b"/")
    return directory, name


def _bounded(ns: int) -> int:
    return max(min(ns, _LARGEST), -_LARGEST)


def _zeros(digest: hashlib._Hash | None, count: int) -> None:
    while digest is not None and count > 0:
        digest.update(_ZEROS[:count])
        count -= MAX_CHUNK


def _exact(blob: Blob, offset: int, length: int) -> bytes:
    data = blob.read_at(offset, length)
    if len(data) != length:
        raise DamagedError(f"the archive breaks off at byte {offset + len(data)}")
    return data


def _blocks(blob: Blob, offset: int) -> Iterator[bytes]:
    while True:
        yield _exact(blob, offset, BLOCK)
        offset += BLOCK


def _chunks(blob: Blob) -> Iterator[bytes]:
    offset = 0
    while data := blob.read_at(offset, MAX_CHUNK):
        yield data
        offset += len(data)
