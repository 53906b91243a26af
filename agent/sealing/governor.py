"""A limit on the CPU time of the whole process, kept by sleeping.

Whoever is about to do a piece of work calls `pause` first; it returns at once while the process is within its limit,
and sleeps otherwise. Work is done in pieces of a few milliseconds, so a limit holds over about a second.
"""

from __future__ import annotations

import threading
import time

WINDOW_S = 1.0
"""Over how long the limit holds: what was used too much is slept off within it, or forgotten."""

_CREDIT_S = 0.1
"""How much of the time in which nothing was done may be made up for: a burst after a slow read stays short."""

_NAP_S = 0.25
"""The longest single sleep, after which is looked again."""


class Governor:
    """Keeps the CPU time of this process under a share of one core. Safe to call from any thread."""

    def __init__(self, max_cpu_percent: int | None) -> None:
        """`max_cpu_percent`: 100 is one core, 150 is one and a half; None is no limit."""
        if max_cpu_percent is not None and max_cpu_percent < 1:
            raise ValueError(f"the limit of CPU time is at least 1 percent, not {max_cpu_percent}")
        self._rate = max_cpu_percent / 100 if max_cpu_percent is not None else None
        self._lock = threading.Lock()
        self._moment = time.monotonic()
        self._used = time.process_time()
        self._debt = 0.0  # seconds of CPU beyond what the limit allowed so far; negative: left over

    @property
    def limits(self) -> bool:
        """Whether there is a limit at all."""
        return self._rate is not None

    def pause(self) -> None:
        """Sleep as long as the limit wants, at most `WINDOW_S`."""
        if self._rate is None:
            return
        until = time.monotonic() + WINDOW_S
        while (wait := self._due(self._rate)) > 0 and (left := until - time.monotonic()) > 0:
            time.sleep(min(wait, left, _NAP_S))

    def _due(self, rate: float) -> float:
        """Seconds until the process is within its limit again, were it to do nothing."""
        with self._lock:
            moment, used = time.monotonic(), time.process_time()
            debt = self._debt + (used - self._used) - rate * (moment - self._moment)
            self._moment, self._used = moment, used
            self._debt = min(max(debt, -rate * _CREDIT_S), rate * WINDOW_S)
            return self._debt / rate
