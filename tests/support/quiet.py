"""How long something takes on a machine that others use, too."""

from __future__ import annotations

import time
from collections.abc import Callable

_SPIN_S = 0.02


def slowdown() -> float:
    """How much longer than its processor time pure computing takes right now: 1 where nobody else computes."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < _SPIN_S:
        pass
    return max(1.0, (time.monotonic() - began) / (time.thread_time() - used))


def quickest(measure: Callable[[], float], limit: float, attempts: int) -> list[float]:
    """Seconds of each attempt, as they would be were nobody else there; ends at the first one below the limit."""
    found: list[float] = []
    while len(found) < attempts and (not found or found[-1] >= limit):
        before = slowdown()
        taken = measure()
        found.append(taken / max(before, slowdown()))
    return found
