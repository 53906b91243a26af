"""One directory of the examined machine, opened so that reading it can change nothing.

The way of choice is a detached clone of the mount (`open_tree`, `mount_setattr`: Linux 5.12, CAP_SYS_ADMIN): read-only,
without access times, devices or links to follow, and invisible to the machine. Where kernel or privilege refuse, the
directory is read in place with `O_NOATIME`, which the kernel grants to owners and CAP_FOWNER only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

import msgspec

from acquirers import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from acquirers.mounts import Mount

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_noatime(name: bytes, flags: int, dir_fd: int) -> int:
    """`openat` with `O_NOATIME`, and without it where the kernel refuses it to this user. Raises `OSError`."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, flags, dir_fd=dir_fd)


class Tree(msgspec.Struct):
    """A directory that is open for reading, with what is mounted below it. A context manager."""

    fd: int
    path: bytes
    """Native absolute path of the directory."""
    clone: bool
    """True: a detached, read-only, no-access-time clone. False: in place."""
    why_not: str = ""
    """Why there is no clone."""
    recursive: bool = False
    """What is mounted below belongs to it."""
    mounts: Mapping[bytes, Mount] = msgspec.field(default_factory=dict)
    """What is mounted below: native absolute path -> mount. Nothing is entered that is not listed here as local."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_tree(
    path_fd: int, path: bytes, *, recursive: bool = False, mounts: Mapping[bytes, Mount] | None = None
) -> Tree:
    """Opens the directory behind an `O_PATH` descriptor (which stays the caller's). Raises `OSError`.

    `recursive` takes what is mounted below along; without it the clone shows the bare filesystem beneath the mounts.
    """
    why_not = ""
    mounts = dict(mounts or {})
    try:
        fd = syscalls.open_tree_clone(path_fd, b"", recursive=recursive)
    except OSError as error:
        why_not = f"no detached clone of the mount: {error.strerror}"
    else:
        try:
            syscalls.make_inert(fd, recursive=recursive)
            return Tree(open_noatime(b".", DIRECTORY, fd), path, clone=True, recursive=recursive, mounts=mounts)
        except OSError as error:
            why_not = f"the clone of the mount could not be made read-only: {error.strerror}"
        finally:
            os.close(fd)
    fd = open_noatime(b".", DIRECTORY, path_fd)
    return Tree(fd, path, clone=False, why_not=why_not, recursive=recursive, mounts=mounts)
