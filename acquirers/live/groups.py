"""The containers that run, found from processes alone: who sees which mounts, and what the kernel says of them.

Processes with the same mount namespace see the same files, and are one group. It is a container's if the control group
or the mounts of its first process bear the id of one, or if what it has for a root is not the machine's: a service that
is merely shut in (`PrivateTmp=` of systemd) has a mount namespace of its own, too, and the same root.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers import container_id
from acquirers.base import Gap, Reason
from acquirers.host import Mode
from acquirers.mounts import Mount, parse_mountinfo, top_mount
from acquirers.selectors import matching
from acquirers.snapshot.placing import PATIENCE, Asked, Process, ask, namespace, read_below
from acquirers.snapshot.proc import hidden, list_pids, open_proc
from acquirers.snapshot.process_files import parse_stat

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.host import Host
    from acquirers.snapshot.watch import Patience

MAX_MOUNTINFO = 4 << 20
"""Bytes of a list of mounts; what is beyond is not known, and so not entered."""
_MAX_ASKED = 1000
"""Processes of a group that are asked for its mounts."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_NOBODY: Mapping[int, str] = {}

Names = Mapping[str, tuple[str, ...]]


class Group(msgspec.Struct):
    """The processes that share a mount namespace, the first of them first."""

    mnt: int
    processes: list[Process]
    container: str = ""
    chain: tuple[str, ...] = ()
    inner: str = ""
    """The container in the container that it is, as nobody but that one says."""
    pretends: tuple[str, ...] = ()
    """Ids that its control groups or mounts bear, and that are of other containers of the machine."""
    by_mounts: bool = False
    """Nothing but its mounts says which container it is."""
    pod: str = ""
    names: tuple[str, ...] = ()
    mounts: list[Mount] = msgspec.field(default_factory=list)
    """As its first process has them."""
    error: str = ""
    """Why its mounts cannot be read."""
    own: bool = False
    """It is where this process runs."""
    matched: frozenset[str] = frozenset()
    upper: bytes = b""
    """The writable layer of its root, as the mounts name it."""
    selected: bool = True

    @property
    def init(self) -> Process:
        return self.processes[0]

    @property
    def label(self) -> str:
        """What it is called where it has no id."""
        return self.inner or self.container or f"mnt-{self.mnt}"

    @property
    def root(self) -> Mount | None:
        return top_mount(self.mounts)


class Census(msgspec.Struct):
    """All groups but those that see what the machine itself sees, by the start of their first process.

    Inside of a container: its own, and those of the containers that share its pid namespace.
    """

    groups: list[Group] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    denied: int = 0
    """Processes of containers whose files this user may not look at."""
    matched: frozenset[str] = frozenset()


def look(
    host: Host, scope: Scope, names: Names, patience: Patience = PATIENCE, inits: Mapping[int, str] = _NOBODY
) -> Census:
    """Asks every process, in a child that may hang. `inits`: first processes -> ids of containers that nothing else
    names. Raises `OSError` where /proc cannot be listed.
    """
    census = Census()
    proc = open_proc(host)
    try:
        everybody = _ask(proc, list_pids(proc, _ALL), patience, census)
        inside = host.mode is Mode.INSIDE
        machine = frozenset[int]() if inside else _namespaces_of_the_machine(proc, everybody)
        root = None if inside else _root_of_the_machine(host)
        recorded = {process.mnt: inits[process.pid] for process in everybody if process.pid in inits}
        by_mnt: dict[int, list[Process]] = {}
        refused: dict[str, list[Process]] = {}
        for process in everybody:
            if not process.mnt:
                if process.container:
                    refused.setdefault(process.container, []).append(process)
            elif process.mnt not in machine:
                by_mnt.setdefault(process.mnt, []).append(process)
        own = _own_namespace()
        for mnt, processes in by_mnt.items():
            group = _group(proc, mnt, processes, names)
            group.own = mnt == own
            if not group.container and mnt in recorded:
                group.container, group.names = recorded[mnt], names.get(recorded[mnt], ())
            if inside and group.own:
                group.names = (*group.names, host.facts.hostname)
            top = group.root
            if group.container or (top is not None and (top.device, top.root) != root):
                census.groups.append(group)
        for container, processes in refused.items():
            census.denied += len(processes)
            if not any(group.container == container for group in census.groups):
                group = _named(Group(0, _in_order(processes)), names)
                group.error = "its mount namespace may not be looked at by this user"
                census.groups.append(group)
    finally:
        os.close(proc)
    if why := hidden(host):
        census.gaps.append(Gap(Reason.DENIED, why, host.proc or b""))
    _look_at_claims(census, names)
    census.groups.sort(key=lambda group: (group.init.start_ticks, group.init.pid))
    _select(census, scope, inside=inside)
    return census


def _look_at_claims(census: Census, names: Names) -> None:
    """Who is in a container can name the control groups below it after any other one, and bind files of it."""
    sure = {group.container for group in census.groups if not group.by_mounts}
    real = names.keys() | sure
    for group in census.groups:
        group.pretends = tuple(one for one in group.chain[1:] if one in real and one != group.container)
        if group.chain and group.chain[-1] not in real:
            group.inner, group.names = group.chain[-1], ()
        if group.by_mounts and group.container in sure:
            group.pretends, group.container, group.names = (group.container,), "", ()


def _select(census: Census, scope: Scope, *, inside: bool) -> None:
    for group in census.groups:
        group.selected = inside or not group.own
        if scope.containers:
            found: frozenset[str] = frozenset()
            for one in {group.label, group.container, *group.chain}.difference(group.pretends, {""}):
                found |= matching(scope.containers, one, (*group.names, group.label))
            group.matched = found
            group.selected = bool(found)
            census.matched |= found


def _ask(proc: int, pids: list[int], patience: Patience, census: Census) -> list[Process]:
    asked = Asked()
    found = list(ask(proc, pids, asked, patience))
    if asked.stuck:
        detail = f"{asked.stuck} processes could not be asked which container they are in"
        census.gaps.append(Gap(Reason.STUCK, detail))
    return found


def _namespaces_of_the_machine(proc: int, everybody: list[Process]) -> frozenset[int]:
    """The mount namespaces that are not a container's: that of process 1 (the kernel's own threads share it)."""
    found = {process.mnt for process in everybody if process.pid == 1 and process.mnt}
    if not found:  # hidden, or not for this user: then this process is all that is known of the machine
        found = {namespace(proc, b"self/ns/mnt")}
    return frozenset(found)


def _own_namespace() -> int:
    try:
        return os.stat("/proc/thread-self/ns/mnt").st_ino
    except OSError:
        return 0


def _root_of_the_machine(host: Host) -> tuple[int, bytes] | None:
    try:
        top = top_mount(host.mounts)
    except OSError:
        return None
    return (top.device, top.root) if top is not None else None


def _in_order(processes: list[Process]) -> list[Process]:
    """Process 1 of the namespace first, else who began first; one that joined from outside stays behind."""
    return sorted(processes, key=lambda one: (one.inner != 1, not one.container, one.start_ticks, one.pid))


def _group(proc: int, mnt: int, processes: list[Process], names: Names) -> Group:
    group = Group(mnt, _in_order(processes))
    data = b""
    for process in group.processes[:_MAX_ASKED]:
        try:
            data = read_below(proc, b"%d/%smountinfo" % (process.pid, process.base), MAX_MOUNTINFO)
        except OSError as error:
            group.error = f"its mounts cannot be listed: {error.strerror}"
            continue
        if data:
            group.error = ""
            break
    group.mounts = parse_mountinfo(data)
    top = group.root
    if top is not None and top.fstype == b"overlay":
        group.upper = top.option(b"upperdir") or b""
    if not group.init.container:
        placement = container_id.from_mountinfo(data)
        group.container, group.pod = placement.container, placement.pod
        group.by_mounts = bool(placement.container)
    return _named(group, names)


def _named(group: Group, names: Names) -> Group:
    group.container = group.init.container or group.container
    group.chain = group.init.chain
    group.pod = group.init.pod or group.pod
    group.names = names.get(group.container, ()) if group.container else ()
    return group


def open_process(proc: int, process: Process) -> int:
    """`/proc/<pid>` of that very process, open. Raises `OSError` where it has ended, whoever has its number now.

    The descriptor stays with the process: when that ends, nothing is found through it any more.
    """
    directory = os.open(b"%d" % process.pid, _DIRECTORY, dir_fd=proc)
    try:
        stat = parse_stat(read_below(directory, b"stat"))
    except BaseException:
        os.close(directory)
        raise
    if stat is None or stat.start_ticks != process.start_ticks:
        os.close(directory)
        raise ProcessLookupError(3, "it has ended")
    return directory


class _All:
    pids: tuple[int, ...] = ()


_ALL: Scope = _All()  # type: ignore[assignment]
