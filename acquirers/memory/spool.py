"""Lines that are kept until their item's turn comes: compressed, in memory, bounded."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_BYTES = 16 << 20
"""Compressed. A block's line takes some 60 bytes of that: enough for 4 TiB of memory."""
_CHUNK = 256 << 10
_encode = msgspec.json.Encoder().encode


def line(record: Mapping[str, object]) -> bytes:
    """One JSON object and a line feed."""
    return _encode(record) + b"\n"


class Spool:
    """Takes lines, and gives them back once, in their order."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._packer = zlib.compressobj(1)
        self._packed: list[bytes] = []
        self._size = 0
        self.dropped = 0
        """Lines that there was no room for."""

    def add(self, record: Mapping[str, object]) -> None:
        if self._size >= self._limit:
            self.dropped += 1
            return
        packed = self._packer.compress(line(record))
        if packed:
            self._packed.append(packed)
            self._size += len(packed)

    def take(self) -> Iterator[bytes]:
        """All lines, in chunks. Nothing can be added afterwards."""
        self._packed.append(self._packer.flush())
        packed, self._packed = self._packed, []
        unpacker = zlib.decompressobj()
        for piece in packed:
            data = unpacker.decompress(piece, _CHUNK)
            while data:
                yield data
                data = unpacker.decompress(unpacker.unconsumed_tail, _CHUNK)
        if rest := unpacker.flush():
            yield rest
