"""A stream of bytes in both directions that outlives the connections that carry it.

Each end keeps what the other has not yet said that it has, counts what came, and says so on every new connection: what
was lost on the way is sent again, and nothing twice. What talks over it sees two descriptors and never a break, only a
pause; where no connection comes back in time, it sees the end.

On a connection, frames of a kind (1 byte), a number (8 bytes) and a length (4 bytes, big-endian), and so many bytes:

    H   first: so much has come
    D   data, from this offset on
    A   so much has come: it need not be kept any longer
    F   the stream ends at this offset
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Callable

from agent.channel.framing import ChannelError

WINDOW = 8 << 20
"""Bytes that are kept until the other end has them."""
PIECE = 1 << 17
ACKNOWLEDGE = 1 << 20
"""After so many bytes, or when nothing more comes, the other end is told."""
BEAT_S = 10.0
"""After so long without another frame, a connection is shown to be alive."""
SILENCE_S = 45.0
"""A connection on which nothing comes for so long is given up, by the end that can make another."""
_HEADER = struct.Struct(">cQI")
_LOOK_S = 0.2


class _Connection:
    """Two descriptors, which are closed when both threads have left them."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = reads, writes
        self.over = False
        self.greeted = False
        self.spoke = time.monotonic()
        """When a frame was sent last."""
        self._users = 2
        self._lock = threading.Lock()

    def leave(self, on_last: Callable[[], object]) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            for fd in {self.reads, self.writes}:
                with contextlib.suppress(OSError):
                    os.close(fd)
            on_last()


class Lasting:
    """One end. `reads` and `writes` are descriptors for whoever talks: what it reads, and what it writes to."""

    def __init__(
        self,
        on_lost: Callable[[], object] = lambda: None,
        *,
        window: int = WINDOW,
        silence_s: float = 0.0,
        answers: bool = False,
    ) -> None:
        """`on_lost` is called, in a thread, when a connection has ended and the stream has not.

        `silence_s`: after so long without a byte a connection is given up; 0 for never. `answers`: says nothing on a
        connection before the other end has: what is said to one who is not attached yet may be lost.
        """
        self._on_lost, self._window, self._silence_s, self._answers = on_lost, window, silence_s, answers
        self.reads, self._to_app = os.pipe()
        os.set_blocking(self._to_app, False)
        self._app = threading.Lock()
        """Held while `_to_app` is used or closed, and never while anybody waits."""
        self._from_app, self.writes = os.pipe()
        self._state = threading.Condition()
        self._kept = bytearray()
        self._base = 0
        """Offset of the first byte that is kept: the other end has all before it."""
        self._ends_at: int | None = None
        self._sent = 0
        self._received = self._told = 0
        self._fin_sent = False
        self._came_to_end = False
        self._connection: _Connection | None = None
        self.given_up = False
        threading.Thread(target=self._feed, name="lasting-feed", daemon=True).start()

    # -- connections --------------------------------------------------------------------------------------------------

    def connect(self, reads: int, writes: int) -> None:
        """Goes on over two descriptors, which are closed when they are of no more use. The one before is given up."""
        connection = _Connection(reads, writes)
        os.set_blocking(writes, False)
        with self._state:
            if self._connection is not None:
                self._connection.over = True
            self._connection = connection
            self._fin_sent = False
            self._state.notify_all()
        for work in (self._send, self._receive):
            threading.Thread(target=work, args=(connection,), name=f"lasting{work.__name__}", daemon=True).start()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def wait_for_greeting(self, timeout_s: float) -> bool:
        """Whether the other end answered on the connection that was made last, before it ended."""
        deadline = time.monotonic() + timeout_s
        with self._state:
            connection = self._connection
            while connection is not None and not connection.greeted and not connection.over:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._state.wait(left)
            return connection is not None and connection.greeted

    @property
    def finished(self) -> bool:
        """Both directions have come to their end, and everything has arrived."""
        with self._state:
            return self._came_to_end and self._ends_at is not None and self._base == self._ends_at

    def give_up(self) -> None:
        """No connection will come any more: whoever reads sees the end."""
        with self._state:
            if self.given_up:
                return
            self.given_up = True
            if self._connection is not None:
                self._connection.over = True
            self._state.notify_all()
        self._end_app()

    def wait(self, timeout_s: float) -> bool:
        """Until everything that was written has arrived at the other end. Whether it has."""
        deadline = time.monotonic() + timeout_s
        with self._state:
            while not (self._ends_at is not None and self._base == self._ends_at) and not self.given_up:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._state.wait(left)
            return not self.given_up

    def _over(self, connection: _Connection) -> None:
        with self._state:
            connection.over = True
            self._state.notify_all()

        def gone() -> None:
            with self._state:
                last = self._connection is connection
                if last:
                    self._connection = None
                done = self.given_up or (
                    self._came_to_end and self._ends_at is not None and self._base == self._ends_at
                )
                self._state.notify_all()
            if last and not done:
                self._on_lost()

        connection.leave(gone)

    # -- from whoever talks to the other end --------------------------------------------------------------------------

    def _feed(self) -> None:
        """Takes what is written, as long as there is room to keep it."""
        while True:
            with self._state:
                while len(self._kept) >= self._window and not self.given_up:
                    self._state.wait()
                room = self._window - len(self._kept)
                if self.given_up:
                    room = self._window  # whoever writes is not held by what nobody will read
            try:
                data = os.read(self._from_app, min(room, PIECE))
            except OSError:
                data = b""
            with self._state:
                if not data:
                    self._ends_at = self._base + len(self._kept)
                    self._state.notify_all()
                    break
                if not self.given_up:
                    self._kept += data
                    self._state.notify_all()
        os.close(self._from_app)

    def _send(self, connection: _Connection) -> None:
        try:
            with self._state:
                while self._answers and not connection.greeted and not connection.over:
                    self._state.wait(1.0)
                greeting = _HEADER.pack(b"H", self._received, 0)
            self._write(connection, greeting)
            while (frame := self._next_frame(connection)) is not None:
                self._write(connection, frame)
        except OSError:
            pass  # it is over; what was not acknowledged is sent on the next one
        finally:
            self._over(connection)

    def _next_frame(self, connection: _Connection) -> bytes | None:
        """Waits for something to say; `None` when this connection is over."""
        with self._state:
            while True:
                if connection.over:
                    return None
                if connection.greeted:
                    if self._received - self._told >= ACKNOWLEDGE:
                        self._told = self._received
                        return _HEADER.pack(b"A", self._received, 0)
                    end = self._base + len(self._kept)
                    if self._sent < end:
                        begin = self._sent - self._base
                        data = bytes(memoryview(self._kept)[begin : begin + PIECE])
                        header = _HEADER.pack(b"D", self._sent, len(data))
                        self._sent += len(data)
                        return header + data
                    if self._told != self._received:
                        self._told = self._received
                        return _HEADER.pack(b"A", self._received, 0)
                    if self._ends_at is not None and not self._fin_sent:
                        self._fin_sent = True
                        return _HEADER.pack(b"F", self._ends_at, 0)
                    if time.monotonic() - connection.spoke >= BEAT_S:
                        return _HEADER.pack(b"A", self._received, 0)
                self._state.wait(min(1.0, BEAT_S))

    def _write(self, connection: _Connection, data: bytes) -> None:
        rest = memoryview(data)
        poll = select.poll()
        poll.register(connection.writes, select.POLLOUT)
        while rest:
            if connection.over:
                raise BrokenPipeError
            if not poll.poll(_LOOK_S * 1000):
                continue
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(connection.writes, rest) :]
        connection.spoke = time.monotonic()

    # -- from the other end to whoever talks --------------------------------------------------------------------------

    def _receive(self, connection: _Connection) -> None:
        try:
            self._greet(connection)
            while True:
                self._take(connection, *self._frame(connection))
        except (OSError, EOFError, ChannelError):
            pass  # it is over
        finally:
            self._over(connection)

    def _greet(self, connection: _Connection) -> None:
        kind, number, _ = self._frame(connection)
        with self._state:
            if kind != b"H" or not self._base <= number <= self._base + len(self._kept):
                raise ChannelError("the other end does not begin as it must")
            self._forget(number)
            self._sent = number
            connection.greeted = True
            self._state.notify_all()

    def _take(self, connection: _Connection, kind: bytes, number: int, length: int) -> None:
        match kind:
            case b"D":
                if length > PIECE or number != self._received:
                    raise ChannelError("the other end sends what does not follow")
                data = self._exactly(connection, length)
                self._deliver(data)
                with self._state:
                    self._received += length
                    self._state.notify_all()
            case b"A":
                with self._state:
                    if not self._base <= number <= self._sent:
                        raise ChannelError("the other end has what was never sent")
                    self._forget(number)
                    self._state.notify_all()
            case b"F":
                if number != self._received:
                    raise ChannelError("the other end stops before its end")
                self._end_app()
                with self._state:
                    self._came_to_end = True
                    self._state.notify_all()
            case _:
                raise ChannelError("the other end sends what is no frame")

    def _forget(self, number: int) -> None:
        del self._kept[: number - self._base]
        self._base = number

    def _deliver(self, data: bytes) -> None:
        """What nobody reads any more counts as delivered, too. Raises `EOFError` when the stream was given up."""
        rest = memoryview(data)
        while rest:
            try:
                with self._app:
                    if self._to_app < 0:
                        raise EOFError
                    rest = rest[os.write(self._to_app, rest) :]
            except BlockingIOError:
                self._wait_for_app()
            except OSError:
                return

    def _wait_for_app(self) -> None:
        poll = select.poll()
        with self._app:
            if self._to_app < 0:
                return
            poll.register(self._to_app, select.POLLOUT)
        poll.poll(_LOOK_S * 1000)

    def _end_app(self) -> None:
        with self._app:
            fd, self._to_app = self._to_app, -1
            if fd >= 0:
                os.close(fd)

    def _frame(self, connection: _Connection) -> tuple[bytes, int, int]:
        kind, number, length = _HEADER.unpack(self._exactly(connection, _HEADER.size))
        return kind, number, length

    def _exactly(self, connection: _Connection, size: int) -> bytes:
        """Raises `EOFError` where the connection ends, is over, or is silent for too long."""
        data = bytearray()
        poll = select.poll()
        poll.register(connection.reads, select.POLLIN)
        heard = time.monotonic()
        while len(data) < size:
            if connection.over:
                raise EOFError
            if not poll.poll(_LOOK_S * 1000):
                if self._silence_s and time.monotonic() - heard > self._silence_s:
                    raise EOFError
                continue
            piece = os.read(connection.reads, size - len(data))
            if not piece:
                raise EOFError
            data += piece
            heard = time.monotonic()
        return bytes(data)
