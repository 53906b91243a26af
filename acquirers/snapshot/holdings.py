"""The executables of the processes that were seen, held open from the first look until memory has been taken.

An open descriptor keeps the content of a file whose name is gone, and of a process that ends meanwhile. Nothing is
read through it before memory is safe: hashing fills the page cache and pushes out what a memory image should show.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from acquirers.snapshot.notes import Executable

MAX_HELD = 2000
MAX_KNOWN = 50_000
"""Distinct executables that are remembered at all."""
MAX_PATHS = 16


class Held(msgspec.Struct):
    """One file that processes run."""

    dev: int
    ino: int
    comm: bytes
    """Of the process with the lowest pid."""
    size: int
    nlink: int
    paths: list[bytes] = msgspec.field(default_factory=list)
    """What the kernel names it; it differs between mount namespaces."""
    pids: list[int] = msgspec.field(default_factory=list)
    fd: int = -1

    @property
    def deleted(self) -> bool:
        """No name leads to it any more: a memfd, or a file that was removed."""
        return self.nlink == 0

    @property
    def memfd(self) -> bool:
        return self.deleted and self.paths[0].startswith(b"/memfd:")


class Holdings:
    """All of them, by device and inode."""

    def __init__(self, limit: int | None = None) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = min(MAX_HELD, soft // 2 if soft > 0 else MAX_HELD) if limit is None else limit
        self._files: dict[tuple[int, int], Held] = {}
        self._open = 0
        self.left_out = 0
        """Processes whose executable is beyond `MAX_KNOWN`."""

    @property
    def room(self) -> int:
        return self._limit - self._open

    @property
    def known(self) -> frozenset[tuple[int, int]]:
        """Those that are held open already."""
        return frozenset(key for key, held in self._files.items() if held.fd >= 0)

    def add(self, pid: int, found: Executable, fd: int) -> None:
        """Takes `fd` over, which may be -1."""
        key = (found.dev, found.ino)
        held = self._files.get(key)
        if held is None:
            if len(self._files) >= MAX_KNOWN:
                self.left_out += 1
                close(fd)
                return
            held = self._files[key] = Held(found.dev, found.ino, found.comm, found.size, found.nlink)
        held.pids.append(pid)
        if found.path not in held.paths and len(held.paths) < MAX_PATHS:
            held.paths.append(found.path)
        if fd >= 0 and held.fd < 0:
            held.fd = fd
            self._open += 1
        else:
            close(fd)

    def files(self) -> list[Held]:
        return sorted(self._files.values(), key=lambda held: held.pids[0])

    def release(self, held: Held) -> None:
        if held.fd >= 0:
            close(held.fd)
            held.fd = -1
            self._open -= 1

    def close(self) -> None:
        for held in self._files.values():
            self.release(held)
        self._files.clear()


def close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
