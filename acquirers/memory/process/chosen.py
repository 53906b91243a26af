"""Which processes a job means, and which of them can be read: a look that reads no evidence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from acquirers import container_id
from acquirers.memory.process.examine import numbers, small_file
from acquirers.memory.process.pagemap import PAGE
from acquirers.selectors import matching
from acquirers.snapshot.placing import namespace
from acquirers.snapshot.proc import list_pids, open_proc
from acquirers.snapshot.process_files import parse_stat
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.host import Host

MAX_MOUNTINFO = 4 << 20
MAX_ASKED = 100_000
"""Threads of one process that are asked whether they live; whether any beyond does is not known, and is told."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_encode = msgspec.msgpack.Encoder().encode


class Process(msgspec.Struct, omit_defaults=True):
    """One process with memory of its own."""

    pid: int
    ppid: int = 0
    comm: bytes = b""
    start_ticks: int = 0
    resident: int = 0
    """Bytes."""
    container: str = ""
    mnt: int = 0
    """Inode of its mount namespace, 0 where that is refused. Asked only where containers are meant."""
    chain: tuple[str, ...] = ()
    """All container ids on the way, where containers are nested."""
    living: int = 0
    """A thread that has not ended, if the first one has: only through that one the memory can be seen."""
    unasked: int = 0
    """Threads beyond `MAX_ASKED`, where none of those that were asked lives."""
    error: int = 0
    """Why its memory cannot be opened: an errno."""


class Chosen(msgspec.Struct):
    """The result of a look."""

    processes: list[Process]
    denied: int = 0
    """Processes that belong to it and that this user may not read."""
    stuck: int = 0
    """Processes that gave no answer."""
    unasked: list[int] = []
    """Pids of processes with too many ended threads to find one that lives."""
    matched: frozenset[str] = frozenset()
    own: int = 0
    """This process, as the machine's /proc numbers it; 0 where it does not show it."""


_NOBODY: Mapping[int, str] = {}
_decode = msgspec.msgpack.Decoder(Process)


def choose(
    host: Host,
    scope: Scope,
    names: dict[str, tuple[str, ...]],
    patience: Patience,
    inits: Mapping[int, str] = _NOBODY,
) -> Chosen:
    """What `scope` means, ascending by pid. `names` of containers by id, as far as known; `inits`: first processes of
    those that no control group names. Raises `OSError`.

    Never this process and what it started; nor kernel threads and zombies, which have no memory.
    """
    proc = open_proc(host)
    try:
        everybody = list_pids(proc, scope) if scope.pids and not scope.containers else list_pids(proc, _ALL)
        own = own_pid(host)
        chosen = Chosen([], own=own)
        ours = {own} if own else set()
        seen: list[Process] = []
        by_mounts = bool(scope.containers)
        watch: Watch[int] = Watch(lambda pid: _look(proc, pid, by_mounts=by_mounts), keep=[proc], patience=patience)
        with closing(watch.run(everybody)) as events:
            for event in events:
                if not isinstance(event, Ended):
                    seen.append(_decode.decode(event.notes))
                elif event.outcome is not Outcome.DONE:
                    chosen.stuck += 1
    finally:
        os.close(proc)
    _place_by_records(seen, inits)
    matched: set[str] = set()
    for process in sorted(seen, key=lambda one: one.pid):
        if process.pid == own or _descends(process, seen, ours):
            continue
        found = _selectors(process, scope, names)
        if (scope.pids or scope.containers) and not found:
            continue
        matched |= found
        if process.unasked:
            chosen.unasked.append(process.pid)
        elif process.error:
            chosen.denied += 1
        else:
            chosen.processes.append(process)
    chosen.matched = frozenset(matched)
    return chosen


def _place_by_records(everybody: Sequence[Process], inits: Mapping[int, str]) -> None:
    """Who shares a mount namespace with the first process of a container that only records name is in it."""
    machine = {process.mnt for process in everybody if process.pid == 1}
    recorded = {process.mnt: inits[process.pid] for process in everybody if process.pid in inits}
    for process in everybody:
        if not process.container and process.mnt and process.mnt not in machine:
            process.container = recorded.get(process.mnt, "")


def own_pid(host: Host) -> int:
    """The pid of this process in the numbers of the machine's /proc."""
    try:
        return int(os.readlink(os.path.join(host.proc or b"/proc", b"self")))
    except (OSError, ValueError):
        return 0


def _selectors(process: Process, scope: Scope, names: dict[str, tuple[str, ...]]) -> set[str]:
    found = {str(process.pid)} & set(map(str, scope.pids))
    for container in {process.container, *process.chain} - {""}:
        found |= matching(scope.containers, container, names.get(container, ()))
    return found


def _descends(process: Process, everybody: Sequence[Process], ours: set[int]) -> bool:
    """Whether it was started by this process, or by one that was."""
    parents = {one.pid: one.ppid for one in everybody} if ours else {}
    at, steps = process.ppid, 0
    while at in parents and at not in ours and steps < 100:
        at, steps = parents[at], steps + 1
    return at in ours


class _All:
    pids: tuple[int, ...] = ()


_ALL: Scope = _All()  # type: ignore[assignment]


# -- in the child -----------------------------------------------------------------------------------------------------


def _look(proc: int, pid: int, *, by_mounts: bool) -> Iterator[Part]:
    found = _process(proc, pid, by_mounts=by_mounts)
    yield Part(notes=_encode(found), last=True) if found is not None else Part(last=True)


def _process(proc: int, pid: int, *, by_mounts: bool) -> Process | None:
    try:
        directory = os.open(b"%d" % pid, _DIRECTORY, dir_fd=proc)
    except OSError:
        return None
    try:
        stat = parse_stat(small_file(directory, b"stat"))
        if stat is None or stat.kernel_thread:
            return None
        living, unasked = _living(directory, pid) if stat.dead else (pid, 0)
        if not living and not unasked:
            return None
        found = Process(pid, stat.ppid, stat.comm, stat.start_ticks, living=living, unasked=unasked)
        words = small_file(directory, b"statm").split()
        found.resident = int(words[1]) * PAGE if len(words) > 1 and words[1].isdigit() else 0
        found.container, found.chain = _container(directory, by_mounts=by_mounts)
        found.mnt = namespace(directory, b"ns/mnt") if by_mounts else 0
        found.error = _refusal(directory, living) if living else 0
    except OSError:
        return None  # it has ended
    finally:
        os.close(directory)
    return found


def _container(directory: int, *, by_mounts: bool) -> tuple[str, tuple[str, ...]]:
    try:
        placement = container_id.from_cgroup(small_file(directory, b"cgroup"))
        if not placement.container and by_mounts:
            placement = container_id.from_mountinfo(small_file(directory, b"mountinfo", MAX_MOUNTINFO))
    except OSError:
        return "", ()
    return placement.container, placement.chain


def _living(directory: int, pid: int) -> tuple[int, int]:
    """A thread of a process whose first one has ended, 0 when there is none; and how many were not asked then."""
    try:
        tids = numbers(directory, b"task")
    except OSError:
        return 0, 0
    for tid in tids[:MAX_ASKED]:
        try:
            stat = parse_stat(small_file(directory, b"task/%d/stat" % tid))
        except OSError:
            continue
        if tid != pid and stat is not None and not stat.dead:
            return tid, 0
    return 0, max(0, len(tids) - MAX_ASKED)


def _refusal(directory: int, living: int) -> int:
    """The errno with which its memory cannot be opened: nothing is read of it."""
    for name in (b"mem", b"pagemap", b"maps"):
        try:
            os.close(os.open(b"task/%d/%s" % (living, name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
        except OSError as error:
            return error.errno or 5
    return 0
