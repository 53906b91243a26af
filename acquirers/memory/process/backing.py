"""What kind of file lies behind a mapping, where the flags of the mapping do not say it. Nothing here asks a server.

By the device number in `maps`: /proc/<pid>/mountinfo names its filesystem, that of this process as well, since a file
may come from elsewhere. What no mount shows is of the kernel's own: shared memory, whose number a memfd tells.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from acquirers.syscalls import statx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.memory.process.maps import Area

MAX_MOUNTINFO = 4 << 20
MAX_HOLES = 10_000
"""Pieces of one file that are told apart."""
_DEVICES = frozenset({b"sysfs", b"proc", b"debugfs", b"tracefs", b"securityfs", b"configfs", b"cgroup", b"cgroup2"})
_SHARED = frozenset({b"tmpfs", b"devtmpfs", b"ramfs", b"rootfs"})
_HUGE = b"hugetlbfs"
_SHARED_NAMES = (b"/memfd:", b"/dev/zero (deleted)", b"/SYSV", b"/dev/shm/", b"/anon_hugepage", b"/dev/hugepages/")
_ZERO = os.makedev(1, 5)


def filesystems(mountinfo: bytes) -> dict[bytes, bytes]:
    """Type by device number as `mountinfo` writes it. proc_pid_mountinfo(5)."""
    found = {}
    for text in mountinfo.split(b"\n"):
        head, _, tail = text.partition(b" - ")
        words, kind = head.split(b" "), tail.split(b" ")[0]
        if len(words) >= 3 and kind:
            found[words[2]] = kind
    return found


class Backing:
    """Of the mappings of one process."""

    def __init__(self, directory: int, mountinfo: bytes) -> None:
        """`directory` is `/proc/<pid>`, open, and stays the caller's. `mountinfo`: of this process and of that one."""
        self._directory = directory
        self._types = filesystems(mountinfo)
        self._internal = _shared_memory()

    def why_never(self, area: Area) -> str:
        """Why a mapping of a file is not to be read; empty when it may be. For one whose flags are not known."""
        if not area.file:
            return ""
        kind = self._type(area)
        if kind in _DEVICES:
            return "device"
        mode, rdev = self._mode(area)
        if stat.S_ISCHR(mode) and rdev != _ZERO:
            return "device"
        if not kind and area.device.startswith(b"00:") and not area.name.startswith(_SHARED_NAMES):
            return "unknown"
        return ""

    def shared_memory(self, area: Area, flags: frozenset[bytes]) -> bool:
        """Whether an absent page of it would be made by asking for it, and stay."""
        kind = self._type(area)
        return kind in _SHARED or kind == _HUGE or b"ht" in flags or area.name.startswith(_SHARED_NAMES)

    def data(self, area: Area, flags: frozenset[bytes]) -> list[tuple[int, int]] | None:
        """Addresses behind which shared memory holds something, ascending; None where that cannot be seen."""
        if self._type(area) not in _SHARED or b"ht" in flags or not stat.S_ISREG(self._mode(area)[0]):
            return None
        try:
            fd = os.open(_name(area), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)
        except OSError:
            return None
        try:
            return list(_data(fd, area))
        except (OSError, OverflowError):
            return None
        finally:
            os.close(fd)

    def _type(self, area: Area) -> bytes:
        major, _, minor = area.device.partition(b":")
        number = b"%d:%d" % (int(major, 16), int(minor, 16))
        if number == self._internal and area.inode:
            return b"tmpfs"
        return self._types.get(number, b"")

    def _mode(self, area: Area) -> tuple[int, int]:
        """Zeros where it cannot be seen."""
        try:
            found = statx(self._directory, _name(area), flags=0)
        except OSError:
            return 0, 0
        return found.mode, found.rdev


def _data(fd: int, area: Area) -> Iterator[tuple[int, int]]:
    at, end = area.offset, area.offset + area.end - area.start
    for _ in range(MAX_HOLES):
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: holes up to its end
            return
        if first >= end:
            return
        at = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        yield area.start + first - area.offset, area.start + at - area.offset
        if at >= end:
            return
    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def _name(area: Area) -> bytes:
    return b"map_files/%x-%x" % (area.start, area.end)


def _shared_memory() -> bytes:
    """The device number of shared memory without a mount."""
    try:
        fd = os.memfd_create("impound")
    except OSError:
        return b""
    try:
        number = os.fstat(fd).st_dev
    finally:
        os.close(fd)
    return b"%d:%d" % (os.major(number), os.minor(number))
