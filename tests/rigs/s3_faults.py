"""Faults that a test injects into a running fake, and the log of what it was asked.

server.faults.refuse(3, status=503, code="SlowDown", where="UploadPart", retry_after=1)
server.faults.cut(1, after_body=100_000, where="UploadPart")       # reset in the middle of a part
server.faults.cut(1, before_answer=True)                           # it is done, and nobody says so
server.faults.stall(5, 1, at="body", after_body=1 << 20, where=lambda asked: asked.query.get("partNumber") == "2")
assert [entry.status for entry in server.requests("UploadPart")] == [503, 503, 503, 200]
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_http import DroppedError, Request, Response

Moment = Literal["start", "body", "answer"]


@dataclass(slots=True)
class Asked:
    """One request, as faults choose by it and as the log keeps it. `status` is 0 until it is answered, -1 when cut."""

    operation: str
    method: str
    path: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    address: str
    peer: tuple[str, int]
    secure: bool
    principal: str = ""
    status: int = 0
    code: str = ""
    received: int = 0
    """Bytes of the body that came, as sent over the wire."""
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0


Where = Callable[[Asked], bool] | str
"""An operation's name, a key of S3, or what decides; "" is every request."""


@dataclass(slots=True, eq=False)
class Fault:
    """One fault; `left` counts down. Take it back with `Faults.remove`."""

    left: int
    where: Where
    refusal: S3Error | None = None
    retry_after: int | None = None
    early: bool = False
    cut_after: int | None = None
    cut_answer: bool = False
    cut_response: int | None = None
    stall_s: float = 0.0
    stall_at: Moment = "start"
    stall_after: int = 0
    hits: int = 0

    def fits(self, asked: Asked) -> bool:
        if callable(self.where):
            return self.where(asked)
        return self.where in {"", asked.operation, asked.key}


class Faults:
    """All faults of one server. Thread-safe; what is added works from the next request on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._stopped = threading.Event()

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def refuse(
        self,
        times: int = 1,
        *,
        status: int = 503,
        code: str = "SlowDown",
        message: str = "",
        where: Where = "",
        retry_after: int | None = None,
        early: bool = False,
    ) -> Fault:
        """Answers with an error after the body was read, or before it with `early`, and closes the connection then.

        Status 200 gives an error inside a success, as CompleteMultipartUpload may.
        """
        return self._add(
            Fault(
                times,
                where,
                refusal=S3Error(code, message or f"{code}, as a test asked for", status=status),
                retry_after=retry_after,
                early=early,
            )
        )

    def cut(
        self,
        times: int = 1,
        *,
        after_body: int | None = None,
        before_answer: bool = False,
        after_response: int | None = None,
        where: Where = "",
    ) -> Fault:
        """Resets the connection: after so many bytes of the body, or once all is done and before the answer.

        Or within the body of the answer.
        """
        if after_body is None and after_response is None and not before_answer:
            after_body = 0
        return self._add(
            Fault(times, where, cut_after=after_body, cut_answer=before_answer, cut_response=after_response)
        )

    def stall(
        self, seconds: float, times: int = 1, *, at: Moment = "start", after_body: int = 0, where: Where = ""
    ) -> Fault:
        """Does nothing for a while: before it reads the body, within it, or before the answer."""
        return self._add(Fault(times, where, stall_s=seconds, stall_at=at, stall_after=after_body))

    def remove(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def stop(self) -> None:
        """Ends every stall."""
        self._stopped.set()

    def _wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        if self._stopped.is_set():
            raise DroppedError

    def meet(self, asked: Asked, request: Request) -> list[Fault]:
        """What befalls this request. Acts on its start and its body at once; the rest is for `before_answer`."""
        with self._lock:
            met = [fault for fault in self._faults if fault.left > 0 and fault.fits(asked)]
            for fault in met:
                fault.left -= 1
                fault.hits += 1
        for fault in met:
            if fault.stall_s and fault.stall_at == "start":
                self._wait(fault.stall_s)
            if fault.stall_s and fault.stall_at == "body":
                request.body.stops.append((fault.stall_after, lambda fault=fault: self._wait(fault.stall_s)))  # type: ignore[misc]
            if fault.cut_after is not None:
                request.body.stops.append((fault.cut_after, _drop))
        request.body.stops.sort(key=lambda stop: stop[0])
        if request.body.whole:
            request.body.drain()
        return met

    def refusal(self, met: list[Fault], request: Request) -> Fault | None:
        """The one that answers in place of the server, after the body where it is not an early one."""
        for fault in met:
            if fault.refusal:
                if not fault.early:
                    request.body.drain()
                return fault
        return None

    def before_answer(self, met: list[Fault], response: Response) -> None:
        for fault in met:
            if fault.cut_response is not None:
                whole = [response.body] if isinstance(response.body, bytes) else response.body
                response.length = len(response.body) if isinstance(response.body, bytes) else response.length
                response.body = _first(whole, fault.cut_response)
            if fault.stall_s and fault.stall_at == "answer":
                self._wait(fault.stall_s)
        if any(fault.cut_answer for fault in met):
            raise DroppedError


def _drop() -> None:
    raise DroppedError


def _first(pieces: Iterable[bytes], left: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            raise DroppedError
