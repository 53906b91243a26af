"""The threads that send parts, and what they do when it does not go through.

A part is hashed, signed, sent, and sent again until the bucket has it, its upload is dropped, or the store's patience
ends: nothing at all went through for that long. Threads are started as they are needed and are daemons, since nobody
waits for a server that does not answer.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from agent.errors import StoreError, UnreachableError
from agent.stores.base import Part
from agent.stores.s3.authority import Renewing
from agent.stores.s3.hedge import Race
from agent.stores.s3.pace import Pace, deadline_s
from agent.stores.s3.retry import TRIES, Meaning, Verdict, judge_part, pause
from agent.stores.s3.wire import Answer, Ticket, Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.stores.s3.authority import Authority
    from agent.stores.throttle import Throttle

MAX_SENDERS = 16
PATIENCE_S = 600.0
HURRY_S = 15.0
"""The patience of a run that was told to stop."""
_LOOK_EVERY_S = 1.0
_TOO_LONG = 4
"""A part that does not go through while others do is given up after so many times the patience."""

T = TypeVar("T")


class Origin(Protocol):
    """The upload that a part belongs to."""

    name: str
    upload_id: str
    gone: threading.Event
    """It is dropped: none of its parts is wanted any more."""

    def attach(self, ticket: Ticket) -> None: ...

    def detach(self, ticket: Ticket) -> None: ...

    def over(self, part: Outgoing, error: BaseException | None = None) -> None:
        """The part has its ETag, or will never have one. Its blocks are no longer used."""


class Outgoing(msgspec.Struct, eq=False):
    """One part on its way."""

    origin: Origin
    number: int
    size: int
    blocks: list[bytearray]
    sha256: bytes = b""
    etag: str = ""

    def views(self) -> list[memoryview]:
        left = self.size
        found = []
        for block in self.blocks:
            found.append(memoryview(block)[: min(left, len(block))])
            left -= len(found[-1])
        return found


class _Trying(msgspec.Struct):
    """How it went with one part so far."""

    since: float = msgspec.field(default_factory=time.monotonic)
    attempts: int = 0
    late: int = 0
    met: Counter[Meaning] = msgspec.field(default_factory=Counter)
    bad: set[str] = msgspec.field(default_factory=set)
    """Addresses that other bytes than these came to, or that took too long."""


class Senders:
    """At most `most` threads for all the uploads of a store."""

    def __init__(
        self,
        wire: Wire,
        authority: Authority,
        *,
        most: int,
        throttle: Throttle | None = None,
        patience: float = PATIENCE_S,
        hurry: Callable[[], bool] | None = None,
        region: str = "",
    ) -> None:
        """`hurry`: whether the run was told to stop."""
        self.pace = Pace(most)
        self._wire, self._authority, self._throttle, self._region = wire, authority, throttle, region
        self._patience, self._hurry = patience, hurry
        self._queue: deque[Outgoing] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._went = float("-inf")
        self._race = Race()
        self._hedges = authority.kind != "ambient"

    def send(self, part: Outgoing) -> None:
        with self._changed:
            if self._closed:
                raise StoreError(f"{part.origin.name} was given up")
            self._queue.append(part)
            if self._idle < len(self._queue) and len(self._threads) < self.pace.most:
                thread = threading.Thread(target=self._work, daemon=True, name=f"s3-send-{len(self._threads)}")
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()  # also those that will have nothing to do: one of them looks for laggards

    def drop(self, origin: Origin) -> None:
        """Forgets the parts of an upload that nobody has begun to send."""
        with self._changed:
            dropped = [part for part in self._queue if part.origin is origin]
            self._queue = deque(part for part in self._queue if part.origin is not origin)
        for part in dropped:
            origin.over(part)

    def persist(self, call: Callable[[], T], gone: threading.Event, what: str) -> T:
        """Calls until it does not raise `UnreachableError`, as long as the store is patient."""
        since, attempts = time.monotonic(), 0
        while True:
            try:
                found = call()
            except UnreachableError as error:
                attempts += 1
                if self._tired(since):
                    raise
                self._rest(pause(attempts), since, gone)
                if gone.is_set() or self._closed:
                    raise StoreError(f"{what} was given up") from error
            else:
                self._went = time.monotonic()
                return found

    def close(self) -> None:
        """Ends the threads; what is under way is for the wire to end. Never raises."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Waits for the threads to end, but not long."""
        patience = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, patience - time.monotonic()))

    # -- a thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._next()) is not None:
            part, again = task
            if again:
                self._hedge(part)
            else:
                error: BaseException | None = None
                try:
                    self._deliver(part)
                except BaseException as raised:  # noqa: BLE001 - raised again where the object is written
                    error = raised
                self._race.end(part)
                part.origin.over(part, None if part.etag else error)
                del error
            del part, task  # else they would be kept until the next part comes

    def _next(self) -> tuple[Outgoing, bool] | None:
        """The next part, or one that is under way and should be sent once more."""
        with self._changed:
            self._idle += 1
            try:
                while not self._queue and not self._closed:
                    self._changed.wait(_LOOK_EVERY_S if self._hedges and self._busy else None)
                    if not self._queue and self._hedges and (late := self._race.laggard()) is not None:
                        return late, True
            finally:
                self._idle -= 1
            return (self._queue.popleft(), False) if self._queue else None

    def _hedge(self, part: Outgoing) -> None:
        """Sends a part once more over another address. What comes of it is nothing, or that it is the faster one."""
        ticket, etag = Ticket(), ""
        try:
            request = self._authority.sign(
                part.origin.name, part.origin.upload_id, part.number, Part(part.size, part.sha256)
            )
        except StoreError:
            return  # the first attempt will meet that as well
        slow = self._race.enter(part, ticket)
        if slow is None:
            return
        part.origin.attach(ticket)
        try:
            answer = self._wire.exchange(
                request,
                part.views(),
                seconds=deadline_s(part.size),
                ticket=ticket,
                avoid={slow},
                throttle=self._throttle,
            )
            verdict = judge_part(answer.status, answer.headers, answer.body, what="", sha256=part.sha256)
            etag = verdict.etag if verdict.meaning is Meaning.DONE else ""
        except WireError:
            pass  # then the first attempt goes on alone
        finally:
            part.origin.detach(ticket)
            self._race.leave(part, etag)

    def _deliver(self, part: Outgoing) -> None:
        origin, trying = part.origin, _Trying()
        body = part.views()
        if not origin.gone.is_set():
            digest = hashlib.sha256()
            for view in body:
                digest.update(view)
            part.sha256 = digest.digest()
        while not (part.etag or origin.gone.is_set() or self._closed):
            if not self.pace.enter(lambda: origin.gone.is_set() or self._closed):
                return
            try:
                verdict = self._attempt(part, body, trying)
            finally:
                self.pace.leave()
            if verdict.meaning is Meaning.DONE:
                part.etag = verdict.etag
                self._went = time.monotonic()
                return
            if origin.gone.is_set() or part.etag:
                return
            self._consider(part, verdict, trying)

    def _consider(self, part: Outgoing, verdict: Verdict, trying: _Trying) -> None:
        """Waits until the next attempt is due. Raises `StoreError` where there is to be none."""
        trying.attempts += 1
        trying.met[verdict.meaning] += 1
        error = verdict.error or StoreError(f"part {part.number} of {part.origin.name} could not be stored")
        if trying.met[verdict.meaning] >= TRIES.get(verdict.meaning, 1 << 62):
            raise error
        if self._tired(trying.since):
            raise UnreachableError(str(error)) from error
        if verdict.meaning is Meaning.SLOWER:
            self.pace.slower()
        if verdict.meaning is Meaning.RENEW and trying.met[verdict.meaning] == 1:
            return
        self._rest(pause(trying.attempts, verdict.retry_after), trying.since, part.origin.gone)

    def _attempt(self, part: Outgoing, body: list[memoryview], trying: _Trying) -> Verdict:
        origin = part.origin
        what = f"part {part.number} of {origin.name} could not be stored"
        ticket = Ticket(origin.gone)
        allowed = deadline_s(part.size, trying.late)
        try:
            request = self._authority.sign(origin.name, origin.upload_id, part.number, Part(part.size, part.sha256))
        except UnreachableError as error:
            return Verdict(Meaning.AGAIN, error)
        origin.attach(ticket)
        self._race.start(part, ticket)
        took = 0.0
        try:
            answer = self._wire.exchange(
                request, body, seconds=allowed, ticket=ticket, avoid=trying.bad, throttle=self._throttle
            )
            took = answer.seconds if answer.status == 200 else 0.0
        except WireError as error:
            return self._failed(error, what, trying)
        finally:
            self._race.stop(part, took)
            origin.detach(ticket)
        return self._judged(answer, part, what, request, trying, allowed)

    def _judged(
        self, answer: Answer, part: Outgoing, what: str, request: object, trying: _Trying, allowed: float
    ) -> Verdict:
        verdict = judge_part(
            answer.status, answer.headers, answer.body, what=what, sha256=part.sha256, region=self._region
        )
        if verdict.meaning is Meaning.DONE:
            self.pace.went(answer.seconds, allowed)
        elif verdict.meaning is Meaning.DIGEST:
            trying.bad.add(answer.address)
        elif verdict.meaning is Meaning.RENEW and isinstance(self._authority, Renewing):
            self._authority.expired(request)  # type: ignore[arg-type]
        return verdict

    def _failed(self, error: WireError, what: str, trying: _Trying) -> Verdict:
        if error.late:
            trying.late += 1
            self.pace.slower()
        if error.address:
            trying.bad = {error.address}
        return Verdict(Meaning.AGAIN, UnreachableError(f"{what}: {error}"))

    def _rest(self, seconds: float, since: float, gone: threading.Event) -> None:
        """Waits, but not on when there is no more reason to."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._closed and not self._tired(since):
            if gone.wait(min(left, 1.0)):
                return

    @property
    def _busy(self) -> bool:
        """Whether others are at work, so that there may be something to help with."""
        return self._idle < len(self._threads)

    def _tired(self, since: float) -> bool:
        """Whether it is time to give up what was begun at `since`."""
        now = time.monotonic()
        patience = min(self._patience, HURRY_S) if self._hurry is not None and self._hurry() else self._patience
        return now - max(since, self._went) > patience or now - since > _TOO_LONG * patience
