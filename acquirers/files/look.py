"""One look at one name of an open directory: opened without effects, or not opened at all.

Every function here is one call through a `deadline.Guard`: it owns a descriptor until it returns it, so that it can
be given up at any point. All raise `OSError`.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from acquirers import syscalls
from acquirers.base import Kind
from acquirers.files import xattrs
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.files.xattrs import EMPTY, Attributes

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Seen(msgspec.Struct):
    """What one look at a name found."""

    stat: Stat
    attributes: Attributes
    fd: int = -1
    target: bytes | None = None
    changed: bool = False
    """It was another file a moment before."""
    atime_ns: int | None = None
    """The access time after a link was read."""
    error: OSError | None = None
    """Why the text of a link could not be read."""

    @property
    def kind(self) -> Kind:
        return Kind.of_mode(self.stat.mode)


class Patience:
    """Seconds that may be spent in waiting for others: `most` at once, and as time goes by a share of it again.

    Whoever keeps many files busy delays a run by no more than that, and whoever comes later is waited for as well.
    """

    def __init__(self, most: float, share: float) -> None:
        self._most = self._left = most
        self._share = share
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> bool:
        """Sleeps, if there is patience for it."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._most, self._left + (now - self._at) * self._share)
            self._at = now
            if self._left < seconds:
                return False
            self._left -= seconds
        time.sleep(seconds)
        return True


PATIENCE = Patience(3.0, 0.01)
"""With holders of leases. An attempt to open does not wait, but tells the holder to let go; the kernel makes it do so
after `/proc/sys/fs/lease-break-time`, 45 s."""


def _open(name: bytes, flags: int, dir_fd: int) -> int:
    for pause in (0.05, 0.2, 0.5):
        try:
            return open_noatime(name, flags, dir_fd)
        except BlockingIOError:
            if not PATIENCE.wait(pause):
                break
    try:
        return open_noatime(name, flags, dir_fd)
    except BlockingIOError as error:
        detail = "a process has a lease on it (fcntl F_SETLEASE) and was told to let go: the next run may read it"
        raise BlockingIOError(error.errno, detail) from error


def open_file(dir_fd: int, name: bytes, in_place: bool) -> Seen:
    """Opens a regular file, and nothing else. `in_place`: not through a clone that refuses devices."""
    before = None
    if in_place:
        # The directory has just said that it is a regular file. But opening a device acts on it: a clone refuses that
        # (MNT_NODEV), in place there is only a look before.
        before = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        _require_file(before.st_mode)
    fd = _open(name, FILE, dir_fd)
    try:
        stat = syscalls.statx(fd, b"")
        _require_file(stat.mode)
        changed = before is not None and (before.st_dev, before.st_ino) != (stat.dev, stat.ino)
        return Seen(stat, xattrs.read(fd), fd, None, changed)
    except BaseException:
        os.close(fd)
        raise


def _require_file(mode: int) -> None:
    if not stat_module.S_ISREG(mode):
        raise OSError(errno.ESTALE, f"was replaced by a {Kind.of_mode(mode)} while it was opened")


def open_directory(dir_fd: int, name: bytes, before: Stat) -> Seen:
    """Opens a directory. `changed`: it is another one than `before`."""
    fd = _open(name, DIRECTORY, dir_fd)
    try:
        now = os.fstat(fd)
        changed = (now.st_dev, now.st_ino) != (before.dev, before.ino)
        # The name was asked for what the kernel had; a remote filesystem may know better now that it is open.
        same = not changed and (now.st_mtime_ns, now.st_ctime_ns) == (before.mtime_ns, before.ctime_ns)
        stat = before if same else syscalls.statx(fd, b"")
        return Seen(stat, xattrs.read(fd), fd, None, changed)
    except BaseException:
        os.close(fd)
        raise


def open_same(dir_fd: int, name: bytes, identity: tuple[int, int]) -> int:
    """Opens a directory that is known already. Raises `OSError` when another one is found in its place."""
    fd = _open(name, DIRECTORY, dir_fd)
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != identity:
        os.close(fd)
        raise OSError(errno.ESTALE, "it was moved")
    return fd


def look(dir_fd: int, name: bytes, proc: bool) -> Seen:
    """What can be known of a name without opening it."""
    stat = syscalls.statx(dir_fd, name)
    seen = Seen(stat, xattrs.by_name(dir_fd, name) if proc else EMPTY)
    if stat_module.S_ISLNK(stat.mode):
        try:
            seen.target = os.readlink(name, dir_fd=dir_fd)
            now = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            gone = error.errno == errno.EINVAL  # it is no link any more
            seen.error = OSError(errno.ESTALE, "was replaced") if gone else error
        else:
            seen.changed = (now.st_ino, now.st_ctime_ns) != (stat.ino, stat.ctime_ns)
            seen.atime_ns = now.st_atime_ns
    return seen
