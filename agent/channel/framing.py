"""JSON Lines over file descriptors: one message a line, and behind some of them bytes as they are.

Bounded on the way in, never blocking for ever on the way out.

What comes in is decoded strictly against one union of messages; whatever is no message ends the channel with a clear
word (`ChannelError`). What goes out is queued and written by a thread of its own: the other side may stop reading.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from agent.channel.messages import MAX_MESSAGE, Data
from agent.errors import UnreachableError

if TYPE_CHECKING:
    from agent.channel.messages import Message

M = TypeVar("M", bound="Message")

MAX_PLAIN = 256 << 10
"""Bytes of a message that carries neither a small object, nor a list of parts, nor a job."""
_LONG = (b'{"say":"put",', b'{"say":"complete",', b'{"say":"start",')
_CHUNK = 1 << 18
ROOM = MAX_MESSAGE
"""Bytes that may wait to be written; one larger message may wait alone."""
SPARE_ROOM = 1 << 20
"""Bytes that may wait before messages that nobody answers are dropped."""


class ChannelError(UnreachableError):
    """The channel is of no more use: what came is no message, or what is to go does not go."""


class SilentError(ChannelError):
    """Nothing came for too long."""


class Reader(Generic[M]):
    """Messages of one union from a descriptor. One thread reads. The descriptor stays the caller's."""

    def __init__(self, fd: int, decoder: msgspec.json.Decoder[M], who: str) -> None:
        """`who` sends: the name that errors give the other side."""
        self._fd, self._decoder, self._who = fd, decoder, who
        self._buffer = bytearray()
        self._scanned = 0
        self._deadline: float | None = None
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._wake_fd = -1
        self._on_wake: Callable[[], float | None] = lambda: None
        self.payload = b""
        """The bytes that came behind the last message."""

    def wake_by(self, fd: int, on_wake: Callable[[], float | None]) -> None:
        """A byte on `fd` (a pipe, not blocking) calls `on_wake` in the thread that reads.

        What it gives are the seconds that the message has left, where they are fewer than before.
        """
        self._wake_fd, self._on_wake = fd, on_wake
        self._poll.register(fd, select.POLLIN)

    def receive(self, silence_s: float | None = None) -> M | None:
        """The next message, `None` at the end. Raises `ChannelError`; `SilentError` when `silence_s` is over.

        The time is of the whole message: bytes that drip in earn no more of it.
        """
        self._deadline = None if silence_s is None else time.monotonic() + silence_s
        while (end := self._buffer.find(b"\n", self._scanned)) < 0:
            self._scanned = len(self._buffer)
            if self._scanned > self._limit():
                raise ChannelError(
                    f"the {self._who} sent a line of more than {self._scanned} bytes, which is no message"
                )
            data = self._read()
            if not data:
                if self._buffer:
                    raise ChannelError(f"the {self._who} ended in the middle of a message")
                return None
            self._buffer += data
        if end > self._limit():
            raise ChannelError(f"the {self._who} sent a line of {end} bytes, which is no message")
        line = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        try:
            message = self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ChannelError(f"the {self._who} sent what is no message: {str(error)[:200]}") from error
        self.payload = self._take(message.size) if isinstance(message, Data) else b""
        return message

    def _take(self, size: int) -> bytes:
        """The next `size` bytes, as they are."""
        while len(self._buffer) < size:
            data = self._read()
            if not data:
                raise ChannelError(f"the {self._who} ended in the middle of a message")
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _limit(self) -> int:
        return MAX_MESSAGE if self._buffer.startswith(_LONG) else MAX_PLAIN

    def _read(self) -> bytes:
        while True:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                what = "no whole message" if self._buffer else "nothing"
                raise SilentError(f"{what} came from the {self._who} for too long")
            ready = {fd for fd, _ in self._poll.poll(None if left is None else left * 1000 + 1)}
            if self._wake_fd in ready:
                with contextlib.suppress(OSError):
                    os.read(self._wake_fd, 64)
                if (left := self._on_wake()) is not None:
                    end = time.monotonic() + left
                    self._deadline = end if self._deadline is None else min(self._deadline, end)
            if self._fd in ready:
                try:
                    return os.read(self._fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise ChannelError(f"the {self._who} cannot be heard: {error.strerror}") from error


class Writer:
    """Messages to a descriptor, by any thread. The descriptor stays the caller's, and open until `close` has returned.

    A write that never returns holds a thread of the daemon kind, and nothing else.
    """

    def __init__(self, fd: int, who: str) -> None:
        """`who` is written to: the name that errors give the other side."""
        self._fd, self._who = fd, who
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._busy = False
        self._failed = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="channel-writer", daemon=True)
        self._thread.start()

    def post(self, message: Message, timeout_s: float, payload: bytes = b"") -> None:
        """Queues a message and what follows it, waiting for room. Raises `ChannelError`."""
        line = _encode(message) + payload
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._failed and self._size and self._size + len(line) > ROOM:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise ChannelError(f"the {self._who} does not read what it is sent")
            self._put(line)

    def offer(self, message: Message) -> bool:
        """Queues a message if there is room to spare. Never waits, never raises for a channel that has ended."""
        line = _encode(message)
        with self._changed:
            if self._failed or self._size + len(line) > SPARE_ROOM:
                return False
            self._put(line)
            return True

    def _put(self, line: bytes) -> None:
        if self._failed:
            raise ChannelError(self._failed)
        self._queue.append(line)
        self._size += len(line)
        self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything is written. Whether it is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (self._queue or self._busy) and not self._failed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return not self._failed

    def close(self, timeout_s: float = 0.0) -> None:
        """Writes what waits, as far as it goes in `timeout_s`, and takes no more."""
        self.flush(timeout_s)
        with self._changed:
            self._fail("the channel is closed")
        self._thread.join(1.0)

    def _fail(self, why: str) -> None:
        self._failed = self._failed or why
        self._queue.clear()
        self._size = 0
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._queue and not self._failed:
                    self._changed.wait()
                if self._failed:
                    return
                line = self._queue.popleft()
                self._busy = True
            try:
                self._write(line)
            except OSError as error:
                with self._changed:
                    self._busy = False
                    self._fail(f"the {self._who} cannot be reached any more: {error.strerror}")
                return
            with self._changed:
                self._size = max(0, self._size - len(line))

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest and not self._failed:  # after `close`, the descriptor may be somebody else's
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # whoever shares the descriptor made it so
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()


def _encode(message: Message) -> bytes:
    line = msgspec.json.encode(message)
    if len(line) > MAX_MESSAGE:
        raise ChannelError(f"a message of {len(line)} bytes is too large for the channel")
    return line + b"\n"
