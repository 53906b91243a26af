"""What impound itself occupies: the page frames of its processes, so that an analyst can take the tool off the image.

Taken at the beginning, at the end, and of this process alone every few seconds in between; what the agent occupied is
the union of all. Frames come from
`/proc/<pid>/pagemap` (Documentation/admin-guide/mm/pagemap.rst): one u64 per virtual page in the machine's byte order,
bit 63 present, bits 0 to 54 the frame number, bit 56 mapped by nobody else. Without CAP_SYS_ADMIN the kernel gives
zeros for frame numbers.

All that is mapped and present counts, so the pages of shared libraries and the page of zeros, which others map as well,
are in it; `exclusive` counts those that one process alone maps, so without what the agent's processes share. Not in
it, because no file tells: page tables, kernel stacks, sockets and other objects of the kernel that exist for the agent,
and the page cache that reading files filled. What the destination leaves there is kept small where it is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import child
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges, Span
from acquirers.root import read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from acquirers.memory.source import Source

RUNS_PER_LINE = 1000
SECONDS = 5.0
"""For one other process; it needs a few milliseconds."""
MAX_PAGES = 1 << 22
"""Virtual pages of one process that are looked at: 16 GiB of 4 KiB pages."""
MAX_MAPS = 1 << 22
"""Bytes of /proc/<pid>/maps."""
MAX_PROCESSES = 256

_WORD = 8
_CHUNK = 1 << 16
_PRESENT = 1 << 63
_EXCLUSIVE = 1 << 56
_FRAME = (1 << 55) - 1
_NOT_OURS = re.compile(rb"\[(?:vsyscall|vvar\w*)\]$")  # pages of the kernel: time, and an emulated call
_MAP = re.compile(rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ")
_COUNTS = struct.Struct("=QQQ")


class Process(msgspec.Struct):
    """One of the agent's processes."""

    pid: int
    frames: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    """Numbers of present frames, in no order; one may stand here twice."""
    exclusive: int = 0
    """Pages that no other process maps, not even one of the agent's."""
    hidden: int = 0
    """Present pages whose frame number the kernel keeps to itself."""
    cut: int = 0
    """Virtual pages beyond `MAX_PAGES`."""
    error: str = ""

    def note(self, words: array[int]) -> None:
        for word in words:
            if word & _PRESENT:
                if word & _FRAME:
                    self.frames.append(word & _FRAME)
                else:
                    self.hidden += 1
                self.exclusive += bool(word & _EXCLUSIVE)


def parse_maps(data: bytes) -> Iterator[tuple[int, int]]:
    """Virtual pages (first, end) of the mappings of `/proc/<pid>/maps`, without those of the kernel."""
    for line in data.split(b"\n"):
        match = _MAP.match(line)
        if match and not _NOT_OURS.search(line):
            start, end = int(match[1], 16) // PAGE, int(match[2], 16) // PAGE
            if start < end:
                yield start, end


def read(pid: int) -> Process:
    """The frames of one process. Raises `OSError`."""
    process = Process(pid)
    maps = read_kernel_file(b"/proc/%d/maps" % pid, MAX_MAPS)
    left = MAX_PAGES
    fd = os.open(b"/proc/%d/pagemap" % pid, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in parse_maps(maps):
            stop = min(end, start + left)
            left -= stop - start
            process.cut += end - stop
            for at in range(start, stop, _CHUNK // _WORD):
                words = os.pread(fd, min(_CHUNK, (stop - at) * _WORD), at * _WORD)
                if words.strip(b"\0"):
                    process.note(array("Q", words[: len(words) // _WORD * _WORD]))
    finally:
        os.close(fd)
    return process


def _read_other(pid: int) -> Process:
    """The same, by a child: another process may hold the lock of its address space for ever."""

    def work() -> bytes:
        found = read(pid)
        return _COUNTS.pack(found.exclusive, found.hidden, found.cut) + found.frames.tobytes()

    told = child.call(work, SECONDS)
    exclusive, hidden, cut = _COUNTS.unpack_from(told)
    return Process(pid, array("Q", told[_COUNTS.size :]), exclusive, hidden, cut)


def processes(pids: Iterable[int]) -> list[Process]:
    """Those of the agent: the one that asks, and `pids`. What cannot be read says why in `error`."""
    own = os.getpid()
    found: list[Process] = []
    for pid in [own, *sorted(set(pids) - {own})][:MAX_PROCESSES]:
        try:
            found.append(read(pid) if pid == own else _read_other(pid))
        except OSError as error:
            found.append(Process(pid, error=error.strerror or str(error)))
        except (child.StuckError, child.ChildError) as error:
            found.append(Process(pid, error=str(error)))
    return found


def runs_of(found: Iterable[Process]) -> Ranges:
    """The frame numbers of all of them."""
    numbers: set[int] = set()
    for process in found:
        numbers.update(process.frames)
    return Ranges((number, number + 1) for number in numbers)


def frames(pids: Iterable[int]) -> Iterator[Span]:
    """Ascending runs of the frame numbers that this process and `pids` occupy now."""
    return iter(runs_of(processes(pids)))


def lines(when: str, pids: Iterable[int], sources: Sequence[Source] = ()) -> Iterator[dict[str, object]]:
    """One line `footprint`, then `frames` lines. `when`: `begin` or `end`; `sources` may have `ids` of BPF objects."""
    found = processes(pids)
    runs = [[span.start, span.size] for span in runs_of(found)]
    yield {
        "type": "footprint",
        "when": when,
        "page": PAGE,
        "frames": sum(count for _, count in runs),
        "hidden": sum(process.hidden for process in found),
        "processes": [{**_status(process.pid), **_told(process)} for process in found],
        "ids": {source.name: ids for source in sources if (ids := getattr(source, "ids", None))},
    }
    for start in range(0, max(1, len(runs)), RUNS_PER_LINE):
        yield {"type": "frames", "when": when, "runs": runs[start : start + RUNS_PER_LINE]}


class During:
    """Frames that this process takes while memory is read, and may have given back when it is asked at the end.

    It asks without taking many pages itself: no object for each frame is kept, or made for longer than it is looked at.
    """

    def __init__(self, every: float = 2.0) -> None:
        """`every` in seconds. What there is now is known, and not told of. Raises `OSError`."""
        self._every = every
        self._due = time.monotonic() + every
        self._known = array("Q", sorted(read(os.getpid()).frames))
        self._further: set[int] = set()

    def lines(self) -> Iterator[dict[str, object]]:
        """Nothing before its time has come; then what was not told before. Raises `OSError`."""
        if time.monotonic() < self._due:
            return
        fresh = {frame for frame in read(os.getpid()).frames if not self._is_known(frame)}
        self._further |= fresh
        self._due = time.monotonic() + self._every
        runs = [[span.start, span.size] for span in Ranges((frame, frame + 1) for frame in fresh)]
        for start in range(0, len(runs), RUNS_PER_LINE):
            yield {"type": "frames", "when": "during", "runs": runs[start : start + RUNS_PER_LINE]}

    def _is_known(self, frame: int) -> bool:
        at = bisect_left(self._known, frame)
        return (at < len(self._known) and self._known[at] == frame) or frame in self._further


def _told(process: Process) -> dict[str, object]:
    line: dict[str, object] = {
        "pages": len(process.frames) + process.hidden,
        "exclusive": process.exclusive,
        "hidden": process.hidden,
    }
    if process.hidden:
        line["why_hidden"] = "frame numbers need CAP_SYS_ADMIN"
    if process.cut:
        line["cut"] = process.cut
    if process.error:
        line["error"] = process.error
    return line


def _status(pid: int) -> dict[str, object]:
    """Resident and locked bytes, and threads, of /proc/<pid>/status (proc(5))."""
    line: dict[str, object] = {"pid": pid}
    with contextlib.suppress(OSError):
        text = read_kernel_file(b"/proc/%d/status" % pid, 1 << 16)
        for key, name, unit in (("rss", b"VmRSS", 1024), ("locked", b"VmLck", 1024), ("threads", b"Threads", 1)):
            if match := re.search(rb"^%s:\s+(\d{1,15})\b" % name, text, re.MULTILINE):
                line[key] = int(match[1]) * unit
    return line
