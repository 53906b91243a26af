"""The seek table that ends a stream of zstd frames: where each frame begins, so that a range opens without the rest.

The zstd seekable format 0.1.0 (facebook/zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`). Every
number is little-endian. To a decompressor that does not know it, the table is a skippable frame and holds nothing.

    offset   bytes
    0        4    skippable frame magic 0x184D2A5E
    4        4    size of what follows: 12 * frames + 9
    8        12   for each frame: u32 compressed size, u32 decompressed size, u32 checksum
    8+12n    4    number of frames
    12+12n   1    descriptor: 0x80, the entries have checksums
    13+12n   4    seekable magic 0x8F92EAB1

The checksum is the low half of the XXH64 of the plaintext, which is also what zstd writes at the end of a frame with a
checksum (RFC 8878, 3.1.1): it is copied from there, and binds the entry to the very frame.

Twelve bytes a frame is also what a table takes in memory: 6 MiB for 512 GiB of evidence.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator

import msgspec

from agent.errors import DamagedError, ImpoundError

MAX_FRAMES = 1 << 22
"""Frames of one object: 4 TiB in frames of 1 MiB, eight times what an item holds before it continues in the next."""

MAX_FRAME_SIZE = 64 << 20
"""Plaintext of the largest frame that is read: a later version may write larger frames than this one."""

SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1

_CHECKSUMS = 0x80
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<III")
_FOOTER = struct.Struct("<IBI")
_STRIDE = 1024  # frames between two of the positions that a table keeps summed up
_PIECE = 5461 * _ENTRY.size  # entries are compared in pieces of about 64 KiB

FOOTER_SIZE = _FOOTER.size


class Entry(msgspec.Struct, frozen=True):
    """One frame: where it lies in the compressed stream and in the plaintext, and the checksum of its plaintext."""

    compressed_offset: int
    compressed_size: int
    offset: int
    size: int
    checksum: int


class SeekTableBuilder:
    """Collects the entries while frames are written."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries = bytearray()

    def add(self, compressed_size: int, size: int, checksum: int) -> None:
        """Add the next frame. Raises `ImpoundError` beyond `MAX_FRAMES`."""
        if len(self._entries) >= MAX_FRAMES * _ENTRY.size:
            raise ImpoundError(f"one object holds at most {MAX_FRAMES} frames, and this item goes beyond")
        self._entries += _ENTRY.pack(compressed_size, size, checksum)

    def pieces(self) -> Iterator[memoryview]:
        """The table, in pieces: nothing is copied."""
        count = len(self._entries) // _ENTRY.size
        yield memoryview(_HEAD.pack(SKIPPABLE_MAGIC, len(self._entries) + _FOOTER.size))
        yield memoryview(self._entries)
        yield memoryview(_footer(count))


class SeekTableCheck:
    """Holds a table against the frames that were read before it, without keeping either."""

    __slots__ = ("_count", "_digest")

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._count = 0

    def add(self, compressed_size: int, size: int, checksum: int) -> None:
        """Note the next frame as it was read. Raises `DamagedError` beyond `MAX_FRAMES`."""
        if self._count == MAX_FRAMES:
            raise DamagedError(f"the sealed object has more than {MAX_FRAMES} frames")
        self._digest.update(_ENTRY.pack(compressed_size, size, checksum))
        self._count += 1

    def check(self, take: Callable[[int], bytes]) -> None:
        """Read what follows the skippable magic with `take`. Raises `DamagedError` for any byte that is not so."""
        entries_size = self._count * _ENTRY.size
        if _HEAD.pack(SKIPPABLE_MAGIC, entries_size + _FOOTER.size)[4:] != take(4):
            raise DamagedError(f"the seek table is not one of the {self._count} frames before it")
        digest = hashlib.sha256()
        for start in range(0, entries_size, _PIECE):
            digest.update(take(min(_PIECE, entries_size - start)))
        if digest.digest() != self._digest.digest() or take(_FOOTER.size) != _footer(self._count):
            raise DamagedError("the seek table does not agree with the frames before it")


class SeekTable:
    """A parsed table. What it says of a frame is still a claim, until that frame has been decompressed."""

    __slots__ = ("_compressed", "_entries", "_offsets", "compressed_size", "size")

    def __init__(self, table: bytes, compressed_size: int) -> None:
        """Parse a whole table, which follows `compressed_size` bytes of frames.

        Checked: every fixed field, each size within bounds, and that the frames fill `compressed_size`. An empty frame
        stands alone or not at all. Raises `DamagedError`.
        """
        count = parse_footer(table[-_FOOTER.size :])
        head = _HEAD.pack(SKIPPABLE_MAGIC, count * _ENTRY.size + _FOOTER.size)
        if len(table) != table_size(count) or table[: _HEAD.size] != head:
            raise DamagedError(f"the seek table is not one of {count} frames")
        self._entries = memoryview(table)[_HEAD.size : -_FOOTER.size]
        self._offsets = array("Q")
        self._compressed = array("Q")
        offset = compressed = 0
        for number, (frame_compressed, frame_size, _) in enumerate(_ENTRY.iter_unpack(self._entries)):
            if number % _STRIDE == 0:
                self._offsets.append(offset)
                self._compressed.append(compressed)
            empty = not frame_size and count > 1
            if empty or frame_size > MAX_FRAME_SIZE or not 0 < frame_compressed <= compress_bound(frame_size):
                raise DamagedError(f"the seek table gives frame {number} an impossible size")
            offset += frame_size
            compressed += frame_compressed
        if compressed != compressed_size:
            raise DamagedError(f"the seek table is of {compressed} bytes of frames, and there are {compressed_size}")
        self.size = offset
        self.compressed_size = compressed

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def entries(self, start: int, end: int) -> Iterator[Entry]:
        """The frames that hold the plaintext from `start` up to `end`; none where that is empty."""
        if start >= end:
            return
        block = bisect_right(self._offsets, start) - 1
        offset, compressed = self._offsets[block], self._compressed[block]
        for frame_compressed, size, checksum in _ENTRY.iter_unpack(self._entries[block * _STRIDE * _ENTRY.size :]):
            if offset >= end:
                return
            if offset + size > start:
                yield Entry(compressed, frame_compressed, offset, size, checksum)
            offset += size
            compressed += frame_compressed


def table_size(count: int) -> int:
    """Bytes of a whole table of `count` frames."""
    return _HEAD.size + count * _ENTRY.size + _FOOTER.size


def compress_bound(size: int) -> int:
    """Bytes of the largest frame that zstd makes of `size` bytes (`ZSTD_COMPRESSBOUND` in zstd.h)."""
    return size + (size >> 8) + (((128 << 10) - size) >> 11 if size < 128 << 10 else 0)


def parse_footer(footer: bytes) -> int:
    """The number of frames, from the last `FOOTER_SIZE` bytes. Raises `DamagedError`."""
    if len(footer) != _FOOTER.size:
        raise DamagedError("the sealed object is too short to hold a seek table")
    count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != SEEKABLE_MAGIC or descriptor != _CHECKSUMS:
        raise DamagedError("the sealed object does not end with a seek table")
    if not 1 <= count <= MAX_FRAMES:
        raise DamagedError(f"the seek table says {count} frames, and an object has 1 to {MAX_FRAMES}")
    return int(count)


def _footer(count: int) -> bytes:
    return _FOOTER.pack(count, _CHECKSUMS, SEEKABLE_MAGIC)
