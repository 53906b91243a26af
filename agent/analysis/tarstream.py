"""A pax archive as a stream: one header after the other, and what follows each, in constant memory.

`tarfile` is not used to read: it keeps every member, has no bound on records or sparse maps, takes a missing end for
an end, and goes on behind a header that it cannot read. Here an archive has its two zero blocks at the end and nothing
but zeros after them (POSIX.1-2017, `pax`, "ustar Interchange Format"), or it raises `DamagedError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

from acquirers.base import MAX_CHUNK, Buffer, Kind
from agent.analysis.tarheader import (
    BLOCK,
    END,
    EXTENDED,
    Header,
    SparseMap,
    parse_member,
    parse_records,
    parse_sparse_map,
    records_size,
    type_of,
)
from agent.errors import DamagedError, SourceError


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


ByteStream = Readable | Iterable[Buffer]
"""A file, or chunks of any length. A chunk need only be valid until the next one is asked for."""

_NOTHING = memoryview(b"")


class _Source:
    """Bytes in the portions that are wanted, without copying what is wanted by the way."""

    def __init__(self, stream: ByteStream) -> None:
        read = getattr(stream, "read", None)
        self._chunks: Iterator[Buffer] = iter(stream) if read is None else iter(partial(read, MAX_CHUNK), b"")  # type: ignore[arg-type]
        self._view = _NOTHING
        self.offset = 0

    def some(self, limit: int) -> memoryview:
        """1 to `limit` bytes, valid until the next call; none at the end of the stream."""
        while not len(self._view):
            self._view = _NOTHING  # lets go of a chunk that its maker wants to use again
            try:
                chunk = next(self._chunks, None)
            except OSError as error:
                raise SourceError(f"the archive cannot be read: {error.strerror or error}") from error
            if chunk is None:
                return _NOTHING
            self._view = memoryview(chunk)
        piece = self._view[:limit]
        self._view = self._view[limit:]
        self.offset += len(piece)
        return piece

    def exact(self, size: int) -> bytes:
        """Grows with what really comes, not with what a header promises."""
        piece = self.some(size)
        if len(piece) == size:
            return bytes(piece)
        collected = bytearray(piece)
        while piece and len(collected) < size:
            piece = self.some(size - len(collected))
            collected += piece
        if len(collected) < size:
            raise DamagedError(f"the archive breaks off at byte {self.offset}")
        return bytes(collected)


class TarStream:
    """Iterates over the headers of one archive. Until the next one is asked for, `content` or `raw` gives what follows.

    What is not taken is skipped. The iteration ends only after a whole and undamaged archive. Whatever is wrong raises
    `DamagedError`. What the stream itself raises goes through, but for an `OSError`, which becomes a `SourceError`.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._source = _Source(stream)
        self._header = Header(Kind.UNKNOWN, b"")
        self._map: SparseMap | None = None
        self._left = 0  # bytes of the current member that were not taken
        self._padding = 0
        self.head = b""
        """Everything that stands before the content of the current member, as it stands there."""

    def __iter__(self) -> Iterator[Header]:
        while True:
            if self._left or self._padding:
                for _ in self.raw():
                    pass
            start = self._source.offset
            try:
                header = self._next()
            except DamagedError as error:
                raise DamagedError(f"{error} (the member at byte {start} of the archive)") from None
            if header is None:
                break
            self._header, self._map = header, None
            self._left, self._padding = header.size, -header.size % BLOCK
            yield header
        self._check_end()

    def sparse_map(self) -> SparseMap | None:
        """The map of the current member, if it is sparse. To be asked before anything is taken of its content."""
        if self._map is None and self._header.real_size is not None:
            self._map = parse_sparse_map(iter(self._block, None), self._header)
            self._left -= self._map.length
        return self._map

    def content(self) -> Iterator[tuple[int, memoryview]]:
        """What the current regular file holds: offsets in the file, and the bytes there. Holes are left out."""
        extents = self.sparse_map()
        for offset, length in [(0, self._left)] if extents is None else extents:
            position = offset
            for piece in self._take(length):
                yield position, piece
                position += len(piece)

    def raw(self) -> Iterator[memoryview]:
        """What follows the current header and was not taken, with the padding to a whole block."""
        yield from self._take(self._left)
        if self._padding:
            padding = self._source.exact(self._padding)
            self._padding = 0
            yield memoryview(padding)

    def _take(self, size: int) -> Iterator[memoryview]:
        while size:
            piece = self._source.some(min(size, MAX_CHUNK))
            if not len(piece):
                raise DamagedError(f"the archive breaks off at byte {self._source.offset}, inside a file")
            size -= len(piece)
            self._left -= len(piece)
            yield piece

    def _block(self) -> bytes:
        return self._source.exact(BLOCK)

    def _next(self) -> Header | None:
        block = self._block()
        if block == END:
            return None
        records: dict[bytes, bytes] = {}
        head = [block]
        if type_of(block) == EXTENDED:
            size = records_size(block)
            data = self._source.exact(size + -size % BLOCK)
            records = parse_records(data[:size])
            block = self._block()
            head += [data, block]
            if type_of(block) == EXTENDED:
                raise DamagedError("two extended headers before one member")
        self.head = b"".join(head)
        return parse_member(block, records)

    def _check_end(self) -> None:
        """One zero block was read: another one must follow, and zeros to the end of the stream."""
        if self._block() != END:
            raise DamagedError("a single block of zeros inside the archive")
        while piece := self._source.some(MAX_CHUNK):
            if piece.tobytes().strip(b"\0"):
                raise DamagedError("something stands behind the end of the archive")
