"""One containerd in short: which containers, layers and unclaimed snapshots there are, and which are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason, reason_of
from acquirers.bolt import BoltError, open_file, read
from acquirers.containers.containerd.metadata import DOCKER, Metadata, read_metadata
from acquirers.containers.containerd.mounted import Mounted, mounted_snapshots
from acquirers.containers.containerd.record import ContainerRecord
from acquirers.containers.containerd.snapshots import (
    ACTIVE,
    DIRECTORIES,
    ELSEWHERE,
    Snapshot,
    Snapshotter,
    Stack,
    find_snapshotters,
)
from acquirers.containers.containerd.tasks import Task, task_of
from acquirers.selectors import matching

if TYPE_CHECKING:
    from acquirers.containers.containerd.roots import ContainerdRoot
    from acquirers.host import Host

META = b"io.containerd.metadata.v1.bolt/meta.db"
_MAX_LAYERS = 20_000
_MAX_UNCLAIMED = 20_000
_ORDER = ("running", "created", "not", "exited")


class Entry(msgspec.Struct):
    """One container and where it lies."""

    record: ContainerRecord
    task: Task
    name: str
    """What a person calls it, or ""."""
    stack: Stack | None = None
    userxattr: bool = False
    matched: frozenset[str] = frozenset()
    selected: bool = True
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)


class Unclaimed(msgspec.Struct, frozen=True):
    """A snapshot that was written to, and that no container names."""

    snapshotter: Snapshotter
    directory: bytes
    """Its name in `snapshots`."""
    snapshot: Snapshot | None
    """None: it is in no record either."""


class Store(msgspec.Struct):
    """One root of containerd."""

    root: ContainerdRoot
    snapshotters: list[Snapshotter] = msgspec.field(default_factory=list)
    entries: list[Entry] = msgspec.field(default_factory=list)
    """Those that run come first."""
    layers: dict[tuple[bytes, int], tuple[Snapshotter, Snapshot]] = msgspec.field(default_factory=dict)
    """(directory of the snapshotter, id) -> each layer that a container or an unclaimed snapshot stands on."""
    wanted: set[tuple[bytes, int]] = msgspec.field(default_factory=set)
    unclaimed: list[Unclaimed] = msgspec.field(default_factory=list)
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    docker: int = 0
    """Containers of Docker whose files Docker keeps itself."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    @property
    def chosen(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.selected]

    def need(self, stack: Stack, *, wanted: bool) -> None:
        """Notes what a snapshot stands on. Beyond what there is room for it is a gap, and not taken."""
        for lower in stack.lowers:
            key = (stack.snapshotter.path, lower.id)
            if key not in self.layers:
                if len(self.layers) >= _MAX_LAYERS:
                    gap = Gap(Reason.LIMIT, f"more than {_MAX_LAYERS} layers: the rest is not taken", self.root.path)
                    self.gaps += [gap] if gap not in self.gaps else []
                    continue
                self.layers[key] = stack.snapshotter, lower
            if wanted:
                self.wanted.add(key)


Names = Callable[[], Mapping[str, Sequence[str]]]
"""What Docker calls its containers, by id."""


def read_store(
    host: Host, root: ContainerdRoot, selectors: Sequence[str], docker_names: Names, configured: Mapping[bytes, str]
) -> Store:
    """Reads the databases of one root. Raises nothing for what they hold. `configured`: see `find_snapshotters`."""
    store = Store(root)
    metadata = _metadata(host, store)
    store.counts = metadata.counts
    store.snapshotters = find_snapshotters(host, root.path, metadata.snapshotters, store.gaps, configured)
    for snapshotter in store.snapshotters:
        store.gaps += snapshotter.gaps
        store.flags += snapshotter.flags
    mounted = mounted_snapshots(host.mounts)
    claimed: set[tuple[bytes, int]] = set()
    records = [*metadata.containers, *_of_docker(metadata, docker_names)]
    for record in (*records, *_without_record(store, records, mounted)):
        entry = _entry(host, store, record, metadata, mounted.get((record.namespace, record.id)))
        if entry is None:
            store.docker += 1
            continue
        names = record.names
        if record.namespace == DOCKER:
            names += docker_names().get(record.id, ())
            entry.name = entry.name or next(iter(docker_names().get(record.id, ())), "")
        entry.matched = matching(selectors, record.id, names)
        entry.selected = bool(entry.matched) or not selectors
        store.entries.append(entry)
        if entry.stack is not None:
            claimed.add((entry.stack.snapshotter.path, entry.stack.upper.id))
            store.need(entry.stack, wanted=entry.selected)
    rank = {state: position for position, state in enumerate(_ORDER)}
    store.entries.sort(key=lambda one: (rank.get(one.task.state.partition(" ")[0], len(rank)), one.record.id))
    _find_unclaimed(store, claimed, wanted=not selectors)
    return store


def _metadata(host: Host, store: Store) -> Metadata:
    where = store.root.path + b"/" + META
    try:
        with open_file(host, where) as source:
            reading = read(source, read_metadata)
    except OSError as error:
        detail = f"the database of containers, which are not known without it: {error.strerror}"
        reason = Reason.MALFORMED if isinstance(error, FileNotFoundError) else reason_of(error)
        store.gaps.append(Gap(reason, detail, where))
        return Metadata()
    except BoltError as error:
        detail = f"the database of containers, which are not known without it: {error}"
        store.gaps.append(Gap(Reason.MALFORMED, detail, where))
        return Metadata()
    if reading.value.left_out:
        detail = f"{reading.value.left_out} further containers: not looked at"
        store.gaps.append(Gap(Reason.LIMIT, detail, where))
    for complaint in reading.complaints[:20]:
        store.flags.append(Flag(FlagKind.FINDING, f"the database of containers: {complaint}", where))
    return reading.value


def _entry(
    host: Host, store: Store, record: ContainerRecord, metadata: Metadata, mounted: Mounted | None
) -> Entry | None:
    """None for a container of Docker whose files are in Docker's own store."""
    snapshotter, name = metadata.snapshots.get((record.namespace, record.id), ("", b""))
    stack = _stack(store, snapshotter or record.snapshotter, name)
    live = _mounted_stack(store, mounted) if mounted is not None else None
    if record.namespace == DOCKER and stack is None and live is None and not snapshotter:
        return None
    entry = Entry(record, task_of(host, store.root, record), record.name or _short_name(record))
    where = store.root.path + b"/" + META
    if entry.task.finding:
        entry.flags.append(Flag(FlagKind.FINDING, entry.task.finding, where))
    entry.flags += [Flag(FlagKind.FINDING, f"the container's record: {one}", where) for one in record.complaints]
    entry.stack = stack or live
    if mounted is not None:
        entry.userxattr = mounted.userxattr
    elif entry.stack is not None:
        entry.userxattr = entry.stack.snapshotter.owner != 0
    if stack is None and live is not None:
        detail = "no record leads to its snapshot: it is the one that is mounted"
        entry.flags.append(Flag(FlagKind.FINDING, detail, live.upper_path))
    elif stack is not None and live is not None and stack.upper.id != live.upper.id:
        detail = f"another snapshot is mounted than the records name: {live.upper.id}, and not {stack.upper.id}"
        entry.flags.append(Flag(FlagKind.FINDING, detail, live.upper_path))
    elif entry.stack is None and (snapshotter or record.snapshotter):
        entry.gaps.append(_no_snapshot(store, snapshotter or record.snapshotter, record))
    return entry


def _of_docker(metadata: Metadata, docker_names: Names) -> Iterator[ContainerRecord]:
    """Containers that Docker has a record of, and containerd a snapshot alone: those that do not run."""
    names = docker_names() if metadata.docker else {}
    for container_id in metadata.docker:
        if container_id in names:
            yield ContainerRecord(DOCKER, container_id, has_container=False)


def _without_record(
    store: Store, records: Sequence[ContainerRecord], mounted: Mapping[tuple[str, str], Mounted]
) -> Iterator[ContainerRecord]:
    """Containers whose root is mounted, and that no record knows: it was removed, or the database is damaged."""
    known = {(record.namespace, record.id) for record in records}
    places = {snapshotter.path for snapshotter in store.snapshotters}
    for (namespace, container_id), one in mounted.items():
        if (namespace, container_id) not in known and one.snapshotter in places:
            record = ContainerRecord(namespace, container_id, has_container=False)
            record.complaints.append("there is none, though its root is mounted")
            yield record


def _no_snapshot(store: Store, snapshotter: str, record: ContainerRecord) -> Gap:
    key = record.snapshot_key[:200] or record.id.encode()
    if snapshotter in ELSEWHERE:
        detail = f"the writable layer, snapshotter {snapshotter!r}: {ELSEWHERE[snapshotter]}"
        return Gap(Reason.UNSUPPORTED, detail, store.root.path)
    if not any(one.name == snapshotter for one in store.snapshotters):
        detail = f"the writable layer {key!r}: the data of the snapshotter {snapshotter[:64]!r} was not found"
        return Gap(Reason.UNSUPPORTED if snapshotter not in DIRECTORIES else Reason.VANISHED, detail, store.root.path)
    detail = f"the writable layer {key!r}: no record of the snapshotter {snapshotter[:64]!r} leads to it"
    return Gap(Reason.MALFORMED, detail, store.root.path)


def _short_name(record: ContainerRecord) -> str:
    return record.pod if record.kind == "sandbox" else ""


def _stack(store: Store, snapshotter: str, name: bytes) -> Stack | None:
    if not name:
        return None
    found = (one.stack(name) for one in store.snapshotters if one.name == snapshotter)
    return next((stack for stack in found if stack is not None), None)


def _mounted_stack(store: Store, mounted: Mounted) -> Stack | None:
    """What is mounted, in the words of the records."""
    for snapshotter in store.snapshotters:
        if snapshotter.path != mounted.snapshotter:
            continue
        by_id = {snapshot.id: snapshot for snapshot in snapshotter.by_name.values()}
        upper = by_id.get(mounted.upper, Snapshot(b"", mounted.upper, ACTIVE, b""))
        lowers = tuple(by_id.get(lower, Snapshot(b"", lower, 0, b"")) for lower in mounted.lowers)
        return Stack(snapshotter, upper, lowers)
    return None


def _find_unclaimed(store: Store, claimed: set[tuple[bytes, int]], *, wanted: bool) -> None:
    too_many = 0
    for snapshotter in store.snapshotters:
        if snapshotter.name not in DIRECTORIES:
            continue
        found = [
            Unclaimed(snapshotter, b"%d" % snapshot.id, snapshot)
            for snapshot in snapshotter.by_name.values()
            if snapshot.kind == ACTIVE
            and (snapshotter.path, snapshot.id) not in claimed
            and b"%d" % snapshot.id in snapshotter.directories
        ]
        used = {b"%d" % number for path, number in (*claimed, *store.layers) if path == snapshotter.path}
        found += [Unclaimed(snapshotter, name, None) for name in snapshotter.strangers() if name not in used]
        for one in found:
            if len(store.unclaimed) >= _MAX_UNCLAIMED:
                too_many += 1
                continue
            store.unclaimed.append(one)
            stack = snapshotter.stack(one.snapshot.name) if one.snapshot is not None else None
            if stack is not None:
                store.need(stack, wanted=wanted)
    if too_many:
        detail = f"{too_many} further snapshots that no container claims: not taken"
        store.gaps.append(Gap(Reason.LIMIT, detail, store.root.path))
