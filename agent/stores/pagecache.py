"""Keeps what is written out of the page cache of the machine that is examined.

A file that is written stays in memory until somebody needs the place, and a memory image on a disk of the same
machine would push out what is still to be read, and stand in the image itself. So writing back is begun for each window
when it is full, waited for one window later, and then its pages are given up: sync_file_range(2), posix_fadvise(2). At
most `WINDOW` * 3 bytes of a file are in memory, however long it is. Nothing is written that would not be written
anyway; what makes a file durable is the `fsync` at its end.

`O_DIRECT` would do the same, and needs aligned buffers and a filesystem that knows it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache

WINDOW = 4 << 20

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # include/uapi/linux/fs.h
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
"""The filesystem or the seccomp filter of a container knows no such thing. Any other error tells of lost data."""


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The call of libc, which orders its arguments as the machine wants them; None where there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found


class WrittenBehind:
    """One file that is written from its start to its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = 0
        self._begun = 0
        """Bytes of which writing back has begun: whole windows."""
        self._possible = True

    def wrote(self, count: int) -> None:
        """`count` further bytes were written. Raises `OSError` for lost data: `fsync` would not tell it again."""
        self._size += count
        while self._possible and self._size - self._begun >= WINDOW:
            self._sync(self._begun, _WRITE)
            if self._begun:  # now that the disk has something to do meanwhile
                self._sync(self._begun - WINDOW, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
                # From the start of the window before, for a page of many that reaches over the border.
                self._forget(max(0, self._begun - 2 * WINDOW), self._begun)
            self._begun += WINDOW

    def whole(self) -> None:
        """It was synchronised, and nothing more will be written."""
        self._forget(0, 0)

    def _sync(self, start: int, flags: int) -> None:
        call = _sync_file_range()
        if call is None:  # only whole files can be synchronised: at every window it would cost too much
            self._possible = False
        elif self._possible and call(self._fd, start, WINDOW, flags) < 0:
            number = ctypes.get_errno()
            if number not in _UNKNOWN:
                raise OSError(number, os.strerror(number))
            self._possible = False

    def _forget(self, start: int, end: int) -> None:
        """`end` 0: to the end of the file. Only advice: what cannot be given up stays."""
        try:
            os.posix_fadvise(self._fd, start, max(0, end - start), os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
