"""Small pieces of the image, copied as it passes, to be looked at when all of it has passed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from acquirers.memory.block import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from acquirers.memory.block import Block

MAX_BYTES = 256 << 20
"""That all pieces may have together."""

_FACTOR = 2 * PAGE  # more than a part has bytes


class Catch:
    """Copies of pieces (physical address, bytes) of the image. Memory: the pieces, and 25 bytes for each.

    A piece is had whole or not at all, in every page that it touches; what lies in a hole is not had. What is read
    again later does not replace what is had.
    """

    def __init__(self, pieces: Iterable[tuple[int, int]]) -> None:
        # Numbers, not pairs, while they are sorted: a third of the memory for a hundred thousand tasks.
        parts = sorted(start * _FACTOR + size for piece in pieces for start, size in _by_page(*piece))
        self._starts, self._sizes, self._places = array("Q"), array("Q"), array("Q")
        at, last = 0, -1
        for part in parts:
            if part != last:
                start, size = divmod(part, _FACTOR)
                self._starts.append(start)
                self._sizes.append(size)
                self._places.append(at)
                at, last = at + size, part
        if at > MAX_BYTES:
            raise ValueError(f"pieces of {at} bytes are more than is kept")
        self._store = bytearray(at)
        self._had = bytearray(len(self._starts))

    def __len__(self) -> int:
        """Parts, one per page and piece."""
        return len(self._starts)

    def take(self, block: Block) -> None:
        """Copies what lies in this block. Called for every block: a bisection if nothing does."""
        low = bisect_left(self._starts, block.start)
        if low == len(self._starts) or self._starts[low] >= block.end:
            return
        spans = block.pieces() if block.holes else [(block.start, block.end)]
        for start, end in spans:
            self._copy(block, start, end)

    def _copy(self, block: Block, start: int, end: int) -> None:
        starts, sizes, places, store, had = self._starts, self._sizes, self._places, self._store, self._had
        data, base = block.data, block.start
        for index in range(bisect_left(starts, start), bisect_left(starts, end)):
            at, size = starts[index], sizes[index]
            if had[index] or at + size > end:
                continue
            place, at = places[index], at - base
            store[place : place + size] = data[at : at + size]
            had[index] = 1

    def get(self, address: int, size: int) -> bytes | None:
        """A piece that was asked for; None if it did not pass, or lay in a hole."""
        found = b""
        for start, length in _by_page(address, size):
            index = self._find(start, length)
            if index is None or not self._had[index]:
                return None
            found += self._store[self._places[index] : self._places[index] + length]
        return found

    def _find(self, start: int, size: int) -> int | None:
        index = bisect_left(self._starts, start)
        while index < len(self._starts) and self._starts[index] == start:
            if self._sizes[index] >= size:
                return index
            index += 1
        return None


def _by_page(address: int, size: int) -> Iterable[tuple[int, int]]:
    end = address + size
    while address < end:
        cut = min(end, (address // PAGE + 1) * PAGE)
        yield address, cut - address
        address = cut
