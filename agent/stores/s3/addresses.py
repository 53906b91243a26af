"""The addresses that an endpoint's name stands for, and which one the next part goes to.

S3 answers a name with a few of many addresses, other ones each time. Parts are spread over those that were seen in the
last minutes: the next one goes where the fewest are under way for how fast it was. What fails is left alone for a
while, what was slow is tried again after a minute.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection

import msgspec

RESOLVE_EVERY_S = 30.0
RESOLVE_AGAIN_S = 2.0
"""Not more often than this, whatever fails."""
SEEN_FOR_S = 180.0
MAX_ADDRESSES = 32
RESOLVE_TIMEOUT_S = 15.0
SPEED_FOR_S = 60.0
"""How long a measured speed is believed."""
MAX_PENALTY_S = 60.0


class Address(msgspec.Struct, eq=False):
    """One address of a name, and how it did."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    seen: float = 0.0
    began: deque[float] = msgspec.field(default_factory=deque)
    """When each of the requests that are under way was begun."""
    speed: float = 0.0
    """Bytes a second of one connection, smoothed; 0 where nothing is known."""
    measured: float = 0.0
    failures: int = 0
    """In a row."""
    shunned_until: float = 0.0

    @property
    def under_way(self) -> int:
        return len(self.began)

    @property
    def host(self) -> str:
        """As text."""
        return self.sockaddr[0]


Resolver = Callable[[str, int], list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]]


def resolve(host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
    """Families and socket addresses. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(int(family), sockaddr) for family, _, _, _, sockaddr in found if len(sockaddr) in {2, 4}]  # type: ignore[misc]


class Addresses:
    """What one name stands for. For any number of threads."""

    def __init__(
        self, host: str, port: int, *, resolver: Resolver = resolve, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host, self._port, self._resolver, self._clock = host, port, resolver, clock
        self._known: dict[str, Address] = {}
        self._lock = threading.Condition()
        self._asking = False
        self._asked = float("-inf")
        self._doubtful = False
        self._why = ""
        self._usual = 0.0  # seconds that a part takes

    def choose(self, avoid: Collection[str] = ()) -> Address:
        """The address for the next request, which counts as under way until `done`. Raises `OSError` if there is none.

        `avoid`: hosts that are taken only where there are no others.
        """
        with self._lock:
            self._refresh()
            if not self._known:
                self._lock.wait_for(lambda: bool(self._known) or not self._asking, RESOLVE_TIMEOUT_S)
            if not self._known:
                raise OSError(self._why or f"the name {self._host} cannot be looked up")
            now = self._clock()
            known = list(self._known.values())
            well = [one for one in known if one.shunned_until <= now] or [min(known, key=lambda one: one.shunned_until)]
            chosen = min([one for one in well if one.host not in avoid] or well, key=self._cost(known, now))
            chosen.began.append(now)
            return chosen

    def _cost(self, known: list[Address], now: float) -> Callable[[Address], tuple[float, float]]:
        fresh = {one.host: one.speed for one in known if one.speed and now - one.measured < SPEED_FOR_S}
        best = max(fresh.values(), default=1.0)

        def cost(one: Address) -> tuple[float, float]:
            # What is not known is taken for as fast as the best, else nobody would ever find out; but what has been
            # under way for much longer than is usual tells something already.
            waiting = (now - one.began[0]) / self._usual if one.began and self._usual else 0.0
            return (one.under_way + 1) * max(best / fresh.get(one.host, best), waiting), random.random()  # noqa: S311

        return cost

    def done(self, address: Address, *, size: int = 0, seconds: float = 0.0, failed: bool = False) -> None:
        """Tells how a request went. Where `size` is given, `seconds` says how fast it went."""
        with self._lock:
            now = self._clock()
            # The oldest: of one address they are all about as fast.
            address.began.popleft()
            if failed:
                address.failures += 1
                address.shunned_until = now + min(MAX_PENALTY_S, 2.0**address.failures)
                self._doubtful = True
                return
            address.failures, address.shunned_until = 0, 0.0
            if size and seconds > 0:
                old = address.speed if now - address.measured < SPEED_FOR_S else 0.0
                measured = size / seconds
                self._usual = 0.7 * self._usual + 0.3 * seconds if self._usual else seconds
                address.speed = 0.7 * old + 0.3 * measured if old else measured
                address.measured = now

    @property
    def hosts(self) -> list[str]:
        """The addresses that are known."""
        with self._lock:
            return list(self._known)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Asks for the name again where that is due: in the background, since nothing bounds how long it takes."""
        age = self._clock() - self._asked
        due = age > RESOLVE_EVERY_S or (age > RESOLVE_AGAIN_S and (self._doubtful or not self._known))
        if due and not self._asking:
            self._asking, self._asked, self._doubtful = True, self._clock(), False
            threading.Thread(target=self._ask, daemon=True, name="s3-resolve").start()

    def _ask(self) -> None:
        found, why = [], ""
        try:
            found = self._resolver(self._host, self._port)
        except (OSError, UnicodeError) as error:
            why = f"the name {self._host} cannot be looked up: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            now = self._clock()
            for family, sockaddr in found:
                known = self._known.setdefault(sockaddr[0], Address(family, sockaddr))
                known.seen = now
            if found:
                self._drop_old(now)
            self._asking, self._why = False, why
            self._lock.notify_all()

    def _drop_old(self, now: float) -> None:
        order = sorted(self._known.values(), key=lambda one: one.seen, reverse=True)
        for number, one in enumerate(order):
            if number >= MAX_ADDRESSES or now - one.seen > SEEN_FOR_S:
                with contextlib.suppress(KeyError):
                    del self._known[one.host]
