"""The memory of the pipeline that is used again and again: blocks of plaintext, ciphertext, zstd's own state.

Acquirers fork children that read what may hang. A child would keep each block as it was when it was forked, and this
process get a copy of it when it fills it again: so blocks are not inherited.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

from agent.sealing.age import OUT_SIZE, SEALED_CHUNK_SIZE
from agent.sealing.frames import FRAME_SIZE, ZEROS, Frame, FrameCompressor

_libc = ctypes.CDLL(None)
_compare = _libc.memcmp  # a memoryview compares byte by byte
_compare.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
_compare.restype = ctypes.c_int


def _own_memory(size: int) -> tuple[memoryview, int]:
    """Zeroed memory that no child inherits, and its address."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Block:
    """Up to 1 MiB of plaintext and, once it is compressed, its frame."""

    __slots__ = ("_address", "content", "frame", "leaf", "needed_by", "view")

    def __init__(self) -> None:
        self.view, self._address = _own_memory(FRAME_SIZE)
        self.content = self.view
        """The part of it that is filled."""
        self.leaf = b""
        """Its frame's hash in the tree, once there is a frame."""
        self.frame: Frame | None = None
        self.needed_by = 0
        """How many of the stages DIGEST and ENCRYPT have not passed."""

    @property
    def is_zero(self) -> bool:
        """Whether it is a whole block of zeros, as much of a memory image is.

        The comparison ends at the first other byte; where there is none, it takes an eighth of what zstd would.
        """
        return len(self.content) == FRAME_SIZE and _compare(self._address, ZEROS, FRAME_SIZE) == 0


class Out:
    """About 1 MiB of ciphertext."""

    __slots__ = ("size", "view")

    def __init__(self) -> None:
        self.view, _ = _own_memory(OUT_SIZE)
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for a further chunk."""
        return self.size + SEALED_CHUNK_SIZE > OUT_SIZE


class Buffers:
    """What is given back is kept for the next, up to a number. Every method may be called from any thread."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._blocks: list[Block] = []
        self._outs: list[Out] = []
        self._of_thread = _Compressors()

    def take_block(self) -> Block:
        """A block, with anything in it."""
        try:
            return self._blocks.pop()
        except IndexError:
            return Block()

    def give_block(self, block: Block) -> None:
        """Its plaintext and its frame are needed no more."""
        block.frame = None
        if len(self._blocks) < self._keep:
            self._blocks.append(block)

    def take_out(self) -> Out:
        """A buffer for ciphertext."""
        try:
            return self._outs.pop()
        except IndexError:
            return Out()

    def give_out(self, out: Out) -> None:
        """It was written."""
        out.size = 0
        if len(self._outs) < self._keep:
            self._outs.append(out)

    def compressor(self, level: int) -> FrameCompressor:
        """The compressor of this thread for `level`."""
        compressors = self._of_thread.by_level
        if level not in compressors:
            compressors[level] = FrameCompressor(level)
        return compressors[level]


class _Compressors(threading.local):
    def __init__(self) -> None:
        self.by_level: dict[int, FrameCompressor] = {}
