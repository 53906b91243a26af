"""Whether the thread that writes is at work itself between two blocks, or waits for what it reads.

A thread more than there are cores costs (two cores, random data: 700 to 900 MB/s instead of 900 to 1,000): it is put
to sleep just where another waits for it. A thread fewer costs as well where the reader waits for a disk (a tar, read in
1.5 ms a block: 320 MB/s instead of 480). So the reader counts as one of the threads at work, unless it mostly waits.
"""

from __future__ import annotations

import threading
import time

_AWAY, _BACK = 0.3, 0.15
"""From which share of the time, spent waiting, the reader counts as away, and below which as back."""

_WEIGHT = 0.2
"""Of the newest block in the mean."""


class Attendance:
    """Told when the reader comes with a block and when it leaves for the next. One thread at a time is the reader."""

    __slots__ = ("_came", "_cpu", "_left", "_thread", "_waits", "away")

    def __init__(self) -> None:
        self.away = False
        self._waits = 0.0  # the mean share of the time between two blocks that it waited, outside of the pipeline
        self._thread = 0
        self._came = self._left = self._cpu = 0.0

    def comes(self) -> None:
        """The reader brings a block."""
        moment = time.monotonic()
        if self._thread == threading.get_ident() and moment > self._came:
            waited = (moment - self._left) - (time.thread_time() - self._cpu)
            self._waits += _WEIGHT * (waited / (moment - self._came) - self._waits)
            self.away = self._waits > (_BACK if self.away else _AWAY)
        self._came = moment

    def leaves(self) -> None:
        """The reader goes for the next block."""
        self._thread = threading.get_ident()
        self._left, self._cpu = time.monotonic(), time.thread_time()
