"""`Host`: one object that stands for the examined machine. Every path that is read goes through it.

So a mounted disk, the live host seen from a pod, or a fixture tree in a test is just another `Host`.
"""

from __future__ import annotations

import enum
import os
import stat
from functools import cached_property
from typing import TYPE_CHECKING

from acquirers import facts as facts_module
from acquirers import mounts as mounts_module
from acquirers.files.tree import DIRECTORY, Tree, open_noatime, open_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.facts import Facts
    from acquirers.mounts import Mount

MAX_LINKS = 40
MAX_DEPTH = 256
MAX_CONFIG = 1 << 20
"""Bytes of a configuration file that are ever read into memory, unless the caller says otherwise."""


class Mode(enum.StrEnum):
    """Which machine a `Host` stands for."""

    HOST = "host"  # the machine this process runs on
    INSIDE = "inside"  # the container this process runs in
    LIVE_ROOT = "live-root"  # the live host, seen from a privileged pod
    DEAD = "dead"  # a mounted disk: nothing of it is running


class NotARootError(Exception):
    """The directory holds none of etc, usr and var."""


class TooLargeError(OSError):
    """A file that should be small is not."""


class Host:
    """The examined machine.

    Paths are native and absolute: `/var/lib/docker` is that directory of the examined machine, wherever its root lies.
    Links are followed in user space, one component at a time, and never lead out of the root. Methods raise `OSError`.
    """

    def __init__(self, mode: Mode, root: bytes = b"/", proc: bytes | None = b"/proc") -> None:
        self.mode = mode
        self.root = os.path.abspath(root)
        self.proc = None if mode is Mode.DEAD else proc
        if not any(os.path.isdir(os.path.join(self.root, name)) for name in (b"etc", b"usr", b"var")):
            raise NotARootError(f"{os.fsdecode(self.root)!r} holds none of etc, usr and var")
        self._root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def live(self) -> bool:
        """There are processes to ask."""
        return self.proc is not None

    @cached_property
    def facts(self) -> Facts:
        """Capabilities, namespaces, kernel, ids, clock and identity: read once."""
        return facts_module.read(self)

    # -- paths --------------------------------------------------------------------------------------------------------

    def open_path(self, path: bytes) -> int:
        """An `O_PATH` descriptor of what `path` names on the machine, links followed inside the root."""
        todo = [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]
        fds = [os.dup(self._root_fd)]
        links = 0
        try:
            while todo:
                part = todo.pop()
                if part == b"..":
                    if len(fds) > 1:
                        os.close(fds.pop())
                    continue
                if len(fds) > MAX_DEPTH:
                    raise OSError(36, os.strerror(36))
                fd = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fds[-1])
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    fds.append(fd)
                    continue
                os.close(fd)
                links += 1
                if links > MAX_LINKS:
                    raise OSError(40, os.strerror(40))
                target = os.readlink(part, dir_fd=fds[-1])
                if target.startswith(b"/"):
                    while len(fds) > 1:
                        os.close(fds.pop())
                todo += [part for part in reversed(target.split(b"/")) if part not in {b"", b"."}]
            return fds.pop()
        finally:
            for fd in fds:
                os.close(fd)

    def native(self, path: bytes) -> bytes:
        """`path` with all links followed: the native absolute path that the machine itself would print."""
        fd = self.open_path(path)
        try:
            real = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        if self.root == b"/":
            return real
        if real == self.root:
            return b"/"
        if real.startswith(self.root + b"/"):
            return real[len(self.root) :]
        return path

    def here(self, path: bytes) -> bytes:
        """How this process would name the native path `path`."""
        return path if self.root == b"/" else self.root + path

    def is_dir(self, path: bytes) -> bool:
        return self._has_type(path, stat.S_ISDIR)

    def is_file(self, path: bytes) -> bool:
        return self._has_type(path, stat.S_ISREG)

    def _has_type(self, path: bytes, test: object) -> bool:
        try:
            fd = self.open_path(path)
        except OSError:
            return False
        try:
            mode = os.fstat(fd).st_mode
        finally:
            os.close(fd)
        return bool(callable(test) and test(mode))

    def read(self, path: bytes, limit: int = MAX_CONFIG) -> bytes:
        """The content of one small regular file. Raises `TooLargeError` beyond `limit` bytes."""
        head, _, name = path.rstrip(b"/").rpartition(b"/")
        for _ in range(MAX_LINKS):
            directory = self.open_path(head or b"/")
            try:
                fd = open_noatime(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, directory)
            except OSError as error:
                if error.errno != 40:
                    raise
                target = os.readlink(name, dir_fd=directory)
            else:
                return _read_regular(fd, limit)
            finally:
                os.close(directory)
            target = target if target.startswith(b"/") else (head or b"") + b"/" + target
            head, _, name = target.rstrip(b"/").rpartition(b"/")
        raise OSError(40, os.strerror(40))

    def names(self, path: bytes) -> list[bytes]:
        """The names in one directory, sorted. For directories whose size a configuration bounds."""
        fd = self.open_path(path)
        try:
            listing = open_noatime(b".", DIRECTORY, fd)
        finally:
            os.close(fd)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(listing))
        finally:
            os.close(listing)

    def tree(self, path: bytes, *, recursive: bool = False) -> Tree:
        """The directory `path`, opened for a faithful walk."""
        fd = self.open_path(path)
        try:
            real = self.native(path)
            return open_tree(fd, path, recursive=recursive, mounts=self._mounts_below(real, path))
        finally:
            os.close(fd)

    def identity_of(self, path: bytes) -> tuple[int, int]:
        """(device, inode) of what `path` names."""
        fd = self.open_path(path)
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return found.st_dev, found.st_ino

    # -- mounts -------------------------------------------------------------------------------------------------------

    @cached_property
    def mounts(self) -> list[Mount]:
        """What is mounted where, by native path, when the run began."""
        if self.mode is Mode.LIVE_ROOT:
            return mounts_module.parse_mountinfo(self.read_proc(b"1/mountinfo"))
        own = mounts_module.parse_mountinfo(_read_all(b"/proc/self/mountinfo"))
        if self.root == b"/":
            return own
        inside = mounts_module.below(own, self.root)
        return [_moved(mount, point[len(self.root) :]) for point, mount in inside.items()]

    def _mounts_below(self, real: bytes, path: bytes) -> dict[bytes, Mount]:
        """Mounts below the real directory, named as a walk that starts at `path` names them."""
        found = mounts_module.below(self.mounts, real)
        base, start = real.rstrip(b"/"), path.rstrip(b"/")
        return {start + point[len(base) :]: mount for point, mount in found.items()}

    # -- processes ----------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """The processes that /proc shows, ascending."""
        if self.proc is None:
            return []
        return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())

    def read_proc(self, name: bytes, limit: int = 4 * MAX_CONFIG) -> bytes:
        """One file below /proc, cut at `limit` bytes."""
        if self.proc is None:
            raise FileNotFoundError(2, "a mounted disk has no processes")
        return _read_all(os.path.join(self.proc, name), limit)

    def processes_named(self, comm: bytes) -> Iterator[int]:
        """The pids whose command name is `comm`."""
        for pid in self.pids():
            try:
                if self.read_proc(b"%d/comm" % pid, 64).rstrip(b"\n") == comm:
                    yield pid
            except OSError:
                continue


def _moved(mount: Mount, point: bytes) -> Mount:
    from dataclasses import replace

    return replace(mount, point=point)


def _read_regular(fd: int, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "not a regular file")
        data = b""
        while chunk := os.read(fd, limit + 1 - len(data)):
            data += chunk
            if len(data) > limit:
                raise TooLargeError(27, f"larger than {limit} bytes")
        return data
    finally:
        os.close(fd)


def _read_all(path: bytes, limit: int = 4 * MAX_CONFIG) -> bytes:
    """A kernel file, which has no size to trust: read to its end or to `limit` bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        left = limit
        while left and (chunk := os.read(fd, min(left, 1 << 16))):
            parts.append(chunk)
            left -= len(chunk)
        return b"".join(parts)
    finally:
        os.close(fd)
