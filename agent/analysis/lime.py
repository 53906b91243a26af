"""LiME v1 images: read with bounds, joined from the two that one acquisition gives, written again.

A record is a header of 32 bytes, little endian: magic 0x4C694D45 u32, version 1 u32, first address u64, last address
(included) u64, reserved u64; then the bytes. Records ascend, and nothing follows the last one (LiME's documentation;
Volatility's `LimeLayer` refuses anything else).
"""

from __future__ import annotations

import heapq
import struct
from typing import TYPE_CHECKING, NamedTuple

from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEADER = struct.Struct("<IIQQQ")
MAGIC, VERSION = 0x4C694D45, 1
MAX_ADDRESS = 1 << 57
"""More than any processor has."""
RECORD = 16 << 20
"""Bytes of a record that is written here, at the most."""
_PIECE = 1 << 20

PHYSICAL, LATE = "memory/physical.lime", "memory/late.lime"
MERGED = "memory/merged.lime"


class Piece(NamedTuple):
    """Bytes of physical memory from `address` on."""

    address: int
    data: memoryview


def pieces(chunks: Iterable[bytes], name: str = PHYSICAL) -> Iterator[Piece]:
    """What an image holds, ascending. Raises `DamagedError` where it is not what LiME says."""
    source = _Bytes(chunks, name)
    end = 0
    while head := source.take(HEADER.size, may_end=True):
        magic, version, first, last, _ = HEADER.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise DamagedError(f"{name}: where a record should begin there is none: no LiME image, or cut and joined")
        if not end <= first <= last < MAX_ADDRESS:
            raise DamagedError(f"{name}: a record says {first:#x} to {last:#x} behind {end:#x}: records must ascend")
        at, end = first, last + 1
        while at < end:
            data = source.some(min(_PIECE, end - at))
            yield Piece(at, data)
            at += len(data)


def merge(*images: Iterator[Piece]) -> Iterator[Piece]:
    """All images as one. Raises `DamagedError` where two say something of the same address."""
    end = 0
    for piece in heapq.merge(*images, key=lambda one: one.address):
        if piece.address < end:
            raise DamagedError(f"two records hold address {piece.address:#x}")
        end = piece.address + len(piece.data)
        yield piece


def write(image: Iterable[Piece]) -> Iterator[bytes]:
    """The pieces as a LiME image: one record for what is contiguous, of at most `RECORD` bytes."""
    held: list[bytes] = []
    start = size = 0

    def record() -> Iterator[bytes]:
        if size:
            yield HEADER.pack(MAGIC, VERSION, start, start + size - 1, 0)
            yield from held

    for piece in image:
        if piece.address != start + size or size + len(piece.data) > RECORD:
            yield from record()
            held, start, size = [], piece.address, 0
        held.append(bytes(piece.data))
        size += len(piece.data)
    yield from record()


class _Bytes:
    """Takes exact numbers of bytes out of chunks."""

    def __init__(self, chunks: Iterable[bytes], name: str) -> None:
        self._chunks, self._name = iter(chunks), name
        self._view = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """At least one byte, at most so many. Raises `DamagedError` at the end."""
        while not self._view:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise DamagedError(f"{self._name}: it ends in the middle of a record")
            self._view = memoryview(chunk)
        found, self._view = self._view[:most], self._view[most:]
        return found

    def take(self, size: int, *, may_end: bool = False) -> bytes:
        """Exactly so many; nothing at the end, where that is allowed."""
        found = b""
        while len(found) < size:
            if not found and may_end and not self._view:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return b""
                self._view = memoryview(chunk)
                continue
            found += self.some(size - len(found))
        return found
