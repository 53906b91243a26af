"""What the children that looked at one process have told of it, gathered in the parent."""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator

from acquirers.base import MAX_CHUNK
from acquirers.memory.process.elf import CONTENT, Segments
from acquirers.memory.process.examine import Facts, Kind, decode_facts, decode_taken
from acquirers.memory.process.threads import Taken

MAX_NOTES = 16 << 20


class Lines:
    """JSON lines, compressed until they are wanted: a million areas are 150 MB of text and 10 MB here."""

    def __init__(self) -> None:
        self._packer = zlib.compressobj(1)
        self._packed: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if piece := self._packer.compress(data):
            self._packed.append(piece)

    def chunks(self) -> Iterator[bytes]:
        """All of it, once."""
        unpacker = zlib.decompressobj()
        self._packed.append(self._packer.flush())
        for piece in self._packed:
            data = unpacker.decompress(piece, MAX_CHUNK)
            while data:
                yield data
                data = unpacker.decompress(unpacker.unconsumed_tail, MAX_CHUNK)
        if rest := unpacker.flush():
            yield rest


class Told:
    """Of one look: registers and a plan."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.taken = Taken()
        self.thread_notes: list[bytes] = []
        self.process_notes: list[bytes] = []
        self.notes_size = 0
        self.segments = Segments()
        self.lines = Lines()
        self.fds: dict[bytes, int] = {}

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def take(self, kind: bytes, data: bytes, fd: int) -> None:
        if fd >= 0:
            self.fds[kind] = fd
        elif kind == Kind.SEGMENTS:
            count = len(data) // 17
            starts, sizes, kinds = array("Q"), array("Q"), array("B")
            starts.frombytes(data[: 8 * count])
            sizes.frombytes(data[8 * count : 16 * count])
            kinds.frombytes(data[16 * count :])
            for start, size, flags in zip(starts, sizes, kinds, strict=True):
                self.segments.add(start, start + size, flags & 7, content=bool(flags & CONTENT))
        elif kind == Kind.LINES:
            self.lines.add(data)
        elif kind in {Kind.NOTES, Kind.THREADS}:
            if self.notes_size + len(data) <= MAX_NOTES or kind == Kind.NOTES:
                self.notes_size += len(data)
                (self.process_notes if kind == Kind.NOTES else self.thread_notes).append(data)
        elif kind == Kind.FACTS:
            self.facts = decode_facts(data)
        elif kind == Kind.TAKEN:
            self.taken = decode_taken(data)
