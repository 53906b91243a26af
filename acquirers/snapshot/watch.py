"""Reads that may never return, made by a child that can be left behind.

A read in /proc can hang for ever: `cmdline` and `environ` of a process whose memory map is locked, its executable on a
filesystem whose server is dead. No signal helps while the kernel waits uninterruptibly, so a thread would keep this
process from ever ending. Here a forked child does the reading, task after task, and streams what it has over a
socket pair; when nothing comes for a while, it is killed without being waited for, and a new child goes on behind the
task that hangs. Open descriptors come over the same way (`SCM_RIGHTS`, unix(7)).

The child holds none of the descriptors it was born with but those it is told to keep: one that hangs must not hold
the channel of a deployment open. It takes no lock, imports nothing and leaves by `os._exit`, so that it can be forked
from a process with threads. It dies with its task if its parent is gone: by SIGALRM, or when it writes.
"""

from __future__ import annotations

import enum
import gc
import os
import signal
import socket
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

_HEADER = struct.Struct("<BBII")  # flags, descriptors, bytes of data, bytes of notes
_LAST, _SKIPPED, _FAULT = 1, 2, 4
_FD = struct.Struct("i")
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_SPACE = socket.CMSG_LEN(_FD.size)
_RECEIVE = 1 << 18
_REAP_SECONDS = 0.2
_START_SECONDS = 10.0
"""For a new child on a machine that is busy; no read of the examined machine can hang it before it has begun."""


class Outcome(enum.Enum):
    DONE = "done"
    STUCK = "stuck"  # nothing came before the deadline
    DIED = "died"  # the child ended in the middle of the task: a fault of ours, or it was killed
    SKIPPED = "skipped"  # not begun: too many tasks were stuck before


class Part(msgspec.Struct, frozen=True):
    """What a task has to tell. A task yields any number of them; `last` spares a message."""

    data: bytes | memoryview = b""
    notes: bytes = b""
    fd: int = -1
    """A descriptor for the parent; the child's copy is closed."""
    last: bool = False


class Received(msgspec.Struct, Generic[T], frozen=True):
    """A part, in the parent. `fd` is the receiver's to close, -1 when there is none."""

    task: T
    data: bytes
    notes: bytes
    fd: int


class Ended(msgspec.Struct, Generic[T], frozen=True):
    """A task is over; every task ends exactly once, in order."""

    task: T
    outcome: Outcome
    detail: str = ""


class Patience(msgspec.Struct, frozen=True):
    """How long to wait for a sign of life, in seconds, and how often."""

    first: float = 2.0
    later: float = 0.25
    """After `generous` tasks were stuck: whoever plants thousands of them shall not hold the run up for hours."""
    generous: int = 4
    most: int = 32
    """Tasks that may be stuck before the risky ones are skipped; twice as many, and all are."""

    def seconds(self, stuck: int) -> float:
        return self.first if stuck < self.generous else self.later


def _always(_: object) -> bool:
    return True


class Watch(Generic[T]):
    """Does tasks in a child. `work` runs there: a generator of parts, which raises only for a fault of its own."""

    def __init__(
        self,
        work: Callable[[T], Iterator[Part]],
        *,
        keep: Iterable[int] = (),
        patience: Patience | None = None,
        risky: Callable[[T], bool] = _always,
    ) -> None:
        self._work = work
        self._keep = frozenset(keep)
        self._patience = patience or Patience()
        self._risky = risky
        self._children: set[int] = set()

    def run(self, tasks: Sequence[T]) -> Generator[Received[T] | Ended[T], None, None]:
        """Does all tasks in order. Closing the generator ends the child."""
        index = failed = 0
        try:
            while index < len(tasks):
                if failed >= 2 * self._patience.most:
                    yield Ended(tasks[index], Outcome.SKIPPED)
                    index += 1
                    continue
                channel, child = self._start(tasks, index, careful=failed >= self._patience.most)
                try:
                    for event in channel.events(tasks, index, self._patience.seconds(failed)):
                        yield event
                        if isinstance(event, Ended):
                            index += 1
                            failed += event.outcome in {Outcome.STUCK, Outcome.DIED}
                finally:
                    channel.close()
                    _kill(child)
                    self._children.add(child)
        finally:
            _reap(self._children)

    def _start(self, tasks: Sequence[T], start: int, *, careful: bool) -> tuple[_Channel, int]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; the child keeps to what the head of this module says.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
        if pid == 0:
            try:
                _child(theirs, self._keep)
                _serve(
                    theirs, tasks, start, self._work, self._risky if careful else None, 0.5 + 2 * self._patience.first
                )
            finally:
                os._exit(0)
        theirs.close()
        return _Channel(ours), pid


_left_behind: set[int] = set()
"""Children that were killed and hang in the kernel. They end when it lets go of them; init takes what we leave."""


def _reap(children: set[int]) -> None:
    """Takes dead children off the process table, without waiting long for any of them."""
    _left_behind.difference_update({pid for pid in _left_behind if _gone(pid)})
    deadline = time.monotonic() + _REAP_SECONDS
    while children := {pid for pid in children if not _gone(pid)}:
        if time.monotonic() > deadline:
            _left_behind.update(children)
            return
        time.sleep(0.001)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # SIGCHLD is ignored here: it has ended, and the kernel has taken it already
        pass


def _gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


class _Channel:
    """The parent's end: bytes to parts."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def close(self) -> None:
        self._sock.close()
        while self._fds:
            _close(self._fds.popleft())

    def events(self, tasks: Sequence[T], start: int, seconds: float) -> Iterator[Received[T] | Ended[T]]:
        """Until all tasks have ended, or one of them did not: that one is the last to be told."""
        self._sock.settimeout(_START_SECONDS)
        index = start
        while index < len(tasks):
            try:
                alive = self._receive()
            except TimeoutError:
                yield Ended(tasks[index], Outcome.STUCK, f"no answer for {self._sock.gettimeout():g} s")
                return
            self._sock.settimeout(seconds)  # its first sign of life was that it has begun
            for data, notes, fd, flags in self._parts():
                if flags & _FAULT:
                    yield Ended(tasks[index], Outcome.DIED, notes.decode("utf-8", "replace"))
                    return
                if data or notes or fd >= 0:
                    yield Received(tasks[index], data, notes, fd)
                if flags & _LAST:
                    yield Ended(tasks[index], Outcome.SKIPPED if flags & _SKIPPED else Outcome.DONE)
                    index += 1
            if not alive and index < len(tasks):
                yield Ended(tasks[index], Outcome.DIED, "the reading process was killed")
                return

    def _receive(self) -> bool:
        try:
            # The kernel ends a read behind a message that brought a descriptor: at most one comes at a time.
            # Not `socket.recv_fds`, which loses its flags in Python 3.11.
            data, ancillary, flags, _ = self._sock.recvmsg(_RECEIVE, _SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        # Beyond the limit of open files the kernel drops a descriptor; its place is kept, or the next would take it.
        fds = [
            _FD.unpack(raw)[0] for level, kind, raw in ancillary if (level, kind) == _RIGHTS and len(raw) == _FD.size
        ]
        self._fds.extend(fds or ([-1] if flags & socket.MSG_CTRUNC else []))
        self._buffer += data
        return bool(data)

    def _parts(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER.size:
                flags, fds, data, notes = _HEADER.unpack_from(self._buffer, start)
                body = start + _HEADER.size
                if len(self._buffer) < body + data + notes:
                    break
                start = body + data + notes
                fd = self._fds.popleft() if fds and self._fds else -1
                yield bytes(self._buffer[body : body + data]), bytes(self._buffer[body + data : start]), fd, flags
        finally:
            del self._buffer[:start]


# -- in the child -----------------------------------------------------------------------------------------------------


def _child(sock: socket.socket, keep: frozenset[int]) -> None:
    gc.disable()  # a collection would write to every object, and so copy the parent's memory
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # the parent decides; the terminal signals both
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.set_wakeup_fd(-1)
    try:
        open_fds = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc of our own
        open_fds = list(range(1024))
    for fd in open_fds:
        if fd != sock.fileno() and fd not in keep:
            _close(fd)
    try:
        null = os.open("/dev/null", os.O_RDWR)
    except OSError:
        return
    for fd in range(3):  # so that no file of the machine becomes this process's standard output
        if fd != sock.fileno() and fd not in keep:
            os.dup2(null, fd)


def _serve(
    sock: socket.socket,
    tasks: Sequence[T],
    start: int,
    work: Callable[[T], Iterator[Part]],
    skip: Callable[[T], bool] | None,
    lifeline: float,
) -> None:
    try:
        _send(sock, 0, Part())
        for index in range(start, len(tasks)):
            if skip is not None and skip(tasks[index]):
                _send(sock, _LAST | _SKIPPED, Part())
                continue
            last = False
            signal.setitimer(signal.ITIMER_REAL, lifeline)
            for part in work(tasks[index]):
                signal.setitimer(signal.ITIMER_REAL, 0)  # a slow reader of this stream is no reason to die
                _send(sock, _LAST if part.last else 0, part)
                last = part.last
                signal.setitimer(signal.ITIMER_REAL, lifeline)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if not last:
                _send(sock, _LAST, Part())
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent has gone, or has had enough
    except Exception as error:  # noqa: BLE001 - the parent makes a gap of it and goes on behind the task
        _send(sock, _FAULT, Part(notes=f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:2000]))


def _send(sock: socket.socket, flags: int, part: Part) -> None:
    fds = [part.fd] if part.fd >= 0 else []
    header = _HEADER.pack(flags, len(fds), len(part.data), len(part.notes))
    rights = [(*_RIGHTS, _FD.pack(part.fd))] if fds else []
    sent = sock.sendmsg([header, part.data, part.notes], rights)
    if sent < len(header) + len(part.data) + len(part.notes):
        sock.sendall(b"".join((header, part.data, part.notes))[sent:])
    for fd in fds:
        _close(fd)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:  # the listing's own descriptor, or a hole in a list
        pass
