"""What one object goes through in the pipeline, and what of it can be done next.

    add --> DIGEST    SHA-256 of the plaintext                          a lane
        `-> COMPRESS  a frame of each block, and its hash               any number of threads at once
              `-> ENCRYPT  frames and seek table into age chunks        a lane
                    `-> OUT  SHA-256 of the ciphertext, and the sink    a lane

A lane does one thing at a time and in order, by whichever thread comes by; so what belongs to a lane needs no lock.
What decides (`add`, `ready`, `begin`, `end`, `fail`, `release`) is called under the lock of the pipeline and is short.
What works is what `begin` returns: it is called without the lock and may take milliseconds.
"""

from __future__ import annotations

import hashlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from agent.sealing.age import push
from agent.sealing.frames import EMPTY_FRAME, FrameWriter
from agent.sealing.merkle import Tree, leaf_hash, salt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.sealing.age import AgeEncrypter
    from agent.sealing.buffers import Block, Buffers, Out
    from agent.sealing.streams import Buffer, Sink

OUT, ENCRYPT, DIGEST, COMPRESS = STAGES = range(4)
"""The most downstream first: in this order threads take what is ready, so that buffers are soon free again."""

MAX_OUTS = 3
"""Buffers of ciphertext of one object: one is filled, one is written, and one lies between them."""


class Lanes:
    """One object in the pipeline."""

    def __init__(self, age: AgeEncrypter, sink: Sink, level: int, buffers: Buffers) -> None:
        self.plaintext = hashlib.sha256()
        self.ciphertext = hashlib.sha256()
        self.ciphertext_size = 0
        self.tree = Tree()
        self.running = 0
        """Threads that work for this object now."""
        self.failed = False
        self.error: BaseException | None = None
        """What failed, until somebody was told."""
        self._age = age
        self._sink = sink
        self._level = level
        self._buffers = buffers
        self._busy = [False] * len(STAGES)
        self._to_digest: deque[Block] = deque()
        self._to_compress: deque[Block] = deque()
        self._compressed = 0  # blocks that are, or are being
        self._untold = 0  # blocks in `_to_compress` of which `ready` did not speak yet
        self._to_encrypt: deque[Block] = deque()  # in order, compressed or not
        self._to_push: deque[Out] = deque()
        self._last_block_is_in = False
        self._sealed = False  # the last chunk is encrypted
        # Of ENCRYPT alone:
        self._pieces: deque[Buffer] = deque()  # what is left of the frame, or of the seek table
        self._frames = FrameWriter(self._pieces.append)
        self._begun = False  # what is in `_pieces`, or was until it was encrypted, is not done with
        self._filling: Out | None = None
        self._outs = 0  # those that are filled, written or between

    # -- under the lock -----------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the sink has taken the last byte and every digest is made."""
        return self._sealed and not (self._to_push or self._to_digest)

    def add(self, block: Block) -> None:
        """Take over a block, which is not empty."""
        block.needed_by = 2
        self._to_digest.append(block)
        self._to_compress.append(block)
        self._to_encrypt.append(block)
        self._untold += 1

    def end_of_plaintext(self) -> None:
        """Every block is in: the seek table and the last chunk follow."""
        self._last_block_is_in = True

    def ready(self) -> Iterator[int]:
        """The stages at which something can be done, each of which is told once. Each wants one `begin` and `end`."""
        if self.failed:
            return
        busy = self._busy
        if self._to_push and not busy[OUT]:
            busy[OUT] = True
            yield OUT
        if not busy[ENCRYPT] and self._can_encrypt():
            busy[ENCRYPT] = True
            yield ENCRYPT
        if self._to_digest and not busy[DIGEST]:
            busy[DIGEST] = True
            yield DIGEST
        while self._untold:
            self._untold -= 1
            yield COMPRESS

    def _can_encrypt(self) -> bool:
        if self._to_encrypt:
            there = self._to_encrypt[0].frame is not None
        else:
            there = self._last_block_is_in and not self._sealed
        return there and (self._filling is not None or self._outs < MAX_OUTS)

    def begin(self, stage: int) -> Callable[[], object]:
        """What is to be done at a stage that is ready."""
        if stage == OUT:
            return partial(self._put_out, self._to_push[0])
        if stage == DIGEST:
            return partial(self.plaintext.update, self._to_digest[0].content)
        if stage == COMPRESS:
            number = self._compressed
            self._compressed += 1
            return partial(self._compress, self._to_compress.popleft(), number)
        out = self._filling
        if out is None:
            out = self._filling = self._buffers.take_out()
            self._outs += 1
        return partial(self._encrypt, self._to_encrypt[0] if self._to_encrypt else None, out)

    def end(self, stage: int) -> bool:
        """Note that it was done. Says whether a block is free again."""
        self._busy[stage] = False
        if stage == OUT:
            self._outs -= 1
            self._buffers.give_out(self._to_push.popleft())
            return False
        if stage == DIGEST:
            return self._done_with(self._to_digest.popleft())
        if stage == COMPRESS:
            return False
        self._sealed = not (self._begun or self._to_encrypt)
        out = self._filling
        if out is not None and (self._sealed or out.full):
            self._to_push.append(out)
            self._filling = None
        if self._begun or self._sealed:
            return False
        return self._done_with(self._to_encrypt.popleft())

    def _done_with(self, block: Block) -> bool:
        block.needed_by -= 1
        if block.needed_by:
            return False
        self._buffers.give_block(block)
        return True

    def fail(self, error: BaseException | None) -> None:
        """Nothing more is begun. The first error is the one that is told."""
        if not self.failed:
            self.failed = True
            self.error = error

    def release(self) -> int:
        """After a failure, when nothing is running: drop everything. Says how many blocks are free again."""
        blocks = {id(block): block for block in (*self._to_digest, *self._to_encrypt)}
        for block in blocks.values():
            self._buffers.give_block(block)
        for out in (*self._to_push, self._filling):
            if out is not None:
                self._buffers.give_out(out)
        self._filling = None
        for waiting in (self._to_digest, self._to_compress, self._to_encrypt, self._to_push, self._pieces):
            waiting.clear()
        return len(blocks)

    # -- without the lock ---------------------------------------------------------------------------------------------

    def _compress(self, block: Block, number: int) -> None:
        compressor = self._buffers.compressor(self._level)
        frame = compressor.zeros() if block.is_zero else compressor.compress(block.content)
        block.leaf = leaf_hash(salt_of(self._age.salt, number), frame.data)
        block.frame = frame  # last: where there is a frame, ENCRYPT takes it

    def _encrypt(self, block: Block | None, out: Out) -> None:
        """A frame, or after the last one the end of the object, as far as `out` has room."""
        if not self._begun:
            self._begun = True
            if block is not None and block.frame is not None:
                self._frames.append(block.frame)
                self.tree.add(block.leaf)
            else:
                if not self.tree.size:
                    self.tree.add(leaf_hash(salt_of(self._age.salt, 0), EMPTY_FRAME))
                self._frames.finish()
        pieces = self._pieces
        while pieces:
            piece = memoryview(pieces[0])
            taken, made = self._age.update(piece, out.view[out.size :])
            out.size += made
            if taken < len(piece):
                pieces[0] = piece[taken:]
                return
            pieces.popleft()
        if block is None:
            if out.full:
                return
            out.size += self._age.finish(out.view[out.size :])
        self._begun = False

    def _put_out(self, out: Out) -> None:
        if self._age.prefix:
            self._push(memoryview(self._age.prefix))
            self._age.prefix = b""
        self._push(out.view[: out.size].toreadonly())

    def _push(self, piece: memoryview) -> None:
        self.ciphertext.update(piece)
        size = len(piece)
        push(self._sink, piece)
        self.ciphertext_size += size
