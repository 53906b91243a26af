"""The registers of the threads of a process, taken with ptrace(2) while they stand still for a moment.

PTRACE_SEIZE and PTRACE_INTERRUPT leave no trace but this: a system call that sleeps is restarted, and the few that
the kernel does not restart (signal(7): epoll_wait, sigtimedwait, semop) return EINTR to the program, as after SIGSTOP
and SIGCONT. All threads of a batch stand still together. The kernel lets go of them when this process ends, however
it ends. Runs in the child that `watch` keeps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache

import msgspec

from acquirers.memory.process.elf import EM_AARCH64, EM_X86_64, note
from acquirers.memory.process.notes import NT_FPREGSET, NT_PRSTATUS, REGISTERS, Task, prstatus

BATCH = 256
"""Threads that stand still at once."""
MAX_THREADS = 20_000
MAX_FLOATING = 5_000
MAX_EXTENDED = 1_000
"""Threads of which everything is taken; of the others only the general registers, up to `MAX_THREADS`."""
STOP_SECONDS = 0.5
"""In which the threads of a batch must stand still. One that waits uninterruptibly does not, and is left out."""

_DETACH = 17
_GETREGS = 12
_GETSIGINFO = 0x4202
_GETREGSET = 0x4204
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_EVENT_STOP = 128
_WALL = 0x40000000
_LARGEST = 1 << 15

# Further register sets: name of the note, its type. NT_X86_XSTATE; NT_ARM_TLS, NT_ARM_PAC_MASK.
_EXTENDED: dict[int, tuple[int, ...]] = {EM_X86_64: (0x202,), EM_AARCH64: (0x401, 0x406)}


class Taken(msgspec.Struct, omit_defaults=True):
    """How it went."""

    threads: int = 0
    read: int = 0
    """Threads whose registers were taken."""
    stopped_ns: int = 0
    """The longest time that threads stood still."""
    error: int = 0
    """The errno of the last thread that could not be read."""
    ended: int = 0
    """Threads that ended before."""
    busy: int = 0
    """Threads that did not stand still in time."""
    compat: bool = False
    """Of a 32-bit program: its registers are filled up to 64 bits."""


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@cache
def prepare() -> Callable[..., int]:
    """`ptrace(2)` of libc; to be called before the fork, because it loads."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.ptrace
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return call


def _ptrace(request: int, tid: int, address: int = 0, data: object = 0) -> None:
    if prepare()(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Stopped(msgspec.Struct):
    tid: int
    deliver: int
    """A signal that was on its way to it when it stopped, and is handed on."""


class Registers:
    """Takes the registers of one process, thread by thread."""

    def __init__(self, tids: Callable[[], list[int]], describe: Callable[[int], Task], machine: int) -> None:
        self._tids = tids
        self._describe = describe
        self._machine = machine
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._buffer = ctypes.create_string_buffer(_LARGEST)
        self.taken = Taken()

    def notes(self) -> Iterator[bytes]:
        """The notes of all threads, batch by batch, the first thread first. `taken` says how it went."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        seen: set[int] = set()
        for _ in range(3):  # threads start threads
            new = [tid for tid in self._tids() if tid not in seen]
            if not new:
                break
            seen.update(new)
            self.taken.threads = len(seen)
            for start in range(0, len(new), BATCH):
                if self.taken.read >= MAX_THREADS:
                    return
                yield self._batch(new[start : start + BATCH])

    def _batch(self, tids: list[int]) -> bytes:
        began = time.monotonic_ns()
        waiting, stopped, read = [], [], []
        for tid in tids:
            try:
                _ptrace(_SEIZE, tid)
                _ptrace(_INTERRUPT, tid)
            except OSError as error:
                self._failed(tid, error)
                continue
            waiting.append(tid)
        deadline = time.monotonic() + STOP_SECONDS
        while waiting and time.monotonic() < deadline:
            still = []
            for tid in waiting:
                one = self._wait(tid)
                if one is None:
                    still.append(tid)
                elif one.tid:
                    stopped.append(one)
                else:
                    self.taken.ended += 1
            if still and len(still) == len(waiting):
                time.sleep(0.0001)
            waiting = still
        self.taken.busy += len(waiting)
        order = {tid: place for place, tid in enumerate(tids)}
        stopped.sort(key=lambda one: order[one.tid])  # the first note is the one that a debugger shows first
        for one in stopped:
            try:
                read.append((one.tid, self._read(one.tid)))
            except OSError as error:
                self._failed(one.tid, error)
        for one in stopped:
            try:
                _ptrace(_DETACH, one.tid, 0, one.deliver)
            except OSError:  # it was killed meanwhile
                continue
        if stopped:
            self.taken.stopped_ns = max(self.taken.stopped_ns, time.monotonic_ns() - began)
        self.taken.read += len(read)
        return b"".join(self._notes(tid, *sets) for tid, sets in read)

    def _failed(self, tid: int, error: OSError) -> None:
        # A first thread that has ended stays as a zombie, and is refused like what may not be traced.
        if error.errno == errno.ESRCH or self._describe(tid).state in "ZX":
            self.taken.ended += 1
        else:
            self.taken.error = error.errno or errno.EIO

    @staticmethod
    def _wait(tid: int) -> _Stopped | None:
        """None while it runs; tid 0 when it has ended."""
        try:
            found, status = os.waitpid(tid, os.WNOHANG | _WALL)
        except OSError:
            return _Stopped(0, 0)
        if found == 0:
            return None
        if not os.WIFSTOPPED(status):
            return _Stopped(0, 0)
        return _Stopped(tid, 0 if status >> 16 else os.WSTOPSIG(status))

    def _read(self, tid: int) -> tuple[bytes, bytes, list[tuple[int, bytes]]]:
        registers = self._set(tid, NT_PRSTATUS)
        if len(registers) != REGISTERS[self._machine]:
            self.taken.compat = True
            registers = b""
            if self._machine == EM_X86_64:
                _ptrace(_GETREGS, tid, 0, ctypes.addressof(self._buffer))  # of the 64-bit kind for whoever is it
                registers = self._buffer.raw[: REGISTERS[self._machine]]
            return registers, b"", []
        floating, extended = b"", []
        if self.taken.read < MAX_FLOATING:
            try:
                floating = self._set(tid, NT_FPREGSET)
            except OSError:
                pass  # the machine has none
        if self.taken.read < MAX_EXTENDED:
            for kind in _EXTENDED.get(self._machine, ()):
                try:
                    extended.append((kind, self._set(tid, kind)))
                except OSError:
                    continue
        return registers, floating, extended

    def _set(self, tid: int, kind: int) -> bytes:
        vector = _IoVec(ctypes.addressof(self._buffer), _LARGEST)
        _ptrace(_GETREGSET, tid, kind, ctypes.addressof(vector))
        return self._buffer.raw[: vector.length]

    def _notes(self, tid: int, registers: bytes, floating: bytes, extended: list[tuple[int, bytes]]) -> bytes:
        if not registers:
            return b""
        parts = [prstatus(self._describe(tid), registers, self._ticks, floating=bool(floating))]
        if floating:
            parts.append(note(b"CORE", NT_FPREGSET, floating))
        parts += [note(b"LINUX", kind, data) for kind, data in extended]
        return b"".join(parts)


def task_of(stat: bytes, status: bytes) -> Task | None:
    """Of `/proc/<pid>/task/<tid>/stat` and `status`; None for what the kernel would not write."""
    head, _, tail = stat.rpartition(b") ")
    fields = tail.split()
    if len(fields) < 20 or not head.split(b" ", 1)[0].isdigit():
        return None
    try:
        ppid, pgrp, session = (int(fields[index]) for index in (1, 2, 3))
        flags, utime, stime, nice = (int(fields[index]) for index in (6, 11, 12, 16))
        pid = int(head.split(b" ", 1)[0])
    except ValueError:
        return None
    signals = {b"SigPnd": 0, b"SigBlk": 0}
    for text in status.split(b"\n"):
        key, _, value = text.partition(b":\t")
        if key in signals and len(value) == 16:
            signals[key] = int.from_bytes(bytes.fromhex(value.decode("ascii", "replace")), "big")
    state = fields[0].decode("ascii", "replace")[:1]
    task = Task(pid, ppid, pgrp, session, state, nice, flags, utime, stime, signals[b"SigPnd"], signals[b"SigBlk"])
    try:
        struct.pack("<iiiibQqqQQ", pid, ppid, pgrp, session, nice, flags, utime, stime, task.pending, task.held)
    except struct.error:
        return None
    return task
