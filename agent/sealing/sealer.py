"""Sealing while it streams: digest, compress, encrypt, digest again. Nothing is stored on the way.

    plaintext --SHA-256--> blocks of 1 MiB --zstd--> frames and seek table --age--> ciphertext --SHA-256--> sink

The block is the unit of work: its digest and its frame depend on no other, and frames are appended in order. So
`_seal_block` is the place where digest and compression can move to other threads behind the same three calls.

In memory at any time: one block, its frame, about 1 MiB of ciphertext, zstd's own state, and 12 bytes of seek table for
every block so far.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.sealing.age import AgeWriter
from agent.sealing.frames import DEFAULT_LEVEL, FRAME_SIZE, FrameCompressor, FrameWriter

if TYPE_CHECKING:
    from agent.sealing.recipients import Recipient
    from agent.sealing.streams import Buffer, Sink


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was sealed and what came of it: sizes in bytes, digests as 32 bytes."""

    plaintext_size: int
    plaintext_sha256: bytes
    ciphertext_size: int
    ciphertext_sha256: bytes


class Sealer:
    """Seals one object to recipients.

    `write` takes any number of bytes at a time and keeps none of the buffer. The sink gets pieces of about 1 MiB. After
    an exception, of the sink or of the sealer, the object is lost: the sealer refuses every further call.
    """

    def __init__(self, recipients: Sequence[Recipient], sink: Sink, *, level: int = DEFAULT_LEVEL) -> None:
        """Make a file key and wrap it; the sink is not called yet. Raises `UsageError` without recipients."""
        self._compressor = FrameCompressor(level)
        self._ciphertext = _Measured(sink)
        self._age = AgeWriter(recipients, self._ciphertext.push)
        self._frames = FrameWriter(self._age.write)
        self._block = memoryview(bytearray(FRAME_SIZE))
        self._block_size = 0
        self._plaintext = hashlib.sha256()
        self._plaintext_size = 0
        self._open = True

    @property
    def plaintext_size(self) -> int:
        """Bytes written so far."""
        return self._plaintext_size

    @property
    def ciphertext_size(self) -> int:
        """Bytes handed to the sink so far."""
        return self._ciphertext.size

    def write(self, buffer: Buffer) -> None:
        """Seal `buffer`, which may be reused when this returns."""
        self._begin()
        view = memoryview(buffer).cast("B")
        position = 0
        while position < len(view):
            count = min(FRAME_SIZE - self._block_size, len(view) - position)
            self._block[self._block_size : self._block_size + count] = view[position : position + count]
            self._block_size += count
            position += count
            if self._block_size == FRAME_SIZE:
                self._seal_block()
        self._plaintext_size += len(view)
        self._open = True

    def finish(self) -> Sealed:
        """Seal what is left and end the object. Until this returns, the object is none: every reader refuses it."""
        self._begin()
        if self._block_size:
            self._seal_block()
        self._frames.finish()
        self._age.finish()
        sealed = self._ciphertext
        return Sealed(self._plaintext_size, self._plaintext.digest(), sealed.size, sealed.sha256.digest())

    def _begin(self) -> None:
        """Refuse to go on after the end or a failure, and stay closed until the call is through."""
        if not self._open:
            raise ValueError("the sealer has ended or failed")
        self._open = False

    def _seal_block(self) -> None:
        block = self._block[: self._block_size]
        self._plaintext.update(block)
        self._frames.append(self._compressor.compress(block))
        self._block_size = 0


class _Measured:
    """A sink that counts and digests what it hands on.

    Not a method of `Sealer`: that would be a cycle of references, and would keep the buffers and the key of an object
    that is done until the garbage collector comes by.
    """

    __slots__ = ("_sink", "sha256", "size")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.sha256 = hashlib.sha256()
        self.size = 0

    def push(self, piece: memoryview) -> None:
        self.sha256.update(piece)
        self.size += len(piece)
        self._sink(piece)


def seal_bytes(data: Buffer, recipients: Sequence[Recipient]) -> bytes:
    """Seal something small as a plain age file, without compression. `open_bytes` and `age -d` open it."""
    sealed = bytearray()
    writer = AgeWriter(recipients, sealed.extend)
    writer.write(data)
    writer.finish()
    return bytes(sealed)
