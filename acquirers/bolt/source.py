"""Where the bytes of a database come from: an open file, read at offsets, or bytes that were read before."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from acquirers.bolt.errors import BoltError
from acquirers.files.tree import open_noatime

if TYPE_CHECKING:
    from acquirers.host import Host


class Source(Protocol):
    """Bytes at offsets."""

    @property
    def size(self) -> int:
        """Bytes that there are just now."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes, or fewer at the end. Raises `BoltError`."""


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class FileSource:
    """An open file, which stays the caller's. Only `pread` is used: no lock, no map, no moved offset."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def size(self) -> int:
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise BoltError(f"the size cannot be read: {error.strerror}") from error

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        try:
            while length and (chunk := os.pread(self._fd, length, offset)):
                parts.append(chunk)
                offset += len(chunk)
                length -= len(chunk)
        except (OSError, OverflowError) as error:
            raise BoltError(f"cannot be read at {offset}: {error}") from error
        return b"".join(parts)


@contextmanager
def open_file(host: Host, path: bytes) -> Iterator[FileSource]:
    """The file at a native path, whose last component is no link. Moves no access time. Raises `OSError`."""
    directory, _, name = path.rpartition(b"/")
    with host.tree(directory or b"/") as tree:
        # Only a regular file is opened: opening a device acts on it, and a FIFO would wake who waits at its other end.
        if not stat.S_ISREG(os.stat(name, dir_fd=tree.fd, follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        fd = open_noatime(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, tree.fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield FileSource(fd)
    finally:
        os.close(fd)
