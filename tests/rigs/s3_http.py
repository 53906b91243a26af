"""A small HTTP/1.1 server in threads for fakes of AWS: bodies in steps of 1 MiB, several addresses, plain and TLS.

It knows nothing of S3. A handler gets a `Request`, reads its body or not, and gives a `Response`. Not fit for anything
but loopback: whoever connects is a test.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self, cast

STEP = 1 << 20
"""Bytes read from a body at a time."""
_SLOW_STEP = 1 << 14
_MAX_LINE = 1 << 16
_MAX_HEADERS = 200
IDLE_S = 120


class DroppedError(Exception):
    """The connection ends here, without a word."""


class BodyError(Exception):
    """The body is not what its headers announced."""


@dataclass(slots=True)
class Response:
    """What is answered. `length` is told where `body` is an iterator."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    length: int | None = None
    close: bool = False


class Body:
    """The body of one request, read once and in order.

    `stops` are offsets at which something happens: each is called when so many bytes have come.
    """

    def __init__(self, connection: Connection, headers: dict[str, str]) -> None:
        self._connection = connection
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = 0 if self._chunked else int(headers.get("content-length") or 0)
        self.length = None if self._chunked else self._left
        self.continues = headers.get("expect", "").lower() == "100-continue"
        self.received = 0
        self.whole = not self._chunked and not self._left
        self.stops: list[tuple[int, Callable[[], None]]] = []

    def pieces(self) -> Iterator[memoryview]:
        """The rest of the body; each piece is valid until the next one. Raises `DroppedError` where it ends early."""
        if self.whole:
            self._stop()
            return
        if self.continues:
            self._connection.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.continues = False
        self._stop()
        if not self._chunked:
            yield from self._exactly(self._left)
        else:
            while size := int(self._connection.line().partition(b";")[0], 16):
                yield from self._exactly(size)
                self._connection.line()
            while self._connection.line():
                pass
        self.whole = True

    def _exactly(self, left: int) -> Iterator[memoryview]:
        connection, view = self._connection, memoryview(self._connection.buffer)
        while left:
            size = min(left, _SLOW_STEP if connection.listener.rate else STEP)
            if self.stops:
                size = min(size, max(1, self.stops[0][0] - self.received))
            count = connection.reader.readinto(view[:size])
            if not count:
                raise DroppedError
            connection.listener.slow_down(count)
            self.received += count
            left -= count
            self._left = left
            yield view[:count]
            self._stop()

    def _stop(self) -> None:
        while self.stops and self.received >= self.stops[0][0]:
            self.stops.pop(0)[1]()

    def read(self, limit: int) -> bytes:
        """All of it. Raises `BodyError` beyond `limit` bytes."""
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > limit:
                raise BodyError(f"more than {limit} bytes")
        return bytes(found)

    def drain(self) -> None:
        for _ in self.pieces():
            pass


@dataclass(slots=True)
class Request:
    """One request. Header names are lower-case; a header that is repeated is joined with commas."""

    method: str
    target: str
    headers: dict[str, str]
    body: Body
    secure: bool
    tls_version: str
    """"1.2", "1.3", or "" without TLS."""
    address: str
    """The address that the client connected to."""
    peer: tuple[str, int]

    @property
    def path(self) -> str:
        """As sent, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


Handler = Callable[[Request], Response]


class Listener:
    """One address. `rate` in bytes a second bounds what all its connections together take in; 0 is unbounded."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext | None) -> None:
        self.address, self.context = address, context
        self.rate = 0.0
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind((address, port))
            self.socket.listen(256)
        except OSError:
            self.socket.close()
            raise
        self.port = int(self.socket.getsockname()[1])

    def slow_down(self, count: int) -> None:
        rate = self.rate
        if not rate:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(min(wait, IDLE_S))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Connection:
    """One client, one thread."""

    def __init__(self, server: Server, listener: Listener, plain: socket.socket) -> None:
        self.server, self.listener, self.socket = server, listener, plain
        self.buffer = bytearray(0)
        self.reader: io.BufferedReader = io.BufferedReader(cast("io.RawIOBase", io.BytesIO()))

    def line(self) -> bytes:
        line = self.reader.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise DroppedError
        return line.rstrip(b"\r\n")

    def run(self) -> None:
        try:
            self.socket.settimeout(IDLE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.listener.context:
                self.socket = self.listener.context.wrap_socket(self.socket, server_side=True)
                self.server.replaced(self)
            self.reader = cast("io.BufferedReader", self.socket.makefile("rb", 1 << 16))
            self.buffer = bytearray(STEP)
            while self._one():
                pass
        except DroppedError:
            # A reset, not an orderly end: the client must not take what it got for an answer.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError):
            pass  # the client is gone, or the server stops
        finally:
            with contextlib.suppress(OSError, ValueError):
                self.reader.close()
            with contextlib.suppress(OSError):
                self.socket.close()
            self.server.forget(self)

    def _one(self) -> bool:
        first = self.reader.readline(_MAX_LINE)
        if not first:
            return False
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while line := self.line():
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]},{value}" if name in headers else value
            if len(headers) > _MAX_HEADERS:
                raise DroppedError
        body = Body(self, headers)
        version = self.socket.version() if isinstance(self.socket, ssl.SSLSocket) else None
        peer = self.socket.getpeername()
        request = Request(
            method,
            target,
            headers,
            body,
            secure=version is not None,
            tls_version=(version or "").removeprefix("TLSv"),
            address=self.listener.address,
            peer=(str(peer[0]), int(peer[1])),
        )
        response = self.server.answer(request)
        close = response.close or headers.get("connection", "").lower() == "close"
        if body.continues and not body.whole:
            close = True  # the client has not sent the body, and is not to
        elif not body.whole and not response.close:
            body.drain()
        self._send(method, response, close=close)
        return not close

    def _send(self, method: str, response: Response, *, close: bool) -> None:
        reason = HTTPStatus(response.status).phrase
        headers = {"Connection": "close" if close else "keep-alive", **response.headers}
        length = len(response.body) if isinstance(response.body, bytes) else response.length or 0
        if response.status not in {204, 304}:
            headers.setdefault("Content-Length", str(length))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {response.status} {reason}\r\n{head}\r\n".encode("latin-1")
        if isinstance(response.body, bytes):
            self.socket.sendall(start if method == "HEAD" else start + response.body)
            return
        self.socket.sendall(start)
        if method != "HEAD":
            for piece in response.body:
                self.socket.sendall(piece)


class Server:
    """Listens on every address at one port, each with TLS where there is a `context`. A context manager.

    `bugs` are exceptions that the handler should not have raised; they are raised at the end.
    """

    def __init__(
        self, handler: Handler, addresses: tuple[str, ...] = ("127.0.0.1",), context: ssl.SSLContext | None = None
    ) -> None:
        self._handler, self._addresses, self._context = handler, addresses, context
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._accepting: list[threading.Thread] = []
        self._stopping = False
        self.listeners: list[Listener] = []
        self.bugs: list[Exception] = []

    @property
    def port(self) -> int:
        return self.listeners[0].port

    def __enter__(self) -> Self:
        for attempt in range(20):
            try:
                self.listeners.append(Listener(self._addresses[0], 0, self._context))
                for address in self._addresses[1:]:
                    self.listeners.append(Listener(address, self.port, self._context))
                break
            except OSError:
                # The port was free on the first address and not on another.
                for listener in self.listeners:
                    listener.close()
                self.listeners.clear()
                if attempt == 19:
                    raise
        for listener in self.listeners:
            thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            self._accepting.append(thread)
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if self.bugs and kind is None:
            raise self.bugs[0]

    def stop(self) -> None:
        self._stopping = True
        for listener in self.listeners:
            listener.close()
        for thread in self._accepting:
            thread.join(10)
        self.drop_connections()
        with self._lock:
            threads = list(self._connections.values())
        for thread in threads:
            thread.join(10)

    def drop_connections(self) -> None:
        """Cuts every connection that there is now."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    # Of the socket below TLS: an orderly end would wait for the other side.
                    socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._connections)

    def _accept(self, listener: Listener) -> None:
        while not self._stopping:
            try:
                accepted, _ = listener.socket.accept()
            except OSError:
                return
            connection = Connection(self, listener, accepted)
            thread = threading.Thread(target=connection.run, daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def replaced(self, connection: Connection) -> None:
        """A connection has its TLS socket now; one that came while the server stopped is ended here."""
        if self._stopping:
            connection.socket.close()

    def forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)

    def answer(self, request: Request) -> Response:
        try:
            return self._handler(request)
        except (DroppedError, OSError):
            raise
        except Exception as error:
            self.bugs.append(error)
            raise DroppedError from error
