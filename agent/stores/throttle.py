"""`--max-mbit`: how much may leave the machine a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25
"""What was not used of the last quarter of a second may be made up for, and no more."""

_LARGEST, _SMALLEST = 1 << 20, 16 << 10


class Throttle:
    """A token bucket that any number of threads share, in the order in which they ask."""

    def __init__(self, max_mbit: float) -> None:
        """`max_mbit`: 10^6 bits a second."""
        if not max_mbit > 0:
            raise ValueError(f"{max_mbit} Mbit/s is no limit")
        self.rate = max_mbit * 1e6 / 8
        """Bytes a second."""
        self.piece = int(min(_LARGEST, max(_SMALLEST, self.rate * BURST_S)))
        """Bytes to ask for at once, so that nobody sleeps long."""
        self._lock = threading.Lock()
        self._paid_until = time.monotonic()

    def take(self, size: int, sleep: Callable[[float], object] = time.sleep) -> float:
        """Sleeps until `size` bytes may go; gives the seconds that took. A `sleep` that ends early ends the wait."""
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - BURST_S) + size / self.rate
            wait = self._paid_until - now
        if wait <= 0:
            return 0.0
        sleep(wait)
        return time.monotonic() - now
