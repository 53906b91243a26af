"""How long something takes on a machine that others use, too."""

from __future__ import annotations

import time
from collections.abc import Callable

_ROUNDS = 2_000_000
_QUIET_S = 0.065
"""What `_ROUNDS` take where the limits were set: CPython 3.11 on one core of a server of 2023, nobody else there."""


def slowdown() -> float:
    """How much longer computing takes right now than where the limits were set; 1 where it takes less.

    By the clock: a virtual machine whose host is busy counts the time that it did not get as processor time.
    """
    total, began = 0, time.monotonic()
    for number in range(_ROUNDS):
        total += number
    return max(1.0, (time.monotonic() - began) / _QUIET_S)


def quickest(measure: Callable[[], float], limit: float, attempts: int) -> list[float]:
    """Seconds of each attempt, as they would be on a quiet machine; ends at the first one below the limit."""
    found: list[float] = []
    while len(found) < attempts and (not found or found[-1] >= limit):
        before = slowdown()
        taken = measure()
        found.append(taken / max(before, slowdown()))
    return found
