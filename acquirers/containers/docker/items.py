"""The items of one data root. Each container is read when its turn comes, and forgotten when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Item, Layers, Reason
from acquirers.containers.docker.about import about_container, about_layer, about_runtime
from acquirers.containers.docker.areas import OVERLAYS
from acquirers.containers.docker.container import ContainerReader
from acquirers.containers.docker.contents import (
    UNCLAIMED,
    container_parts,
    layer_part,
    runtime_parts,
    short_links_part,
    showing_the_root,
    unclaimed_part,
    volume_parts,
    writable_parts,
)
from acquirers.containers.docker.proving import MEDIA_TYPE as PROOF_TYPE
from acquirers.containers.docker.proving import Proving
from acquirers.containers.parts import Archive, Part

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.containers.containerd import DockerSnapshots
    from acquirers.containers.docker.areas import Areas
    from acquirers.containers.docker.container import Container
    from acquirers.containers.docker.store import Room, Store, Summary
    from acquirers.containers.item_names import ItemNames
    from acquirers.host import Host

_DIRECTORY = "containers/docker"
_CONTAINERD = "containers.containerd"
_MEDIA_TYPE = "application/x-tar"
_MAX_SINGLE = 100
"""Unclaimed layers that are items of their own. Where there are more, something has gone wrong for long, and an item
costs more than what is in most of them."""
_MAX_USERS = 100
"""Containers that are named with a layer."""


def make_item(
    names: ItemNames,
    name: str,
    archive: Archive,
    about: Mapping[str, object],
    *,
    below: str = "",
    size: int | None = None,
) -> Item:
    return Item(names.take(_DIRECTORY + below, name), _MEDIA_TYPE, archive, size, about)


class _Users(msgspec.Struct):
    """Who stands on a layer."""

    ids: list[str] = msgspec.field(default_factory=list)
    count: int = 0


class Items:
    """Makes them one after the other, while the areas of the data root are open."""

    def __init__(self, host: Host, scope: Scope, names: ItemNames, store: Store, areas: Areas, room: Room) -> None:
        self._host = host
        self._scope = scope
        self._names = names
        self._store = store
        self._areas = areas
        self._room = room
        self._reader = ContainerReader(host, areas)
        self._snapshots: DockerSnapshots | None = None
        self._narrowed = bool(scope.containers)
        self._stored: dict[bytes, str] = {}
        """Volume -> the item that it is stored in."""
        self._users: dict[tuple[str, str], _Users] = {}

    def runtime(self, gaps: list[Gap], flags: list[Flag], *, configuration: bool) -> Item:
        store = self._store
        flags = [*flags, *store.flags]
        gaps = [*gaps, *store.gaps]
        volumes: list[Part] = []
        apart: frozenset[bytes] | None = None
        if not self._narrowed:
            gaps += store.strange
            mounts = self._host.mounts
            unused = [name for name in showing_the_root(store, mounts) if name not in store.volumes]
            volumes, told = volume_parts(store, mounts, unused)
            flags += told
            apart = frozenset((*store.volumes, *unused))
        parts = [*runtime_parts(store, apart, configuration=configuration), *volumes]
        return make_item(self._names, "runtime", self._archive(parts, gaps, flags), about_runtime(store))

    def containers(self) -> Iterator[Item]:
        for summary in self._store.chosen:
            yield self._container(summary)

    def _container(self, summary: Summary) -> Item:
        store = self._store
        container = self._reader.read(summary.id, summary.driver, present=summary.present)
        path = self._names.take(_DIRECTORY, f"{container.id[:12]}-{container.name or summary.name or 'unnamed'}")
        gaps, flags = list(container.gaps), list(container.flags)
        if container.snapshotter:
            self._note_snapshotter(container, gaps, flags)
        if container.writable is not None:
            self._reader.layers.add_links(container.writable)
            gaps += container.writable.gaps
            flags += container.writable.flags
        self._note_layers(container)
        parts = list(container_parts(store, container))
        # Those of the survey too, whatever the record says by now: nothing else takes them.
        names = list(dict.fromkeys((*summary.volumes, *container.volumes)))
        for name in names:
            if name in self._stored:
                detail = f"a volume of several containers: stored in {self._stored[name]}"
                flags.append(Flag(FlagKind.ELSEWHERE, detail, store.areas.path("volumes") + b"/" + name))
        mine = [name for name in names if name not in self._stored and name not in container.links]
        self._stored.update(dict.fromkeys(mine, path))
        if mine:
            volumes, told = volume_parts(store, self._host.mounts, mine)
            parts += volumes
            flags += told
        return Item(path, _MEDIA_TYPE, self._archive(parts, gaps, flags), None, about_container(store, container))

    def _note_snapshotter(self, container: Container, gaps: list[Gap], flags: list[Flag]) -> None:
        from acquirers.containers.containerd import DockerSnapshots  # imported where it is needed only

        detail = f"the writable layer, driver {container.snapshotter!r}: a snapshotter of containerd keeps it"
        if self._snapshots is None:
            self._snapshots = DockerSnapshots(self._host)
        if _CONTAINERD not in self._scope.beside:
            gaps.append(Gap(Reason.UNSUPPORTED, f"{detail}: ask for {_CONTAINERD}, too", container.path))
        elif self._snapshots.stack(container.id, container.snapshotter) is None:
            gaps.append(Gap(Reason.MALFORMED, f"{detail}, whose databases do not name it", container.path))
        else:
            flags.append(Flag(FlagKind.ELSEWHERE, f"{detail}, so {_CONTAINERD} takes it", container.path))

    def unclaimed(self) -> Iterator[Item]:
        """Writable layers without a container: nobody can select them, so they are taken unless somebody does."""
        if self._narrowed:
            return
        for driver, mount_id in self._store.unclaimed[:_MAX_SINGLE]:
            yield self._one_unclaimed(driver, mount_id)
        rest: dict[str, set[str]] = {}
        for driver, mount_id in self._store.unclaimed[_MAX_SINGLE:]:
            rest.setdefault(driver, set()).add(mount_id)
        for driver, mount_ids in rest.items():
            yield self._all_unclaimed(driver, frozenset(mount_ids))

    def _one_unclaimed(self, driver: str, mount_id: str) -> Item:
        store = self._store
        where = store.areas.overlay_path(driver) + b"/" + mount_id.encode()
        gaps, parts = [Gap(Reason.VANISHED, "it was there when the layers were listed", where)], []
        writable = self._reader.layers.from_mount_id(driver, mount_id)
        if writable is not None:
            self._reader.layers.add_links(writable)
            gaps, parts = writable.gaps, list(writable_parts(store, writable))
        archive = self._archive(parts, gaps, [Flag(FlagKind.FINDING, UNCLAIMED, where)])
        about = {"runtime": "docker", "data_root": store.root.path, "unclaimed": mount_id}
        return make_item(self._names, f"{mount_id[:12]}-unclaimed", archive, about)

    def _all_unclaimed(self, driver: str, mount_ids: frozenset[str]) -> Item:
        """Many of them in one item."""
        store = self._store
        gaps: list[Gap] = []
        untold = 0
        for mount_id in sorted(mount_ids):
            writable = self._reader.layers.from_mount_id(driver, mount_id)
            for gap in writable.gaps if writable is not None else []:
                if len(gaps) < _MAX_SINGLE:
                    gaps.append(gap)
                else:
                    untold += 1
        if untold:
            detail = f"{untold} further gaps of unclaimed layers, as those that are told"
            gaps.append(Gap(Reason.MALFORMED, detail, store.areas.overlay_path(driver)))
        parts = [unclaimed_part(store, driver, mount_ids)]
        if driver in OVERLAYS:
            parts.append(short_links_part(store, driver))
        about: dict[str, object] = {
            "runtime": "docker",
            "data_root": store.root.path,
            "unclaimed_layers": len(mount_ids),
        }
        return make_item(self._names, f"{driver}-unclaimed", self._archive(parts, gaps, []), about)

    def layers(self) -> Iterator[Item]:
        """Each image layer that something selected stands on, the most shared ones not twice."""
        if self._scope.layers is Layers.UPPER:
            return
        left_out: set[tuple[str, str]] = set()
        if self._scope.layers is Layers.CHANGED and self._store.wanted:
            proving = Proving(self._host, self._scope, self._store, self._areas)
            left_out = proving.left_out
            path = self._names.take(f"{_DIRECTORY}/layers", "proof", ".jsonl")
            yield Item(path, PROOF_TYPE, proving.read, None, about_runtime(self._store))
        for key, layer in self._store.layers.items():
            if key in self._store.wanted and key not in left_out:
                users = self._users.get(key, _Users())
                about = about_layer(self._store, layer, users.ids, users.count)
                archive = self._archive([layer_part(self._store, layer)], [], [])
                yield make_item(self._names, layer.id[:12], archive, about, below="/layers", size=layer.size)

    def _note_layers(self, container: Container) -> None:
        """Also those that nothing stood on when the survey was made."""
        self._store.need(container.layers, self._room, wanted=True)
        for layer in container.layers:
            if (layer.driver, layer.id) not in self._store.layers:
                continue
            users = self._users.setdefault((layer.driver, layer.id), _Users())
            users.count += 1
            if len(users.ids) < _MAX_USERS:
                users.ids.append(container.id)

    def _archive(self, parts: list[Part], gaps: list[Gap], flags: list[Flag]) -> Archive:
        return Archive(self._host, self._scope, parts, gaps, flags)
