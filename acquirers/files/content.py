"""The content of one regular file: where its data lies, its bytes in order, and how far they can be trusted.

The page cache belongs to the machine's own work. `POSIX_FADV_DONTNEED` behind the reader would throw out pages that
production had cached before we came, so it is not used. `POSIX_FADV_NOREUSE` keeps our one pass from counting as use:
what we brought in is the first to go when memory is short, and what was there keeps its place (Linux 6.3; before that
the advice is accepted and ignored, and what is read once stays on the inactive list anyway).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import MAX_CHUNK, Flag, FlagKind, Gap, Reason, Report
from acquirers.files.deadline import Guard, StuckError, reason

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

PAGE = 4096
"""Bytes that are given up together when they cannot be read."""

MAX_EXTENTS = 1 << 16
MAX_DIGESTED_HOLES = 64 << 30
"""Bytes of holes beyond which a file has no digest: about a minute of hashing zeros."""

MAX_GAPS = 64
"""Unreadable ranges that one file reports one by one; further ones are summed up in one more gap."""
MAX_BAD_PAGES = 1000
"""Unreadable pages in a row after which the rest of a file is given up: each may cost a disk many seconds."""

SMALL = 1 << 16
"""Bytes up to which a file without holes is read in one call."""

_ADVISE_FROM = 1 << 17
_BLOCK = 512
_EXTENTS_AT_A_TIME = 1024
_MAX_ASKED = 1 << 22
_ZEROS = memoryview(bytes(MAX_CHUNK))
_NOTHING = _ZEROS[:0]

# What says that data cannot be had here and may be had further on: media, transport and checksums. block/blk-core.c
# (`blk_errors`); fs/ext4, fs/xfs and fs/btrfs for EUCLEAN, EBADMSG and EILSEQ.
_PAGE_ERRORS = frozenset({
    errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.ENOLINK, errno.EBADE, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN,
})  # fmt: skip


class Reader(msgspec.Struct):
    """What all files of one walk share: above all one buffer."""

    guard: Guard
    report: Report
    in_place: bool
    """There is no clone: reading may move access times."""
    buffer: memoryview = msgspec.field(default_factory=lambda: memoryview(bytearray(MAX_CHUNK)))

    def fill(self, fd: int, length: int, position: int) -> int:
        """Reads to the beginning of the buffer and returns how much there was. Raises `OSError`."""
        try:
            return self.guard.call(os.preadv, fd, [self.buffer[:length]], position)
        except StuckError:
            # The abandoned call may return at any time, and writes to the buffer that it was given.
            self.buffer = memoryview(bytearray(MAX_CHUNK))
            raise


class FileContent:
    """`entry.Content` of an open regular file, whose descriptor it owns until `close`.

    Of change, it reports one thing: that the file became shorter (a gap), else that it grew, else that its times moved.
    """

    __slots__ = (
        "_bad", "_bad_in_a_row", "_digest", "_ended", "_extents", "_fd", "_path", "_read_to", "_reader", "_short",
        "_stat", "_step", "_stuck", "_why_stuck", "sha256", "true_size",
    )  # fmt: skip

    def __init__(self, reader: Reader, fd: int, path: bytes, stat: Stat) -> None:
        self._reader = reader
        self._fd = fd
        self._path = path
        self._stat = stat
        self._extents: tuple[tuple[int, int], ...] | None = None
        self._stuck = False
        self._short = False
        self._why_stuck = "its extents could not be asked for in time"
        self.sha256: bytes | None = None
        self.true_size = 0

    @property
    def size(self) -> int:
        return self._stat.size

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        if self._extents is None:
            self._extents = self._find_extents()
        return self._extents

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        # A descriptor in which a call is stuck is left to that call: FUSE would get stuck in closing it as well.
        if fd >= 0 and not self._stuck:
            self._reader.guard.drop(fd)

    def chunks(self) -> Iterator[memoryview]:
        extents = self.extents
        size = self._stat.size
        if 0 < size <= SMALL and extents == ((0, size),) and not self._stuck:
            chunk = self._at_once(size)
            if chunk is not None:
                yield chunk
                self._compare(self._look())
                return
        self._begin(extents)
        for offset, length in extents:
            position, end = offset, offset + length
            while position < end:
                chunk = self._next(position, end)
                if chunk:
                    yield chunk
                    position += len(chunk)
        self._finish()

    def _at_once(self, size: int) -> memoryview | None:
        """All of a small file. Nothing when that is not what one call gives: then the long way is taken."""
        try:
            if self._reader.fill(self._fd, size, 0) != size:
                return None
        except StuckError as error:
            self._stuck = True
            self._why_stuck = _text(error)
            return None
        except OSError:
            return None
        chunk = self._reader.buffer[:size]
        self.sha256 = hashlib.sha256(chunk).digest()
        self.true_size = size
        return chunk

    def _find_extents(self) -> tuple[tuple[int, int], ...]:
        # st_blocks also counts what is preallocated and what waits to be allocated. Where that is all, asking for holes
        # is not worth a system call per file.
        if self.size and self._stat.blocks * 512 >= self.size:
            return ((0, self.size),)
        try:
            extents, merged = find_extents(self._reader.guard, self._fd, self.size, MAX_EXTENTS)
        except StuckError:
            self._stuck = True
            return ()  # all of it a hole, so that what is missing takes no space
        except OSError:
            return ((0, self.size),)
        if merged:
            self._flag(FlagKind.HOLES_MERGED, f"more than {MAX_EXTENTS} extents: small holes are stored as zeros")
        return extents

    def _begin(self, extents: tuple[tuple[int, int], ...]) -> None:
        self._digest: hashlib._Hash | None = hashlib.sha256()
        self._bad = _BadRanges(self._reader.report, self._path)
        self._bad_in_a_row = 0
        self._step = MAX_CHUNK
        self._read_to = 0  # the digest covers what lies before
        self._ended = False  # there is nothing further to read
        if self._stuck:
            self._give_up(0, Reason.STUCK, self._why_stuck)
        elif self.size - sum(length for _, length in extents) > MAX_DIGESTED_HOLES:
            self._digest = None
            detail = f"more than {MAX_DIGESTED_HOLES >> 30} GiB of holes: no digest"
            self._flag(FlagKind.DIGEST_OF_EXTENTS, detail)
        if self.size >= _ADVISE_FROM:
            try:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_NOREUSE)  # sets a mode: no filesystem waits for it
            except OSError:
                pass  # only an advice

    def _next(self, position: int, end: int) -> memoryview:
        """What stands at `position`; nothing when it is to be asked for once more."""
        if self._ended:
            return _ZEROS[: end - position]
        length = min(self._step, end - position)
        if self._step == PAGE:
            length = min(length, PAGE - position % PAGE)
        try:
            count = self._reader.fill(self._fd, length, position)
        except OSError as error:
            return self._failed(position, length, error)
        if count == 0:
            self._end_of_file(position, self._look())
            return _NOTHING
        self._bad_in_a_row = 0
        self._step = min(self._step * 2, MAX_CHUNK)
        chunk = self._reader.buffer[:count]
        if self._digest is not None:
            self._digest_hole(position)
            self._digest.update(chunk)
        self._read_to = position + count
        return chunk

    def _failed(self, position: int, length: int, error: OSError) -> memoryview:
        if error.errno not in _PAGE_ERRORS or isinstance(error, StuckError):
            self._stuck = self._stuck or isinstance(error, StuckError)
            self._give_up(position, reason(error), _text(error))
            return _NOTHING
        if length > PAGE:
            # At once to a single page, and twice as much with every success: the page cache returns what lies before
            # a bad page and then fails at its first byte, so that halving would only ask a bad disk more often.
            self._step = PAGE
            return _NOTHING
        self._digest = None
        self._bad.add(position, position + length, _text(error))
        self._bad_in_a_row += 1
        self._read_to = position + length
        if self._bad_in_a_row >= MAX_BAD_PAGES and self._read_to < self.size:
            self._give_up(self._read_to, Reason.IO_ERROR, f"{MAX_BAD_PAGES} unreadable pages in a row")
        return _ZEROS[:length]

    def _give_up(self, position: int, why: Reason, detail: str) -> None:
        self._ended = True
        self._digest = None
        self.true_size = position
        self._gap(why, f"from byte {position} on: {detail}", self.size - position)

    def _end_of_file(self, position: int, now: os.stat_result | None) -> None:
        """Nothing can be read at `position`. What was read before, and holes that are still inside, were there."""
        self._ended = True
        self.true_size = max(self._read_to, min(now.st_size, position) if now else position)
        if self.true_size < self.size:
            self._short = True
            self._gap(Reason.SHORT, f"{self.true_size} of {self.size} bytes were there", self.size - self.true_size)

    def _finish(self) -> None:
        self._bad.finish()
        now = self._look()
        if not self._ended:
            self._end_of_file(self.size, now)
        if self._digest is not None:
            self._digest_hole(self.true_size)
            self.sha256 = self._digest.digest()
        self._compare(now)

    def _compare(self, now: os.stat_result | None) -> None:
        """Tells what has moved since the file was opened, when all of it was read."""
        if now is None:
            return
        stat = self._stat
        if self._reader.in_place and now.st_atime_ns != stat.atime_ns:
            self._flag(FlagKind.ATIME_MOVED, f"access time {stat.atime_ns} is now {now.st_atime_ns}")
        if self._short:
            return
        if now.st_size > self.size:
            self._flag(FlagKind.GREW, f"from {self.size} to {now.st_size} bytes while it was read")
        elif (now.st_mtime_ns, now.st_ctime_ns, now.st_size) != (stat.mtime_ns, stat.ctime_ns, self.size):
            self._flag(FlagKind.CHANGED, "its times or size moved while it was read")

    def _look(self) -> os.stat_result | None:
        if self._stuck:
            return None
        try:
            return self._reader.guard.call(os.fstat, self._fd)
        except StuckError:
            self._stuck = True
        except OSError:
            pass  # what could be read was read; nothing more is known
        return None

    def _digest_hole(self, end: int) -> None:
        """Zeros from the last byte that was read to `end`."""
        left = end - self._read_to
        while left > 0 and self._digest is not None:
            self._digest.update(_ZEROS[:left])
            left -= MAX_CHUNK

    def _gap(self, why: Reason, detail: str, missing: int) -> None:
        self._reader.report.gap(Gap(why, detail, self._path, missing))

    def _flag(self, kind: FlagKind, detail: str) -> None:
        self._reader.report.flag(Flag(kind, detail, self._path))


def _text(error: OSError) -> str:
    return error.strerror or str(error)


class _BadRanges:
    """Reports what could not be read in the middle of a file: neighbours as one, and not without end."""

    __slots__ = ("_detail", "_end", "_gaps", "_more", "_more_bytes", "_path", "_report", "_start")

    def __init__(self, report: Report, path: bytes) -> None:
        self._report = report
        self._path = path
        self._start = self._end = 0
        self._detail = ""
        self._gaps = self._more = self._more_bytes = 0

    def add(self, start: int, end: int, detail: str) -> None:
        if start != self._end:
            self._flush()
            self._start = start
        self._end = end
        self._detail = detail

    def finish(self) -> None:
        self._flush()
        if self._more:
            detail = f"{self._more} further ranges could not be read"
            self._report.gap(Gap(Reason.IO_ERROR, detail, self._path, self._more_bytes))

    def _flush(self) -> None:
        length = self._end - self._start
        if length and self._gaps < MAX_GAPS:
            self._gaps += 1
            detail = f"bytes {self._start} to {self._end - 1}: {self._detail}"
            self._report.gap(Gap(Reason.IO_ERROR, detail, self._path, length))
        elif length:
            self._more += 1
            self._more_bytes += length
        self._start = self._end


def find_extents(guard: Guard, fd: int, size: int, limit: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    """(offset, length) of the data in the first `size` bytes, and whether holes were left out to stay below `limit`.

    `SEEK_DATA` and `SEEK_HOLE`, lseek(2), read nothing. A filesystem that does not know them shows one extent. Raises
    `OSError`.
    """
    extents: list[tuple[int, int]] = []  # (start, end)
    merged = False
    position = asked = 0
    while position < size:
        # A filesystem in user space may answer with an extent per byte.
        if asked >= _MAX_ASKED:
            found, position, merged = [(position, size)], size, True
        else:
            found, position = guard.call(_seek, fd, position, size)
            asked += _EXTENTS_AT_A_TIME
        for start, end in found:
            if extents and extents[-1][1] >= start:
                extents[-1] = extents[-1][0], end
            else:
                extents.append((start, end))
        if len(extents) > limit:
            extents = _without_smallest_holes(extents, limit // 2)
            merged = True
    return tuple((start, end - start) for start, end in extents), merged


def _seek(fd: int, position: int, size: int) -> tuple[list[tuple[int, int]], int]:
    """The next extents as (start, end), and how far they were looked for."""
    found: list[tuple[int, int]] = []
    while position < size and len(found) < _EXTENTS_AT_A_TIME:
        try:
            data = max(os.lseek(fd, position, os.SEEK_DATA), position)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return found, size
            raise
        if data >= size:
            return found, size
        try:
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            hole = size  # it has just become shorter, which reading will find out
        # Whole blocks: GNU tar reads a sparse member wrong, without a word, where an extent before the last ends inside
        # of one. Disks have no other; a filesystem in user space may.
        start = max(data - data % _BLOCK, position)
        position = min(hole + -hole % _BLOCK, size) if hole > data else size
        found.append((start, position))
    return found, position


def _without_smallest_holes(extents: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most `count` extents: the smallest holes between them become data."""
    holes = [after[0] - before[1] for before, after in pairwise(extents)]
    surplus = len(extents) - count
    largest = sorted(holes)[surplus - 1]
    ties = surplus - sum(hole < largest for hole in holes)  # of those as large as the largest, so many go
    kept = [extents[0]]
    for hole, extent in zip(holes, extents[1:], strict=True):
        goes = hole < largest
        if hole == largest and ties:
            ties -= 1
            goes = True
        if goes:
            kept[-1] = kept[-1][0], extent[1]
        else:
            kept.append(extent)
    return kept
