"""Threads that nobody has to wait for: a call to S3 that never ends holds one of them, and not the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

LOOK_S = 0.1


class Workers:
    """So many threads of the daemon kind."""

    def __init__(self, number: int, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended = False
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """`work` raises nothing."""
        self._queue.put(work)

    def end(self, is_due: Callable[[], bool]) -> bool:
        """Begins nothing more, and waits for what is under way until `is_due`. Whether all of it has ended."""
        self._ended = True
        for _ in self._threads:
            self._queue.put(None)
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            alive[0].join(LOOK_S)  # first: one that has nothing to do ends at once
            if is_due() and alive[0].is_alive():
                return False
        return True

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            if not self._ended:
                work()
