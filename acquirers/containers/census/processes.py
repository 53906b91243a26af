"""Containers as the kernel has them: processes by mount namespace and control group. No runtime is asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from acquirers import container_id
from acquirers.base import Gap, Reason
from acquirers.mounts import parse_mountinfo, top_mount
from acquirers.snapshot.placing import Asked, Process, ask, read_below
from acquirers.snapshot.proc import open_proc

if TYPE_CHECKING:
    from acquirers.host import Host

MAX_PIDS = 64
"""Processes that are named of one group; all are counted."""
_MAX_MOUNTINFO = 1 << 20
_MAX_VIEWS = 10_000
"""Pairs of a mount namespace and a root in it, whose mounts are looked at."""


class Group(msgspec.Struct):
    """Processes that share a mount namespace, a root and a container, and what says that it is theirs."""

    mnt: int
    container: str = ""
    pod: str = ""
    upper: bytes = b""
    by: str = ""
    """`cgroup` or `mountinfo`: what named the container."""
    pids: list[int] = msgspec.field(default_factory=list)
    count: int = 0
    comms: list[bytes] = msgspec.field(default_factory=list)
    place: bytes = b""
    """The control group of the container."""
    inner: tuple[str, ...] = ()
    """Ids that control groups below that one bear: of containers in the container, or so they say."""
    chrooted: bool = False
    """They were given a directory for a root; who is in a container has the root of its mount namespace."""
    apart: bool = False
    """Its root is another one than the machine's."""

    def add(self, process: Process) -> None:
        self.count += 1
        self.pod = self.pod or process.pod
        if len(self.pids) < MAX_PIDS and process.pid not in self.pids:
            self.pids.append(process.pid)
            if process.comm not in self.comms:
                self.comms.append(process.comm)


class Processes(msgspec.Struct):
    """All of them. `own` is the mount namespace of process 1."""

    own: int = 0
    groups: list[Group] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    total: int = 0


class _View(msgspec.Struct, frozen=True):
    """What the mounts say that a process sees."""

    placement: container_id.Placement = container_id.Placement()
    upper: bytes = b""
    top: tuple[int, bytes] | None = None
    """Device and directory of what is mounted on `/`."""


def look(host: Host) -> Processes:
    """Asks each process, in a child that may hang. Raises nothing for what the machine holds."""
    found = Processes()
    if host.proc is None:
        return found
    try:
        pids = host.pids()
        proc = open_proc(host)
    except OSError as error:
        found.gaps.append(Gap(Reason.DENIED, f"/proc cannot be listed: {error.strerror}", host.proc))
        return found
    asked = Asked()
    try:
        found.groups = list(_grouped(proc, pids, asked, found))
    finally:
        os.close(proc)
    if asked.stuck:
        detail = f"{asked.stuck} processes could not be asked which container they are in"
        found.gaps.append(Gap(Reason.STUCK, detail))
    return found


def _grouped(proc: int, pids: list[int], asked: Asked, found: Processes) -> list[Group]:
    views: dict[tuple[int, bytes], _View] = {}
    groups: dict[tuple[object, ...], Group] = {}
    machine: _View | None = None
    last = 0
    for process in ask(proc, pids, asked):
        found.total += process.pid != last  # a process with threads elsewhere is told of more than once
        last = process.pid
        key = (process.mnt, process.root)
        view = views.get(key)
        if view is None:
            view = _view(proc, process) if len(views) < _MAX_VIEWS else _View()
            views[key] = view
        if process.pid == 1:
            found.own, machine = process.mnt, view
        container = process.container or view.placement.container
        by = "cgroup" if process.container else view.placement.source
        what = (process.mnt, process.root, container, by, process.group, process.chain)
        group = groups.get(what)
        if group is None:
            group = Group(process.mnt, container, view.placement.pod, view.upper, by)
            group.place, group.inner = process.group, process.chain[1:]
            group.chrooted = process.root not in {b"", b"/"}
            group.apart = machine is not None and None not in {view.top, machine.top} and view.top != machine.top
            groups[what] = group
        group.add(process)
    return list(groups.values())


def _view(proc: int, process: Process) -> _View:
    try:
        data = read_below(proc, b"%d/%smountinfo" % (process.pid, process.base), _MAX_MOUNTINFO)
    except OSError:
        return _View()
    top = top_mount(parse_mountinfo(data))
    if top is None:
        return _View(container_id.from_mountinfo(data))
    upper = (top.option(b"upperdir") or b"") if top.fstype == b"overlay" else b""
    return _View(container_id.from_mountinfo(data), upper, (top.device, top.root))
