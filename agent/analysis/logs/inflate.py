"""Rotated logs: gzip (RFC 1952), unpacked as a stream and no further than a bound.

Docker writes the time of the last record into the header's extra field; nothing here needs it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from agent.analysis.logs.records import Damage, Pieces

MAX_INFLATED = 16 << 30
"""Bytes that one file is unpacked to at the most: rotation makes files of some MiB, and a bomb has no end."""
SMALL, USUAL = 64 << 20, 1 << 30
"""Bytes up to which any file is unpacked, and one that is packed as well as logs that repeat themselves."""
WELL, ORDINARY = 200, 50
"""How many times larger a log is than its packed form: up to `USUAL` bytes, and beyond. gzip itself reaches 1,032;
real logs, with a time in each line, 10 to 30."""
_STEP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


def allowed(packed: int) -> int:
    """Bytes that `packed` bytes of a log may become."""
    return min(MAX_INFLATED, max(SMALL, min(USUAL, WELL * packed), ORDINARY * packed))


class Inflated:
    """The content of a gzip file as pieces. After the last one, `damage` tells what kept the rest from being read."""

    def __init__(self, pieces: Pieces, limit: int | None = None) -> None:
        """`limit`: bytes of content, whatever the file's size; else what `allowed` says."""
        self._pieces = pieces
        self._limit = limit
        self._offset = 0
        self.damage: Damage | None = None
        """Offsets are those of the content: what is lost has no length there."""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        stream = None  # between two members of the file there is none
        position = 0
        for offset, piece in self._pieces:
            if offset != position:
                self._end("a hole in the compressed file")
                return
            position = offset + len(piece)
            data: bytes | memoryview = piece
            while len(data):
                if stream is None:
                    if not bytes(data[:1]).strip(b"\0"):
                        if bytes(data).strip(b"\0"):
                            self._end(f"zeros in the compressed file, before byte {position}")
                            return
                        break  # padding
                    stream = zlib.decompressobj(_GZIP)
                try:
                    out = stream.decompress(data, _STEP)
                except zlib.error as error:
                    self._end(f"the compressed file is damaged before byte {position}: {error}")
                    return
                data = stream.unconsumed_tail
                if stream.eof:
                    data, stream = stream.unused_data, None
                if out:
                    limit = self._limit if self._limit is not None else allowed(position)
                    if self._offset + len(out) > limit:
                        self._end(f"more than {limit} bytes, of {position} packed ones: not unpacked further")
                        return
                    yield self._offset, out
                    self._offset += len(out)
        if stream is not None:
            self._end("the compressed file ends too early")

    def _end(self, why: str) -> None:
        self.damage = Damage(self._offset, self._offset, why)
