"""Calls into a filesystem that may never return.

A disk or memory of this machine answers. A network filesystem whose server is gone, or a FUSE daemon that was stopped,
does not: the calling thread sleeps, often beyond the reach of signals (`TASK_UNINTERRUPTIBLE`), and nothing can call it
back. So what lies on such a filesystem is read by a worker thread with a deadline, and a worker that does not come back
is given up with the call it is in.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from acquirers import syscalls
from acquirers.base import Reason, reason_of

if TYPE_CHECKING:
    from acquirers.files.tree import Tree

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE = 30.0
"""Seconds that one call may take."""

STRIKES = 3
"""Calls that may be stuck before nothing further is asked of the filesystem."""

# include/uapi/linux/magic.h and the filesystems' own headers: what `mounts.LOCAL` names.
_LOCAL = frozenset({
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlay, as far as `mounts` lets a path lead onto it
    0xE0F5E1E2,  # erofs
    0x73717368,  # squashfs
    0x4D44,  # vfat
    0x2011BAB0,  # exfat
    0x2FC12FC1,  # zfs
    0x9660,  # iso9660
    0x52654973,  # reiserfs
    0x3153464A,  # jfs
})  # fmt: skip


class StuckError(OSError):
    """A call did not return before its deadline."""


def reason(error: OSError) -> Reason:
    """`base.reason_of`, and STUCK for a call that did not return."""
    return Reason.STUCK if isinstance(error, StuckError) else reason_of(error)


class Guard(Protocol):
    """How a filesystem is called."""

    @property
    def given_up(self) -> bool:
        """The filesystem is asked nothing further: every call raises `StuckError` at once."""

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises, or `StuckError`.

        A function that was given up may still be running. It must own what it changes: a buffer that was handed to it
        is not to be used again.
        """

    def drop(self, fd: int) -> None:
        """Closes a descriptor, without waiting for a filesystem that may be stuck (FUSE asks its daemon)."""

    def close(self) -> None:
        """No further call will be made."""


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # what a close can fail with is about writing, and nothing was written


class Direct:
    """Calls at once: for local filesystems."""

    given_up = False

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    def drop(self, fd: int) -> None:
        _close(fd)

    def close(self) -> None:
        pass


class Deadlined:
    """Calls in a worker thread, one at a time, each with a deadline in seconds.

    A worker that misses it is left to itself with the descriptors it uses: there are at most `strikes` of them.
    """

    def __init__(self, deadline: float = DEADLINE, strikes: int = STRIKES) -> None:
        self._deadline = deadline
        self._left = strikes
        self._worker: _Worker | None = None

    @property
    def given_up(self) -> bool:
        return self._left <= 0

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.given_up:
            raise StuckError(errno.ETIMEDOUT, "not tried: earlier calls to this filesystem did not return")
        worker = self._current()
        worker.jobs.put((lambda: function(*args, **kwargs), True))
        try:
            value, error = worker.answers.get(timeout=self._deadline)
        except queue.Empty:
            self._left -= 1
            self.close()
            raise StuckError(errno.ETIMEDOUT, f"no answer within {self._deadline:g} s") from None
        if error is not None:
            raise error
        result: T = value
        return result

    def drop(self, fd: int) -> None:
        self._current().jobs.put((lambda: _close(fd), False))

    def close(self) -> None:
        """The worker ends after what it was told to do; the next call gets a new one."""
        if self._worker is not None:
            self._worker.jobs.put(None)
            self._worker = None

    def _current(self) -> _Worker:
        if self._worker is None:
            self._worker = _Worker()
        return self._worker


class _Worker:
    """One daemon thread: it does not keep the process from ending."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[Callable[[], Any], bool] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="deadlined", daemon=True).start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            function, wanted = job
            answer: tuple[Any, Exception | None]
            try:
                answer = function(), None
            except Exception as error:  # noqa: BLE001 - raised again where the call was made
                answer = None, error
            if wanted:
                self.answers.put(answer)


def guard_for(fd: int, deadline: float = DEADLINE) -> Guard:
    """How the filesystem behind a descriptor is to be called: directly only where it is known to answer."""
    guard = Deadlined(deadline)
    try:
        magic = guard.call(syscalls.filesystem_type, fd)
    except OSError:
        return guard
    if magic not in _LOCAL:
        return guard
    guard.close()
    return Direct()


def guard_of(tree: Tree, deadline: float = DEADLINE) -> Guard:
    """How a tree is to be called.

    Where an overlay is part of it, never directly: what it says of its layers was true when it was mounted, and what
    was unmounted since is still in use.
    """
    if tree.recursive and any(mount.fstype == b"overlay" for mount in tree.mounts.values()):
        return Deadlined(deadline)
    return guard_for(tree.fd, deadline)
