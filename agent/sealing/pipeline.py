"""The threads that seal: a fixed number of them, and of blocks, for all the objects of a run.

The unit of work is a block of 1 MiB: below that, handing it from thread to thread costs more than it gains. Threads
take whatever is ready (see `lanes.py`), the most downstream first. zstd, SHA-256 and ChaCha20-Poly1305 let go of the
interpreter's lock while they work. Who writes has a part in it: where there is no room for its block it does what is
ready for its object, and so as many threads are at work as there are `workers`, its own among them. A worker more takes
its place while it waits, for what it reads (see `attendance.py`) or for another thread.

Memory, in bytes, for `blocks` (2 for each worker and 2 more, if nobody says it) and the objects that are open at once:

    blocks  * (1 MiB of plaintext + its frame, at most 1 MiB + 4 KiB)
  + objects * (1 MiB that is being filled + 3 * 1 MiB of ciphertext + 64 KiB held back + 12 bytes a block so far)
  + (workers + 1) * zstd's state, about 1.3 MiB at level 1

With 2 workers and 3 objects open that is 12 + 12.2 + 3.9 MiB; a sink that keeps what it was given counts for itself.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from agent.sealing.age import CHUNK_SIZE, OUT_SIZE
from agent.sealing.attendance import Attendance
from agent.sealing.buffers import Block, Buffers
from agent.sealing.frames import FRAME_SIZE
from agent.sealing.governor import Governor
from agent.sealing.lanes import MAX_OUTS, STAGES, Lanes
from agent.sealing.seek_table import compress_bound

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

BLOCK_MEMORY = FRAME_SIZE + compress_bound(FRAME_SIZE)
"""Bytes of a block under way: its plaintext and the largest frame."""

OBJECT_MEMORY = FRAME_SIZE + MAX_OUTS * OUT_SIZE + CHUNK_SIZE
"""Bytes of an open object beside its blocks under way."""

COMPRESSOR_MEMORY = 1_400_000
"""Bytes of zstd's state at level 1, for each thread that compresses."""

OPEN_OBJECTS = 3
"""Objects of one run that are open at once: the item, the manifest, the custody log."""

_SMALL = CHUNK_SIZE
"""Up to this size a last block is sealed by who hands it over: waking another thread would take longer."""


class Pipeline:
    """Threads and buffers that any number of `Sealer`s share, from any number of threads.

    Without workers everything is done by who calls, before the call returns; after `close` as well. A sink must not
    write into a sealer of the same pipeline, and not end one.
    """

    def __init__(
        self, workers: int, governor: Governor | None = None, *, blocks: int | None = None, memory: int | None = None
    ) -> None:
        """`blocks` under way at once, or as many as fit into `memory` bytes (see above), but at least one."""
        if workers < 0:
            raise ValueError(f"a pipeline has no {workers} workers")
        if blocks is None:
            blocks = 2 * workers + 2 if memory is None else blocks_of(memory, workers)
        if blocks < 1:
            raise ValueError(f"a pipeline needs a block, not {blocks}")
        self.blocks = blocks
        self.buffers = Buffers(keep=blocks + OPEN_OBJECTS)
        self.governor = governor or Governor(None)
        self._lock = threading.RLock()  # which knows whose it is
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._ready: tuple[deque[Lanes], ...] = tuple(deque() for _ in STAGES)
        self._under_way = 0  # blocks
        self._attendance = Attendance()
        self._alive = workers
        self._idle = 0  # workers that wait for work
        self._waiting = 0  # callers that wait for progress
        self._closed = False
        self._threads: list[threading.Thread] = []
        for number in range(workers):
            thread = threading.Thread(target=self._serve, name=f"sealing-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """Threads of the pipeline; none when it is closed."""
        return len(self._threads)

    def close(self) -> None:
        """End the threads, after what is ready was done. What is still open is sealed by who calls."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

    # -- for `Sealer` -------------------------------------------------------------------------------------------------

    def submit(self, lanes: Lanes, block: Block) -> None:
        """Hand over a block of an object, as soon as there is room for it. Look at `lanes.failed` afterwards."""
        self.governor.pause()
        with self._lock:
            self._attendance.comes()
            self._enter(lanes, block)
            self._tell(lanes, taking=0 if self._alive else len(STAGES))
            while not self._alive and self._do_one_of(lanes):
                pass
            self._attendance.leaves()

    def finish(self, lanes: Lanes, block: Block | None) -> None:
        """Hand over what is left of an object, and wait until it is through. Look at `lanes.failed` afterwards."""
        self.governor.pause()
        with self._lock:
            small = True
            if block is not None:
                small = len(block.content) <= _SMALL
                self._enter(lanes, block)
            lanes.end_of_plaintext()
            self._tell(lanes, taking=len(STAGES) if small else 1)
            while not (lanes.finished or lanes.failed):
                self._help(lanes)

    def cancel(self, lanes: Lanes) -> None:
        """Begin nothing more for an object, wait until nothing runs for it, and take back its blocks."""
        with self._lock:
            self._fail(lanes, None)
            while lanes.running:
                self._wait()

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _enter(self, lanes: Lanes, block: Block) -> None:
        while self._under_way >= self.blocks and not lanes.failed:
            self._help(lanes)
        if lanes.failed:
            self.buffers.give_block(block)
        else:
            self._under_way += 1
            lanes.add(block)

    def _tell(self, lanes: Lanes, *, taking: int) -> None:
        """Note what became ready, and wake as many as find work. The thread that calls takes `taking` itself."""
        ready = self._ready
        for stage in lanes.ready():
            ready[stage].append(lanes)
        left = sum(map(len, ready)) - taking
        if left > 0 and not self._wake(left) and self._waiting:
            self._progress.notify_all()  # every worker is busy, perhaps in a sink that blocks

    def _wake(self, number: int) -> bool:
        """Wake so many workers, if as many are wanted. Says whether there was one to wake."""
        number = min(number, self._wanted() - (self._alive - self._idle))
        if number > 0:
            self._work.notify(number)
        return number > 0

    def _help(self, lanes: Lanes) -> None:
        """Do something for this object, or wait for progress, and let another thread work meanwhile."""
        if not (self._do_one_of(lanes) or (not self._alive and self._do_any())):
            self._wait()

    def _wait(self) -> None:
        self._waiting += 1
        self._wake(sum(map(len, self._ready)))
        try:
            self._progress.wait()
        finally:
            self._waiting -= 1

    def _do_one_of(self, lanes: Lanes) -> bool:
        """Do the next thing that is ready for this object, if there is one."""
        for stage, ready in enumerate(self._ready):
            if lanes in ready:
                ready.remove(lanes)
                self._do(lanes, stage)
                return True
        return False

    def _do_any(self) -> bool:
        """Do the next thing that is ready, if there is one."""
        stage = next((stage for stage in STAGES if self._ready[stage]), None)
        if stage is None:
            return False
        self._do(self._ready[stage].popleft(), stage)
        return True

    def _serve(self) -> None:
        """What a worker does all its life."""
        governor = self.governor
        with self._lock:
            while True:
                if self._alive - self._idle > self._wanted() or not self._do_any():
                    if self._closed:
                        self._alive -= 1
                        self._progress.notify_all()
                        return
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                if governor.limits:
                    self._lock.release()
                    governor.pause()
                    self._lock.acquire()

    def _wanted(self) -> int:
        """Workers that are to be at work: one fewer than there are, while the thread that writes is at work as well."""
        return self._alive - (0 if self._waiting or self._attendance.away else 1)

    def _do(self, lanes: Lanes, stage: int) -> None:
        """Do one thing. The lock is let go meanwhile."""
        lanes.running += 1
        error: BaseException | None = None
        try:
            work = lanes.begin(stage)
            try:
                self._lock.release()
                work()
            finally:
                # An interrupt may come before the lock is taken, or just after. Without it nothing may be changed.
                while True:
                    try:
                        if self._work._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
                            break
                        self._lock.acquire()
                    except BaseException as raised:  # noqa: BLE001 - noted, and raised where the object is written
                        error = raised
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is raised again where the object is written
            error = raised
        lanes.running -= 1
        freed = 0
        if error is not None or lanes.failed:
            self._fail(lanes, error)
            error = None  # a circle through its traceback
        else:
            freed = lanes.end(stage)
            self._under_way -= freed
            self._tell(lanes, taking=1)
        if self._waiting and (freed or lanes.failed or lanes.finished):
            self._progress.notify_all()

    def _fail(self, lanes: Lanes, error: BaseException | None) -> None:
        """Nothing more is begun for the object; when nothing runs for it any more, its blocks are free."""
        lanes.fail(error)
        for ready in self._ready:
            while lanes in ready:
                ready.remove(lanes)
        if not lanes.running:
            self._under_way -= lanes.release()


def blocks_of(memory: int, workers: int) -> int:
    """How many blocks fit into `memory` bytes beside what else a pipeline takes; at least one."""
    other = OPEN_OBJECTS * OBJECT_MEMORY + (workers + 1) * COMPRESSOR_MEMORY
    return max(1, (memory - other) // BLOCK_MEMORY)
