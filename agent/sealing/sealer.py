"""Sealing while it streams: digest, compress, encrypt, digest again. Nothing is stored on the way.

    plaintext --SHA-256--> blocks of 1 MiB --zstd--> frames and seek table --age--> ciphertext --SHA-256--> sink

The block is the unit of work: its digest and its frame depend on no other, and frames are appended in order. What
happens to a block, and by which thread, is the pipeline's affair (`pipeline.py`, which also states the memory); what
comes out does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from agent.sealing.age import AgeEncrypter, AgeWriter
from agent.sealing.frames import DEFAULT_LEVEL, FRAME_SIZE, check_level
from agent.sealing.lanes import Lanes
from agent.sealing.pipeline import Pipeline

if TYPE_CHECKING:
    from agent.sealing.buffers import Block
    from agent.sealing.recipients import Recipient
    from agent.sealing.streams import Buffer, Sink


class Sealed(msgspec.Struct, frozen=True):
    """What was sealed and what came of it: sizes in bytes, digests as 32 bytes."""

    plaintext_size: int
    plaintext_sha256: bytes
    ciphertext_size: int
    ciphertext_sha256: bytes
    frames: int
    """Data frames, and leaves of the tree over them: one for each MiB begun, and one where there is nothing."""
    tree_root: bytes
    """Of the tree over the frames (`merkle.py`). It tells nothing of the plaintext."""


class Sealer:
    """Seals one object to recipients.

    `write` takes any number of bytes at a time and keeps none of the buffer. The sink gets pieces of about 1 MiB, in
    order, one at a time, and from whichever thread of the pipeline; without a pipeline, from the thread that writes.

    An exception, of the sink or of anything else, is raised by the next `write` or `finish`. Then the object is lost:
    the sealer refuses every further call but `abort`. One that is not finished must be aborted.
    """

    def __init__(
        self,
        recipients: Sequence[Recipient],
        sink: Sink,
        *,
        level: int = DEFAULT_LEVEL,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Make a file key and wrap it; the sink is not called yet. Raises `UsageError` without recipients."""
        check_level(level)
        self._pipeline = Pipeline(0, blocks=1) if pipeline is None else pipeline
        self._lanes = Lanes(AgeEncrypter(recipients), sink, level, self._pipeline.buffers)
        self._block: Block | None = None
        self._filled = 0
        self._plaintext_size = 0
        self._open = True

    @property
    def plaintext_size(self) -> int:
        """Bytes written so far."""
        return self._plaintext_size

    @property
    def ciphertext_size(self) -> int:
        """Bytes that the sink has taken so far."""
        return self._lanes.ciphertext_size

    def write(self, buffer: Buffer) -> None:
        """Seal `buffer`, which may be reused when this returns."""
        self._begin()
        if type(buffer) is memoryview:
            buffer = buffer.cast("B")
        size = len(buffer)
        block = self._block
        if block is None:
            block = self._block = self._pipeline.buffers.take_block()
        end = self._filled + size
        if end < FRAME_SIZE:  # most writes of a log or a manifest
            block.view[self._filled : end] = buffer
            self._filled = end
        else:
            self._fill(block, memoryview(buffer))
        self._plaintext_size += size
        self._open = True

    def finish(self) -> Sealed:
        """Seal what is left and end the object. Until this returns, the object is none: every reader refuses it."""
        self._begin()
        block, self._block = self._block, None
        if block is not None:
            block.content = block.view[: self._filled]
            if not self._filled:
                self._pipeline.buffers.give_block(block)
                block = None
        lanes = self._lanes
        self._pipeline.finish(lanes, block)
        self._raise()
        return Sealed(
            self._plaintext_size,
            lanes.plaintext.digest(),
            lanes.ciphertext_size,
            lanes.ciphertext.digest(),
            lanes.tree.size,
            lanes.tree.root(),
        )

    def abort(self) -> None:
        """Give the object up. When this returns, the sink has returned and is not called again.

        May be called again, after the end, and from another thread, but not by the sink, for which it waits.
        """
        self._open = False
        self._pipeline.cancel(self._lanes)
        self._block = None  # not given back: where another thread calls, this one may be filling it

    def _begin(self) -> None:
        """Refuse to go on after the end or a failure, and stay closed until the call is through."""
        if not self._open:
            raise ValueError("the sealer has ended or failed")
        self._open = False
        if self._lanes.failed:
            self._raise()

    def _fill(self, block: Block, view: memoryview) -> None:
        position = 0
        while position < len(view):
            if self._block is None:
                block = self._block = self._pipeline.buffers.take_block()
            count = min(FRAME_SIZE - self._filled, len(view) - position)
            block.view[self._filled : self._filled + count] = view[position : position + count]
            self._filled += count
            position += count
            if self._filled == FRAME_SIZE:
                block.content = block.view
                self._block = None
                self._filled = 0
                self._pipeline.submit(self._lanes, block)
                if self._lanes.failed:
                    self._raise()

    def _raise(self) -> None:
        """Raise what failed, once nothing runs for the object any more."""
        lanes = self._lanes
        if lanes.failed:
            error, lanes.error = lanes.error, None
            self.abort()
            try:
                raise error or ValueError("the sealer has ended or failed")
            finally:
                del error  # a circle through its traceback


def seal_bytes(data: Buffer, recipients: Sequence[Recipient]) -> bytes:
    """Seal something small as a plain age file, without compression. `open_bytes` and `age -d` open it."""
    sealed = bytearray()
    writer = AgeWriter(recipients, sealed.extend)
    writer.write(data)
    writer.finish()
    return bytes(sealed)
