"""The items of one containerd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Item, Layers
from acquirers.containers.containerd.about import about_container, about_layer, about_runtime
from acquirers.containers.containerd.carved import CarvedRecords
from acquirers.containers.containerd.contents import (
    container_parts,
    layer_part,
    nerdctl_part,
    runtime_parts,
    unclaimed_part,
)
from acquirers.containers.containerd.kubernetes import Pods, keep_pod
from acquirers.containers.containerd.store import META
from acquirers.containers.parts import Archive, Part

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.containers.containerd.snapshots import Snapshotter
    from acquirers.containers.containerd.store import Entry, Store, Unclaimed
    from acquirers.containers.item_names import ItemNames
    from acquirers.host import Host

DIRECTORY = "containers/containerd"
_TAR = "application/x-tar"
_JSONL = "application/x-ndjson"
_MAX_SINGLE = 100
"""Unclaimed snapshots that are items of their own."""
_MAX_USERS = 100
_UNCLAIMED = "a snapshot that no container claims: its container was removed, or hidden"
_STRANGER = "a directory of snapshots that is in no record: half made, half removed, or hidden"
_HEX = frozenset("0123456789abcdef")


def make_item(
    names: ItemNames, name: str, archive: Archive, about: Mapping[str, object], *, below: str = "",
    size: int | None = None,
) -> Item:  # fmt: skip
    return Item(names.take(DIRECTORY + below, name), _TAR, archive, size, about)


class Shared(msgspec.Struct):
    """What all containerds of a machine have together: the directories that were stored already."""

    pods: Pods
    stored: dict[bytes, str] = msgspec.field(default_factory=dict)
    """Directory -> the item that it is stored in."""


class _Users(msgspec.Struct):
    ids: list[str] = msgspec.field(default_factory=list)
    count: int = 0


class Items:
    """Makes them one after the other."""

    def __init__(self, host: Host, scope: Scope, names: ItemNames, store: Store, shared: Shared) -> None:
        self._host = host
        self._scope = scope
        self._names = names
        self._store = store
        self._shared = shared
        self._narrowed = bool(scope.containers)
        self._users: dict[tuple[bytes, int], _Users] = {}

    def runtime(self, gaps: list[Gap], flags: list[Flag], configs: Sequence[bytes], *, first: bool) -> Item:
        store = self._store
        parts = list(runtime_parts(self._host, store, configs if first else (), whole=not self._narrowed))
        if first and not self._narrowed:
            known = frozenset(entry.record.id for entry in store.entries)
            parts += nerdctl_part(self._host, known, others=True)
        archive = self._archive(parts, [*gaps, *store.gaps], [*flags, *store.flags])
        return make_item(self._names, "runtime", archive, about_runtime(store, configs))

    def containers(self) -> Iterator[Item]:
        for entry in self._store.chosen:
            yield self._container(entry)

    def _container(self, entry: Entry) -> Item:
        record = entry.record
        path = self._names.take(DIRECTORY, f"{record.id[:12]}-{entry.name or _plain(record.id)}")
        gaps, flags = list(entry.gaps), list(entry.flags)
        parts = list(container_parts(self._host, self._store, entry))
        parts += nerdctl_part(self._host, frozenset({record.id}), others=False)
        if entry.stack is not None:
            gaps += entry.stack.gaps
            flags += entry.stack.flags
            self._note_layers(entry)
        logs = self._pod_files(entry, path, parts, flags)
        about = about_container(self._store, entry, logs)
        return Item(path, _TAR, self._archive(parts, gaps, flags), None, about)

    def _pod_files(self, entry: Entry, item: str, parts: list[Part], flags: list[Flag]) -> list[bytes]:
        """The logs of the container and the directory of its pod, unless another item has them. Returns the logs."""
        record, shared = entry.record, self._shared
        files = shared.pods.files(record)
        if files.finding:
            flags.append(Flag(FlagKind.FINDING, files.finding, self._store.root.path + b"/" + META))
        logs: list[bytes] = []
        for directory, what in ((files.logs, "logs"), (files.directory, "the directory of the pod")):
            if directory is None or not self._host.is_dir(directory):
                continue
            other = shared.stored.get(directory)
            if what == "logs":
                logs = shared.pods.log_files(record, directory, own=other is not None)
            if other is not None:
                flags.append(Flag(FlagKind.ELSEWHERE, f"{what}, of several containers: stored in {other}", directory))
                continue
            shared.stored[directory] = item
            parts.append(Part(directory, keep_pod if what != "logs" else None, optional=True))
        return logs

    def unclaimed(self) -> Iterator[Item]:
        """Snapshots without a container: nobody can select them, so they are taken unless somebody does."""
        if self._narrowed:
            return
        for one in self._store.unclaimed[:_MAX_SINGLE]:
            yield self._one_unclaimed(one)
        rest: dict[bytes, tuple[Snapshotter, set[bytes]]] = {}
        for one in self._store.unclaimed[_MAX_SINGLE:]:
            rest.setdefault(one.snapshotter.path, (one.snapshotter, set()))[1].add(one.directory)
        for snapshotter, directories in rest.values():
            part = unclaimed_part(snapshotter, frozenset(directories), _UNCLAIMED)
            about = {"runtime": "containerd", "root": self._store.root.path, "unclaimed_snapshots": len(directories)}
            name = f"{snapshotter.name}-unclaimed"
            yield make_item(self._names, name, self._archive([part], [], []), about)

    def _one_unclaimed(self, one: Unclaimed) -> Item:
        snapshotter, snapshot = one.snapshotter, one.snapshot
        where = snapshotter.path + b"/snapshots/" + one.directory
        stack = snapshotter.stack(snapshot.name) if snapshot is not None else None
        about: dict[str, object] = {
            "runtime": "containerd",
            "root": self._store.root.path,
            "unclaimed": one.directory.decode("ascii", "replace"),
            "key": snapshot.name[:600] if snapshot is not None else b"",
        }
        if stack is not None:
            about["rootfs"] = {
                "driver": snapshotter.name,
                "upper": stack.upper_path,
                "lowers": stack.lower_paths,
                "userxattr": False,
            }
        flag = Flag(FlagKind.FINDING, _UNCLAIMED if snapshot is not None else _STRANGER, where)
        archive = self._archive([Part(where)], stack.gaps if stack is not None else [], [flag])
        return make_item(self._names, f"{one.directory.decode('ascii', 'replace')}-unclaimed", archive, about)

    def layers(self) -> Iterator[Item]:
        """Each layer that something selected stands on, however many containers share it.

        Nothing here is proved to be what an image has, as Docker's records would: `changed` takes all of them.
        """
        if self._scope.layers is Layers.UPPER:
            return
        for key, (snapshotter, snapshot) in self._store.layers.items():
            if key not in self._store.wanted:
                continue
            users = self._users.get(key, _Users())
            about = about_layer(self._store, snapshotter, snapshot, users.ids, users.count)
            archive = self._archive([layer_part(snapshotter, snapshot.id)], snapshotter.layer_gaps(snapshot), [])
            name = snapshot.chain_id.removeprefix("sha256:")[:12] or f"{snapshotter.name}-{snapshot.id}"
            yield make_item(self._names, name, archive, about, below="/layers", size=snapshot.size)

    def databases(self) -> list[bytes]:
        """What may be carved."""
        found = [self._store.root.path + b"/" + META]
        return found + [one.path + b"/metadata.db" for one in self._store.snapshotters]

    def _note_layers(self, entry: Entry) -> None:
        if entry.stack is None:
            return
        for lower in entry.stack.lowers:
            users = self._users.setdefault((entry.stack.snapshotter.path, lower.id), _Users())
            users.count += 1
            if len(users.ids) < _MAX_USERS:
                users.ids.append(entry.record.id[:128])

    def _archive(self, parts: list[Part], gaps: list[Gap], flags: list[Flag]) -> Archive:
        return Archive(self._host, self._scope, parts, gaps, flags)


def carved_item(host: Host, names: ItemNames, databases: Sequence[bytes]) -> Item:
    """Records out of pages that are no longer in use: marked as carved, not as what is."""
    about = {"runtime": "containerd", "carved": True, "databases": list(databases)[:100]}
    path = names.take(DIRECTORY, "carved", ".jsonl")
    return Item(path, _JSONL, CarvedRecords(host, databases), None, about)


def _plain(container_id: str) -> str:
    """The id as a name where a person chose it."""
    generated = len(container_id) == 64 and _HEX.issuperset(container_id)
    return "unnamed" if generated else container_id
