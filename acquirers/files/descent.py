"""The way from the root of a tree down to where a walk is: few open directories, and a way back.

A path can be deeper than a process may have files open: only the root and the last `OPEN_LEVELS` directories are. The
way back up is `..`, if it leads to the directory that we came from, else the names from the nearest open directory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from acquirers.files.look import open_same

if TYPE_CHECKING:
    from acquirers.files.deadline import Guard
    from acquirers.syscalls import Stat

OPEN_LEVELS = 64
"""Directories above the deepest one that are kept open."""


class Level(msgspec.Struct):
    """A directory on the way from the root of the tree to where the walk is."""

    name: bytes
    fd: int
    """-1: closed for the time being, or lost."""
    stat: Stat
    waiting: deque[bytes] = msgspec.field(default_factory=deque)
    """Subdirectories that are still to be entered."""
    cookie: int = 0
    """Where its listing stands, for `lseek`."""
    names: int = 0
    listed: bool = False
    """There are no further names."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.dev, self.stat.ino


class Descent:
    """A stack of levels, the root of the tree first."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._levels: list[Level] = []
        self._entered: set[tuple[int, int, int | None]] = set()
        self.below = b""
        """Path of the deepest level, relative to the tree: empty, or with a slash at its end."""

    def __len__(self) -> int:
        return len(self._levels)

    def __contains__(self, stat: Stat) -> bool:
        """Whether a directory lies on the way: then it contains itself."""
        return (stat.dev, stat.ino, stat.mnt_id) in self._entered

    @property
    def deepest(self) -> Level:
        return self._levels[-1]

    def push(self, level: Level) -> None:
        if self._levels:
            self.below += level.name + b"/"
        self._levels.append(level)
        self._entered.add((*level.identity, level.stat.mnt_id))
        far = len(self._levels) - 2 - OPEN_LEVELS
        if far > 0:
            self._close(self._levels[far])

    def pop(self) -> OSError | None:
        """Leaves the deepest level. Returns why the one above could not be opened again."""
        left = self._levels.pop()
        self._entered.discard((*left.identity, left.stat.mnt_id))
        failed = None
        if self._levels:
            self.below = self.below[: len(self.below) - len(left.name) - 1]
            if self.deepest.fd < 0:
                try:
                    self.deepest.fd = self._back(left.fd)
                except OSError as error:
                    failed = error
        self._close(left)
        return failed

    def close(self) -> None:
        for level in self._levels:
            self._close(level)

    def _back(self, child: int) -> int:
        if child >= 0:
            try:
                return self._guard.call(open_same, child, b"..", self.deepest.identity)
            except OSError:
                pass  # the child was moved: the directory may still be where it was
        start = max(index for index, level in enumerate(self._levels) if level.fd >= 0)
        fd = nearest = self._levels[start].fd
        for level in self._levels[start + 1 :]:
            try:
                below = self._guard.call(open_same, fd, level.name, level.identity)
            finally:
                if fd != nearest:
                    self._guard.drop(fd)
            fd = below
        return fd

    def _close(self, level: Level) -> None:
        if level.fd >= 0:
            self._guard.drop(level.fd)
            level.fd = -1
