"""Requests that are signed already, sent over persistent connections that are spread over an endpoint's addresses.

One exchange is one attempt. It ends by its deadline whatever the peer does, and at once when it is cancelled: a thread
watches them all, and cuts the connection. Nothing comes from the environment, there is no proxy, and no redirect is
followed. Answers are bounded and hostile.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from urllib3.exceptions import HTTPError

from agent.stores.s3.addresses import Address, Addresses
from agent.stores.s3.connection import CONNECT_S, Connection, Plain, Secure, tls_context

if TYPE_CHECKING:
    from agent.stores.s3.authority import SignedRequest
    from agent.stores.throttle import Throttle

MAX_ANSWER = 64 << 10
"""Bytes of the answer to a request that asks for none."""
STALL_S = 30.0
"""A block of 1 MiB that is not taken in this time, or no answer at all: the connection is given up."""
IDLE_S = 15.0
"""S3 closes connections that were idle for longer."""
MAX_NAMES = 8


class WireError(Exception):
    """An attempt that came to no answer. The message is the reason, for a person."""

    address = ""
    """The one that was tried, where it came to that."""

    def __init__(self, reason: str, *, late: bool = False, stale: bool = False, trust: bool = False) -> None:
        super().__init__(" ".join(reason[:300].split()))
        self.late = late
        """The deadline passed."""
        self.stale = stale
        """A connection that had been idle: it says nothing of the address."""
        self.trust = trust
        """The certificate is not trusted."""


class Answer(msgspec.Struct, frozen=True):
    """What a server answered. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    """Of the exchange, without what the throttle took."""
    address: str


class Ticket(msgspec.Struct, eq=False):
    """Whoever holds it can end an exchange. It may be used for one exchange after the other."""

    cancelled: threading.Event = msgspec.field(default_factory=threading.Event)
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    _connection: Connection | None = None
    deadline: float = 0.0
    paused: bool = False
    """While the throttle makes it wait the deadline does not come."""
    late: bool = False

    def cancel(self) -> None:
        """Ends the exchange that is under way, and every later one. For any thread; never raises."""
        self.cancelled.set()
        self.cut()

    def cut(self) -> None:
        """Ends the exchange that is under way, not a later one. For any thread; never raises."""
        with self._lock:
            if self._connection is not None:
                self._connection.cutter.cut()

    def expire(self) -> None:
        """The deadline has passed."""
        self.late = True
        self.cut()

    def attach(self, connection: Connection | None) -> None:
        with self._lock:
            self._connection = connection

    @property
    def address(self) -> str:
        """Where the exchange goes that is under way; "" for none."""
        with self._lock:
            return self._connection.address.host if self._connection is not None else ""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


class Wire:
    """Connections to the hosts that requests name. For any number of threads."""

    def __init__(self, ca_bundle: str = "", *, addresses: Callable[[str, int], Addresses] = Addresses) -> None:
        """`ca_bundle`: PEM text; "" for the certificates that come with botocore. Raises `ssl.SSLError`."""
        self._ca_bundle, self._addresses = ca_bundle, addresses
        self._context: ssl.SSLContext | None = tls_context(ca_bundle) if ca_bundle else None
        self._names: dict[tuple[str, int], Addresses] = {}
        self._idle: dict[tuple[str, str, int, str], list[Connection]] = {}
        self._lock = threading.Lock()
        self._watched: set[Ticket] = set()
        self._changed = threading.Condition(self._lock)
        self._watching = False
        self._closed = False
        # It would print URLs, which can hold a signature, when the headers of an answer are malformed.
        logging.getLogger("urllib3.connection").addFilter(_nothing)

    def exchange(
        self,
        request: SignedRequest,
        body: Sequence[memoryview] = (),
        *,
        seconds: float,
        ticket: Ticket | None = None,
        avoid: Collection[str] = (),
        throttle: Throttle | None = None,
        limit: int = MAX_ANSWER,
    ) -> Answer:
        """Sends one request, whose headers name the length of the body, and gives the answer whatever its status is.

        `seconds` is for all of it, less what the throttle takes. The body of an answer is cut after `limit` bytes.
        Raises `WireError`.
        """
        ticket = ticket or Ticket()
        ticket.late, ticket.deadline = False, time.monotonic() + seconds
        url = urlsplit(request.url)
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        names = self._name(host, port)
        try:
            address = names.choose(avoid)
        except OSError as error:
            raise WireError(str(error)) from error
        size = sum(len(block) for block in body)
        began, failed = time.monotonic(), True
        took = 0.0
        sender = _Sender(ticket, throttle)
        try:
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            headers = {"Host": url.netloc, "User-Agent": "impound", **request.headers}
            where = (url.scheme, host, port)
            answer = self._exchange(where, address, sender, request.method, target, headers, body, limit)
            took, failed = time.monotonic() - began - sender.waited, False
        except WireError as error:
            failed = not error.stale and not ticket.cancelled.is_set()
            error.address = address.host if failed else ""
            raise
        finally:
            names.done(address, size=size if took else 0, seconds=took, failed=failed)
        return answer

    def get(self, request: SignedRequest, *, limit: int, seconds: float) -> Answer:
        """Asks for at most `limit` bytes; a range is among the request's headers. Raises `WireError`."""
        return self.exchange(request, seconds=seconds, limit=limit)

    def hosts(self, url: str) -> list[str]:
        """The addresses that are known for the host of a URL."""
        parts = urlsplit(url)
        return self._name(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)).hosts

    def close(self) -> None:
        """Ends everything that is under way. Never raises."""
        with self._changed:
            self._closed = True
            watched = list(self._watched)
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
            self._changed.notify_all()
        for ticket in watched:
            ticket.cancel()
        for connection in idle:
            _end(connection)

    # -- one exchange -------------------------------------------------------------------------------------------------

    def _exchange(
        self,
        where: tuple[str, str, int],
        address: Address,
        sender: _Sender,
        method: str,
        target: str,
        headers: dict[str, str],
        body: Sequence[memoryview],
        limit: int,
    ) -> Answer:
        ticket = sender.ticket
        connection, used = self._connection(where, address)
        began, keep, connected = time.monotonic(), False, used
        try:
            ticket.attach(connection)
            self._watch(ticket)
            sender.check()
            connection.timeout = max(0.1, min(CONNECT_S, ticket.left))
            if connection.sock is None:
                connection.connect()
            connected = True
            broken: OSError | None = None
            try:
                connection.request(
                    method,
                    target,
                    body=sender.body(connection, body) if body else None,
                    headers=headers,
                    preload_content=False,
                    decode_content=False,
                )
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as error:
                # Who refuses a part may answer before it took it, and close: the answer is worth more than the error.
                broken = error
            answer, keep = self._answer(connection, ticket, broken, limit, began + sender.waited)
            # http.client takes headers that end in the middle for whole ones.
            sender.check_cut()
        except (OSError, HTTPError, http.client.HTTPException, ValueError) as error:
            raise _wire_error(error, ticket, used=used, connected=connected) from error
        finally:
            self._unwatch(ticket)
            ticket.attach(None)
            if keep and not ticket.late and not ticket.cancelled.is_set():
                self._keep(where, connection)
            else:
                _end(connection)
        return answer

    @staticmethod
    def _answer(
        connection: Connection, ticket: Ticket, broken: OSError | None, limit: int, began: float
    ) -> tuple[Answer, bool]:
        """The answer, and whether the connection can be used again."""
        connection.timeout = max(0.1, min(1.0, ticket.left) if broken else ticket.left)
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            if broken:
                raise broken from None
            raise
        try:
            data = response.read(limit)
            whole = response.length_remaining == 0
            if len(data) < limit and response.length_remaining:
                raise ConnectionError("the answer is cut short")
            found = {str(name).lower(): str(value) for name, value in response.headers.items()}
        finally:
            response.close()
        close = found.get("connection", "").lower() == "close" or response.version < 11
        answer = Answer(response.status, found, data, time.monotonic() - began, connection.address.host)
        return answer, whole and not close and broken is None

    # -- connections --------------------------------------------------------------------------------------------------

    def _name(self, host: str, port: int) -> Addresses:
        with self._lock:
            if (host, port) not in self._names:
                if len(self._names) >= MAX_NAMES:
                    del self._names[next(iter(self._names))]
                self._names[host, port] = self._addresses(host, port)
            return self._names[host, port]

    def _connection(self, where: tuple[str, str, int], address: Address) -> tuple[Connection, bool]:
        """A connection, and whether it was used before."""
        now = time.monotonic()
        while True:
            with self._lock:
                idle = self._idle.get((*where, address.host))
                connection = idle.pop() if idle else None
            if connection is None:
                break
            if now - connection.idle_since < IDLE_S and connection.is_connected:
                return connection, True
            _end(connection)
        scheme, host, port = where
        if scheme == "https":
            with self._lock:
                self._context = self._context or tls_context(self._ca_bundle)
            return Secure(address, host, port, self._context), False
        return Plain(address, port), False

    def _keep(self, where: tuple[str, str, int], connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if not self._closed:
                self._idle.setdefault((*where, connection.address.host), []).append(connection)
                return
        _end(connection)

    # -- the watch ----------------------------------------------------------------------------------------------------

    def _watch(self, ticket: Ticket) -> None:
        with self._changed:
            if self._closed:
                raise WireError("it was closed meanwhile")
            self._watched.add(ticket)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._look, daemon=True, name="s3-watch").start()
            self._changed.notify_all()

    def _unwatch(self, ticket: Ticket) -> None:
        with self._changed:
            self._watched.discard(ticket)

    def _look(self) -> None:
        """Cuts what is late. Ends when nothing was watched for a while."""
        with self._changed:
            idle = 0
            while self._watched or idle < IDLE_S:
                for ticket in [ticket for ticket in self._watched if ticket.left <= 0 and not ticket.paused]:
                    self._watched.discard(ticket)
                    ticket.expire()
                idle = 0 if self._watched else idle + 1
                if self._closed:
                    break
                # Deadlines move while the throttle makes senders wait, so they are looked at each second.
                self._changed.wait(max(0.01, min([1.0, *(ticket.left for ticket in self._watched)])))
            self._watching = False


class _Sender:
    """Gives a body away block by block, as far as deadline, throttle and ticket let it."""

    def __init__(self, ticket: Ticket, throttle: Throttle | None) -> None:
        self.ticket, self._throttle = ticket, throttle
        self.waited = 0.0

    def check(self) -> None:
        if self.ticket.cancelled.is_set():
            raise ConnectionAbortedError("it is no longer wanted")
        if self.ticket.late or self.ticket.left <= 0:
            raise TimeoutError("the deadline has passed")

    def check_cut(self) -> None:
        if self.ticket.late or self.ticket.cancelled.is_set():
            raise TimeoutError("it was cut")

    def body(self, connection: Connection, blocks: Sequence[memoryview]) -> Iterator[Any]:
        for block in blocks:
            piece = self._throttle.piece if self._throttle else len(block)
            for start in range(0, len(block), piece):
                some = block[start : start + piece]
                if self._throttle:
                    self._wait(self._throttle, len(some))
                self.check()
                if connection.sock is not None:
                    connection.sock.settimeout(max(0.1, min(STALL_S, self.ticket.left)))
                yield some

    def _wait(self, throttle: Throttle, size: int) -> None:
        self.ticket.paused = True
        waited = throttle.take(size, self.ticket.cancelled.wait)
        self.waited += waited
        self.ticket.deadline += waited
        self.ticket.paused = False


def _wire_error(error: Exception, ticket: Ticket, *, used: bool, connected: bool) -> WireError:
    if ticket.cancelled.is_set():
        return WireError("it was given up")
    if ticket.late or (connected and isinstance(error, TimeoutError)):
        return WireError("nothing more went through before the deadline", late=True)
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        reason = getattr(error, "verify_message", "") or str(error)
        return WireError(f"its certificate is not trusted: {reason}", trust=True)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return WireError(f"the connection failed: {reason}", stale=used)


def _end(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        connection.close()


def _nothing(_record: logging.LogRecord) -> bool:
    return False
