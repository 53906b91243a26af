"""The responder's side of one run: answers what a host asks, as far as it may, and notes it before it acts.

    controller = Controller(job, run, client, ledger, minter=…, observe=…)
    told = controller.talk(from_host, to_host)

The controller believes nothing. What is no message, too much, or out of order ends the channel; what is not allowed is
refused and noted. It touches nothing outside the run's prefix, overwrites nothing, and completes an upload only where
the parts in the bucket are those that it was told of. When the channel breaks, completed objects stay, and the verdict
says partial.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agent.channel import messages as say
from agent.channel import watching
from agent.channel.framing import ChannelError, Reader, SilentError, Writer
from agent.channel.host import VERSION
from agent.custody.attempt import TOOL
from agent.delivery.grants import Bounds, Dictated, Grants, check_hello
from agent.delivery.notes import Arrived, Declined, Ended, Found, Greeted, Heading, Opened, Reported
from agent.delivery.pace import Pace
from agent.delivery.relaying import Relaying
from agent.delivery.service import Service, kind_of
from agent.delivery.told import Told, judge, receipt_of
from agent.delivery.workers import Workers
from agent.errors import AuthorityError, ImpoundError, StoreError, UsageError
from agent.job import S3
from agent.stores.relay import RELAY
from agent.stores.s3.place import parse_place

if TYPE_CHECKING:
    from agent import events
    from agent.delivery.ledger import Ledger
    from agent.delivery.session import Minter
    from agent.job import Job
    from agent.stores.base import Store

WORKERS = 8
"""Calls to S3 that are under way at once."""
WAITING = 16
"""Requests that may wait for them; then the host waits."""
ANSWER_S = 30.0
"""How long the host may leave answers unread."""
SILENCE_S = 180.0
FIRST_SILENCE_S = 600.0
STOP_S = 30.0
LAST_S = 30.0
"""From the result to the end of the channel."""
CALLS_S = 900.0
"""What is under way in S3 may take so long when the channel has ended, unless a signal ends it."""
HEAD_EVERY_S = 1.0
EVENTS_S = 200.0
MAX_RESULT = 64 << 10


class Controller:
    """One run, one channel, once."""

    def __init__(
        self,
        job: Job,
        run: str,
        client: Any,
        ledger: Ledger,
        *,
        minter: Minter | None = None,
        observe: Callable[[events.Event], None] = lambda _event: None,
        bounds: Bounds | None = None,
        silence_s: float = SILENCE_S,
        stop_s: float = STOP_S,
        delivered: Mapping[str, str] | None = None,
        relay: Callable[[str], Store] | None = None,
    ) -> None:
        """`client`: S3 for control calls, with the responder's right. `minter`: for authority session.

        `relay`: opens the store of a run, `CASE/HOST/RUN`, that the host's objects are put into as they come; then
        no other right is given. `delivered`: how the host was reached. `observe` gets the host's events: bounded, of
        the right types, and not escaped. Raises `UsageError`.
        """
        if relay is None and job.s3.authority not in {"session", "broker"}:
            raise UsageError("a controller gives a host the authority session or broker")
        if (job.s3.authority == "session") != (minter is not None):
            raise UsageError("authority session needs a role to mint sessions of (--role), and broker has none")
        self.run = job.earlier.run if job.earlier else run
        self._dictated = Dictated(
            self.run,
            job.case,
            job.earlier.attempt + 1 if job.earlier else 1,
            job.earlier.host if job.earlier else "",
        )
        self._job, self._client, self._ledger, self._minter = job, client, ledger, minter
        self._observe, self._bounds = observe, bounds or Bounds()
        self._silence_s, self._stop_s = silence_s, stop_s
        self._delivered = dict(delivered or {})
        self._relay = relay
        self._grants = Grants(ledger.state, self._bounds)
        self._service: Service | Relaying | None = None
        self._pace = Pace(self._bounds.messages_s, self._bounds.burst)
        self._events = Pace(EVENTS_S, 2 * EVENTS_S)
        self._room = threading.Semaphore(WAITING)
        self._refused = self._findings = 0
        self._head_noted = -HEAD_EVERY_S
        self._head: say.Head | None = None
        self._result: dict[str, Any] | None = None
        self._stop = ""
        self._stop_at = self._end_at = 0.0
        self._broken = ""
        self._writer: Writer
        self._workers: Workers
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def _authority(self) -> str:
        return "relay" if self._relay is not None else self._job.s3.authority

    def request_stop(self, signal: str) -> None:
        """Tells the host to end; asked again, ends the channel. May be called by a signal handler."""
        if self._stop:
            self._end_at = time.monotonic()
        self._stop = self._stop or signal
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def talk(self, from_host: int, to_host: int) -> Told:
        """Sends the job and answers until the channel ends. Raises `ImpoundError` where the ledger cannot be written.

        The descriptors stay the caller's; nothing is written to them any more when the program on the other side has
        ended.
        """
        job = self._job
        if self._relay is not None:  # where it is stored is none of the host's business
            job = msgspec.structs.replace(job, to=RELAY, s3=S3())
        document = msgspec.json.encode(job)
        digest = hashlib.sha256(document).hexdigest()
        attempt, authority = self._dictated.attempt, self._authority
        self._ledger.note(Opened(self.run, self._job.case, self._job.to, authority, attempt, TOOL, digest))
        if self._delivered:
            self._ledger.note(Arrived(self._delivered))
        reader = Reader(from_host, msgspec.json.Decoder(say.FromHost), "host")
        reader.wake_by(self._wake_read, self._tell_stop)
        self._writer = Writer(to_host, "host")
        self._workers = Workers(WORKERS, "controller")
        why = ""
        try:
            self._writer.post(say.Start(msgspec.Raw(document), run=self.run, delivered=self._delivered), ANSWER_S)
            why = self._hear(reader)
        except SilentError as error:
            why = self._in_time() or str(error)
        except (ChannelError, AuthorityError) as error:
            why = str(error)
            self._find(why)
        finally:
            if not self._end_workers():
                why = why or "a call to the bucket did not end in time"
            self._writer.close(1.0)
            if isinstance(self._service, Relaying):
                self._service.close()
        with self._ledger.lock:  # a call that is left behind may still come back
            return self._conclude(why)

    def _conclude(self, why: str) -> Told:
        """Notes the end, and gives what is known then."""
        state = self._ledger.state
        self._note_head(last=True)
        receipts = self._service.receipts if self._service else {}
        verdict, doubt = judge(
            state, self._result, self._broken or why, greeted=self._service is not None, receipts=receipts
        )
        if doubt and not why and self._service is not None and verdict != "refused":
            self._find(doubt)  # what a host says of itself is no finding
        self._ledger.note(Ended(verdict, doubt[:1000]))
        wake, self._wake_write = self._wake_write, -1  # a signal may come at any time
        os.close(wake)
        os.close(self._wake_read)
        return Told(
            verdict=verdict,
            why=doubt,
            run=self.run,
            case=self._job.case,
            host=state.host,
            attempt=self._dictated.attempt,
            signer=state.signer,
            tool=state.tool,
            location=str(self._service.place) if self._service else "",
            authority=self._authority,
            objects=dict(state.objects),
            unfinished=[(one.name, one.upload, len(one.parts)) for one in (*state.abandoned, *state.uploads.values())],
            custody=state.custody,
            custody_lines=state.custody_lines,
            heads=state.heads,
            result=self._result or {},
            findings=list(state.findings),
            found=self._findings,
            refused=self._refused,
            ledger=self._ledger.path,
            ledger_head=self._ledger.head,
            ledger_lines=self._ledger.lines,
            receipt_sha256=receipt_of(state),
        )

    def _end_workers(self) -> bool:
        """Waits for calls that are under way, but not beyond `stop_s` after a first signal, nor after a second one.

        Whether they have all ended.
        """
        began, stopped = time.monotonic(), self._stop_at

        def is_due() -> bool:
            nonlocal stopped
            moment = time.monotonic()
            if self._stop and not stopped:
                stopped = moment
            return (
                moment >= began + CALLS_S
                or bool(stopped and moment >= stopped + self._stop_s)
                or bool(self._stop and self._end_at and moment >= self._end_at)
            )

        return self._workers.end(is_due)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _hear(self, reader: Reader[Any]) -> str:
        """Until the channel ends. Why it ended otherwise than in order; "" where it did not."""
        while True:
            left = self._left()
            if left <= 0:
                return self._in_time()
            message = reader.receive(left)
            if message is None:
                return "" if self._result is not None else "the channel broke before the host had finished"
            if self._broken:
                return self._broken
            if (pause := self._pace.wait()) > 0:
                time.sleep(min(pause, 1.0))
            self._heard(message, reader)

    def _left(self) -> float:
        """Seconds that the host may be silent from now on."""
        moment = time.monotonic()
        left = self._silence_s if self._service else max(self._silence_s, FIRST_SILENCE_S)
        if self._stop_at:
            left = min(left, self._stop_at + self._stop_s - moment)
        if self._end_at:
            left = min(left, self._end_at - moment)
        return left

    def _in_time(self) -> str:
        """Why there is no time left; "" where the host had finished, or there is."""
        if self._result is not None or self._left() > 0:
            return ""
        return f"the host did not end in time after {self._stop}" if self._stop else "the host did not end"

    def _heard(self, message: Any, reader: Reader[Any]) -> None:
        match message:
            case say.Hello():
                self._greet(message)
            case say.Result():
                self._last_word(message)
            case _ if self._service is None:
                raise AuthorityError("the host asked before it said which run it is")
            case say.Head():
                self._heads(message)
            case say.Event():
                if self._events.take() and (event := watching.from_message(message)) is not None:
                    self._observe(event)
            case _ if self._result is not None and hasattr(message, "id"):
                self._refuse(message, AuthorityError("the run has ended"))
            case _ if isinstance(self._service, Relaying):
                self._relayed(message, reader.payload, self._service)
            case say.Data() | say.Whole() | say.Drop():
                raise AuthorityError("the host sends evidence over the channel, and was not asked to")
            case say.Sign():
                self._answer(message, self._service.sign)
            case say.Begin():
                self._later(message, self._service.begin)
            case say.Put():
                self._later(message, self._service.put)
            case say.Complete():
                self._later(message, self._service.complete)
            case say.Renew():
                self._later(message, self._service.renew)

    def _relayed(self, message: Any, payload: bytes, service: Relaying) -> None:
        """In the order in which it comes. What the host must wait for, it waits for here."""
        match message:
            case say.Data():
                if (broken := service.data(message, payload)) is not None:
                    self._writer.post(broken, ANSWER_S)
            case say.Drop():
                service.drop(message)
            case say.Begin():
                self._answer(message, service.begin)
            case say.Whole():
                self._answer(message, service.whole)
            case _:
                self._refuse(message, AuthorityError("this run goes over the channel, and nothing else is given"))

    def _greet(self, hello: say.Hello) -> None:
        if self._service is not None:
            raise AuthorityError("the host said twice which run it is")
        check_hello(hello, self._dictated, VERSION)
        self._ledger.note(Greeted(hello.host, hello.attempt, hello.signer, hello.tool))
        path = f"{self._job.case}/{hello.host}/{self.run}"
        if self._relay is not None:
            earlier = self._job.earlier
            known = {one.object: one.sha256 for one in earlier.whole} if earlier else {}
            if earlier:
                known |= {one.object: one.sha256 for one in (*earlier.listed, *earlier.strays)}
            self._service = Relaying(self._relay(path), self._ledger, self._grants, self._find, known)
            return
        place = parse_place(self._job.to).below(path)
        self._service = Service(
            self._client, place, self._job, self._ledger, self._grants, self._minter, self._find, self._bounds
        )

    def _last_word(self, message: say.Result) -> None:
        if self._result is not None:
            raise AuthorityError("the host gave two results")
        text = msgspec.json.encode(message.result)
        if len(text) > MAX_RESULT:
            raise AuthorityError(f"the host gave a result of {len(text)} bytes")
        result: dict[str, Any] = msgspec.json.decode(text)
        self._ledger.note(Reported(text.decode("utf-8")))
        self._result, self._end_at = result, time.monotonic() + LAST_S

    def _heads(self, head: say.Head) -> None:
        known = self._head
        if not re.fullmatch(r"[0-9a-f]{64}" if head.lines else "", head.custody):
            raise AuthorityError("the host tells a head of its custody log that is none")
        if known is not None and (
            head.lines < known.lines or (head.lines == known.lines and head.custody != known.custody)
        ):
            self._find(f"the custody log of the host went back from line {known.lines} to {head.lines}")
        self._head = head
        self._note_head()

    def _note_head(self, *, last: bool = False) -> None:
        """At most one a second; at the end, the last one."""
        moment, head, state = time.monotonic(), self._head, self._ledger.state
        if head is None or (head.custody == state.custody and head.lines == state.custody_lines):
            return
        if last or moment - self._head_noted >= HEAD_EVERY_S:
            self._head_noted = moment
            self._ledger.note(Heading(head.custody, head.lines, head.wall_ns), sync=last)

    # -- answering ----------------------------------------------------------------------------------------------------

    def _later(self, request: Any, serve: Callable[[Any], Any]) -> None:
        """Answers from another thread: what asks S3 takes its time, and heads and signatures do not wait for it."""
        while not self._room.acquire(timeout=1.0):
            if self._stop and not self._stop_at:
                self._tell_stop()  # the thread that would hear of it is this one
            if self._left() <= 0:
                return

        def work() -> None:
            try:
                if not self._broken:
                    self._answer(request, serve)
            except ImpoundError as error:
                self._broken = self._broken or str(error)
                self.request_wake()
            finally:
                self._room.release()

        self._workers.submit(work)

    def request_wake(self) -> None:
        """Makes the thread that hears look up."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    def _answer(self, request: Any, serve: Callable[[Any], Any]) -> None:
        try:
            answer = serve(request)
        except ChannelError:
            raise
        except StoreError as error:
            self._refuse(request, error)
            return
        self._writer.post(answer, ANSWER_S)

    def _refuse(self, request: Any, error: StoreError) -> None:
        with self._ledger.lock:
            self._refused += 1
            if self._refused <= self._bounds.findings:
                name = str(getattr(request, "name", ""))[:200]
                self._ledger.note(Declined(type(request).__name__.lower(), name, str(error)[:1000]), sync=False)
        if self._refused > self._bounds.refusals:
            raise AuthorityError(f"the host asked {self._refused} times for what it may not have")
        self._writer.post(say.Refused(request.id, kind_of(error), str(error)[:1000]), ANSWER_S)

    def _find(self, finding: str) -> None:
        """Notes that something is not as it should be; the same thing once."""
        with self._ledger.lock:
            self._findings += 1
            if self._findings <= self._bounds.findings and finding[:1000] not in self._ledger.state.findings:
                self._ledger.note(Found(finding[:1000]))

    def _tell_stop(self) -> float:
        """The seconds that the host has left."""
        if self._broken:
            raise ChannelError(self._broken)
        if self._stop and not self._stop_at:
            self._stop_at = time.monotonic()
            self._writer.post(say.Stop(self._stop), ANSWER_S)
        elif self._end_at and self._left() <= 0:
            raise SilentError(f"ended at once by {self._stop}")
        return self._left()
