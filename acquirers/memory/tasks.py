"""The kernel's list of processes, walked in live memory, and compared with /proc.

`init_task` (the idle task of the first processor, pid 0) heads a list of all thread-group leaders, `task_struct.tasks`.
Where members lie in `task_struct` differs from kernel to kernel: BTF says. Every pointer is hostile: it must lead into
RAM, the list must come back to its head without a loop, and there is a limit to it and a deadline. Nothing is locked:
a process that ends while the list is walked is noticed by its links, and the place is read again.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.memory.paging import Layout
    from acquirers.memory.ranges import Ranges

MAX_TASKS = 1 << 19
"""That are walked: 200 MB in the child that does it. PID_MAX_LIMIT is 1 << 22, but a list that long is a fork bomb."""
MAX_PARENTS = 4096
COMM = 16
"""TASK_COMM_LEN, include/linux/sched.h."""

_MAX_STRUCT = 1 << 16
_TRIES = 8
_ATTEMPTS = 4
_CHUNK = 1 << 20
_POINTER, _PID = struct.Struct("<Q"), struct.Struct("<i")


class TasksError(ValueError):
    """The list cannot be found or walked: one line for a person."""


class Types(Protocol):
    """What is asked of BTF."""

    def offset(self, struct: str, member: str) -> int:
        """Bytes; raises `KeyError`."""


class Offsets(msgspec.Struct, frozen=True):
    """Where members lie in `task_struct`, in bytes."""

    tasks: int
    pid: int
    tgid: int
    comm: int
    real_parent: int

    @classmethod
    def of(cls, types: Types) -> Offsets:
        """Raises `TasksError`."""
        try:
            found = [types.offset("task_struct", name) for name in cls.__struct_fields__]
        except KeyError as error:
            raise TasksError(
                f"the kernel's BTF does not say where {error.args[0]!s:.80} lies in task_struct"
            ) from error
        if not all(0 <= offset < _MAX_STRUCT for offset in found):
            raise TasksError(f"the kernel's BTF says that task_struct has more than {_MAX_STRUCT} bytes")
        return cls(*found)

    @property
    def window(self) -> tuple[int, int]:
        """The part of a task_struct that holds them all: one read of one or two KiB."""
        low = min(self.tasks, self.pid, self.tgid, self.comm, self.real_parent)
        high = max(self.tasks + 16, self.pid + 4, self.tgid + 4, self.comm + COMM, self.real_parent + 8)
        return low, high


class Task(NamedTuple):
    """One process, as its `task_struct` said."""

    address: int
    """Virtual."""
    physical: int
    pid: int
    """In the initial PID namespace."""
    tgid: int
    comm: bytes
    next: int
    """Virtual address of the `tasks` member of the next."""
    prev: int
    parent: int
    """Virtual address of its real parent."""

    @property
    def name(self) -> bytes:
        return self.comm.partition(b"\0")[0]


class Listing(msgspec.Struct):
    """The list, without init_task."""

    tasks: list[Task] = msgspec.field(default_factory=list)
    uneven: list[Task] = msgspec.field(default_factory=list)
    """Those whose backward link did not lead to the one before, however often both were read."""
    why: str = ""
    """Why it is not whole; empty if the list came back to its head."""


class Memory:
    """Tasks out of live memory. `read(physical address, size)` gives bytes or raises `OSError`."""

    def __init__(self, read: Callable[[int, int], bytes], layout: Layout, offsets: Offsets) -> None:
        self._read = read
        self.layout = layout
        self.offsets = offsets
        self._low, high = offsets.window
        self._size = high - self._low

    def task(self, address: int) -> Task:
        """The task at a virtual address. Raises `TasksError` where that is not in RAM, and `OSError`."""
        place = self.layout.physical(address + self._low, self._size)
        if place is None or address % 8:
            raise TasksError(f"{address:#x} is no address of a task: not in RAM")
        data = self._read(place, self._size)
        where, low = self.offsets, self._low
        at = where.tasks - low
        return Task(
            address,
            place - low,
            _PID.unpack_from(data, where.pid - low)[0],
            _PID.unpack_from(data, where.tgid - low)[0],
            data[where.comm - low : where.comm - low + COMM],
            _POINTER.unpack_from(data, at)[0],
            _POINTER.unpack_from(data, at + 8)[0],
            _POINTER.unpack_from(data, where.real_parent - low)[0],
        )

    def link(self, task: Task) -> int:
        """The virtual address that its neighbours have of it."""
        return task.address + self.offsets.tasks

    def linked(self, link: int) -> Task:
        return self.task(link - self.offsets.tasks)

    # -- init_task ----------------------------------------------------------------------------------------------------

    def init(self, *, symbol: int | None, current: int | None) -> tuple[Task, str]:
        """`init_task`, and how it was found: by its symbol, from a living task up, or in the kernel's data.

        `symbol` is its address out of kallsyms, `current` the address of any task. Raises `TasksError` or `OSError`.
        """
        ways: list[tuple[str, Callable[[], Task | None]]] = []
        if symbol:
            ways.append(("its symbol in /proc/kallsyms", lambda: self.task(symbol)))
        if current:
            ways.append(("the parents of this process", lambda: self._upwards(current)))
        ways.append(("its name in the kernel's data", self._by_name))
        reasons = []
        for how, find in ways:
            try:
                found = find()
                if found is not None and self.is_init(found):
                    return found, how
                reasons.append(f"by {how}: nothing that is it")
            except (TasksError, OSError) as error:
                reasons.append(f"by {how}: {error}")
        raise TasksError(f"init_task was not found; {'; '.join(reasons)}")

    def is_init(self, task: Task) -> bool:
        """Pid 0, its own parent, named swapper, and its list leads back to it."""
        return (
            task.pid == task.tgid == 0
            and task.parent == task.address
            and task.comm.startswith(b"swapper")
            and self.linked(task.next).prev == self.link(task)
        )

    def _upwards(self, address: int) -> Task:
        task = self.task(address)
        for _ in range(MAX_PARENTS):
            if task.pid == 0:
                return task
            task = self.task(task.parent)
        raise TasksError(f"no end after {MAX_PARENTS} parents")

    def _by_name(self) -> Task | None:
        for physical in self._named(self.layout.image):
            address = self.layout.image_address(physical - self.offsets.comm)
            if address is None:
                raise TasksError("it is not known where the kernel image is mapped")
            try:
                task = self.task(address)
                if self.is_init(task):
                    return task
            except (TasksError, OSError):  # a text that happens to be the same
                continue
        return None

    def _named(self, image: Ranges) -> Iterator[int]:
        """Physical addresses of the text in the kernel image; `swapper` is its name without SMP."""
        for start, end in image:
            for at in range(start, end, _CHUNK):
                try:
                    data = self._read(at, min(_CHUNK + COMM, end - at))
                except OSError:
                    continue
                found = data.find(b"swapper")
                while 0 <= found < _CHUNK:
                    if data[found : found + 10] in {b"swapper/0\0", b"swapper\0\0\0"}:
                        yield at + found
                    found = data.find(b"swapper", found + 1)

    # -- the list -----------------------------------------------------------------------------------------------------

    def walk(self, init: Task, seconds: float, limit: int = MAX_TASKS) -> Listing:
        """All processes. Where it breaks off, it is begun anew a few times; the longest attempt counts."""
        deadline = time.monotonic() + seconds
        best = Listing(why="not walked")
        for _ in range(_ATTEMPTS):
            listing = self._attempt(init, deadline, limit)
            if not listing.why and not listing.uneven:
                return listing
            if bool(best.why) > bool(listing.why) or len(listing.tasks) > len(best.tasks):
                best = listing
            if time.monotonic() > deadline:
                break
        return best

    def _attempt(self, init: Task, deadline: float, limit: int) -> Listing:
        listing = Listing()
        try:
            self._follow(init, listing, deadline, limit)
        except (TasksError, OSError) as error:
            listing.why = f"{error} (after {len(listing.tasks)} tasks)"
        return listing

    def _follow(self, init: Task, listing: Listing, deadline: float, limit: int) -> None:
        tasks, seen, tries = listing.tasks, set[int](), 0
        head = self.link(init)
        link = self.linked(head).next
        while link != head:
            if len(tasks) >= limit:
                raise TasksError(f"more than {limit} tasks")
            if time.monotonic() > deadline:
                raise TasksError("it took too long")
            if link in seen:
                raise TasksError(f"the list loops at {link:#x} and does not come back to init_task")
            task = self.linked(link)
            if task.prev != (before := self.link(tasks[-1]) if tasks else head):
                tries += 1
                if tries < _TRIES:
                    link = self._again(tasks, seen, link, before)
                    continue
                listing.uneven.append(task)
            tries = 0
            seen.add(link)
            tasks.append(task)
            link = task.next

    def _again(self, tasks: list[Task], seen: set[int], link: int, before: int) -> int:
        """Neighbours do not fit: one of them has just left the list. Where to go on from."""
        again = self.linked(before)
        if (
            tasks and again.next == link and again.prev != tasks[-1].prev
        ):  # the last one has: its own links stay as they were
            gone = tasks.pop()
            seen.discard(self.link(gone))
            again = self.linked(gone.prev)
        return again.next
