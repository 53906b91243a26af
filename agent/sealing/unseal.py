"""Opening what was sealed: the whole in order, or a range of it.

Three layers hold each other: age authenticates every chunk, its place and the end; zstd's frames carry the size and the
checksum of their plaintext; the seek table repeats both. Whoever sealed an object was on the examined machine and may
have been hostile, so an authentic object can still lie about itself: every number is checked before it is used, and
memory is bounded by one frame and the seek table, whatever the object says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from agent.errors import DamagedError, UsageError
from agent.sealing.age import AgeReader
from agent.sealing.frames import FRAME_SIZE, Frame, FrameDecompressor, read_frame
from agent.sealing.merkle import leaf_hash, salt_of
from agent.sealing.seek_table import FOOTER_SIZE, SeekTable, SeekTableCheck, parse_footer, table_size
from agent.sealing.streams import Buffer, BytesSource, RandomAccess

if TYPE_CHECKING:
    from agent.sealing.identities import Identity
    from agent.sealing.merkle import Tree


class Unsealed:
    """A sealed object. Raises `IdentityError` where no identity opens it, `DamagedError` where it is broken."""

    def __init__(self, source: RandomAccess, identities: Sequence[Identity]) -> None:
        """Read and authenticate the header; nothing else is read yet."""
        self._age = AgeReader(source, identities)
        self._salt = self._age.salt
        self._decompressor = FrameDecompressor()
        self._table: SeekTable | None = None
        self._sha256: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of plaintext, as the seek table says. The table is read when this is first asked for."""
        return self._seek_table().size

    @property
    def plaintext_sha256(self) -> bytes:
        """The SHA-256 of the plaintext. Raises `ValueError` until `stream` has been read to its end."""
        if self._sha256 is None:
            raise ValueError("the digest is known once the stream has been read to its end")
        return self._sha256

    def salt_of(self, number: int) -> bytes:
        """The salt of a frame in the tree over the frames (`merkle.py`)."""
        return salt_of(self._salt, number)

    def stream(self, tree: Tree | None = None) -> Iterator[bytes]:
        """The plaintext in order, a frame at a time. Adds every frame to `tree`, and holds them to `frames(even=True)`.

        Where the object is damaged, what precedes the damage has been yielded when `DamagedError` is raised: only a
        stream that ends without an exception is whole.
        """
        digest = hashlib.sha256()
        for number, frame in enumerate(self.frames(even=tree is not None)):
            data = self._decompressor.decompress(frame)
            if tree is not None:
                tree.add(leaf_hash(self.salt_of(number), frame.data))
            digest.update(data)
            if data:
                yield data
        self._sha256 = digest.digest()

    def frames(self, *, even: bool = False) -> Iterator[Frame]:
        """The frames in order, not decompressed: what they say of themselves is not proved.

        `even`: every frame but the last must say 1 MiB, and so must the number of a frame say where in the plaintext
        it begins. At the end it is checked that the seek table is that of the frames which were read and that nothing
        follows. Raises `DamagedError`, after what precedes the damage.
        """
        plain = _Taker(self._age.stream())
        check = SeekTableCheck()
        count = size = 0
        while (frame := read_frame(plain.take)) is not None:
            if not frame.size and count:
                raise DamagedError("the sealed object has an empty frame among others")
            if even and (frame.size > FRAME_SIZE or (count and size != FRAME_SIZE)):
                raise DamagedError("the sealed object has frames that do not hold 1 MiB each, the last one or less")
            check.add(len(frame.data), frame.size, frame.checksum)
            count, size = count + 1, frame.size
            yield frame
        if not count:
            raise DamagedError("the sealed object has no frame")
        check.check(plain.take)
        if not plain.at_end():
            raise DamagedError("something follows the seek table of the sealed object")

    def range(self, start: int, end: int) -> Iterator[bytes]:
        """The plaintext from byte `start` up to `end`, reading only the frames that hold it.

        Raises `UsageError` at once for a range that is not within the object.
        """
        size = self.size
        if not 0 <= start <= end <= size:
            raise UsageError(f"the range {start}-{end} is not within the object, which has {size} bytes")
        return self._range(start, end)

    def _range(self, start: int, end: int) -> Iterator[bytes]:
        for entry in self._seek_table().entries(start, end):
            frame = Frame(self._age.read(entry.compressed_offset, entry.compressed_size), entry.size)
            if frame.checksum != entry.checksum:
                raise DamagedError("the seek table does not agree with a frame")
            data = self._decompressor.decompress(frame)
            yield data[max(0, start - entry.offset) : end - entry.offset]

    def _seek_table(self) -> SeekTable:
        if self._table is None:
            total = self._age.size
            footer = self._age.read(max(0, total - FOOTER_SIZE), min(total, FOOTER_SIZE))
            length = table_size(parse_footer(footer))
            if length > total:
                raise DamagedError("the seek table says more frames than the sealed object can hold")
            table = self._age.read(total - length, length)
            self._table = SeekTable(table, total - length)
        return self._table


class _Taker:
    """Takes a stream of chunks apart into as many bytes as are asked for."""

    __slots__ = ("_chunk", "_chunks", "_position")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes. Raises `DamagedError` where there are fewer."""
        taken = self._chunk[self._position : self._position + count]
        self._position += len(taken)
        if len(taken) == count:
            return taken
        parts = [taken]
        missing = count - len(taken)
        while missing:
            if self.at_end():
                raise DamagedError("the sealed object ends in the middle of a frame or without its seek table")
            part = self._chunk[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def at_end(self) -> bool:
        """Whether nothing is left; moves on to the next chunk where the present one is used up."""
        while self._position == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._chunk, self._position = chunk, 0
        return False


def open_bytes(data: Buffer, identities: Sequence[Identity]) -> bytes:
    """Open what `seal_bytes` sealed: a plain age file. Nothing is returned unless all of it is authentic."""
    return b"".join(AgeReader(BytesSource(data), identities).stream())
