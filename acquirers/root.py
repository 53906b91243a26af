"""The root of the examined machine: every path below it is resolved inside it.

Links are followed in user space, one component at a time, each by a directory descriptor that follows nothing itself.
So no link leads out, whoever made it and whenever it is changed.
"""

from __future__ import annotations

import os
import stat

from acquirers.files.tree import DIRECTORY, open_noatime

MAX_LINKS = 40
MAX_DEPTH = 256
MAX_CONFIG = 1 << 20
"""Bytes of a configuration file that are ever read into memory, unless the caller says otherwise."""


class NotARootError(Exception):
    """The directory holds none of etc, usr and var."""


class TooLargeError(OSError):
    """A file that should be small is not."""


class Root:
    """A directory that is a machine's `/`.

    Paths are native and absolute: `/var/lib/docker` is that directory of the examined machine, wherever its root lies.
    Methods raise `OSError`.
    """

    def __init__(self, root: bytes) -> None:
        self.root = os.path.abspath(root)
        if not any(os.path.isdir(os.path.join(self.root, name)) for name in (b"etc", b"usr", b"var")):
            raise NotARootError(f"{os.fsdecode(self.root)!r} holds none of etc, usr and var")
        self._root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

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

    def identity_of(self, path: bytes) -> tuple[int, int]:
        """(device, inode) of what `path` names."""
        fd = self.open_path(path)
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return found.st_dev, found.st_ino


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


def read_kernel_file(path: bytes, limit: int = 4 * MAX_CONFIG) -> bytes:
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
