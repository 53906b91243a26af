"""`--freeze`: holds the processes of one container still while they are read. The only thing that impound ever changes.

A control group is frozen for at most `WINDOW` seconds at a time, and thawed for at least `PAUSE` before the next time,
and for at least as long as it was frozen: liveness probes and health checks kill what does not answer, and with it the
evidence. The pauses differ in length, so that a check in a fixed rhythm does not find it frozen every time. Before
anything is frozen, a child process stands by that thaws it when the time is up, or when this process is gone, whatever
kills it. (Not where all of impound's own control group is killed at once, the child with it.)

Never frozen: the control group that impound itself runs in, and every one above it; a group that is no container's; one
that is frozen already, which is somebody else's decision and stays as it is. That is looked at once more directly
before the request, and until then the child thaws nothing.

Not known: who else asks for the same during a window. The file has one value and no owner, in both versions, and does
not count. Whoever pauses the container in that time finds it running after it, and has to pause it again. What is
paused by a group above it stays so. And whoever may stop processes of root, and stops both impound and its child, keeps
the container frozen: nobody is left who could thaw it.

Version 2 (Documentation/admin-guide/cgroup-v2.rst): 1 or 0 into `cgroup.freeze`; `cgroup.events` says `frozen 1` when
all are still. Version 1 (cgroup-v1/freezer-subsystem.rst): FROZEN or THAWED into `freezer.state`, which reads FREEZING
until all are still, and is written again to try again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
import warnings
from typing import TYPE_CHECKING, Self

import msgspec

from acquirers import container_id
from acquirers.base import AcquirerError, Reason
from acquirers.root import read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host

Task = tuple[int, int]
"""A process: pid, and start time in ticks since boot."""

WINDOW = 5.0
"""Seconds that a container is frozen at the most, from the request on."""
PAUSE = 1.0
"""Seconds between two windows of one container at the least."""
_GOLDEN = 0.618
"""Pauses are as long as the window before, times a number from 1 to 2 that never repeats itself."""
STILL = 1.0
"""Seconds that all its processes may take to stand still."""
ANSWER = 1.0
"""Seconds that the child is waited for when it has been told to end, and again when it was killed."""
SETTLE = 0.5
"""Seconds after the last window at which it is looked at who ended."""
_POLL = 0.005
_MAX_TASKS = 100_000
_MAX_GROUPS = 1000
_MAX_LIST = 1 << 20
_ARMED, _THAW = b"f", b"t"
"""What the child is told: that it will be frozen now, and that it shall be thawed."""


class Group(msgspec.Struct, frozen=True):
    """A control group that can be frozen."""

    version: int
    path: bytes
    """Directory, as this process opens it."""
    name: bytes
    """Path in its hierarchy, as /proc/<pid>/cgroup says."""
    container: str


class Window(msgspec.Struct):
    """One time that a group was frozen, or was meant to be."""

    group: Group
    pid: int = 0
    """The process for whose sake."""
    asked_ns: int = 0
    """CLOCK_MONOTONIC when the request was written."""
    frozen_ms: float | None = None
    """From the request until all were still; None where they never were."""
    held_ms: float = 0.0
    """From the request until it was thawed."""
    by: str = "agent"
    """Who thawed it: `agent`, or `dead-man` when the time was up first."""
    before: frozenset[Task] | None = None
    """Processes that were in it; None where that is not known for all."""
    ended: frozenset[Task] | None = None
    """Those of them that are no more, by the last look; None where unknown."""
    new: frozenset[Task] | None = None
    """Those that came since; None where unknown."""

    @property
    def left(self) -> float:
        """Seconds until it is thawed in any case."""
        return self.asked_ns / 1e9 + WINDOW - time.monotonic()

    @property
    def restarted(self) -> bool:
        """None of the processes that were in it is left, as far as is known."""
        return bool(self.before) and self.ended == self.before

    def look(self, now: frozenset[Task] | None) -> None:
        """Who ended and who is new. `now`: who is in the group. Whoever only left the group has not ended."""
        if self.before is None:
            return
        gone = self.before - (now or frozenset())
        self.ended = frozenset(task for task in gone if not _lives(task))
        if now is not None:
            self.new = (now - self.before) | (self.new or frozenset())

    def line(self) -> dict[str, object]:
        return {
            "type": "freeze",
            "pid": self.pid,
            "container": self.group.container,
            "cgroup": self.group.name.decode("utf-8", "backslashreplace"),
            "version": self.group.version,
            "asked_ns": self.asked_ns,
            "frozen_ms": self.frozen_ms,
            "held_ms": round(self.held_ms, 3),
            "thawed_by": self.by,
            "ended": None if self.ended is None else len(self.ended),
            "new": None if self.new is None else len(self.new),
        }


class CannotFreezeError(AcquirerError):
    """Nothing was frozen; the reason says why."""


class Freezer:
    """Freezes the containers of one machine, one at a time. Keeps the record of every window."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.windows: list[Window] = []
        self._next: dict[bytes, float] = {}
        """Path of a group -> when it may be frozen again, by the monotonic clock."""

    def group_of(self, pid: int) -> Group:
        """The group that holds the container of a process. Raises `CannotFreezeError`."""
        own = {name for _, name in _groups(read_kernel_file(b"/proc/self/cgroup"))}
        try:
            found = _groups(self._host.read_proc(b"%d/cgroup" % pid))
        except OSError as error:
            raise CannotFreezeError(Reason.VANISHED, f"its control group cannot be read: {error.strerror}") from error
        container = container_id.from_cgroup(self._host.read_proc(b"%d/cgroup" % pid)).container
        if not container:
            raise CannotFreezeError(Reason.UNSUPPORTED, f"process {pid} is in no container: only those are frozen")
        if container == container_id.from_mountinfo(read_kernel_file(b"/proc/self/mountinfo", 4 << 20)).container:
            raise CannotFreezeError(Reason.DENIED, "it is the container that impound runs in")
        for version, name in found:
            name = _of_container(name, container)  # noqa: PLW2901 - a nested group is frozen with all of its container
            if not name or any(one == name or one.startswith(name + b"/") for one in own):
                continue
            path = self._directory(version, name)
            if path and not _holds(path, os.getpid()):
                return Group(version, path, name, container)
        raise CannotFreezeError(Reason.DENIED, "its control group is impound's own, or cannot be written from here")

    def _directory(self, version: int, name: bytes) -> bytes:
        """Where the group is, if it has a freezer that can be written; else nothing."""
        for mount in self._host.mounts:
            if mount.fstype == b"cgroup2" and version == 2:
                file = b"cgroup.freeze"
            elif mount.fstype == b"cgroup" and version == 1 and b"freezer" in mount.super_options.split(b","):
                file = b"freezer.state"
            else:
                continue
            if mount.root != b"/" or b".." in name.split(b"/"):
                continue
            path = os.path.join(self._host.root, mount.point.lstrip(b"/"), name.lstrip(b"/"))
            if os.access(os.path.join(path, file), os.W_OK):
                return path
        return b""

    @contextlib.contextmanager
    def window(self, pid: int) -> Iterator[Window]:
        """Freezes the container of `pid` for what is done in here, at most `WINDOW` seconds.

        Raises `CannotFreezeError` where it cannot be frozen, or does not stand still; then it runs on.
        """
        group = self.group_of(pid)
        time.sleep(max(0.0, self._next.get(group.path, 0.0) - time.monotonic()))
        held = _Held(group, pid)
        try:
            with held:
                self.windows.append(held.window)
                yield held.window
        finally:
            if held.window.asked_ns and held.window not in self.windows:
                self.windows.append(held.window)  # it did not stand still in time
            pause = held.window.held_ms / 1e3 * (1 + len(self.windows) * _GOLDEN % 1)
            self._next[group.path] = time.monotonic() + max(PAUSE, pause)

    def settle(self) -> None:
        """Looks once more at what was frozen: whoever was killed for not answering is killed a while later."""
        if not self.windows:
            return
        last = max(one.asked_ns / 1e9 + one.held_ms / 1e3 for one in self.windows)
        time.sleep(min(SETTLE, max(0.0, last + SETTLE - time.monotonic())))
        now: dict[bytes, frozenset[Task] | None] = {}
        for window in self.windows:
            path = window.group.path
            if path not in now:
                now[path] = _tasks(window.group)
            window.look(now[path])


def _groups(data: bytes) -> list[tuple[int, bytes]]:
    """(version, path) of the groups that have a freezer, version 2 first."""
    found = []
    for line in data[:65536].split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if number == b"0" and not controllers and path.startswith(b"/"):
            found.append((2, path))
        elif b"freezer" in controllers.split(b",") and path.startswith(b"/"):
            found.append((1, path))
    return sorted(found, reverse=True)


def _of_container(name: bytes, container: str) -> bytes:
    """The uppermost group whose last component bears the id of the container, at or above `name`."""
    parts = name.split(b"/")
    for count in range(1, len(parts) + 1):
        if container.encode("ascii") in parts[count - 1]:
            return b"/".join(parts[:count])
    return b""


def _tasks(group: Group) -> frozenset[Task] | None:
    """The processes of a group and of those below it; None where not all of them can be known.

    A group that is no more has none: with the last process of a container its group goes.
    """
    found: set[Task] = set()
    whole = os.path.isdir(group.path) or not os.path.lexists(group.path)
    for number, (directory, _, _) in enumerate(os.walk(group.path)):
        try:
            data = read_kernel_file(os.path.join(directory, b"cgroup.procs"), _MAX_LIST)
        except FileNotFoundError:
            continue
        except OSError as error:
            whole = whole and error.errno == errno.ENODEV  # it was removed when it was open
            continue
        words = data.split()
        if len(data) >= _MAX_LIST or number >= _MAX_GROUPS or len(found) + len(words) > _MAX_TASKS:
            return None
        for word in words:
            if not word.isdigit() or not int(word):  # 0: a process that this pid namespace does not see
                whole = False
            elif start := _start(int(word)):
                found.add((int(word), start))
            elif start is None:
                whole = False
    return frozenset(found) if whole else None


def _start(pid: int) -> int | None:
    """When a process started; 0 when it has ended, None when that cannot be known."""
    try:
        words = read_kernel_file(b"/proc/%d/stat" % pid, 4096).rpartition(b")")[2].split()
        if words[0] in b"ZX" and int(words[17]) <= 1:  # else only its first thread has ended
            return 0
        return int(words[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except (OSError, ValueError, IndexError):
        return None


def _lives(task: Task) -> bool:
    return _start(task[0]) in {task[1], None}


def _holds(path: bytes, pid: int) -> bool:
    """Whether a process is in a group or in one below it: a control group namespace hides where it is."""
    wanted = b"%d" % pid
    for number, (directory, below, _) in enumerate(os.walk(path)):
        below.sort()
        if wanted in read_kernel_file(os.path.join(directory, b"cgroup.procs"), 1 << 20).split():
            return True
        if number > _MAX_TASKS:
            return True
    return False


class _Held:
    """A group that is frozen, and the child that thaws it."""

    def __init__(self, group: Group, pid: int) -> None:
        self.window = Window(group, pid)
        self._file = b"cgroup.freeze" if group.version == 2 else b"freezer.state"
        self._on, self._off = (b"1", b"0") if group.version == 2 else (b"FROZEN", b"THAWED")

    def __enter__(self) -> Self:
        group = self.window.group
        try:
            self._fd = os.open(os.path.join(group.path, self._file), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CannotFreezeError(Reason.DENIED, f"it cannot be frozen: {error.strerror}") from error
        try:
            self._check_free()
            self.window.before = _tasks(group)
            self._rope, self._child = _stand_by(self._fd, self._off)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            self._check_free()
            os.write(self._rope[1], _ARMED)
            self.window.asked_ns = time.monotonic_ns()
            self._write(self._on)
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Thaws it. Never raises: the child does it where this process cannot.

        Nor does it wait for long: whoever stops the child shall not hold this process up.
        """
        thawed = not self.window.asked_ns  # it was never frozen, and stays as somebody else wants it
        said = b""
        try:
            if not thawed:
                thawed = self._thaw()
                self.window.held_ms = (time.monotonic_ns() - self.window.asked_ns) / 1e6
                # The child writes the same once more, and ends. What it says tells whether it was there first.
            with contextlib.suppress(OSError):
                os.write(self._rope[1], _THAW)  # it may have ended
            with contextlib.suppress(OSError):
                if _readable(self._rope[0], ANSWER):
                    said = os.read(self._rope[0], 64)
            if not said:  # it has been stopped, or killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, signal.SIGKILL if thawed else signal.SIGCONT)
                    os.kill(self._child, signal.SIGCONT)
        finally:
            for fd in (*self._rope, self._fd):
                os.close(fd)
        _reap(self._child)
        if said.startswith(b"late "):
            self.window.by = "dead-man"
            self.window.held_ms = (int(said[5:]) - self.window.asked_ns) / 1e6
        self.window.look(_tasks(self.window.group))

    def _thaw(self) -> bool:
        try:
            self._write(self._off)
        except CannotFreezeError:
            return False
        return True

    def _check_free(self) -> None:
        if self._state() != self._off:
            raise CannotFreezeError(Reason.UNSUPPORTED, "it is frozen already, by somebody else")

    def _write(self, what: bytes) -> None:
        try:
            os.pwrite(self._fd, what, 0)
        except OSError as error:
            raise CannotFreezeError(Reason.DENIED, f"it cannot be frozen: {error.strerror}") from error

    def _state(self) -> bytes:
        return os.pread(self._fd, 64, 0).strip()

    def _wait(self) -> None:
        """Until all its processes are still. Raises `CannotFreezeError`."""
        group = self.window.group
        while time.monotonic() < self.window.asked_ns / 1e9 + STILL:
            if group.version == 2:
                events = read_kernel_file(os.path.join(group.path, b"cgroup.events"), 4096)
                still = b"frozen 1" in events.split(b"\n")
            else:
                still = self._state() == self._on
                if not still:
                    self._write(self._on)
            if still:
                self.window.frozen_ms = round((time.monotonic_ns() - self.window.asked_ns) / 1e6, 3)
                return
            time.sleep(_POLL)
        raise CannotFreezeError(Reason.STUCK, f"its processes did not stand still within {STILL:g} s: it runs on")


def _stand_by(fd: int, off: bytes) -> tuple[tuple[int, int], int]:
    """Starts the child that thaws: (ends of its pipes for reading and writing, pid)."""
    order_in, order_out = os.pipe2(os.O_CLOEXEC)
    answer_in, answer_out = os.pipe2(os.O_CLOEXEC)
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads; the child makes system calls only.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            _dead_man(fd, off, order_in, answer_out)
        finally:
            os._exit(0)
    os.close(order_in)
    os.close(answer_out)
    # Until it says so it could still be killed with what kills this process, and nothing may be frozen.
    if not _readable(answer_in, WINDOW) or os.read(answer_in, 1) != b"r":
        os.close(answer_in)
        os.close(order_out)
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        raise CannotFreezeError(Reason.INTERNAL, "the process that would thaw it could not be started")
    return (answer_in, order_out), pid


def _readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or the other end is gone. `select` knows no number above 1023."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def _reap(pid: int) -> None:
    """Lets go of a child that has been told to end, or was killed; after `ANSWER` seconds it is left as it is."""
    until = time.monotonic() + ANSWER
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
            time.sleep(_POLL)


def _dead_man(fd: int, off: bytes, order: int, answer: int) -> None:
    """Waits for the order to end, the end of the parent, or the end of the time; thaws in any case.

    The time begins when it is ready, which is before anything is frozen. Until it is told that something will be, there
    is nothing to thaw.
    """
    os.setsid()  # what is sent to the parent's process group is not meant for this one
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, min(fd, order, answer))
    for other in range(max(fd, order, answer) + 1):
        if other not in {fd, order, answer}:
            with contextlib.suppress(OSError):
                os.close(other)
    os.closerange(max(fd, order, answer) + 1, 1 << 16)
    os.write(answer, b"r")
    until = time.monotonic() + WINDOW
    armed, told = False, b""
    while ready := _readable(order, max(0.0, until - time.monotonic())):
        told = os.read(order, 1)
        if told != _ARMED:
            break
        armed = True
    for _ in range(1000 if armed else 0):
        try:
            os.pwrite(fd, off, 0)
            break
        except OSError:
            time.sleep(_POLL)
    with contextlib.suppress(OSError):
        os.write(answer, b"done" if ready else b"late %d" % time.monotonic_ns())
