"""Looks at one process and plans its core: what is mapped, which of it is present, what is to be read.

Runs in the child that `watch` keeps, since each of these files can hang: the memory map may be locked by a thread that
waits for a dead filesystem. Everything is read below one open `/proc/<pid>`, which belongs to one process whatever
becomes of its number. Nothing of this brings a page back: `auxv` lies in the kernel, `pagemap` and `smaps` only look.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory.process import maps, pagemap
from acquirers.memory.process.backing import MAX_MOUNTINFO, Backing
from acquirers.memory.process.elf import MAX_SEGMENTS
from acquirers.memory.process.notes import FileNote, Task, of_process, prpsinfo
from acquirers.memory.process.pagemap import ABSENT, GUARD, PAGE, PRESENT, SWAPPED, VANISHED, Run
from acquirers.memory.process.threads import Registers, Taken, task_of
from acquirers.memory.ranges import Ranges
from acquirers.snapshot.encode import line, put
from acquirers.snapshot.watch import Part
from acquirers.syscalls import statx

if TYPE_CHECKING:
    from acquirers.memory.process.maps import Area, Known

MAX_RUN_LINES = 200_000
"""Runs of swapped pages that are listed one by one; further ones are counted."""
_SMALL = 1 << 16
_MAX_LINE = 1 << 15
_SIGN_SECONDS = 0.5
SMAPS_SECONDS = 5.0
"""How long `smaps` is read: what it has not told by then is judged by names and files."""
_LINES_AT_A_TIME = 1 << 16
_SEGMENTS_AT_A_TIME = 4096

_encode = msgspec.msgpack.Encoder().encode
_STATES = {SWAPPED: "swapped", ABSENT: "absent", GUARD: "guard"}


class Facts(msgspec.Struct, omit_defaults=True):
    """What is known of a process before it is read. Sizes in bytes."""

    comm: bytes = b""
    uid: int = 0
    gid: int = 0
    areas: int = 0
    mapped: int = 0
    present: int = 0
    swapped: int = 0
    devices: int = 0
    """Mapped memory of devices: never read."""
    beyond: int = 0
    """Present, but beyond `MAX_SEGMENTS` runs: not read."""
    files_left_out: int = 0
    """Mappings that found no place in NT_FILE."""
    vanished: int = 0
    """Its memory map was gone before it was said which of this is present."""
    unknown: int = 0
    """Of files of which it is not known whether they are devices: not read."""
    unasked: int = 0
    """Absent pages of shared memory, which asking for them might have made."""
    malformed: int = 0
    """Lines of `maps` that are no area, or none behind the one before."""
    changed: bool = False
    """The memory map ended or was replaced meanwhile: an end of the process, or another program in it."""


class Kind:
    """What the data of a part is, in its notes."""

    MEMORY = b"memory"  # a descriptor
    PAGEMAP = b"pagemap"  # a descriptor
    SEGMENTS = b"segments"  # starts, sizes, kinds, as in `elf.Segments`
    LINES = b"lines"  # of `.impound.pages`
    NOTES = b"notes"  # of the core
    FACTS = b"facts"
    THREADS = b"threads"  # notes of the core
    TAKEN = b"taken"
    ERROR = b"error"  # an errno: this cannot be read


def small_file(directory: int, name: bytes, limit: int = _SMALL) -> bytes:
    """A file of the kernel below `/proc/<pid>`, cut at `limit`. Raises `OSError`."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = bytearray()
        while len(found) < limit and (piece := os.read(fd, limit - len(found))):
            found += piece
        return bytes(found)
    finally:
        os.close(fd)


def numbers(directory: int, name: bytes) -> list[int]:
    """The names of a directory that are numbers, ascending. Raises `OSError`."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return sorted(int(one) for one in os.listdir(fd) if one.isascii() and one.isdigit())
    finally:
        os.close(fd)


def lines_of(fd: int) -> Iterator[bytes]:
    """The lines of a file of the kernel, which it closes. Raises `OSError`.

    A path may be longer than any limit: of such a line comes the head alone. What follows is whatever its owner wants.
    """
    with open(fd, "rb", buffering=1 << 16) as file:
        while text := file.readline(_MAX_LINE):
            yield text
            while text and not text.endswith(b"\n"):
                text = file.readline(_MAX_LINE)


def describe(directory: int, tid: int) -> Task:
    """One of the threads of a process."""
    base = b"task/%d/" % tid
    try:
        found = task_of(small_file(directory, base + b"stat"), small_file(directory, base + b"status"))
    except OSError:
        found = None
    return found or Task(tid)


def registers(directory: int, pid: int, machine: int) -> Iterator[Part]:
    """The notes of all threads."""

    def tids() -> list[int]:
        return sorted(numbers(directory, b"task"), key=lambda tid: (tid != pid, tid))

    work = Registers(tids, lambda tid: describe(directory, tid), machine)
    try:
        for notes in work.notes():
            for start in range(0, len(notes), _SMALL):
                yield Part(notes[start : start + _SMALL], Kind.THREADS)
            yield Part()
    except OSError as error:
        work.taken.error = error.errno or 5
    yield Part(_encode(work.taken), Kind.TAKEN, last=True)


class Examination:
    """Makes the plan of one process."""

    def __init__(self, directory: int, living: int, *, fault_in: bool) -> None:
        """`living` is a thread that has not ended: where the first one has, only another shows the memory."""
        self._directory = directory
        self._living = living
        self._base = b"task/%d/" % living
        self._fault_in = fault_in
        self._facts = Facts()
        self._files = FileNote()
        self._backing = Backing(directory, b"")
        self._known: dict[int, Known] = {}
        self._segments = 0
        self._pending = (array("Q"), array("Q"), array("B"))
        self._lines: list[bytes] = []
        self._lines_size = 0
        self._run_lines = 0
        self._sample = -1
        """The address of a page that was present, or of any area."""
        self._sampled = False

    def parts(self) -> Iterator[Part]:
        try:
            # Each belongs to the memory map that the process had when it was opened.
            before = self._identity()
            memory, states, areas = (self._open(name) for name in (b"mem", b"pagemap", b"maps"))
            try:
                flags = self._open(b"smaps")
            except OSError:
                flags = -1  # not in this kernel: areas are judged by their names and files
            yield Part(notes=Kind.MEMORY, fd=os.dup(memory))
            yield Part(notes=Kind.PAGEMAP, fd=os.dup(states))
            yield from self._plan(memory, states, areas, flags)
            self._facts.changed = self._identity() != before or not self._alive(memory, states)
        except OSError as error:
            yield Part(b"%d" % (error.errno or 5), Kind.ERROR, last=True)
            return
        yield Part(_encode(self._facts), Kind.FACTS, last=True)

    def _open(self, name: bytes) -> int:
        return os.open(self._base + name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)

    def _identity(self) -> tuple[object, ...]:
        """What another program in the same process has otherwise: where its parts, stack and environment lie."""
        fields = self._small(b"stat").rpartition(b") ")[2].split()
        try:
            file = statx(self._directory, self._base + b"exe", flags=0)
            program = (file.dev, file.ino)
        except OSError:
            program = (0, 0)
        return fields[19:20], fields[23:26], fields[42:49], self._small(b"auxv"), program

    def _alive(self, memory: int, states: int) -> bool:
        """Whether the descriptors still show a memory map; only a page that is present is asked for."""
        try:
            entry = os.pread(states, pagemap.ENTRY, max(self._sample, 0) // PAGE * pagemap.ENTRY)
            if self._sample < 0 or not entry:
                return False
            return pagemap.classes(entry) != bytes([PRESENT]) or bool(os.pread(memory, 1, self._sample))
        except (OSError, OverflowError):
            return True  # there is somebody to refuse it

    def _flags(self, fd: int) -> Iterator[Part]:
        """What `smaps` says, as far as it says it in time."""
        if fd < 0:
            return
        began = told = time.monotonic()
        try:
            for _ in maps.learn(lines_of(fd), self._known):
                now = time.monotonic()
                if now - told >= _SIGN_SECONDS:
                    yield Part()
                    told = now
                if now - began >= SMAPS_SECONDS:
                    return
        except OSError:
            return

    def _plan(self, memory: int, states: int, areas: int, flags: int) -> Iterator[Part]:
        yield from self._flags(flags)
        known = self._known
        self._backing = Backing(self._directory, self._small(b"mountinfo", MAX_MOUNTINFO) + _own_mounts())
        yield Part()

        def read(length: int, offset: int) -> bytes:
            return os.pread(states, length, offset)

        for area in maps.areas(lines_of(areas)):
            if area is None:
                self._facts.malformed += 1
                continue
            if self._sample < 0:
                self._sample = area.start
            more = known.get(area.start)
            if more is not None and more.end != area.end:
                more = None
            self._facts.areas += 1
            self._facts.mapped += area.end - area.start
            if area.file:
                self._files.add(area)
            if why := maps.why_never(area, more) or ("" if more else self._backing.why_never(area)):
                self._facts.devices += area.end - area.start if why == "device" else 0
                self._facts.unknown += area.end - area.start if why == "unknown" else 0
                self._line(area, {"not_read": why})
            else:
                yield from self._area(area, more, read)
            yield from self._ready()
        self._facts.files_left_out = self._files.left_out
        yield from self._ready(all_of_it=True)
        notes = of_process(self._psinfo(memory, states), self._small(b"auxv"), self._files.data())
        for start in range(0, len(notes), _SMALL):
            yield Part(notes[start : start + _SMALL], Kind.NOTES)

    def _area(self, area: Area, more: Known | None, read: Callable[[int, int], bytes]) -> Iterator[Part]:
        zero = maps.zero_where_absent(area, more)
        sizes = dict.fromkeys((PRESENT, SWAPPED, ABSENT, GUARD, VANISHED), 0)
        runs, run_states = array("Q"), bytearray()
        wanted = self._wanted(area, more, zero=zero)
        if more is not None and not more.resident and zero:
            sizes[ABSENT] = area.end - area.start
            self._segment(area.start, area.end, area, content=False)
        else:
            for run in pagemap.runs(read, area.start, area.end):
                if run is None:
                    yield Part()
                    continue
                sizes[run.state] += run.end - run.start
                if run.state == PRESENT and not self._sampled:
                    self._sample, self._sampled = run.start, True
                for start, end in wanted(run):
                    self._segment(start, end, area, content=True)
                if run.state == ABSENT and zero:
                    self._segment(run.start, run.end, area, content=False)
                elif run.state in {SWAPPED, GUARD}:
                    self._run_lines += 1
                    if self._run_lines <= MAX_RUN_LINES:
                        runs.extend((run.start, run.end))
                        run_states.append(run.state)
                yield from self._ready()
        self._facts.present += sizes[PRESENT]
        self._facts.swapped += sizes[SWAPPED]
        self._facts.vanished += sizes[VANISHED]
        says: dict[str, object] = {
            "present": sizes[PRESENT],
            "swapped": sizes[SWAPPED],
            "absent": sizes[ABSENT],
            "absent_is": "zeros" if zero else "unknown",
        }
        self._line(area, says | ({"vanished": sizes[VANISHED]} if sizes[VANISHED] else {}), more)
        for index, state in enumerate(run_states):
            self._put({"type": _STATES[state], "start": runs[2 * index], "end": runs[2 * index + 1]})
            yield from self._ready()

    def _wanted(self, area: Area, more: Known | None, *, zero: bool) -> Callable[[Run], Iterable[tuple[int, int]]]:
        """What of a run is to be read. An absent page of shared memory would be made by that, and would stay."""
        flags = more.flags if more is not None else frozenset()
        careful = self._fault_in and not zero and self._backing.shared_memory(area, flags)
        found = self._backing.data(area, flags) if careful else None
        data = Ranges(found) if found is not None else None

        def wanted(run: Run) -> Iterable[tuple[int, int]]:
            if run.state == PRESENT or (self._fault_in and run.state == SWAPPED):
                return ((run.start, run.end),)
            if not self._fault_in or run.state != ABSENT or zero:
                return ()
            if not careful:
                return ((run.start, run.end),)
            if data is None:
                self._facts.unasked += run.end - run.start
                return ()
            return data.clip(run.start, run.end)

        return wanted

    def _line(self, area: Area, says: dict[str, object], more: Known | None = None) -> None:
        record: dict[str, object] = {"type": "area", "start": area.start, "end": area.end, "perms": area.perms.decode()}
        if area.file:
            record |= {"offset": area.offset, "dev": area.device.decode(), "ino": area.inode}
        if area.name:
            put(record, "name", area.name)
        if more is not None:
            record["flags"] = b" ".join(sorted(more.flags)).decode("ascii", "replace")
        self._put(record | says)

    def _put(self, record: dict[str, object]) -> None:
        text = line(record)
        self._lines.append(text)
        self._lines_size += len(text)

    def _segment(self, start: int, end: int, area: Area, *, content: bool) -> None:
        if self._segments >= MAX_SEGMENTS:
            self._facts.beyond += end - start if content else 0
            return
        self._segments += 1
        starts, sizes, kinds = self._pending
        starts.append(start)
        sizes.append(end - start)
        kinds.append(area.segment_flags | (8 if content else 0))

    def _ready(self, *, all_of_it: bool = False) -> Iterator[Part]:
        """What has been gathered, when it is worth a message."""
        if len(self._pending[0]) >= (1 if all_of_it else _SEGMENTS_AT_A_TIME):
            for start in range(0, len(self._pending[0]), _SEGMENTS_AT_A_TIME):
                pieces = [numbers[start : start + _SEGMENTS_AT_A_TIME].tobytes() for numbers in self._pending]
                yield Part(b"".join(pieces), Kind.SEGMENTS)
            self._pending = (array("Q"), array("Q"), array("B"))
        if self._lines and (all_of_it or self._lines_size >= _LINES_AT_A_TIME):
            data = b"".join(self._lines)
            self._lines, self._lines_size = [], 0
            for start in range(0, len(data), _LINES_AT_A_TIME):
                yield Part(data[start : start + _LINES_AT_A_TIME], Kind.LINES)

    def _small(self, name: bytes, limit: int = _SMALL) -> bytes:
        try:
            return small_file(self._directory, self._base + name, limit)
        except OSError:
            return b""

    def _psinfo(self, memory: int, states: int) -> bytes:
        status = self._small(b"status").split(b"\n")
        ids = {}
        for text in status:
            key, _, value = text.partition(b":\t")
            words = value.split()
            if key in {b"Uid", b"Gid"} and words and words[0].isdigit():
                ids[key] = int(words[0]) & 0xFFFFFFFF
        self._facts.uid, self._facts.gid = ids.get(b"Uid", 0), ids.get(b"Gid", 0)
        self._facts.comm = self._small(b"comm").removesuffix(b"\n")
        words_ = self._arguments(memory, states)
        return prpsinfo(
            describe(self._directory, self._living), self._facts.uid, self._facts.gid, self._facts.comm, words_
        )

    def _arguments(self, memory: int, states: int) -> bytes:
        """What the process was started with, where that page is present: reading `cmdline` would bring it back."""
        fields = self._small(b"stat").rpartition(b") ")[2].split()
        if len(fields) < 47 or not (fields[45].isdigit() and fields[46].isdigit()):
            return b""
        start, end = int(fields[45]), int(fields[46])
        end = min(end, start + 79, start // PAGE * PAGE + PAGE)
        try:
            entry = os.pread(states, pagemap.ENTRY, start // PAGE * pagemap.ENTRY)
            if start >= end or pagemap.classes(entry) != bytes([PRESENT]):
                return b""
            return os.pread(memory, end - start, start)
        except (OSError, OverflowError):
            return b""


def _own_mounts() -> bytes:
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return b"\n" + file.read(MAX_MOUNTINFO)
    except OSError:
        return b""


def decode_taken(data: bytes) -> Taken:
    return msgspec.msgpack.decode(data, type=Taken)


def decode_facts(data: bytes) -> Facts:
    return msgspec.msgpack.decode(data, type=Facts)
