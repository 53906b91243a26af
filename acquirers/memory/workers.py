"""Readers in processes of their own, each with a buffer that it shares with this one.

A read that hangs cannot be called back, and may write into its buffer whenever it wakes up. So a reader that is late
is killed and left to itself with its buffer, another one takes its place, and what it should have read is read again at
the end, in small pieces, so that only the pages that hang are lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import selectors
import socket
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import child
from acquirers.memory.block import BLOCK, PAGE, Block, Hole, Why
from acquirers.memory.ranges import Ranges, Span
from acquirers.memory.reading import Answer, BlockReader, Wanted, nothing_wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from acquirers.memory.source import Source

DEADLINE = 20.0
"""Seconds for one block: a slow emulated machine takes under one."""
LATE_DEADLINE = 2.0
"""Seconds for a piece that is read again."""
LATE_STEP = 64 << 10
STRIKES = 8
"""Readers that may be late before nothing more is asked of the first source."""
LATE_STRIKES = 64
MAX_ANSWER = 4 << 20
_JOB = struct.Struct("<QQB")
_SIZE = struct.Struct("<I")
_decode = msgspec.msgpack.Decoder(Answer)


class Worker:
    """One reader: a process, a socket to it, and a buffer."""

    def __init__(self, make: Iterable[BlockReader], size: int) -> None:
        """`make` gives the reader when it is asked, in the child. Raises `OSError`."""
        self.buffer = mmap.mmap(-1, size)
        self.locked = _lock(self.buffer)
        self.job: Span | None = None
        self.due = 0.0
        self._got = bytearray()
        ours, theirs = socket.socketpair()
        self.socket = ours
        try:
            self.pid = child.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            try:
                gc.disable()  # each object that it looks at is a page that is copied
                _alone(theirs.fileno())
                _serve(theirs, make, self.buffer)
            finally:
                os._exit(0)
        theirs.close()

    def start(self, span: Span, seconds: float, *, single: bool = False) -> None:
        self.job, self.due, self._got = span, time.monotonic() + seconds, bytearray()
        with contextlib.suppress(OSError):  # it died: then its socket says so
            self.socket.sendall(_JOB.pack(span.start, span.end, single))

    def receive(self) -> Answer | None:
        """What it answered, once it is all there. Raises `ChildError` where it is gone."""
        try:
            piece = self.socket.recv(1 << 20)
        except OSError:
            piece = b""
        self._got += piece
        if not piece:
            raise child.ChildError("its reader died")
        if len(self._got) < _SIZE.size:
            return None
        size = _SIZE.unpack_from(self._got)[0]
        if size > MAX_ANSWER:
            raise child.ChildError("its reader answered nonsense")
        if len(self._got) < _SIZE.size + size:
            return None
        try:
            return _decode.decode(self._got[_SIZE.size :])
        except msgspec.DecodeError as error:
            raise child.ChildError("its reader answered nonsense") from error

    def end(self) -> None:
        """Kills it. The buffer goes when nobody looks at it any more."""
        self.socket.close()
        child.end(self.pid)


def _lock(buffer: mmap.mmap) -> bool:
    """Keeps a buffer in memory: it must not be swapped out, which would write to a disk."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return bool(ctypes.CDLL(None, use_errno=True).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(buffer))) == 0)


def _alone(keep: int) -> None:
    """Lets go of every descriptor of the parent but one: sockets, objects that are being stored."""
    os.closerange(0, keep)
    os.closerange(keep + 1, 1 << 16)


def _serve(line: socket.socket, make: Iterable[BlockReader], buffer: mmap.mmap) -> None:
    (whole,) = make
    small: BlockReader | None = None
    while True:
        job = _exactly(line, _JOB.size)
        if not job:
            return
        start, end, single = _JOB.unpack(job)
        if single and small is None:
            small = whole.in_single_pages()
        reader = small if single and small is not None else whole
        answer = msgspec.msgpack.encode(reader.read(start, end, buffer))
        line.sendall(_SIZE.pack(len(answer)) + answer)


def _exactly(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := line.recv(size - len(data))):
        data += piece
    return data if len(data) == size else b""


class Pool:
    """Reads blocks in order, several at a time. Close it: its readers are processes."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        flags: bytes | None = None,
        wanted: Wanted = nothing_wanted,
        guards: Ranges | None = None,
        workers: int = 2,
        size: int = BLOCK,
        deadline: float | None = None,
    ) -> None:
        """See `BlockReader`. `size` in bytes, of a buffer. Raises `OSError` where no process can be started."""
        self._sources, self._flags, self._wanted, self._guards = list(sources), flags, wanted, guards
        self._size, self._deadline = size, DEADLINE if deadline is None else deadline
        self.strikes = 0
        self.notes: list[str] = []
        """What happened to readers, for a person."""
        self._workers: list[Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(self._worker())
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self._workers]

    @property
    def locked(self) -> bool:
        """Whether all buffers are locked in memory."""
        return all(one.locked for one in self._workers)

    def blocks(self, spans: Iterable[Span]) -> Iterator[Block]:
        """One block for each span, in their order. A span is no larger than a buffer, and ascends."""
        todo = iter(spans)
        waiting: list[tuple[Span, Worker]] = []
        idle = [self._replaced(worker) for worker in self._workers]
        more = True
        try:
            while more or waiting:
                while more and idle:
                    span = next(todo, None)
                    if span is None:
                        more = False
                        break
                    worker = idle.pop(0)
                    worker.start(span, self._deadline)
                    waiting.append((span, worker))
                if not waiting:
                    return
                span, worker = waiting.pop(0)
                block = self._await(worker, span)
                yield block
                block.data.release()
                idle.append(self._replaced(worker))
        finally:
            # Left early: an answer that nobody waited for would be taken for the next one.
            for _, worker in waiting:
                worker.end()
                worker.job = None

    def small(self, span: Span) -> Iterator[Block]:
        """Reads a span again, in small pieces, each with a deadline; of one that hangs, its pages."""
        for start in range(span.start // LATE_STEP * LATE_STEP, span.end, LATE_STEP):
            piece = Span(max(start, span.start), min(start + LATE_STEP, span.end))
            block = self._now(piece)
            if block.sources or not block.holes or block.holes[0].why not in {Why.STUCK, Why.ERROR}:
                yield block
                block.data.release()
                continue
            block.data.release()
            for at in range(piece.start // PAGE * PAGE, piece.end, PAGE):
                one = self._now(Span(max(at, piece.start), min(at + PAGE, piece.end)))
                yield one
                one.data.release()

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    # -- one block ----------------------------------------------------------------------------------------------------

    def _now(self, span: Span) -> Block:
        if self.strikes >= LATE_STRIKES:
            hole = Hole(span.start, span.end, Why.STUCK, "too many reads did not return: not tried again")
            return Block(span.start, span.end, memoryview(b""), (hole,))
        worker = self._replaced(self._workers[0])
        worker.start(span, LATE_DEADLINE, single=True)
        return self._await(worker, span, late=True)

    def _await(self, worker: Worker, span: Span, *, late: bool = False) -> Block:
        """The answer of a worker, or a block that says that there is none; then the worker is gone."""
        try:
            answer = self._answer(worker)
        except child.StuckError:
            worker.end()
            worker.job = None
            self.strikes += 1
            return self._lost(span, Hole(span.start, span.end, Why.STUCK, "it was not read in time"), again=not late)
        except child.ChildError as error:
            worker.end()
            worker.job = None
            self.strikes += 1
            return self._lost(span, Hole(span.start, span.end, Why.ERROR, str(error)), again=not late)
        holes = tuple(Hole(*one) for one in answer.holes)
        return Block(
            span.start,
            span.end,
            memoryview(worker.buffer)[: span.size],
            holes,
            Counter(answer.sources),
            answer.began_ns,
            answer.ended_ns,
            answer.wall_ns,
            Counter(answer.classes),
            answer.changed,
            answer.zeros,
            {frame: (kind, digest) for frame, kind, digest in answer.digests},
            not late and any(one.why is Why.ERROR for one in holes),
        )

    @staticmethod
    def _lost(span: Span, hole: Hole, *, again: bool) -> Block:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return Block(span.start, span.end, memoryview(b""), (hole,), Counter(), now, now, time.time_ns(), again=again)

    def _answer(self, worker: Worker) -> Answer:
        """Raises `ChildError`."""
        with selectors.DefaultSelector() as ready:
            ready.register(worker.socket, selectors.EVENT_READ)
            while True:
                left = worker.due - time.monotonic()
                # What lies there already is taken, however long the store held this process up meanwhile.
                if not ready.select(max(left, 0.2)):
                    raise child.StuckError("it was not read in time")
                answer = worker.receive()
                if answer is not None:
                    worker.job = None
                    return answer

    # -- workers ------------------------------------------------------------------------------------------------------

    def _replaced(self, worker: Worker) -> Worker:
        """The worker, or a new one where it was given up."""
        if worker.socket.fileno() >= 0:
            return worker
        if self.strikes == STRIKES and len(self._sources) > 1:
            left_out = self._sources.pop(0)
            self.notes.append(f"{left_out.name} is not asked any more: {STRIKES} reads did not return")
        fresh = self._worker()
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def _worker(self) -> Worker:
        return Worker(self._make(), self._size)

    def _make(self) -> Iterator[BlockReader]:
        yield BlockReader(self._sources, self._flags, wanted=self._wanted, guards=self._guards)


def cut(ram: Ranges, size: int = BLOCK) -> Iterator[Span]:
    """Blocks of all of RAM, ascending: they begin and end at multiples of `size`, or where RAM does."""
    for span in ram:
        at = span.start
        while at < span.end:
            end = min(span.end, at // size * size + size)
            yield Span(at, end)
            at = end
