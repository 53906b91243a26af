"""Compression as independent zstd frames (RFC 8878), each of 1 MiB of plaintext, with a seek table after the last.

    frame 0 … frame n-1 | seek table (see `seek_table.py`)

Each frame has its content size and its checksum, so that what it must become is known before it is decompressed, and
`zstd -d` reads the whole as one stream. Only the last frame is shorter. Nothing at all is one empty frame: a stream of
no frame is valid, but not every tool takes it for an empty file.

    frame  = magic 0xFD2FB528 | header, 2 to 14 bytes | blocks | checksum, 4 bytes
    block  = u24: bit 0 last, bits 1-2 type (0 raw, 1 one byte repeated, 2 compressed), bits 3-23 size | content

What is read is hostile until proven otherwise: a frame is walked block by block to find its end, within the bound that
its declared size allows, and is decompressed in one step into exactly that size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import zstandard

from agent.errors import DamagedError
from agent.sealing.seek_table import MAX_FRAME_SIZE, SKIPPABLE_MAGIC, SeekTableBuilder, compress_bound

if TYPE_CHECKING:
    from agent.sealing.streams import Buffer

FRAME_SIZE = 1 << 20
"""Plaintext of every frame but the last. The smallest piece that can be opened alone, and one that compresses well."""

ZEROS = bytes(FRAME_SIZE)

DEFAULT_LEVEL = 1
MAX_LEVEL = 19

_MAGIC = b"\x28\xb5\x2f\xfd"
_TABLE_MAGIC = SKIPPABLE_MAGIC.to_bytes(4, "little")
_DESCRIPTOR_END = 5
_BLOCK_HEADER_SIZE = 3
_MAX_BLOCK_SIZE = 128 << 10
_REPEATED, _RESERVED = 1, 3
_CHECKSUM_SIZE = 4

# One segment, a content size of 0, one raw block of nothing, XXH64 of nothing. Libraries do not check the blocks of a
# frame that says it is empty, and so the one that is written is the only one that is read.
EMPTY_FRAME = _MAGIC + b"\x24\x00\x01\x00\x00\x99\xe9\xd8\x51"


class Frame(msgspec.Struct, frozen=True):
    """A compressed frame, and how much plaintext it holds."""

    data: bytes
    size: int

    @property
    def checksum(self) -> int:
        """The low half of the XXH64 of the plaintext: the last four bytes of the frame."""
        return int.from_bytes(self.data[-_CHECKSUM_SIZE:], "little")


def check_level(level: int) -> None:
    """Raises `ValueError` for a level that is not used."""
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"the zstd level is 1 to {MAX_LEVEL}, not {level}")


class FrameCompressor:
    """Compresses blocks. It keeps no state between them, but is of one thread: each thread has its own."""

    __slots__ = ("_compressor", "_zeros")

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        check_level(level)
        self._compressor = zstandard.ZstdCompressor(level, write_checksum=True, write_content_size=True)
        self._zeros: Frame | None = None

    def compress(self, block: Buffer) -> Frame:
        """One frame of one block of up to `MAX_FRAME_SIZE` bytes."""
        size = len(block)
        if size > MAX_FRAME_SIZE:
            raise ValueError(f"a frame holds at most {MAX_FRAME_SIZE} bytes, not {size}")
        return Frame(self._compressor.compress(block) if size else EMPTY_FRAME, size)

    def zeros(self) -> Frame:
        """The frame of `FRAME_SIZE` zeros, which is always the same."""
        if self._zeros is None:
            self._zeros = self.compress(ZEROS)
        return self._zeros


class FrameWriter:
    """Pushes frames into a sink, in order, and the seek table after them."""

    __slots__ = ("_sink", "_table", "_written")

    def __init__(self, sink: Callable[[Buffer], object]) -> None:
        self._sink = sink
        self._table = SeekTableBuilder()
        self._written = False

    def append(self, frame: Frame) -> None:
        """Push one frame, which must not be empty."""
        if not frame.size:
            raise ValueError("an empty frame stands alone, and `finish` writes it")
        self._push(frame)

    def finish(self) -> None:
        """Push the seek table; before it, where there was nothing, the empty frame."""
        if not self._written:
            self._push(Frame(EMPTY_FRAME, 0))
        for piece in self._table.pieces():
            self._sink(piece)

    def _push(self, frame: Frame) -> None:
        self._table.add(len(frame.data), frame.size, frame.checksum)
        self._written = True
        self._sink(frame.data)


def read_frame(take: Callable[[int], bytes]) -> Frame | None:
    """Read the next frame; `None` where the magic of the seek table stands in its place, which is then consumed.

    `take(n)` returns the next n bytes, or raises. What is asked of it never exceeds one block, and the whole never
    what the declared content size can compress to. Raises `DamagedError`.
    """
    magic = take(len(_MAGIC))
    if magic == _TABLE_MAGIC:
        return None
    head = magic + take(_DESCRIPTOR_END - len(magic))
    if magic == _MAGIC:
        head += take(zstandard.frame_header_size(head) - len(head))
    size = _content_size(head)
    limit = compress_bound(size)
    parts = [head]
    total = len(head)
    last = False
    while not last:
        block = take(_BLOCK_HEADER_SIZE)
        fields = int.from_bytes(block, "little")
        last, kind, length = bool(fields & 1), fields >> 1 & 3, fields >> 3
        if kind == _RESERVED or length > _MAX_BLOCK_SIZE:
            raise DamagedError("a compressed frame has a block that no compressor writes")
        length = 1 if kind == _REPEATED else length
        total += _BLOCK_HEADER_SIZE + length
        if total + _CHECKSUM_SIZE > limit:
            raise DamagedError(f"a compressed frame is larger than its {size} bytes of content can make it")
        parts += (block, take(length))
    parts.append(take(_CHECKSUM_SIZE))
    return Frame(b"".join(parts), size)


class FrameDecompressor:
    """Decompresses whole frames, of which nothing is believed."""

    __slots__ = ("_decompressor",)

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def decompress(self, frame: Frame) -> bytes:
        """The plaintext: exactly `frame.size` bytes, with the right checksum, and nothing left over.

        Raises `DamagedError`, before anything is allocated where the frame declares another size.
        """
        if _content_size(frame.data[:18]) != frame.size:
            raise DamagedError(f"a compressed frame does not declare the {frame.size} bytes that it should hold")
        if not frame.size:
            if frame.data != EMPTY_FRAME:
                raise DamagedError("a frame that says it is empty is not")
            return b""
        try:
            data = self._decompressor.decompress(frame.data, max_output_size=frame.size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DamagedError(f"a compressed frame cannot be decompressed: {error}") from None
        if len(data) != frame.size:
            raise DamagedError(f"a compressed frame holds {len(data)} bytes, not {frame.size}")
        return data


def _content_size(head: bytes) -> int:
    """What a frame declares; refused where it declares nothing, too much, no checksum, or needs a dictionary."""
    if head[: len(_MAGIC)] != _MAGIC:
        raise DamagedError("where a compressed frame should begin there is something else")
    try:
        parameters = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise DamagedError(f"a compressed frame has a malformed header: {error}") from None
    if parameters.content_size > MAX_FRAME_SIZE:
        raise DamagedError(f"a compressed frame declares no content size, or more than {MAX_FRAME_SIZE} bytes")
    if not parameters.has_checksum or parameters.dict_id:
        raise DamagedError("a compressed frame has no checksum or needs a dictionary, and impound writes neither")
    return int(parameters.content_size)
