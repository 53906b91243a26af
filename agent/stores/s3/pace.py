"""How many parts are under way at once, and how long one may take.

S3 asks for less with 503 SlowDown; a thin link asks by letting parts come near their deadlines. Either way fewer are
sent at once, and more again as it goes well. What never changes is how much is tried: every part, until the store's
patience ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SLOWEST = 1_000_000
"""Bytes a second below which a part is late, 30 s aside."""
GRACE_S = 30.0
MAX_STRETCH = 8
START = 4
_CUT_EVERY_S = 1.0


def deadline_s(size: int, late: int = 0) -> float:
    """Seconds for the whole exchange of a part of `size` bytes that was late so many times before."""
    return (size / SLOWEST + GRACE_S) * min(MAX_STRETCH, 1 << min(late, 10))


class Pace:
    """A number of places that follows how it goes. For any number of threads."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = min(most, START)
        self._in_use = 0
        self._clock = clock
        self._cut = float("-inf")
        self._changed = threading.Condition()

    def enter(self, given_up: Callable[[], bool]) -> bool:
        """Waits for a place. False where `given_up` becomes true first; it is asked every quarter of a second."""
        with self._changed:
            while self._in_use >= self.limit:
                if given_up():
                    return False
                self._changed.wait(0.25)
            self._in_use += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._in_use -= 1
            self._changed.notify()

    def went(self, seconds: float, allowed: float) -> None:
        """A part went through in so much of the time that it was allowed."""
        with self._changed:
            if seconds > allowed / 2:
                self.limit = max(1, self.limit - 1)
            elif seconds < allowed / 4 and self.limit < self.most:
                self.limit += 1
                self._changed.notify()

    def slower(self) -> None:
        """S3 asks for less, or a part was late: half as many, not more often than each second."""
        with self._changed:
            now = self._clock()
            if now - self._cut >= _CUT_EVERY_S:
                self._cut, self.limit = now, max(1, self.limit // 2)
