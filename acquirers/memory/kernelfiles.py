"""The files of kernels on disk: System.map, config, the kernel itself, and the name of the distribution.

Debian and Ubuntu keep them in /boot, named after the release; Fedora, RHEL and Amazon Linux 2023 also below
/usr/lib/modules/RELEASE. They are the only files that this acquirer reads from a disk, without leaving them in the page
cache (`uncached`). A kernel with debug information has gigabytes: it is named and left where it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat as stat_module
from typing import TYPE_CHECKING

from acquirers import syscalls
from acquirers.base import Flag, FlagKind, Gap, Kind, Reason
from acquirers.files.deadline import guard_for, reason
from acquirers.files.entry import Entry
from acquirers.files.tree import open_noatime
from acquirers.memory.uncached import Uncached

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Report
    from acquirers.files.deadline import Guard
    from acquirers.host import Host
    from acquirers.syscalls import Stat

MAX_FILE = 256 << 20
MAX_FOUND = 64
"""Files of kernels that are taken from one disk."""

_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_ALWAYS = (b"/etc/os-release", b"/usr/lib/os-release")
_NAMES = (b"System.map", b"config", b"vmlinuz", b"vmlinux", b"Image")
_BOOT = re.compile(rb"(?:System\.map|config|vmlinu[xz]|Image)(?:-[A-Za-z0-9._+~-]{1,100})?")


def candidates(host: Host, release: str) -> Iterator[bytes]:
    """Native paths of what is there, of the running release; of all releases if it is empty."""
    if not release:
        yield from _all(host)
        return
    if not _RELEASE.fullmatch(release):
        return
    name = release.encode()
    found = [path for path in _ALWAYS if host.is_file(path)][:1]
    found += [b"/boot/%s-%s" % (what, name) for what in _NAMES]
    for lib in (b"/usr/lib/modules/", b"/lib/modules/"):
        found += [lib + name + b"/" + what for what in _NAMES]
    found += [b"/usr/lib/debug/boot/vmlinux-" + name, b"/usr/lib/debug/lib/modules/" + name + b"/vmlinux"]
    seen: set[tuple[int, int]] = set()
    for path in found:
        if not host.is_file(path):
            continue
        identity = host.identity_of(path)
        if identity not in seen:  # /lib is a link to /usr/lib
            seen.add(identity)
            yield path


def _all(host: Host) -> Iterator[bytes]:
    count = 0
    for directory, wanted in ((b"/boot", _BOOT), (b"/etc", re.compile(rb"os-release"))):
        try:
            names = host.names(directory)
        except OSError:
            continue
        for name in names:
            path = directory + b"/" + name
            if wanted.fullmatch(name) and count < MAX_FOUND and host.is_file(path):
                count += 1
                yield path


class DiskContent:
    """`entry.Content` of one of them. Zeros stand where it ended early or could not be read, and a gap is told."""

    extents: tuple[tuple[int, int], ...]

    def __init__(self, guard: Guard, fd: int, path: bytes, stat: Stat, report: Report) -> None:
        self._guard, self._fd, self._path, self._report = guard, fd, path, report
        self.size = stat.size
        self.extents = ((0, stat.size),) if stat.size else ()
        self.true_size = 0
        self.sha256: bytes | None = None

    def chunks(self) -> Iterator[memoryview]:
        digest = hashlib.sha256()
        file = Uncached(self._guard, self._fd, self.size)
        problem: OSError | None = None
        try:
            for chunk in file.chunks():
                digest.update(chunk)
                self.true_size += len(chunk)
                yield chunk
        except OSError as error:
            problem = error
        finally:
            file.close()
        missing = self.size - self.true_size
        if missing:
            why = Reason.SHORT if problem is None else reason(problem)
            text = "the file ended early" if problem is None else problem.strerror or str(problem)
            self._report.gap(Gap(why, f"from byte {self.true_size} on: {text}", self._path, missing))
        else:
            self.sha256 = digest.digest()
        zeros = memoryview(bytes(min(missing, 1 << 20)))
        while missing:
            yield zeros[: min(missing, len(zeros))]
            missing -= min(missing, len(zeros))


def entries(host: Host, release: str, report: Report) -> Iterator[Entry]:
    """The files of the running release, each to be read before the next is asked for."""
    for path in candidates(host, release):
        try:
            yield from _entry(host, path, report)
        except OSError as error:
            report.gap(Gap(reason(error), error.strerror or str(error), path))


def _entry(host: Host, path: bytes, report: Report) -> Iterator[Entry]:
    place = host.follow(path)
    try:
        native = place.native
        if place.view:
            raise OSError(22, "a view of the kernel, not a file that anybody stored")
        guard = guard_for(place.fd)
        fd = guard.call(_open, place.fd)
    finally:
        os.close(place.fd)
    try:
        stat = syscalls.statx(fd, b"")
        if not stat_module.S_ISREG(stat.mode):
            raise OSError(22, "not a regular file")
        if stat.size > MAX_FILE:
            detail = f"{stat.size} bytes: a kernel with debug information is left where it is"
            report.flag(Flag(FlagKind.ELSEWHERE, detail, native))
            return
        yield Entry(native, Kind.FILE, stat, content=DiskContent(guard, fd, native, stat, report))
        now = os.fstat(fd)
        if now.st_atime_ns != stat.atime_ns:
            report.flag(Flag(FlagKind.ATIME_MOVED, f"access time {stat.atime_ns} is now {now.st_atime_ns}", native))
        if (now.st_mtime_ns, now.st_ctime_ns, now.st_size) != (stat.mtime_ns, stat.ctime_ns, stat.size):
            report.flag(Flag(FlagKind.CHANGED, "its times or size moved while it was read", native))
    finally:
        guard.drop(fd)
        guard.close()


def _open(path_fd: int) -> int:
    how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return open_noatime(b"/proc/self/fd/%d" % path_fd, how, path_fd)
