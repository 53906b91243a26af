"""Reading a file whole without leaving it in the page cache: what that pushes out is evidence, or is needed.

`O_DIRECT` where the filesystem knows it. Else the pages that were not cached before are dropped again behind the
reader, and none that somebody else had brought in: mincore(2) on a mapping that is never touched says which those are.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING

from acquirers.base import MAX_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.files.deadline import Guard

PAGE = mmap.PAGESIZE
_ALIGN = 4096


class Uncached:
    """One open regular file, and how it is read. The descriptor stays the caller's."""

    def __init__(self, guard: Guard, fd: int, size: int) -> None:
        self._guard = guard
        self._size = size
        self._cached = b""
        self._plain = fd
        self._direct = -1
        try:
            self._direct = guard.call(_open_direct, fd)
        except OSError:  # tmpfs, overlayfs over it, a seccomp filter
            try:
                self._cached = guard.call(_in_core, fd, size)
            except OSError:
                self._cached = b"\1" * -(-size // PAGE)  # not known: then nothing is dropped

    @property
    def direct(self) -> bool:
        return self._direct >= 0

    def chunks(self) -> Iterator[memoryview]:
        """At most `size` bytes in order, each chunk valid until the next; fewer if the file ends. Raises `OSError`."""
        buffer = mmap.mmap(-1, MAX_CHUNK)  # aligned to a page
        at = 0
        while at < self._size:
            view = memoryview(buffer)
            try:
                got = self._fill(view, at)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                # It could be opened so, and not be read (some network and stacked filesystems).
                self.close()
                self._cached = self._guard.call(_in_core, self._plain, self._size)
                continue
            got = min(got, self._size - at)
            if not got:
                return
            yield view[:got]
            self._drop(at, got)
            at += got
            if at < self._size and at % _ALIGN:
                return  # it ended inside of a block

    def _fill(self, view: memoryview, at: int) -> int:
        fd = self._direct if self.direct else self._plain
        length = min(MAX_CHUNK, -(-(self._size - at) // _ALIGN) * _ALIGN)
        return self._guard.call(os.preadv, fd, [view[:length]], at)

    def _drop(self, at: int, length: int) -> None:
        """The pages of a chunk that were not cached before it was read."""
        if self.direct:
            return
        first, end = at // PAGE, -(-(at + length) // PAGE)
        page = first
        while page < end:
            if page < len(self._cached) and self._cached[page] & 1:
                page += 1
                continue
            start = page
            while page < end and not (page < len(self._cached) and self._cached[page] & 1):
                page += 1
            try:
                os.posix_fadvise(self._plain, start * PAGE, (page - start) * PAGE, os.POSIX_FADV_DONTNEED)
            except OSError:
                return  # only an advice

    def close(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _open_direct(fd: int) -> int:
    how = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK
    path = b"/proc/self/fd/%d" % fd
    try:
        return os.open(path, how | os.O_NOATIME)
    except PermissionError:
        return os.open(path, how)


def _in_core(fd: int, size: int) -> bytes:
    """One byte for each page, odd if it is cached (mincore(2)). Since Linux 5.2 only for who may write the file."""
    if not size:
        return b""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in {None, ctypes.c_void_p(-1).value}:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        found = ctypes.create_string_buffer(-(-size // PAGE))
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
        return found.raw
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
