"""A layer's directory on the examined machine, asked by name: read without effects, and no link is ever followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, Self

from acquirers import syscalls
from acquirers.files import look
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.layers.proof import Found

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from acquirers.files.tree import Tree
    from acquirers.host import Host

_CHUNK = 1 << 20
_MAX_DEPTH = 500
"""Far below what Python calls in each other; real layers have some 30 levels."""
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Directory:
    """Implements `proof.Files`. A context manager, which closes the tree."""

    def __init__(self, tree: Tree, base: bytes = b"") -> None:
        self._tree, self._base = tree, base
        self._inner: list[Directory] = []
        self._at: tuple[bytes, int] | None = None
        """The last directory that was asked for, and its descriptor."""

    @classmethod
    def open(cls, host: Host, path: bytes) -> Self:
        """Raises `OSError`."""
        return cls(host.tree(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self._tree.close()

    def within(self, name: bytes) -> Directory:
        """A directory below this one, in the same tree: nothing that is mounted over it shows. Is closed with this."""
        inner = Directory(self._tree, name)
        self._inner.append(inner)
        return inner

    def find(self, name: bytes) -> Found | None:
        """`b""`: the directory itself."""
        try:
            directory, base = self._directory(name)
            seen = look.look(directory, base or b".", proc=True)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        if seen.attributes.error is not None:
            raise seen.attributes.error  # one that is not known could be any
        return Found.of(seen.stat, seen.target, seen.attributes.values)

    def read(self, name: bytes) -> Iterator[bytes]:
        directory, base = self._directory(name)
        seen = look.open_file(directory, base, in_place=not self._tree.clone)
        try:
            with contextlib.suppress(OSError):  # it is only a hint
                os.posix_fadvise(seen.fd, 0, 0, os.POSIX_FADV_NOREUSE)
            while piece := os.read(seen.fd, _CHUNK):
                yield piece
        finally:
            os.close(seen.fd)

    def names(self) -> Iterator[bytes]:
        """Depth first. Raises `OSError` where another filesystem begins."""
        yield from self._below(b"", self._place(), 0)

    def listing(self, name: bytes, limit: int) -> list[bytes]:
        """The names in one directory, at most so many. Raises `OSError`."""
        fd = self._open(name)
        try:
            return [name for name, _ in islice(_listing(fd), limit)]
        finally:
            os.close(fd)

    def _below(self, path: bytes, place: tuple[int, int | None], depth: int) -> Iterator[bytes]:
        if depth > _MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, "directories nested too deeply")
        fd = self._open(path)
        deeper: list[bytes] = []
        try:
            for name, kind in _listing(fd):
                yield (path + b"/" + name) if path else name
                if kind == _DT_DIR or (kind == _DT_UNKNOWN and stat.S_ISDIR(syscalls.statx(fd, name).mode)):
                    deeper.append(name)
            inside = _place_of(fd) == place
        finally:
            os.close(fd)
        if not inside:  # a subvolume, for one: what is in it is not known
            raise OSError(errno.EXDEV, "another filesystem begins in it")
        for name in deeper:
            yield from self._below((path + b"/" + name) if path else name, place, depth + 1)

    # -- directories --------------------------------------------------------------------------------------------------

    def _place(self) -> tuple[int, int | None]:
        """Of the tree, not of what may be mounted over the directory in it."""
        return _place_of(self._tree.fd)

    def _directory(self, name: bytes) -> tuple[int, bytes]:
        """The directory that a path lies in, opened, and the last component. Raises `OSError`."""
        path, _, base = name.rpartition(b"/")
        if self._at is None or self._at[0] != path:
            self.leave()
            self._at = (path, self._open(path))
        return self._at[1], base

    def _open(self, path: bytes) -> int:
        fd = open_noatime(b".", DIRECTORY, self._tree.fd)
        path = b"/".join(filter(None, (self._base, path)))
        for part in path.split(b"/") if path else ():
            try:
                if part in {b"", b".", b".."}:
                    raise OSError(errno.ENOENT, "no name")
                deeper = open_noatime(part, DIRECTORY, fd)
            finally:
                os.close(fd)
            fd = deeper
        return fd

    def leave(self) -> None:
        for one in self._inner:
            one.leave()
        if self._at is not None:
            os.close(self._at[1])
        self._at = None


def _place_of(fd: int) -> tuple[int, int | None]:
    """A filesystem and a mount of it."""
    found = syscalls.statx(fd, b"")
    return found.dev, found.mnt_id


_DT_UNKNOWN, _DT_DIR = 0, 4


def _listing(fd: int) -> Iterator[tuple[bytes, int]]:
    while entries := syscalls.getdents(fd):
        for name, kind, _ in entries:
            yield name, kind
