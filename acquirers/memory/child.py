"""One function in a process of its own, with a deadline: for reads that may never return.

A forked child calls it and sends back its bytes: whether it went well, their number, and they themselves. One that is
late is killed, and left to itself if it does not die: a read that hangs in the kernel cannot be called back. The child
runs no thread but its own, so what is called may not wait for a lock that another thread of the parent held at that
moment: it reads files, and computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import struct
import time
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ANSWER = 256 << 20
"""Bytes."""
REAP_SECONDS = 0.5
_MAX_COMPLAINT = 4096
_HEAD = struct.Struct("=cQ")  # + or -, bytes that follow
_abandoned: set[int] = set()
"""Children that were killed and hang in the kernel: taken off the process table once it lets go of them."""
_PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class ChildError(Exception):
    """The function failed, or its process died."""


class StuckError(ChildError):
    """It did not answer in time."""


def fork() -> int:
    """`os.fork`, in a process that may have threads. The child ends with its parent, and ignores what stops it."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    # Until they are ignored there: a handler of the parent that raises would lead the child up into the parent's work.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def end(pid: int) -> bool:
    """Kills a child and takes it off the process table. False if it does not die: then it is left to itself."""
    _abandoned.difference_update({one for one in _abandoned if _gone(one)})
    # One that has ended already is not signalled: where SIGCHLD is ignored its number may be somebody else's by now.
    if _gone(pid):
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + REAP_SECONDS
    while not _gone(pid):
        if time.monotonic() > until:
            _abandoned.add(pid)
            return False
        time.sleep(0.001)
    return True


def _gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def call(function: Callable[[], bytes], seconds: float) -> bytes:
    """What `function` gives, called in a child. Raises `StuckError` after so many seconds, `ChildError` if it fails."""
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise ChildError(f"no process could be started: {error.strerror}") from error
    try:
        pid = fork()
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        raise ChildError(f"no process could be started: {error.strerror}") from error
    if pid == 0:
        _work(function, theirs)
    os.close(theirs)
    try:
        well, answer = _collect(ours, time.monotonic() + seconds)
    finally:
        os.close(ours)
        end(pid)
    if well:
        return answer
    raise ChildError(answer.decode("utf-8", "replace"))


def _work(function: Callable[[], bytes], out: int) -> None:
    gc.disable()  # each object that it looks at is a page that is copied
    try:
        try:
            answer = function()
            head = _HEAD.pack(b"+", len(memoryview(answer).cast("B")))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told, and never goes on in the child
            said = getattr(error, "strerror", None) or str(error)
            answer = f"{type(error).__name__}: {said}".encode("utf-8", "backslashreplace")[:_MAX_COMPLAINT]
            head = _HEAD.pack(b"-", len(answer))
        for piece in (head, answer):
            view = memoryview(piece).cast("B")
            while view:
                view = view[os.write(out, view) :]
    finally:
        os._exit(0)


def _collect(fd: int, until: float) -> tuple[bool, bytes]:
    """Whether it went well, and what the child sent. Raises `StuckError`, and `ChildError` where that is not whole."""
    data = bytearray()
    wanted = _HEAD.size
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while len(data) < wanted:
        left = until - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            raise StuckError("it did not answer in time")
        piece = os.read(fd, min(1 << 20, wanted - len(data)))
        if not piece:
            raise ChildError("its process died")
        data += piece
        if wanted == _HEAD.size == len(data):
            size = _HEAD.unpack(data)[1]
            if size > MAX_ANSWER:
                raise ChildError(f"its answer is too large: {size} bytes")
            wanted += size
    return data[:1] == b"+", bytes(memoryview(data)[_HEAD.size :])
