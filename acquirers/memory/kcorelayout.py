"""From the segments of /proc/kcore to places in the file: which of them are RAM, and where the direct map begins."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from acquirers.memory.block import PAGE
from acquirers.memory.iomem import MAX_ADDRESS
from acquirers.memory.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WORD: Final = 1 << 64
_X86_IMAGE = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map: what lies here is never the direct map
_GUESSES = 512


class Segment(NamedTuple):
    """One PT_LOAD: `size` bytes at `offset` in the file are what lies at `vaddr`."""

    vaddr: int
    paddr: int | None
    """None: the kernel says that it has none."""
    offset: int
    size: int


class Piece(NamedTuple):
    start: int
    end: int
    offset: int


class Map:
    """Addresses to places in the file. Of pieces that overlap, the first to begin counts."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces: list[Piece] = []
        at = 0
        for start, end, offset in sorted(pieces):
            begin = max(start, at)
            if begin < end:
                self._pieces.append(Piece(begin, end, offset + begin - start))
                at = end
        self._starts = [piece.start for piece in self._pieces]

    def ranges(self) -> Ranges:
        return Ranges((piece.start, piece.end) for piece in self._pieces)

    def places(self, address: int, size: int) -> list[tuple[int, int]]:
        """(offset, size) in the order of addresses. `OSError(EINVAL)` if a part is nowhere."""
        found: list[tuple[int, int]] = []
        end = address + size
        while address < end:
            index = bisect_right(self._starts, address) - 1
            if index < 0 or address >= self._pieces[index].end:
                raise OSError(errno.EINVAL, "in no segment of /proc/kcore")
            piece = self._pieces[index]
            length = min(piece.end, end) - address
            found.append((piece.offset + address - piece.start, length))
            address += length
        return found

    def without(self, taken: Ranges) -> list[Piece]:
        """What of the pieces lies outside `taken`."""
        left = (
            Piece(start, end, piece.offset + start - piece.start)
            for piece in self._pieces
            for start, end in Ranges([(piece.start, piece.end)]).subtract(taken)
        )
        return list(left)

    def add(self, pieces: list[Piece]) -> Map:
        return Map([*self._pieces, *pieces])


class Layout(msgspec.Struct, frozen=True):
    """What the segments say together."""

    direct_map: int | None
    ram: Ranges
    """Physical addresses of the segments of RAM, whole pages."""
    physical: Map
    virtual: Map


def layout(segments: Sequence[Segment], machine: str, ram: Ranges) -> Layout:
    """Which segments are RAM and where. `ram`, System RAM of /proc/iomem, is needed only for kernels before 4.11."""
    virtual = Map(Piece(one.vaddr, one.vaddr + one.size, one.offset) for one in segments)
    if len(segments) > 1 and all(one.paddr == 0 for one in segments):
        base = _guess([one for one in segments if not _is_image(one, machine)], ram)
        physical = Map(() if base is None else _within(segments, base, ram.rounded_in(PAGE)))
        return Layout(base, physical.ranges(), physical, virtual)
    weights: Counter[int] = Counter()
    for one in segments:
        if one.paddr is not None and not _is_image(one, machine):
            weights[(one.vaddr - one.paddr) % WORD] += one.size
    base = max(weights, key=lambda shift: (weights[shift], -shift), default=None)
    direct = Map(_physical(one) for one in segments if _is_direct(one, base))
    others = Map(_physical(one) for one in segments if one.paddr is not None and not _is_direct(one, base))
    covered = direct.ranges()
    return Layout(base, covered, direct.add(others.without(covered)), virtual)


def _is_image(one: Segment, machine: str) -> bool:
    return machine == "x86_64" and one.vaddr >= _X86_IMAGE


def _is_direct(one: Segment, base: int | None) -> bool:
    return one.paddr is not None and (one.vaddr - one.paddr) % WORD == base


def _physical(one: Segment) -> Piece:
    """By physical address, only whole pages."""
    assert one.paddr is not None  # noqa: S101 - both callers have looked
    start = -(-one.paddr // PAGE) * PAGE
    end = min(one.paddr + one.size, MAX_ADDRESS) // PAGE * PAGE
    return Piece(start, max(start, end), one.offset + start - one.paddr)


def _within(segments: Iterable[Segment], base: int, ram: Ranges) -> list[Piece]:
    found = []
    for one in segments:
        at = one.vaddr - base
        found += [Piece(start, end, one.offset + start - at) for start, end in ram.clip(at, at + one.size)]
    return found


def _guess(segments: Iterable[Segment], ram: Ranges) -> int | None:
    """The direct map of a kernel that does not tell: where most of RAM has segments of the same size.

    Not simply the lowest segment, less the start of RAM: on arm64 and with an early page left out that is another.
    """
    mapped = list(Ranges((one.vaddr, one.vaddr + one.size) for one in segments))[:_GUESSES]
    whole = ram.rounded_in(PAGE)
    scores: Counter[int] = Counter()
    for span in list(whole)[:_GUESSES]:
        for other in mapped:
            if span.size == other.size:
                scores[other.start - span.start] += span.size
    best = max(scores, key=lambda base: (scores[base], -base), default=None)
    return best if best is not None and 2 * scores[best] > whole.total else None
