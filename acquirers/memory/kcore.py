"""/proc/kcore: the kernel's own view of its memory as an ELF core file (fs/proc/kcore.c).

ELF64 ET_CORE. Ehdr of 64 bytes, program headers of 56, notes; data begins at the next page. One PT_LOAD for each run of
RAM (the direct map), for vmalloc, vmemmap and modules (`p_paddr` -1), and for the kernel's text, whose `p_paddr` lies
inside a run of RAM. The place of an address in the file is linear in the virtual address, but where data begins moves
with the size of the headers, which the kernel makes anew when memory is plugged in or out and somebody opens the file.
Before 4.11 (commit 464920104bf7) `p_paddr` is 0 everywhere: there, /proc/iomem tells which segments are RAM.

A page that the kernel cannot read is given as zeros, or, in kernels around 6.12 (commit 3d5854d75e31), as EFAULT. Where
RAM does not end with a page, the rest of it is in no segment. Opening and reading can block for as long as memory is
being plugged: whoever must not wait does both in a child.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import NamedTuple

import msgspec

from acquirers.memory.kcorelayout import WORD, Segment, layout
from acquirers.memory.ranges import Ranges

MIN_SIZE = 0x2000
"""The file is at least that large (in fact terabytes); what lies over it in a container is empty."""
MAX_HEAD = 16 << 20
MAX_SEGMENTS = 1 << 16
MAX_NOTES = 256
NO_RAM = Ranges()
MACHINES = {62: "x86_64", 183: "aarch64"}

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NHDR = struct.Struct("<III")
_ET_CORE, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 1, 4, 0xFFFF
_NO_PADDR = (WORD - 1, (1 << 32) - 1)


class MalformedError(ValueError):
    """Not what its format says: one line for a person."""


class Note(NamedTuple):
    name: bytes
    kind: int
    data: bytes


class Header(msgspec.Struct, frozen=True):
    """What stands before the data."""

    machine: str
    """As `uname -m` says it; empty if it is another than this version knows."""
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]
    verbatim: bytes
    """The file from its first byte to the end of the notes: Ehdr, program headers, notes."""

    @property
    def vmcoreinfo(self) -> bytes:
        """The text of the VMCOREINFO note (Linux 4.19 and later); empty if there is none."""
        return next((note.data for note in self.notes if note.name == b"VMCOREINFO"), b"")


# -- the header -------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    at: int
    number: int


def extent(data: bytes) -> int:
    """How many bytes from the start of the file must be there to go on. `data` is the header as soon as it has so many.

    Raises `MalformedError`.
    """
    if len(data) < _EHDR.size:
        return _EHDR.size
    table = _table(data)
    if isinstance(table, int):
        return table
    end = table.at + table.number * _PHDR.size
    if len(data) >= end:
        for fields in _PHDR.iter_unpack(data[table.at : end]):
            if fields[0] == _PT_NOTE:
                end = max(end, _bounded(fields[2] + fields[5]))
    return _bounded(end)


def parse_header(data: bytes) -> Header:
    """Ehdr, program headers and notes. Raises `MalformedError`."""
    table = _table(data) if len(data) >= _EHDR.size else 0
    if isinstance(table, int) or len(data) < extent(data):
        raise MalformedError("its headers are cut off")
    segments: list[Segment] = []
    notes: tuple[Note, ...] | None = None
    for kind, _, offset, vaddr, paddr, size, _, _ in _PHDR.iter_unpack(
        data[table.at : table.at + table.number * _PHDR.size]
    ):
        if kind == _PT_NOTE and notes is None:
            notes = tuple(_notes(data[offset : offset + size]))
        elif kind == _PT_LOAD and size > 0 and vaddr + size <= WORD and offset + size < 1 << 63:
            segments.append(Segment(vaddr, None if paddr in _NO_PADDR else paddr, offset, size))
    machine = MACHINES.get(_EHDR.unpack_from(data)[2], "")
    return Header(machine, tuple(segments), notes or (), data[: extent(data)])


def _table(data: bytes) -> _Table | int:
    """Where the program headers stand; or how many bytes it takes to tell."""
    ident, kind, _, _, _, at, sections, _, _, size, count, *_ = _EHDR.unpack_from(data)
    if ident[:4] != b"\x7fELF":
        raise MalformedError("it is no ELF file")
    if ident[4:6] != b"\x02\x01":
        raise MalformedError("it is no ELF file of 64 bits, little-endian")
    if kind != _ET_CORE or (count and size != _PHDR.size):
        raise MalformedError("it is no ELF core")
    if count == _PN_XNUM:  # the true number is in the first section header (elf(5))
        if len(data) < (end := _bounded(sections + _SHDR.size)):
            return end
        count = _SHDR.unpack_from(data, sections)[7]
    if count > MAX_SEGMENTS:
        raise MalformedError(f"it names {count} segments")
    _bounded(at + count * _PHDR.size)
    return _Table(at, count)


def _bounded(end: int) -> int:
    if end > MAX_HEAD:
        raise MalformedError("its headers do not stand at its beginning")
    return end


def _notes(data: bytes) -> list[Note]:
    found: list[Note] = []
    at = 0
    while at + _NHDR.size <= len(data) and len(found) < MAX_NOTES:
        name_size, size, kind = _NHDR.unpack_from(data, at)
        start = at + _NHDR.size
        desc = start + _aligned(name_size)
        if desc + size > len(data):
            break
        found.append(Note(data[start : start + name_size].rstrip(b"\0"), kind, data[desc : desc + size]))
        at = desc + _aligned(size)
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def read_header(fd: int) -> bytes:
    """The bytes that `parse_header` wants. Raises `OSError` and `MalformedError`."""
    data = b""
    while (wanted := extent(data)) > len(data):
        piece = os.pread(fd, min(wanted - len(data), 1 << 20), len(data))
        if not piece:
            raise MalformedError("its headers are cut off")
        data += piece
    return data


def open_checked(path: bytes) -> int:
    """A descriptor of what can be /proc/kcore: if it is masked, it cannot. Raises `OSError` and `MalformedError`."""
    _check(os.stat(path))  # a device or a pipe is not even opened
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(fd))
    except MalformedError:
        os.close(fd)
        raise
    return fd


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise MalformedError("it is masked: something else is mounted over it")
    if found.st_size <= MIN_SIZE:
        raise MalformedError(f"it is masked: a file of {found.st_size} bytes")


# -- the source -------------------------------------------------------------------------------------------------------


class Kcore:
    """/proc/kcore as a source. `header` is read at once, in this process, unless it is given."""

    name = "kcore"
    zero_fills = True

    def __init__(self, path: bytes, ram: Ranges = NO_RAM, header: Header | None = None) -> None:
        """Raises `OSError` and `MalformedError`."""
        self.path = path
        self._ram = ram
        if header is None:
            fd = open_checked(path)
            try:
                header = parse_header(read_header(fd))
            finally:
                os.close(fd)
        found = layout(header.segments, header.machine, ram)
        self.header = header
        self.direct_map = found.direct_map
        self.ram = found.ram
        """What it says is RAM, in whole pages; `covers` has the kernel's image beside it."""
        self.covers = found.physical.ranges()

    def open(self) -> KcoreReader:
        """Opens the file anew: only so does it show memory that was plugged in."""
        try:
            return KcoreReader(self.path, self._ram)
        except MalformedError as error:
            raise OSError(errno.EIO, str(error)) from error


class KcoreReader:
    """Reads by physical and by virtual address. A page that the kernel cannot read is zeros, and no error."""

    def __init__(self, path: bytes, ram: Ranges) -> None:
        self._ram = ram
        self._fd = open_checked(path)
        try:
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, address: int, into: memoryview) -> None:
        self._read(address, into, virtual=False)

    def read_virtual(self, address: int, into: memoryview) -> None:
        self._read(address, into, virtual=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self) -> None:
        data = read_header(self._fd)
        header = parse_header(data)
        self._layout = layout(header.segments, header.machine, self._ram)
        self._head = data[: _EHDR.size + 2 * _PHDR.size]

    def _moved(self) -> bool:
        """Memory was plugged, and data begins elsewhere than we thought: number of headers, first offset."""
        return os.pread(self._fd, len(self._head), 0) != self._head

    def _read(self, address: int, into: memoryview, *, virtual: bool) -> None:
        for _ in range(3):
            where = self._layout.virtual if virtual else self._layout.physical
            try:
                self._fill(where.places(address, len(into)), into)
            except OSError:
                if not self._moved():
                    raise
            else:
                if not self._moved():
                    return
            try:
                self._load()
            except MalformedError as error:
                raise OSError(errno.EIO, str(error)) from error
        raise OSError(errno.EAGAIN, "/proc/kcore changes while it is read")

    def _fill(self, places: list[tuple[int, int]], into: memoryview) -> None:
        done = 0
        for offset, size in places:
            start, end = done, done + size
            while done < end:
                count = os.preadv(self._fd, [into[done:end]], offset + done - start)
                if count <= 0:
                    raise OSError(errno.EIO, "/proc/kcore ends early")
                done += count
