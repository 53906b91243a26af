"""The items of one graph root. What a container was started with is read when its turn comes, and then forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Item, Layers, Reason
from acquirers.containers.parts import Archive, Part
from acquirers.containers.storage.about import about_container, about_layer, about_runtime, about_unclaimed, how_merged
from acquirers.containers.storage.container import ContainerReader
from acquirers.containers.storage.contents import (
    UNCLAIMED,
    container_parts,
    layer_part,
    runtime_parts,
    showing_the_root,
    tar_split_parts,
    temporary_parts,
    volume_parts,
    writable_parts,
)

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.containers.item_names import ItemNames
    from acquirers.containers.storage.areas import Areas
    from acquirers.containers.storage.container import Container
    from acquirers.containers.storage.layers import Layer
    from acquirers.containers.storage.roots import Found
    from acquirers.containers.storage.store import Entry, Room, Store
    from acquirers.host import Host

_MEDIA_TYPE = "application/x-tar"
_MAX_SINGLE = 100
"""Unclaimed layers that are items of their own. Where there are more, they share them."""
_MAX_USERS = 100
"""Containers that are named with a layer."""


def make_item(
    names: ItemNames,
    directory: str,
    name: str,
    archive: Archive,
    about: Mapping[str, object],
    *,
    size: int | None = None,
) -> Item:
    return Item(names.take(f"containers/{directory}", name), _MEDIA_TYPE, archive, size, about)


class _Users(msgspec.Struct):
    """Who stands on a layer."""

    ids: list[str] = msgspec.field(default_factory=list)
    count: int = 0


class Items:
    """Makes them one after the other, while the areas of the graph root are open."""

    def __init__(
        self, host: Host, scope: Scope, names: ItemNames, store: Store, areas: Areas, room: Room, done: set[bytes]
    ) -> None:
        """`done`: layers that another graph root's items hold, for image stores may be shared."""
        self._host = host
        self._scope = scope
        self._names = names
        self._store = store
        self._room = room
        self._done = done
        self._reader = ContainerReader(host, store, areas)
        self._narrowed = bool(scope.containers)
        self._stored: dict[bytes, str] = {}
        """Volume -> the item that it is stored in."""
        self._users: dict[bytes, _Users] = {}

    def runtime(self, found: Found, gaps: list[Gap], flags: list[Flag], *, first: bool) -> Item:
        store = self._store
        flags = [*flags, *store.flags]
        gaps = [*gaps, *store.gaps]
        volumes: list[Part] = []
        apart: frozenset[bytes] | None = None
        if not self._narrowed and store.areas.volumes is not None:
            base = store.areas.volumes.path + b"/"
            over = [path for path in showing_the_root(store, self._host.mounts) if path.startswith(base)]
            used = {name.encode("utf-8", "surrogatepass") for name in store.uses}
            unused = [path for path in over if path.removeprefix(base) not in used]
            volumes, told = volume_parts(store, self._host.mounts, unused)
            flags += told
            apart = frozenset((*used, *(path.removeprefix(base) for path in unused)))
        parts = [*runtime_parts(store, found, apart, first=first), *volumes]
        archive = self._archive(parts, gaps, flags)
        return make_item(self._names, store.runtime, "runtime", archive, about_runtime(store))

    def containers(self) -> Iterator[Item]:
        for entry in self._store.chosen:
            yield self._container(entry)

    def _container(self, entry: Entry) -> Item:
        store = self._store
        container = self._reader.read(entry)
        path = self._names.take(f"containers/{entry.runtime}", f"{entry.id[:12]}-{_name(entry)}")
        gaps, flags = list(container.gaps), list(container.flags)
        writable = container.writable
        layers = self._reader.layers(entry.driver)
        if writable is not None and layers is not None:
            writable.links = layers.links(writable)
            gaps += writable.gaps
            flags += writable.flags
            self._note_layers(entry.id, writable.layers)
        parts = list(container_parts(container))
        for volume in container.volumes.values():
            if volume in self._stored:
                detail = f"a volume of several containers: stored in {self._stored[volume]}"
                flags.append(Flag(FlagKind.ELSEWHERE, detail, volume))
        mine = [volume for volume in container.volumes.values() if volume not in self._stored]
        self._stored.update(dict.fromkeys(mine, path))
        if mine:
            volumes, told = volume_parts(store, self._host.mounts, mine)
            parts += volumes
            flags += told
        return Item(path, _MEDIA_TYPE, self._archive(parts, gaps, flags), None, self._about(container))

    def _about(self, container: Container) -> Mapping[str, object]:
        driver, userxattr = how_merged(self._store, container.entry.driver)
        return about_container(self._store, container, userxattr=userxattr, driver=driver)

    def unclaimed(self) -> Iterator[Item]:
        """Layers without a container: nobody can select them, so they are taken unless somebody does."""
        if self._narrowed:
            return
        store = self._store
        for driver, layer_id in store.unclaimed[:_MAX_SINGLE]:
            yield self._unclaimed(f"{layer_id[:12]}-unclaimed", driver, [layer_id])
        rest: dict[str, list[str]] = {}
        for driver, layer_id in store.unclaimed[_MAX_SINGLE:]:
            rest.setdefault(driver, []).append(layer_id)
        for driver, layer_ids in rest.items():
            for start in range(0, len(layer_ids), 1000):
                yield self._unclaimed(f"{driver}-unclaimed", driver, layer_ids[start : start + 1000])
        parts = [part for part in temporary_parts(store) if self._host.is_dir(part.path)]
        if parts:
            flag = Flag(FlagKind.FINDING, "layers that were being pulled or deleted", parts[0].path)
            about: dict[str, object] = {"runtime": store.runtime, "data_root": store.root.path}
            archive = self._archive(parts, [], [flag])
            yield make_item(self._names, store.runtime, "temporary-unclaimed", archive, about)

    def _unclaimed(self, name: str, driver: str, layer_ids: list[str]) -> Item:
        """One of them, or many in one item."""
        store = self._store
        layers = self._reader.layers(driver)
        gaps: list[Gap] = []
        flags: list[Flag] = []
        parts: list[Part] = []
        about: Mapping[str, object] = {
            "runtime": store.runtime,
            "data_root": store.root.path,
            "unclaimed_layers": len(layer_ids),
        }
        for layer_id in layer_ids:
            if layers is None:
                gaps.append(Gap(Reason.VANISHED, "it was there when the layers were listed", store.root.path))
                break
            writable = layers.writable(layer_id)
            writable.links = layers.links(writable)
            # That nobody has a record of it is what it is told for.
            gaps += [gap for gap in writable.gaps if "has no record" not in gap.detail][: _MAX_SINGLE - len(gaps)]
            parts += writable_parts(writable)
            if writable.layer is not None:
                flags.append(Flag(FlagKind.FINDING, UNCLAIMED, writable.layer.path))
            if len(layer_ids) == 1:
                how, userxattr = how_merged(store, driver)
                about = about_unclaimed(store, writable, how, userxattr=userxattr)
        return make_item(self._names, store.runtime, name, self._archive(parts, gaps, flags), about)

    def layers(self) -> Iterator[Item]:
        """Each image layer that something selected stands on, the most shared ones not twice."""
        if self._scope.layers is Layers.UPPER:
            return
        for path, layer in self._store.layers.items():
            if path not in self._store.wanted or path in self._done:
                continue
            self._done.add(path)
            users = self._users.get(path, _Users())
            about = about_layer(self._store, layer, users.ids, users.count)
            archive = self._archive([layer_part(layer), *tar_split_parts(self._store, layer)], [], [])
            directory = f"{self._store.runtime}/layers"
            yield make_item(self._names, directory, layer.id[:12], archive, about, size=layer.size)

    def _note_layers(self, container: str, layers: tuple[Layer, ...]) -> None:
        """Also those that nothing stood on when the survey was made."""
        self._store.need(layers, self._room, wanted=True)
        for layer in layers:
            if layer.path not in self._store.layers:
                continue
            users = self._users.setdefault(layer.path, _Users())
            users.count += 1
            if len(users.ids) < _MAX_USERS:
                users.ids.append(container)

    def _archive(self, parts: list[Part], gaps: list[Gap], flags: list[Flag]) -> Archive:
        return Archive(self._host, self._scope, parts, gaps, flags)


def _name(entry: Entry) -> str:
    return entry.name[:200] or "unnamed"
