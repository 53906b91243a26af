"""The host's end of a control channel: asks the controller, and tells it what happens.

    end = HostEnd.standard()                    standard input and output of the process become the channel
    start = end.start()                         the job
    end.listen(on_stop=stop)                    from here on answers are heard
    end.hello(run=…, …)                         the first word
    end.begin / sign / put / complete / renew   requests: by any thread, each waits for its answer
    end.head / observe / result                 told and not answered; never waits for a controller that stopped reading
    end.close()

A request that is not answered in time, or whose controller has gone, raises `UnreachableError`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from agent import __version__
from agent.channel import watching
from agent.channel.framing import ChannelError, Reader, SilentError, Writer
from agent.channel.messages import (
    MAX_SMALL_OBJECT,
    Begin,
    Begun,
    Broken,
    Complete,
    Credentials,
    Data,
    Done,
    Drop,
    FromController,
    Head,
    Hello,
    PartSum,
    Put,
    Refused,
    Renew,
    Renewed,
    Result,
    Sign,
    Signed,
    Start,
    Stop,
    Whole,
)
from agent.errors import (
    AuthorityError,
    ObjectExistsError,
    StoreError,
    StoreFullError,
    UnreachableError,
    UsageError,
)

if TYPE_CHECKING:
    from agent.events import Event

VERSION = 1
START_S = 60.0
DEADLINE_S = 120.0
COMPLETE_DEADLINE_S = 900.0
"""S3 may take minutes to put ten thousand parts together."""
LAST_WORDS_S = 10.0
HEAD_EVERY_S = 1.0

A = TypeVar("A", Begun, Signed, Renewed, Done)

_KINDS: dict[str, type[StoreError]] = {
    "exists": ObjectExistsError,
    "authority": AuthorityError,
    "unreachable": UnreachableError,
    "full": StoreFullError,
}


class _Waiting:
    """A request on its way."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: Begun | Signed | Renewed | Done | Refused | None = None


class HostEnd:
    """One channel. `read_fd` and `write_fd` stay the caller's."""

    def __init__(
        self, read_fd: int, write_fd: int, *, deadline_s: float = DEADLINE_S, complete_s: float = COMPLETE_DEADLINE_S
    ) -> None:
        """How long a request waits for its answer, and how long `complete` does."""
        self._deadline_s, self._complete_s = deadline_s, complete_s
        self._reader: Reader[Any] = Reader(read_fd, msgspec.json.Decoder(FromController), "controller")
        self._writer = Writer(write_fd, "controller")
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._last = 0
        self._lost = ""
        self._closing = threading.Event()
        self._listener: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._look: Callable[[], tuple[str, int]] | None = None
        self._broken: dict[str, StoreError] = {}
        self._on_stop: Callable[[str], object] = lambda _signal: None
        self._on_lost: Callable[[str], object] | None = None

    def __repr__(self) -> str:
        return f"<HostEnd{' lost' if self._lost else ''}>"

    @property
    def lost(self) -> str:
        """Why nothing can be asked any more; "" while something can. It does not come back."""
        return self._lost

    @classmethod
    def standard(cls) -> Self:
        """The channel over standard input and output, which nothing else can use from here on.

        Descriptor 0 becomes an empty pipe, and 1 the same as standard error: what a library prints by accident is no
        message. The channel's own descriptors are not inherited.
        """
        read_fd, write_fd = os.dup(0), os.dup(1)  # not inherited (PEP 446)
        empty, other = os.pipe()
        os.close(other)
        os.dup2(empty, 0)
        os.close(empty)
        os.dup2(2, 1)
        return cls(read_fd, write_fd)

    # -- the order of a run -------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = START_S) -> Start:
        """The controller's first word. Raises `UsageError` where none comes, or something else."""
        try:
            first = self._reader.receive(timeout_s)
        except SilentError:
            raise UsageError(f"no job came over the channel in {timeout_s:.0f} s") from None
        except ChannelError as error:
            raise UsageError(f"what came over the channel is no job: {error}") from error
        if not isinstance(first, Start):
            raise UsageError("what came over the channel is no job" if first is not None else "no job came")
        return first

    def listen(self, on_stop: Callable[[str], object], on_lost: Callable[[str], object] | None = None) -> None:
        """Hears the controller from here on.

        Both are called in a thread of the channel: `on_stop` with the name of a signal, when the controller wants the
        run to end; `on_lost` with the reason, when it is gone.
        """
        self._on_stop, self._on_lost = on_stop, on_lost
        self._reader.wake_by(self._wake_read, self._wake)
        self._listener = threading.Thread(target=self._listen, name="channel-reader", daemon=True)
        self._listener.start()

    def hello(self, *, run: str, case: str, host: str, attempt: int, signer: str) -> None:
        """Which run this is, and under which key its account will be signed. Raises `UnreachableError`."""
        tool = f"impound {__version__}"
        self._writer.post(Hello(VERSION, tool, run, case, host, attempt, signer), self._deadline_s)

    def refuse(self, error: str, code: int) -> None:
        """In place of `hello`: why the job is not done. Never raises."""
        self.result({"verdict": "refused" if code == 2 else "failed", "error": error[:1000], "exit": code})
        self.close()

    def result(self, result: Mapping[str, object]) -> None:
        """The last word: the result line, and before it the last head. Never raises."""
        if self._look is not None:
            self.head(*self._look())
        told = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in result.items()}
        try:
            self._writer.post(Result(told), LAST_WORDS_S)
        except UnreachableError:
            pass  # nobody is left to tell: the receipt in the store says the same

    def close(self) -> None:
        """Writes what waits, as far as it goes in `LAST_WORDS_S`, and hears no more. Never raises."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._writer.close(1.0 if self._lost else LAST_WORDS_S)
        os.write(self._wake_write, b"x")
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(5.0)
        self._end("the channel is closed", tell=False)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        raise ChannelError("the channel is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- requests -----------------------------------------------------------------------------------------------------

    def begin(self, name: str) -> str:
        """Begins a multipart upload and gives its id. Raises `StoreError`."""
        return self._ask(lambda number: Begin(number, name), Begun).upload

    def sign(self, name: str, upload: str, number: int, size: int, sha256: bytes) -> Signed:
        """The request that stores one part of `size` bytes and that digest. Raises `StoreError`."""
        part = PartSum(size, sha256.hex())
        return self._ask(lambda id_: Sign(id_, name, upload, number, part), Signed)

    def put(self, name: str, data: bytes) -> None:
        """Stores a small object. Raises `StoreError`, also for one that is larger than `MAX_SMALL_OBJECT`."""
        if len(data) > MAX_SMALL_OBJECT:
            raise StoreError(f"{name} has {len(data)} bytes: too many to hand over in one piece")
        self._ask(lambda number: Put(number, name, data), Done)

    def complete(self, name: str, upload: str, parts: Sequence[tuple[int, bytes]]) -> None:
        """Tells that every part (size, SHA-256) is there; returns when the object is. Raises `StoreError`."""
        sums = [PartSum(size, sha256.hex()) for size, sha256 in parts]
        self._ask(lambda number: Complete(number, name, upload, sums), Done, self._complete_s)

    def data(self, name: str, piece: bytes) -> None:
        """A piece of an object that was begun (relay), of `MAX_DATA` bytes at the most. Waits for room.

        Raises `StoreError`, also where the controller said that it cannot store the object.
        """
        with self._lock:
            if (error := self._broken.get(name)) is not None:
                raise error
            if self._lost:
                raise UnreachableError(f"the controller takes nothing more: {self._lost}")
        self._writer.post(Data(name, len(piece)), self._complete_s, piece)

    def whole(self, name: str, size: int) -> None:
        """Tells that all of an object was sent (relay); returns when it is durable. Raises `StoreError`."""
        self._ask(lambda number: Whole(number, name, size), Done, self._complete_s)

    def drop(self, name: str) -> None:
        """Gives an object up that was begun (relay). Never raises."""
        try:
            self._writer.post(Drop(name), self._deadline_s)
        except UnreachableError:
            pass  # whoever is gone has no object of it either

    def renew(self) -> Credentials:
        """Credentials for this run, new ones each time. After `hello`. Raises `StoreError`."""
        return self._ask(Renew, Renewed).credentials

    def _ask(self, make: Callable[[int], Any], kind: type[A], deadline_s: float | None = None) -> A:
        end = time.monotonic() + (deadline_s or self._deadline_s)
        waiting = _Waiting()
        with self._lock:
            if self._lost:
                raise UnreachableError(f"the controller cannot be asked: {self._lost}")
            self._last += 1
            number = self._last
            self._waiting[number] = waiting
        try:
            self._writer.post(make(number), max(0.0, end - time.monotonic()))
            waiting.event.wait(max(0.0, end - time.monotonic()))
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        answer = waiting.answer
        if isinstance(answer, kind):
            return answer
        if isinstance(answer, Refused):
            raise _KINDS.get(answer.kind, StoreError)(answer.error[:1000])
        if answer is not None:
            raise StoreError("the controller answered what was not asked")
        if self._lost:
            raise UnreachableError(f"the controller does not answer: {self._lost}")
        raise UnreachableError("the controller does not answer in time")

    # -- what is told -------------------------------------------------------------------------------------------------

    def head(self, custody: str, lines: int) -> None:
        """Where the custody log stands. Dropped where the controller does not read. Never raises."""
        self._writer.offer(Head(custody, lines, time.time_ns()))

    def heads(self, look: Callable[[], tuple[str, int]]) -> None:
        """Tells the head that `look` gives: every second, from a thread of its own, and before the result."""
        self._look = look

        def beat() -> None:
            while not self._closing.wait(HEAD_EVERY_S):
                self.head(*look())

        threading.Thread(target=beat, name="channel-heads", daemon=True).start()

    def observe(self, event: Event) -> None:
        """An observer (`agent.events`). Dropped where the controller does not read. Never raises."""
        self._writer.offer(watching.to_message(event))

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while (message := self._reader.receive()) is not None:
                if isinstance(message, Stop):
                    self._on_stop(message.signal)
                elif isinstance(message, Broken):
                    with self._lock:
                        self._broken[message.name[:1000]] = _KINDS.get(message.kind, StoreError)(message.error[:1000])
                elif not isinstance(message, Start):
                    self._answered(message)
        except ChannelError as error:
            self._end(str(error))
            return
        self._end("it has closed the channel")

    def _answered(self, answer: Begun | Signed | Renewed | Done | Refused) -> None:
        with self._lock:
            waiting = self._waiting.pop(answer.id, None)
        if waiting is not None:  # else nobody waits for it any longer
            waiting.answer = answer
            waiting.event.set()

    def _end(self, why: str, *, tell: bool = True) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = why
            left = list(self._waiting.values())
            self._waiting.clear()
        for waiting in left:
            waiting.event.set()
        if tell and self._on_lost is not None and not self._closing.is_set():
            self._on_lost(why)
