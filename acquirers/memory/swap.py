"""`memory.swap`: what the kernel moved out of memory, only when it is asked for by name.

/proc/swaps lists the areas (proc(5)): partitions, files and zram devices. An area is taken as it lies there, byte by
byte; a zram device gives its content unpacked. This is the one acquirer that opens block devices, and only those that
the kernel itself names as swap, checked by type after they were opened. Read with `O_DIRECT` where the filesystem
allows it, so that the page cache does not grow. The machine swaps on meanwhile: pages are of different moments. A page
that the disk cannot give is zeros in the item, so that all others are at their place, and a gap.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import (
    MAX_CHUNK,
    AcquirerError,
    Availability,
    Gap,
    Item,
    Reason,
    State,
    Subject,
    reason_of,
)
from acquirers.facts import reduce_name
from acquirers.files.deadline import Deadlined, StuckError
from acquirers.host import Mode

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host

NAME = "memory.swap"
MEDIA_TYPE = "application/octet-stream"
MAX_AREAS = 64
MAX_BAD = 256
"""Pages that the disk cannot give; with one more it is given up."""
_FIRST = 8
_BLKGETSIZE64 = 0x80081272
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DELETED = b"\\040(deleted)"


class Area(msgspec.Struct, frozen=True):
    """One line of /proc/swaps."""

    path: bytes
    kind: str
    size: int
    """Bytes, less the header page."""
    used: int
    priority: int

    def about(self) -> dict[str, object]:
        return {
            "path": self.path,
            "kind": self.kind,
            "size": self.size,
            "used": self.used,
            "priority": self.priority,
        }


def parse_swaps(data: bytes) -> list[Area]:
    """Every area that /proc/swaps lists; what is no such line is left out."""
    found = []
    for line in data.split(b"\n")[1:]:
        fields = line.split()
        if len(fields) < 5 or not re.fullmatch(rb"[a-z]{1,16}", fields[1]):
            continue
        try:
            size, used, priority = (int(word) for word in fields[2:5])
        except ValueError:
            continue
        path = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), fields[0].removesuffix(_DELETED))
        found.append(Area(path, fields[1].decode(), size << 10, used << 10, priority))
    return found[:MAX_AREAS]


def areas(host: Host) -> list[Area]:
    """What this machine swaps to. Raises `OSError`."""
    return parse_swaps(host.read_proc(b"swaps", 1 << 20))


class Swap:
    """Takes the swap areas of a live machine, each as one item."""

    name = NAME

    def probe(self, host: Host, scope: Scope) -> Availability:  # noqa: ARG002 - the contract of acquirers
        if host.mode is Mode.DEAD:
            return Availability(State.ABSENT)
        if host.mode is Mode.INSIDE:
            return Availability(State.UNAVAILABLE, "a container has no swap of its own", "run it on the host")
        try:
            found = areas(host)
        except OSError as error:
            return Availability(State.UNAVAILABLE, f"/proc/swaps cannot be read: {error.strerror}", "run it as root")
        if not found:
            return Availability(State.ABSENT)
        if os.geteuid():
            return Availability(State.UNAVAILABLE, "swap is readable for root only", "run it as root")
        subjects = tuple(Subject("swap", one.kind, one.path, estimate=one.size) for one in found)
        return Availability(State.AVAILABLE, estimate=sum(one.size for one in found), subjects=subjects)

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:  # noqa: ARG002
        for number, area in enumerate(areas(host), 1):
            yield Item(
                f"memory/swap/{number}-{reduce_name(area.path.rpartition(b'/')[2])}.raw",
                MEDIA_TYPE,
                partial(_read, host, area),
                estimate=area.size,
                about=area.about(),
            )


def _read(host: Host, area: Area, report: Report) -> Iterator[Buffer]:
    """The whole area. Raises `AcquirerError`."""
    try:
        fd, size = _open(host, area)
    except OSError as error:
        raise AcquirerError(reason_of(error), f"it cannot be opened: {error.strerror}", area.path) from error
    # A disk that does not answer must not hold the run: then this buffer stays with the call that is stuck.
    guard = Deadlined()
    buffer = mmap.mmap(-1, MAX_CHUNK)
    bad: list[tuple[int, OSError]] = []
    try:
        at = careful = 0
        while at < size:
            want = min(mmap.PAGESIZE if at < careful else MAX_CHUNK, size - at)
            view = memoryview(buffer)[: -(-want // mmap.PAGESIZE) * mmap.PAGESIZE]
            try:
                got = min(guard.call(os.preadv, fd, [view], at), want)
            except StuckError as error:
                fd, buffer = -1, mmap.mmap(-1, MAX_CHUNK)
                raise AcquirerError(Reason.STUCK, f"no answer at byte {at} of {size}", area.path) from error
            except OSError as error:
                if want > mmap.PAGESIZE and careful <= at:
                    careful = at + want  # page by page up to here
                    continue
                if len(bad) >= MAX_BAD:
                    detail = f"byte {at} of {size}, after {len(bad)} pages: {error.strerror}"
                    raise AcquirerError(reason_of(error), detail, area.path) from error
                bad.append((at, error))
                view[:want] = bytes(want)
                got = want
            if not got:
                break
            yield view[:got]
            at += got
        if at < size:
            report.gap(Gap(Reason.SHORT, "the area ended early", area.path, size - at))
    finally:
        _tell(bad, area, report)
        guard.close()
        if fd >= 0:
            os.close(fd)


def _tell(bad: list[tuple[int, OSError]], area: Area, report: Report) -> None:
    """One gap for all pages that are zeros because the disk did not give them."""
    if not bad:
        return
    places = ", ".join(str(at) for at, _ in bad[:_FIRST]) + (f" and {len(bad) - _FIRST} more" if bad[_FIRST:] else "")
    detail = f"{len(bad)} pages, here zeros, at byte {places}: {bad[0][1].strerror}"
    report.gap(Gap(reason_of(bad[0][1]), detail, area.path, len(bad) * mmap.PAGESIZE))


def _open(host: Host, area: Area) -> tuple[int, int]:
    """A descriptor and the size in bytes. Raises `OSError`."""
    place = host.follow(area.path)
    try:
        mode = os.fstat(place.fd).st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)) or stat.S_ISBLK(mode) != (area.kind == "partition"):
            raise OSError(22, "it is not what /proc/swaps says")
        how = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        path = b"/proc/self/fd/%d" % place.fd
        try:
            fd = os.open(path, how | os.O_DIRECT)
        except OSError:
            fd = os.open(path, how)
    finally:
        os.close(place.fd)
    if stat.S_ISBLK(mode):
        return fd, int(struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])
    return fd, os.fstat(fd).st_size
