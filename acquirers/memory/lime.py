"""The format of the image: LiME v1. One record after the other, ascending, and nothing behind the last one.

A record is 32 bytes, little endian: magic 0x4C694D45 u32 ("EMiL" in the file), version 1 u32, first address u64, last
address (included) u64, reserved u64; then the bytes (LiME's documentation; Volatility's `LimeLayer`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from acquirers.base import MAX_CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Buffer
    from acquirers.memory.block import Block

HEADER = struct.Struct("<IIQQQ")
MAGIC, VERSION = 0x4C694D45, 1
MEDIA_TYPE = "application/x-lime"


def header(start: int, end: int) -> bytes:
    """Of a record that holds `start` to `end`, `end` not included."""
    return HEADER.pack(MAGIC, VERSION, start, end - 1, 0)


def records(block: Block) -> Iterator[Buffer]:
    """What a block holds, one record for each piece between its holes."""
    for start, end in block.pieces():
        yield header(start, end)
        for at in range(start, end, MAX_CHUNK):
            yield block.data[at - block.start : min(at + MAX_CHUNK, end) - block.start]
