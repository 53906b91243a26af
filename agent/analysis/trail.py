"""Where an extraction stands in its output: the directories from the root to the current one, each entered by name from
the one above and never through a symbolic link.

A directory is open to its owner while anything is put into it, and gets its own mode and times when it is left. So
neither a directory without permissions nor the order of an archive can stop or spoil what comes later: one that is
entered a second time gets back what it had. Memory holds one short record for each level of the current path, and at
most `MAX_OPEN` of them are open, so that a path may be far longer than PATH_MAX and than the number of descriptors.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

import msgspec

from agent.errors import StoreError

MAX_OPEN = 64
MAX_DEPTH = 1 << 17
"""Levels of a path: as many as the longest name that impound writes can hold (`acquirers.files.pax.NAME_LIMIT`)."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


Finish = Callable[[int], None]
"""Gives a directory, by its descriptor, the mode and times that it is to have."""


class _Level(msgspec.Struct):
    """One directory that was entered."""

    name: bytes
    fd: int  # -1 while it is closed to save descriptors
    identity: tuple[int, int]  # device and inode, by which it is known again
    finish: Finish | None  # for when it is left; None leaves it as it was made: 0700


class Trail:
    """The current directory below `root_fd`, which stays the caller's.

    Methods raise `OSError` for what belongs to the path that was asked for, and `StoreError`.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._levels: list[_Level] = []
        self._closed = 0  # so many of the first levels have no descriptor

    @property
    def path(self) -> bytes:
        """The current directory, relative to the root. While a directory is finished, that directory."""
        return b"/".join(level.name for level in self._levels)

    def enter(self, parts: Sequence[bytes], *, make: bool = True) -> int:
        """Goes to a directory, making what is missing if `make`. Returns its descriptor, valid until the next call."""
        if len(parts) > MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, f"more than {MAX_DEPTH} directories deep")
        common = 0
        for level, part in zip(self._levels, parts, strict=False):
            if level.name != part:
                break
            common += 1
        self._leave(common)
        for part in parts[common:]:
            self._descend(part, make=make)
        return self._fd()

    def finish_with(self, finish: Finish) -> None:
        """What is to be done with the current directory, which is not the root, when it is left."""
        self._levels[-1].finish = finish

    def close(self) -> None:
        """Leaves every directory, the deepest first."""
        self._leave(0)

    def abandon(self) -> None:
        """Closes every descriptor and does nothing else."""
        for level in self._levels[self._closed :]:
            os.close(level.fd)
        self._levels.clear()
        self._closed = 0

    def _fd(self) -> int:
        return self._levels[-1].fd if self._levels else self._root_fd

    def _descend(self, name: bytes, *, make: bool) -> None:
        parent = self._fd()
        made = make and _make(name, parent)
        fd, finish = (os.open(name, _DIRECTORY, dir_fd=parent), None) if made else _open_existing(name, parent)
        status = os.fstat(fd)
        self._levels.append(_Level(name, fd, (status.st_dev, status.st_ino), finish))
        if len(self._levels) - self._closed > MAX_OPEN:
            shallowest = self._levels[self._closed]
            os.close(shallowest.fd)
            shallowest.fd = -1
            self._closed += 1

    def _leave(self, depth: int) -> None:
        """Goes up until `depth` levels are left."""
        while len(self._levels) > depth:
            level = self._levels[-1]
            if self._closed and self._closed == len(self._levels) - 1:
                self._reopen(self._levels[-2], level.fd)
            try:
                if level.finish is not None:
                    level.finish(level.fd)
            finally:
                self._levels.pop()
                os.close(level.fd)

    def _reopen(self, level: _Level, child: int) -> None:
        """Opens a level again, from below. Nothing in an archive can move a directory, but somebody else may have."""
        fd = os.open(b"..", _DIRECTORY, dir_fd=child)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != level.identity:
            os.close(fd)
            raise StoreError("somebody moved a directory of the output while it was written")
        level.fd = fd
        self._closed -= 1


def _make(name: bytes, parent: int) -> bool:
    """False where there is something of that name; opening it will show whether it is a directory."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _open_existing(name: bytes, parent: int) -> tuple[int, Finish]:
    """Opens a directory that an earlier member made, whatever its mode is by now, and tells how to give that back."""
    handle = os.open(name, _HANDLE, dir_fd=parent)
    try:
        before = os.fstat(handle)
        mode = stat.S_IMODE(before.st_mode)
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", mode | 0o700)  # a handle has no `fchmod`
        fd = os.open(b".", _DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)

    def give_back(fd: int) -> None:
        if mode & 0o700 != 0o700:
            os.fchmod(fd, mode)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))

    return fd, give_back
