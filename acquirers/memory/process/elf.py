"""An ELF core as a stream: what stands where, and its headers. elf(5); the kernel's own is made in fs/binfmt_elf.c.

    ELF header | notes | pages, run by run | section headers | program headers | names of sections | .impound.pages

The program headers come last. Where everything stands must be said in the first 64 bytes, but only when a page was
read is it known whether it could be: one that went away meanwhile leaves its place in the file empty, and no program
header leads there. So a segment says exactly what was read:

    p_filesz = p_memsz    pages that were present, and were read
    p_filesz = 0          private memory that was never touched: zeros by the definition of ELF and of the kernel
    no segment            what is not known: swapped out, not present of a file, gone while it was read, of a device

Some entries at the end of the program headers are PT_NULL: room for segments that fall apart. Beyond 65,534 of them
their number is in the first section header (PN_XNUM), which comes last as well: no room is kept then. `p_paddr` is the
virtual address, too, so that a tool for memory images (Volatility's layer reads by `p_paddr`) finds every page at its
address in the process.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterator, Sequence

import msgspec

from acquirers.memory.process.pagemap import PAGE
from acquirers.memory.ranges import Ranges

EM_X86_64 = 62
EM_AARCH64 = 183
MACHINES = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}

SPARE = 32
"""Program headers beyond those that were planned, at the least."""
MAX_SPARE = 1 << 14
_PAGES_OF_SPARE = 8
"""One more for so many pages: a five-hundredth of a core."""
MAX_SEGMENTS = 1 << 20
PN_XNUM = 0xFFFF

PT_NULL, PT_LOAD, PT_NOTE = 0, 1, 4
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_NAMES = b"\0.shstrtab\0.impound.pages\0"
_ET_CORE = 4
CONTENT = 8
"""In a segment's kind, beside `p_flags`: its pages are in the file."""


def note(name: bytes, kind: int, data: bytes | bytearray | memoryview) -> bytes:
    """One note: name and data each padded to four bytes."""
    name += b"\0"
    return b"".join((_NOTE.pack(len(name), len(data), kind), name, bytes(-len(name) % 4), data, bytes(-len(data) % 4)))


class Segments(msgspec.Struct):
    """The planned segments, ascending: three numbers each, however many there are."""

    starts: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    sizes: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    kinds: array[int] = msgspec.field(default_factory=lambda: array("B"))
    content: int = 0
    """Bytes that are to be read."""

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, end: int, flags: int, *, content: bool) -> None:
        self.starts.append(start)
        self.sizes.append(end - start)
        self.kinds.append(flags | (CONTENT if content else 0))
        self.content += end - start if content else 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(start, size, kind)."""
        return zip(self.starts, self.sizes, self.kinds, strict=True)


class Layout:
    """Where everything stands in a core with these notes and segments."""

    def __init__(self, machine: int, notes: int, segments: Segments) -> None:
        self.segments = segments
        self._machine = machine
        self._notes = notes
        self.data = -(-(_EHDR.size + notes) // PAGE) * PAGE
        """File offset of the first page."""
        self.tables = self.data + segments.content
        """File offset of what follows the pages."""
        self.spare = max(SPARE, min(MAX_SPARE, segments.content // PAGE // _PAGES_OF_SPARE))
        """Segments that may come of what is lost."""
        self.count = 1 + len(segments) + self.spare
        """Of the program headers; from `PN_XNUM` on it is their greatest number."""
        self._programs = self.tables + 3 * _SHDR.size

    def head(self) -> bytes:
        """The first 64 bytes; the notes follow, then zeros up to `data`."""
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        count = min(self.count, PN_XNUM)
        return _EHDR.pack(
            ident, _ET_CORE, self._machine, 1, 0, self._programs, self.tables, 0, _EHDR.size, _PHDR.size, count,
            _SHDR.size, 3, 1,
        )  # fmt: skip

    def tail(self, lost: Ranges, pages: int) -> Iterator[bytes]:
        """All that follows the pages but `.impound.pages` itself, which has `pages` bytes. `lost` was not read."""
        count = self.count if self.count < PN_XNUM else max(PN_XNUM, 1 + self._pieces(lost))
        names = self._programs + count * _PHDR.size
        extended = count if count >= PN_XNUM else 0
        yield _SHDR.pack(0, 0, 0, 0, 0, 0, 0, extended, 0, 0)
        yield _SHDR.pack(1, 3, 0, 0, names, len(_NAMES), 0, 0, 1, 0)
        yield _SHDR.pack(11, 1, 0, 0, names + len(_NAMES), pages, 0, 0, 1, 0)
        yield _PHDR.pack(PT_NOTE, 0, _EHDR.size, 0, 0, self._notes, 0, 4)
        written, batch = 1, bytearray()
        for header in self._loads(lost):
            batch += header
            written += 1
            if len(batch) >= 1 << 16:
                yield bytes(batch)
                batch.clear()
        yield bytes(batch) + bytes(_PHDR.size) * (count - written)
        yield _NAMES

    def _loads(self, lost: Ranges) -> Iterator[bytes]:
        offset = self.data
        holes = self._holes(lost)
        for start, size, kind in self.segments:
            flags = kind & 7
            if not kind & CONTENT:
                yield _PHDR.pack(PT_LOAD, flags, offset, start, start, 0, size, PAGE)
                continue
            for first, end in _between(start, start + size, next(holes)):
                length = end - first
                yield _PHDR.pack(PT_LOAD, flags, offset + first - start, first, first, length, length, PAGE)
            offset += size

    def fitting(self, lost: Ranges) -> Ranges:
        """`lost`, with its closest spans made one until the segments that are left need no more than `spare` more.

        What lies between such spans was read and is in the file, but no segment leads to it: `covered` tells how much.
        """
        while lost and (surplus := self._pieces(lost) - len(self.segments) - self.spare) > 0:
            spans = list(lost)
            between = sorted(
                (after.start - before.end, index) for index, (before, after) in enumerate(itertools.pairwise(spans))
            )
            joined = [(spans[index].start, spans[index + 1].end) for _, index in between[:surplus]]
            lost = Ranges([*spans, *joined])
        return lost

    def covered(self, lost: Ranges) -> int:
        """Bytes of the pages of the core that are in `lost`."""
        return sum(end - start for holes in self._holes(lost) for start, end in holes)

    def _pieces(self, lost: Ranges) -> int:
        holes = self._holes(lost)
        return sum(
            sum(1 for _ in _between(start, start + size, next(holes))) if kind & CONTENT else 1
            for start, size, kind in self.segments
        )

    def _holes(self, lost: Ranges) -> Iterator[Sequence[tuple[int, int]]]:
        """What is lost of each segment with pages, one after the other: both ascend."""
        spans, at = list(lost), 0
        for start, size, kind in self.segments:
            if not kind & CONTENT:
                continue
            while at < len(spans) and spans[at].end <= start:
                at += 1
            found, index = [], at
            while index < len(spans) and spans[index].start < start + size:
                found.append((max(spans[index].start, start), min(spans[index].end, start + size)))
                index += 1
            yield found


def _between(start: int, end: int, holes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of `start` to `end` that are not in `holes`."""
    at = start
    for first, behind in holes:
        if at < first:
            yield at, first
        at = behind
    if at < end:
        yield at, end
