"""Reads the pages of a process, as far as they are still present. Runs in the child that `watch` keeps.

Just before a piece is read, its pages are looked at again: what was swapped out or thrown away since the plan was made
would be brought back by reading it. It is lost to the core, and said so.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from acquirers.base import MAX_CHUNK
from acquirers.memory.process import pagemap
from acquirers.memory.process.elf import CONTENT, Segments
from acquirers.memory.process.pagemap import PAGE, PRESENT
from acquirers.snapshot.watch import Part

GONE = 0
"""Instead of an errno: it was not present any more."""
MAX_LOST = 4096
"""Pieces of one batch that are told one by one; the last one stands for all that follow."""

_encode = msgspec.msgpack.Encoder().encode
Lost = tuple[int, int, int]
"""Start, end, errno."""


class Batch(NamedTuple):
    """Pages that stand one after the other in the core: from `skip` bytes into segment `segment` on."""

    segment: int
    skip: int
    size: int


class Batches(Sequence[Batch]):
    """All that is to be read, in pieces of a chunk. Three numbers each: a terabyte of them fits into memory."""

    def __init__(self, segments: Segments, size: int = MAX_CHUNK, *, apart: bool = False) -> None:
        """`apart`: none holds pages of two segments, so that one that hangs its reader takes no others along."""
        self._segments = segments
        self._firsts = array("Q")
        self._skips = array("Q")
        self._sizes = array("I")
        room = 0
        for index, (_, length, kind) in enumerate(segments):
            if not kind & CONTENT:
                continue
            at = 0
            while at < length:
                if not room:
                    self._firsts.append(index)
                    self._skips.append(at)
                    self._sizes.append(0)
                    room = size
                taken = min(room, length - at)
                self._sizes[-1] += taken
                at += taken
                room -= taken
            room = 0 if apart else room

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, index: int | slice) -> Batch:  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("one at a time")
        return Batch(self._firsts[index], self._skips[index], self._sizes[index])

    def pieces(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """(address, bytes), in the order in which they stand in the core."""
        index, skip, left = batch
        segments = self._segments
        while left > 0:
            if segments.kinds[index] & CONTENT:
                size = min(left, segments.sizes[index] - skip)
                yield segments.starts[index] + skip, size
                left -= size
            index, skip = index + 1, 0


class PageReader:
    """Does batches. `memory` and `states` are descriptors of `mem` and `pagemap`."""

    def __init__(self, memory: int, states: int, batches: Batches, *, fault_in: bool) -> None:
        self._memory = memory
        self._states = states
        self._batches = batches
        self._fault_in = fault_in
        self._buffer = memoryview(b"")
        self._lost: list[Lost] = []

    def __call__(self, batch: Batch) -> Iterator[Part]:
        if not self._buffer:
            self._buffer = memoryview(bytearray(MAX_CHUNK))  # in the child: the parent has no use for it
        self._lost = []
        at = 0
        for address, size in self._batches.pieces(batch):
            self._piece(address, self._buffer[at : at + size])
            at += size
        yield Part(self._buffer[:at], _encode(self._lost) if self._lost else b"", last=True)

    def _piece(self, address: int, into: memoryview) -> None:
        if self._fault_in:
            self._read(address, into)
            return
        try:
            entries = os.pread(self._states, len(into) // PAGE * pagemap.ENTRY, address // PAGE * pagemap.ENTRY)
        except OSError as error:
            self._lose(address, into, error.errno or errno.EIO)
            return
        done = 0
        for run in pagemap.runs_of(entries, address):
            done = run.end - address
            part = into[run.start - address : done]
            if run.state == PRESENT:
                self._read(run.start, part)
            else:
                self._lose(run.start, part, GONE)
        if done < len(into):  # the process has ended
            self._lose(address + done, into[done:], GONE)

    def _read(self, address: int, into: memoryview) -> None:
        done = 0
        single = False
        while done < len(into):
            wanted = into[done : done + PAGE] if single else into[done:]
            try:
                count = os.preadv(self._memory, [wanted], address + done)
            except OSError as error:
                if len(wanted) > PAGE:
                    single = True
                    continue
                self._lose(address + done, wanted, error.errno or errno.EIO)
                count = len(wanted)
            except OverflowError:  # beyond what a file offset expresses: nothing of a process lies there
                self._lose(address + done, into[done:], errno.EFAULT)
                return
            else:
                single = False
                if count == 0:  # the memory map is gone: the process has ended, or runs another program
                    self._lose(address + done, into[done:], GONE)
                    return
            done += count

    def _lose(self, address: int, part: memoryview, why: int) -> None:
        part[:] = bytes(len(part))
        lost = self._lost
        if lost and lost[-1][2] == why and lost[-1][1] == address:
            lost[-1] = lost[-1][0], address + len(part), why
        elif len(lost) < MAX_LOST:
            lost.append((address, address + len(part), why))
        else:
            lost[-1] = lost[-1][0], address + len(part), why
