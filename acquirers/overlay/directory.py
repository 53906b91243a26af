"""A layer that is a directory of a mounted filesystem, read by descriptor so that nothing leads out of it.

Every component is opened below the one above, without following links and without moving access times where the kernel
lets us. So a path may be longer than `PATH_MAX`, and a directory that is replaced by a link while it is read is simply
no directory any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from acquirers import syscalls
from acquirers.files import xattrs
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import guard_for
from acquirers.files.look import look, open_file
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.overlay.layer import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Report
    from acquirers.files.deadline import Guard
    from acquirers.files.xattrs import Attributes

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class Handles:
    """Directories that are open, of all layers of a union together: the one that was used longest ago is closed first.

    A process may have 1024 files open, and a container may have 500 layers.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._open: OrderedDict[tuple[int, bytes], tuple[int, Guard]] = OrderedDict()

    def get(self, layer: int, path: bytes) -> int | None:
        found = self._open.get((layer, path))
        if found is None:
            return None
        self._open.move_to_end((layer, path))
        return found[0]

    def put(self, layer: int, path: bytes, fd: int, guard: Guard) -> None:
        self._open[layer, path] = fd, guard
        while len(self._open) > self._limit:
            _, (oldest, its_guard) = self._open.popitem(last=False)
            its_guard.drop(oldest)

    def drop(self, layer: int) -> None:
        for key in [key for key in self._open if key[0] == layer]:
            fd, guard = self._open.pop(key)
            guard.drop(fd)


class DirectoryLayer:
    """`fd` is an open directory, which stays the caller's. To be closed.

    `in_place`: it is no detached clone, so that reading may move access times where the kernel refuses `O_NOATIME`.
    """

    def __init__(self, fd: int, label: str, *, handles: Handles | None = None, in_place: bool = True) -> None:
        self.label = label
        self._fd = os.dup(fd)
        self._guard = guard_for(self._fd)
        self._handles = handles or Handles(16)
        self._in_place = in_place
        self._root = self._guard.call(syscalls.statx, self._fd, b"")
        self._proc = self._guard.call(xattrs.proc_serves, self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            self._handles.drop(id(self))
            self._guard.drop(self._fd)
            self._fd = -1

    def look(self, path: bytes) -> Node | None:
        directory, _, name = path.rpartition(b"/")
        try:
            if not path:
                attributes = self._guard.call(xattrs.read, self._fd)
                return Node(self._root, attributes.values, None, self._problem(attributes))
            seen = self._guard.call(look, self._directory(directory), name, self._proc)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        problem = self._problem(seen.attributes)
        if seen.error is not None:
            problem = f"the text of the link: {seen.error.strerror}"
        return Node(seen.stat, seen.attributes.values, seen.target, problem)

    def names(self, path: bytes) -> Iterator[bytes]:
        try:
            directory = self._directory(path)
            fd = self._guard.call(open_noatime, b".", DIRECTORY, directory)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return
            raise
        try:
            while found := self._guard.call(syscalls.getdents, fd):
                for name, _, _ in found:
                    yield name
        finally:
            self._guard.drop(fd)

    @contextlib.contextmanager
    def content(self, path: bytes, report: Report) -> Iterator[FileContent]:
        directory, _, name = path.rpartition(b"/")
        seen = self._guard.call(open_file, self._directory(directory), name, self._in_place)
        reader = Reader(self._guard, report, self._in_place)
        content = FileContent(reader, seen.fd, path, seen.stat)
        try:
            yield content
        finally:
            content.close()

    def _problem(self, attributes: Attributes) -> str:
        if attributes.error is not None:
            return f"its extended attributes: {attributes.error.strerror}"
        return "" if self._proc else "no /proc: its extended attributes are not known"

    def _directory(self, path: bytes) -> int:
        """A descriptor of a directory of this layer, which stays ours. Raises `OSError`."""
        if not path:
            return self._fd
        fd = self._handles.get(id(self), path)
        if fd is not None:
            return fd
        known = path
        missing: list[bytes] = []
        while fd is None:
            known, _, name = known.rpartition(b"/")
            missing.append(name)
            fd = self._handles.get(id(self), known) if known else self._fd
        # One after the other, so that only the last is kept: the way down may be longer than there are handles.
        above: int | None = None
        for name in reversed(missing):
            try:
                below = self._guard.call(open_noatime, name, DIRECTORY, fd)
            finally:
                if above is not None:
                    self._guard.drop(above)
            fd = above = below
            self._check_mount(fd)
        self._handles.put(id(self), path, fd, self._guard)
        return fd

    def _check_mount(self, fd: int) -> None:
        """An overlay does not see what is mounted inside of its layers. Raises `OSError`, and closes the descriptor."""
        found, root = self._guard.call(syscalls.statx, fd, b""), self._root
        same = found.mnt_id == root.mnt_id if None not in {found.mnt_id, root.mnt_id} else found.dev == root.dev
        if not same:
            self._guard.drop(fd)
            raise OSError(errno.EREMOTE, "another filesystem is mounted there")
