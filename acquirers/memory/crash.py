"""/dev/crash: RHEL's driver for reading physical memory, where its module is loaded. The last resort.

It gives one page or less per call, none that crosses the end of a page, at the place that lseek(2) set, and knows no
page that is not System RAM as a whole. A device that merely has the name is not opened: /proc/misc must say that the
driver has its number.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING

from acquirers.memory.block import PAGE

if TYPE_CHECKING:
    from acquirers.host import Host
    from acquirers.memory.ranges import Ranges

PATH = b"/dev/crash"
_MISC_MAJOR = 10  # include/uapi/linux/major.h
_LINE = re.compile(rb" *([0-9]{1,7}) crash")


def minor(data: bytes) -> int | None:
    """The number of the driver in /proc/misc; None if it is not loaded."""
    for line in data.split(b"\n"):
        if match := _LINE.fullmatch(line):
            return int(match[1])
    return None


class Crash:
    """/dev/crash as a source."""

    name = "crash"
    zero_fills = False
    direct_map: int | None = None

    def __init__(self, host: Host, ram: Ranges) -> None:
        self._host = host
        self.covers = ram.rounded_in(PAGE)

    def open(self) -> CrashReader:
        """ENOENT: there is no such device. ENODEV: it is not what its name says."""
        wanted = minor(self._host.read_proc(b"misc", 1 << 16))
        place = self._host.open_path(PATH)
        try:
            found = os.fstat(place)
            if wanted is None or not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(_MISC_MAJOR, wanted):
                raise OSError(errno.ENODEV, "it is not the device of the crash driver")
            fd = os.open(b"/proc/self/fd/%d" % place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(place)
        return CrashReader(fd, self.covers)


class CrashReader:
    """Page by page; a part of a page is cut out of the whole."""

    def __init__(self, fd: int, covers: Ranges) -> None:
        """`fd` is closed with it."""
        self._fd = fd
        self._covers = covers

    def read(self, address: int, into: memoryview) -> None:
        end = address + len(into)
        if not self._covers.covers(address, end):
            raise OSError(errno.EINVAL, "not in whole pages of System RAM")
        for page in range(address // PAGE * PAGE, end, PAGE):
            os.lseek(self._fd, page, os.SEEK_SET)
            data = os.read(self._fd, PAGE)
            if len(data) != PAGE:
                raise OSError(errno.EIO, "/dev/crash gave less than a page")
            first, last = max(page, address), min(page + PAGE, end)
            into[first - address : last - address] = data[first - page : last - page]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
