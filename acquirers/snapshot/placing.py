"""Which container each process belongs to, and in which namespaces it lives: asked in a child that may hang.

A process whose threads live in several mount namespaces is told of once for each of them: only its first thread shows
in /proc, and any other one can go elsewhere (`unshare`, `setns`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import msgspec

from acquirers import container_id
from acquirers.snapshot.process_files import parse_stat, parse_status
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

MAX_THREADS = 1000
"""Threads of one process that are looked at."""
PATIENCE = Patience(first=2.0, later=0.25)
_SMALL = 1 << 16
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAMESPACE = re.compile(rb"[a-z_]+:\[(\d{1,19})\]")


class Process(msgspec.Struct, omit_defaults=True):
    """One process, or one of its threads."""

    pid: int
    ppid: int = 0
    comm: bytes = b""
    start_ticks: int = 0
    base: bytes = b""
    """`task/<tid>/` of a thread that lives, where the first one has ended or lives elsewhere; else empty."""
    mnt: int = 0
    """Inode of its mount namespace; 0 where that is refused."""
    pid_ns: int = 0
    user_ns: int = 0
    inner: int = 0
    """Its number in its own pid namespace."""
    container: str = ""
    chain: tuple[str, ...] = ()
    group: bytes = b""
    """The control group of its container."""
    pod: str = ""
    root: bytes = b""
    """What it has for a root, as /proc names it; empty where that is refused."""


class Asked(msgspec.Struct):
    """How the asking went."""

    stuck: int = 0
    """Processes that could not be asked."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Process).decode


def ask(proc: int, pids: list[int], asked: Asked, patience: Patience = PATIENCE) -> Iterator[Process]:
    """Those of the processes that run. `proc`: /proc, open. Raises nothing for what they are."""
    watch: Watch[int] = Watch(lambda pid: _look(proc, pid), keep=[proc], patience=patience)
    with closing(watch.run(pids)) as events:
        for event in events:
            if isinstance(event, Ended):
                asked.stuck += event.outcome is not Outcome.DONE
            elif event.notes:
                yield _decode(event.notes)


def read_below(directory: int, name: bytes, limit: int = _SMALL) -> bytes:
    """A file of the kernel below an open directory of /proc, cut at `limit`. Raises `OSError`."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = bytearray()
        while len(found) < limit and (piece := os.read(fd, min(limit - len(found), 1 << 16))):
            found += piece
        return bytes(found)
    finally:
        os.close(fd)


def namespace(directory: int, name: bytes) -> int:
    """The inode that the link names; 0 where it may not be read."""
    try:
        match = _NAMESPACE.fullmatch(os.readlink(name, dir_fd=directory))
    except OSError:
        return 0
    return int(match[1]) if match else 0


# -- in the child -----------------------------------------------------------------------------------------------------


def _look(proc: int, pid: int) -> Iterator[Part]:
    try:
        directory = os.open(b"%d" % pid, _DIRECTORY, dir_fd=proc)
    except OSError:
        yield Part(last=True)
        return
    try:
        for found in _places(directory, pid):
            yield Part(notes=_encode(found))
    except OSError:
        pass  # it has ended
    finally:
        os.close(directory)


def _places(directory: int, pid: int) -> Iterator[Process]:
    stat = parse_stat(read_below(directory, b"stat"))
    if stat is None or stat.kernel_thread:
        return
    tids = _threads(directory) if stat.threads > 1 or stat.dead else []
    base = _living(directory, pid, tids) if stat.dead else b""
    if stat.dead and not base:
        return
    found = _place(directory, Process(pid, stat.ppid, stat.comm, stat.start_ticks, base))
    yield found
    seen = {found.mnt, 0}
    for tid in tids:
        other = b"task/%d/" % tid
        mnt = namespace(directory, other + b"ns/mnt") if found.mnt else 0
        if mnt not in seen:
            seen.add(mnt)
            try:
                yield _place(directory, Process(pid, stat.ppid, stat.comm, stat.start_ticks, other))
            except OSError:
                continue  # that thread has ended


def _place(directory: int, found: Process) -> Process:
    base = found.base
    inner = parse_status(read_below(directory, base + b"status")).get("nspid")
    if isinstance(inner, list) and inner:
        found.inner = inner[-1] if len(inner) > 1 else 0
    placement = container_id.from_cgroup(read_below(directory, base + b"cgroup"))
    found.container, found.chain, found.pod = placement.container, placement.chain, placement.pod
    found.group = placement.group
    found.mnt = namespace(directory, base + b"ns/mnt")
    found.pid_ns = namespace(directory, base + b"ns/pid")
    found.user_ns = namespace(directory, base + b"ns/user")
    try:
        found.root = os.readlink(base + b"root", dir_fd=directory)
    except OSError:
        pass  # of another user
    return found


def _threads(directory: int) -> list[int]:
    try:
        tasks = os.open(b"task", _DIRECTORY, dir_fd=directory)
    except OSError:
        return []
    try:
        with os.scandir(tasks) as entries:
            return sorted(int(entry.name) for entry in islice(entries, MAX_THREADS))
    except OSError:
        return []
    finally:
        os.close(tasks)


def _living(directory: int, pid: int, tids: list[int]) -> bytes:
    """A thread of a process whose first one has ended."""
    for tid in tids:
        try:
            stat = parse_stat(read_below(directory, b"task/%d/stat" % tid))
        except OSError:
            continue
        if tid != pid and stat is not None and not stat.dead:
            return b"task/%d/" % tid
    return b""
