"""Two trees, file by file: looks at one without changing it, and says in what a copy differs.

Everything is reached from open directories, because some paths are longer than any path may be.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME


@dataclass(frozen=True)
class Node:
    """One file as the kernel shows it."""

    stat: os.stat_result
    xattrs: dict[bytes, bytes]
    target: bytes = b""
    digest: bytes = b""
    stored: int = 0
    """Bytes in extents, as SEEK_DATA and SEEK_HOLE tell."""

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.stat.st_mode)

    @property
    def times(self) -> tuple[int, int, int]:
        return self.stat.st_atime_ns, self.stat.st_mtime_ns, self.stat.st_ctime_ns


def survey(root: bytes | str, skip: frozenset[bytes] = frozenset(), *, deep: bool = True) -> dict[bytes, Node]:
    """Every file below a directory, itself as b"", by relative path. `skip`: names that are not entered.

    Only without `deep` does it leave no trace: to read the text of a link moves its access time.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        found = {b"": _node(fd, b".", deep=False)}
        found.update(_survey(fd, b"", skip, deep=deep))
        return found
    finally:
        os.close(fd)


def _survey(fd: int, prefix: bytes, skip: frozenset[bytes], *, deep: bool) -> Iterator[tuple[bytes, Node]]:
    for name in sorted(os.fsencode(text) for text in os.listdir(fd)):
        node = _node(fd, name, deep=deep)
        yield prefix + name, node
        if node.kind == stat.S_IFDIR and name not in skip:
            below = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                yield from _survey(below, prefix + name + b"/", skip, deep=deep)
            finally:
                os.close(below)


def _node(dir_fd: int, name: bytes, *, deep: bool) -> Node:
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not deep:
        return Node(found, {})
    path = b"/proc/self/fd/%d/%s" % (dir_fd, name)
    names = [os.fsencode(text) for text in os.listxattr(path, follow_symlinks=False)]
    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in names}
    if stat.S_ISLNK(found.st_mode):
        return Node(found, xattrs, target=os.readlink(name, dir_fd=dir_fd))
    if stat.S_ISREG(found.st_mode):
        fd = os.open(name, _FILE, dir_fd=dir_fd)
        try:
            return Node(found, xattrs, digest=_digest(fd, found.st_size), stored=_stored(fd, found.st_size))
        finally:
            os.close(fd)
    return Node(found, xattrs)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _stored(fd: int, size: int) -> int:
    return sum(end - start for start, end in _extents(fd, size))


def _digest(fd: int, size: int) -> bytes:
    """Of the size and all blocks that are not zeros, with their places: a gibibyte of holes takes no time."""
    digest = hashlib.sha256(b"%d" % size)
    for start, end in _extents(fd, size):
        for offset in range(start, end, 4096):
            block = os.pread(fd, min(4096, end - offset), offset)
            if block.strip(b"\0"):
                digest.update(b"%d %s" % (offset, block))
    return digest.digest()


def age_access_times(root: bytes | str, nodes: dict[bytes, Node]) -> None:
    """Makes every access time so old that any read that is not careful would move it (`relatime`)."""
    for path, node in nodes.items():
        *parents, name = path.split(b"/") if path else [b"."]
        fd = os.open(root, _DIRECTORY)
        try:
            for parent in parents:
                below = os.open(parent, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            os.utime(name, ns=(1_000_000_001, node.stat.st_mtime_ns), dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)


def differences(source: dict[bytes, Node], copy: dict[bytes, Node]) -> list[str]:
    """In what a copy of the tree differs: names, types, modes, owners, times, links, attributes, content, holes."""
    found = [f"{path!r}: is not there" for path in sorted(source.keys() - copy.keys())]
    found += [f"{path!r}: was never there" for path in sorted(copy.keys() - source.keys())]
    for path in sorted(source.keys() & copy.keys()):
        one, other = source[path], copy[path]
        pairs = {
            "mode": (oct(one.stat.st_mode), oct(other.stat.st_mode)),
            "owner": ((one.stat.st_uid, one.stat.st_gid), (other.stat.st_uid, other.stat.st_gid)),
            "modification time": (one.stat.st_mtime_ns, other.stat.st_mtime_ns),
            "link": (one.target, other.target),
            "content": (one.digest, other.digest),
            "attributes": (one.xattrs, other.xattrs),
        }
        if one.kind != stat.S_IFDIR:
            pairs["size"] = one.stat.st_size, other.stat.st_size
        if one.kind in {stat.S_IFCHR, stat.S_IFBLK}:
            pairs["device"] = one.stat.st_rdev, other.stat.st_rdev
        found += [f"{path!r}: {what}: {was!r} became {now!r}" for what, (was, now) in pairs.items() if was != now]
        if other.stored > one.stored + (1 << 16):
            found.append(f"{path!r}: {one.stored} stored bytes became {other.stored}: its holes are filled")
    if _hard_links(source, copy.keys()) != _hard_links(copy, source.keys()):
        found.append("hard links differ")
    return found


def _hard_links(nodes: dict[bytes, Node], among: Container[bytes]) -> set[frozenset[bytes]]:
    """Of regular files. Overlay whiteouts share an inode as well, which only their records tell."""
    groups: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, node in nodes.items():
        if node.kind == stat.S_IFREG and path in among:
            groups[node.stat.st_dev, node.stat.st_ino].add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}
