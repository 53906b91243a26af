"""The slowest part, sent once more: when nothing else is left to send, one slow address must not hold up an object.

It is done only where the controller asks the bucket for the ETags before it completes (session, broker): the bytes are
the same either way, but with SSE-KMS the ETags are not, and whoever completes must name that of the last to arrive.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.stores.s3.senders import Outgoing
    from agent.stores.s3.wire import Ticket

SLOWER_THAN_MEDIAN = 3.0
AT_LEAST_S = 5.0
_REMEMBERED = 64


class Race:
    """Which parts are under way, since when, and how long parts usually take. For any number of threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[Outgoing, tuple[Ticket, float]] = {}
        self._second: dict[Outgoing, Ticket] = {}
        self._tried: set[Outgoing] = set()
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)
        self._changed = threading.Condition()

    def start(self, part: Outgoing, ticket: Ticket) -> None:
        """An attempt begins."""
        with self._changed:
            self._first[part] = ticket, self._clock()

    def stop(self, part: Outgoing, seconds: float = 0.0) -> None:
        """It ended; `seconds` where the part went through."""
        with self._changed:
            self._first.pop(part, None)
            if seconds and part.size:
                self._rates.append(seconds / part.size)

    def laggard(self) -> Outgoing | None:
        """A part that takes far longer than is usual for its size. Each is given once."""
        with self._changed:
            if len(self._rates) < 3:
                return None
            usual, now = statistics.median(self._rates), self._clock()
            for part, (_, since) in self._first.items():
                late = now - since > max(AT_LEAST_S, SLOWER_THAN_MEDIAN * usual * part.size)
                if late and part not in self._tried:
                    self._tried.add(part)
                    return part
            return None

    def enter(self, part: Outgoing, ticket: Ticket) -> str | None:
        """The second attempt may use the part's blocks from now on. Gives the first one's address; None: it is over."""
        with self._changed:
            if part not in self._first or part.etag:
                return None
            self._second[part] = ticket
            return self._first[part][0].address

    def leave(self, part: Outgoing, etag: str = "") -> None:
        """The second attempt is over, with an ETag where it was the faster one: then the first one is cut."""
        with self._changed:
            del self._second[part]
            first = self._first.get(part)
            if etag and not part.etag:
                part.etag = etag
                if first is not None:
                    first[0].cut()
            self._changed.notify_all()

    def end(self, part: Outgoing) -> None:
        """The part is decided: waits until no second attempt uses its blocks."""
        with self._changed:
            second = self._second.get(part)
            if second is not None:
                second.cancel()
                self._changed.wait_for(lambda: part not in self._second)
            self._tried.discard(part)
