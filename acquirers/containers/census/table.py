"""The join of what runs, what is written down and what lies on disk, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.containers.known import RUNNING, UNCLAIMED, Known

if TYPE_CHECKING:
    from acquirers.containers.census.processes import Group, Processes

HIDDEN = "runs, and no runtime that was found has a record of it: hidden, or of a runtime that is not known here"
MOVED = "its processes have another root than the one its record names"
STALE = "its record says that it runs, and no process is in it"
UNRECORDED = "runs, and its record says that it does not"
ORPHAN = "a writable layer that no container claims"
BARE = "a record without a writable layer on disk"
ENTERED = (
    "processes in the container's mount namespace, and in no control group of it: somebody entered it from outside"
)
LEFT = "processes in the container's control group that see the files of the host"
APART = (
    "processes with a root of their own, in no container's control group: a hidden container, or a sandbox of a service"
)
CHROOTED = "processes that are in no container have its files for their root (chroot)"
SHARED = "its mount namespace is that of another container, too"
TWICE = "its id names several control groups: one of them was made by somebody else"
PRETENDED = "another container bears its id on a control group below its own"


class Row(msgspec.Struct):
    """One container, by whatever knows of it."""

    known: Known | None = None
    groups: list[Group] = msgspec.field(default_factory=list)
    findings: list[str] = msgspec.field(default_factory=list)

    @property
    def id(self) -> str:
        return self.known.id if self.known is not None else self.groups[0].container if self.groups else ""

    @property
    def views(self) -> list[str]:
        known = self.known
        return [
            *(["processes"] if self.groups else []),
            *(["records"] if known is not None and known.record else []),
            *(["disk"] if known is not None and known.disk else []),
        ]

    def line(self) -> dict[str, object]:
        """For `containers/census.jsonl`. Paths and names are the machine's own bytes."""
        known = self.known
        groups = self.groups
        uppers = list(dict.fromkeys(group.upper for group in groups if group.upper))
        line: dict[str, object] = {"type": "container", "id": self.id, "views": self.views}
        if known is not None:
            line |= {
                "runtime": known.runtime,
                "name": known.name,
                "state": known.state,
                "image": known.image,
                "pod": known.pod,
                "namespace": known.namespace,
                "pod_uid": known.pod_uid,
                "task": known.task,
                "sandbox": known.sandbox,
                "root": known.root,
                "upper": known.upper,
                "layers": len(known.lowers),
                "logs": list(known.logs),
                "record_pid": known.pid or None,
            }
        line["processes"] = {
            "count": sum(group.count for group in groups),
            "pids": [pid for group in groups for pid in group.pids][:256],
            "comms": [comm for group in groups for comm in group.comms][:64],
            "mount_namespaces": sorted({group.mnt for group in groups if group.mnt}),
            "uppers": uppers,
            "pod_uid": next((group.pod for group in groups if group.pod), ""),
            "named_by": sorted({group.by for group in groups if group.by}),
        }
        line["findings"] = self.findings
        return line


def join(processes: Processes, known: Iterable[Known]) -> Iterator[Row]:
    """One row for each container, those with a record first."""
    join = _Join(processes)
    for one in known:
        yield join.row(one)
    yield from join.rest()


class _Join:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._by_id: dict[str, list[Group]] = {}
        self._by_upper: dict[bytes, list[Group]] = {}
        self._strangers: list[Group] = []
        """In a mount namespace that is not the machine's own, and in no container's control group."""
        self._chrooted: dict[bytes, list[Group]] = {}
        """With a layer for a root that they were given: nothing that runs in a container."""
        self._pretending: dict[str, list[Group]] = {}
        self._told: set[int] = set()
        for group in processes.groups:
            here = group.mnt == processes.own
            if group.container:
                self._by_id.setdefault(group.container, []).append(group)
            elif group.mnt and not here:
                self._strangers.append(group)
            if group.upper:
                given = not group.container and (here or group.chrooted)
                rooted = self._chrooted if given else self._by_upper
                rooted.setdefault(group.upper, []).append(group)
            for inner in group.inner:
                self._pretending.setdefault(inner, []).append(group)
        self._homes: dict[int, set[str]] = {}
        for container, groups in self._by_id.items():
            for group in groups:
                if group.mnt and group.mnt != processes.own:
                    self._homes.setdefault(group.mnt, set()).add(container)
        self._entered: dict[str, list[Group]] = {}
        for group in self._strangers:
            for container in self._homes.get(group.mnt, ()):
                self._entered.setdefault(container, []).append(group)

    def row(self, known: Known) -> Row:
        """What is recorded, and who runs in it."""
        groups = [*self._by_id.get(known.id, ()), *self._entered.get(known.id, ())]
        if known.upper:
            groups += [group for group in self._by_upper.get(known.upper, ()) if group not in groups]
        self._told.update(map(id, groups))
        row = Row(known, groups)
        runs = known.state.split(" ")[0] in RUNNING
        if known.state == UNCLAIMED:
            row.findings.append(f"{ORPHAN}{', and processes run on it' if groups else ''}")
        elif runs and not groups and self._processes.total:
            row.findings.append(STALE)
        elif groups and not runs and known.state:
            row.findings.append(UNRECORDED)
        if known.record and not known.disk and known.state != UNCLAIMED:
            row.findings.append(BARE)
        if known.upper and any(self._is_elsewhere(group, known.upper) for group in groups):
            row.findings.append(MOVED)
        if known.upper and (chrooted := self._chrooted.get(known.upper)):
            self._told.update(map(id, chrooted))
            row.findings.append(f"{CHROOTED}: {_pids(chrooted)}")
        if others := [group for group in self._pretending.get(known.id, ()) if group.container != known.id]:
            row.findings.append(f"{PRETENDED}: {_pids(others)} of container {others[0].container[:12]}")
        self._look_inside(row)
        return row

    def rest(self) -> Iterator[Row]:
        """What runs, and no record was found of."""
        for container, groups in self._by_id.items():
            if any(id(group) in self._told for group in groups):
                continue
            row = Row(groups=[*groups, *self._entered.get(container, ())], findings=[HIDDEN])
            self._told.update(map(id, row.groups))
            self._look_inside(row)
            yield row
        for group in self._strangers:
            if id(group) not in self._told and (group.upper or group.apart):
                yield Row(groups=[group], findings=[HIDDEN if group.upper else APART])

    def _is_elsewhere(self, group: Group, upper: bytes) -> bool:
        """Whether it has another root than the record's, and nothing says that this is a container in the container."""
        if not group.upper or group.mnt == self._processes.own or group.inner:
            return False
        # A daemon in a mount namespace of its own calls the same directory by another name: the end of it is there.
        return not group.upper.endswith(b"/".join(upper.split(b"/")[-2:]))

    def _look_inside(self, row: Row) -> None:
        own = self._processes.own
        inside = [group for group in row.groups if group.mnt and group.mnt != own]
        # Behind a namespace of control groups nobody is named by them: then it says nothing that one is not.
        if {True, False} <= {group.by == "cgroup" for group in inside}:
            row.findings.append(ENTERED)
        if inside and any(group.container and group.mnt == own for group in row.groups):
            row.findings.append(LEFT)
        if others := sorted({one for group in inside for one in self._homes.get(group.mnt, ())} - {row.id}):
            row.findings.append(f"{SHARED}: {', '.join(one[:12] for one in others[:10])}")
        places = sorted({group.place for group in row.groups if group.place and group.container == row.id})
        if len(places) > 1:
            told = ", ".join(place.decode("utf-8", "backslashreplace")[:200] for place in places[:5])
            row.findings.append(f"{TWICE}: {told}")


def _pids(groups: Iterable[Group]) -> str:
    pids = [pid for group in groups for pid in group.pids]
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids[:10]))}{' …' if len(pids) > 10 else ''}"
