"""`containers.docker`: every container of every data root, and each image layer they need once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acquirers.base import Availability, Flag, FlagKind, Gap, Item, Layers, Reason, State, Subject
from acquirers.containers.docker.about import about_container, about_layer, about_runtime
from acquirers.containers.docker.contents import (
    container_parts,
    layer_part,
    runtime_parts,
    volume_part,
    writable_parts,
)
from acquirers.containers.docker.roots import Found, find_roots
from acquirers.containers.docker.store import Container, Store, Volume, read_store
from acquirers.containers.item_names import ItemNames
from acquirers.containers.parts import Archive, Part
from acquirers.containers.selectors import matching

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.containers.docker.layers import Layer
    from acquirers.host import Host

_DIRECTORY = "containers/docker"
_MEDIA_TYPE = "application/x-tar"
_DENIED = "there is, or may be, a Docker data root that this user may not look at"


@dataclass(slots=True)
class _Survey:
    """What is there, and what of it is asked for."""

    found: Found
    stores: list[Store]
    matched: dict[tuple[bytes, str], frozenset[str]]
    """(data root, container id) -> selectors that mean it."""
    narrowed: bool

    def selected(self, store: Store, container: Container) -> bool:
        return not self.narrowed or bool(self.matched[store.root.path, container.id])

    def chosen(self, store: Store) -> list[Container]:
        return [container for container in store.containers if self.selected(store, container)]


class Docker:
    """Reads the disk; neither asks the daemon nor needs one."""

    name = "containers.docker"

    def __init__(self) -> None:
        self._probed: dict[tuple[bytes, str], str] = {}
        """What `probe` told of: (data root, container id) -> name. What is gone when it is read was there."""

    def probe(self, host: Host, scope: Scope) -> Availability:
        survey = _survey(host, scope)
        found = survey.found
        self._probed = {
            (store.root.path, container.id): container.name
            for store in survey.stores
            for container in survey.chosen(store)
        }
        if not survey.stores:
            return _nothing(found)
        reads = {path for store in survey.stores for path in store.areas.places()}
        limits = len(found.denied) + len(found.gaps)
        return Availability(
            State.AVAILABLE,
            reason=f"{limits} further places could not be looked at" if limits else "",
            remedy="run as root" if found.denied else "",
            subjects=tuple(subject for store in survey.stores for subject in _subjects(survey, store, scope)),
            matched=frozenset(selector for selectors in survey.matched.values() for selector in selectors),
            reads=tuple(host.here(path) for path in sorted(reads)),
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        survey = _survey(host, scope)
        names = ItemNames()
        gaps, flags = self._news(survey), list(survey.found.flags)
        stores = [store for store in survey.stores if survey.chosen(store) or not survey.narrowed]
        if not stores and gaps:
            yield _item(names, "runtime", Archive(host, scope, (), gaps, flags), {"runtime": "docker"})
        for position, store in enumerate(stores):
            making = _Items(host, scope, names, store, survey)
            first = position == 0
            yield making.runtime(gaps if first else [], flags if first else [], configuration=first)
            yield from making.containers()
            yield from making.unclaimed()
            yield from making.layers()

    def _news(self, survey: _Survey) -> list[Gap]:
        """What belongs to no store: places that could not be looked at, containers that are gone since the probe."""
        gaps = [Gap(Reason.DENIED, _DENIED, path) for path in survey.found.denied]
        gaps += survey.found.gaps
        here = {(store.root.path, container.id) for store in survey.stores for container in store.containers}
        for (root, container_id), name in self._probed.items():
            if (root, container_id) not in here:
                detail = f"container {name[:100]!r} was there when the run was planned and is gone"
                gaps.append(Gap(Reason.VANISHED, detail, root + b"/containers/" + container_id.encode()))
        return gaps


def _survey(host: Host, scope: Scope) -> _Survey:
    found = find_roots(host)
    stores = []
    for root in found.roots:
        store = read_store(host, root)
        if store.areas.readable:
            stores.append(store)
        elif all(gap.reason is Reason.DENIED for gap in store.gaps):
            found.denied += [root.path] if root.path not in found.denied else []
        else:
            found.gaps += store.gaps
    matched = {
        (store.root.path, container.id): matching(scope.containers, container.id, [container.name])
        for store in stores
        for container in store.containers
    }
    return _Survey(found, stores, matched, bool(scope.containers))


def _nothing(found: Found) -> Availability:
    """No data root was found: there is none, or it cannot be seen."""
    if found.denied:
        places = ", ".join(path.decode("utf-8", "replace") for path in found.denied[:3])
        return Availability(State.UNAVAILABLE, f"{_DENIED}: {places}", "run as root")
    if found.gaps:
        gap = found.gaps[0]
        return Availability(State.UNAVAILABLE, f"{gap.detail}: {gap.where.decode('utf-8', 'replace')}")
    if found.unseen:
        return Availability(State.ABSENT, f"no data root; {len(found.unseen)} homes could not be looked into")
    return Availability(State.ABSENT, "no Docker data root")


def _subjects(survey: _Survey, store: Store, scope: Scope) -> Iterator[Subject]:
    chosen = survey.chosen(store)
    for container in store.containers:
        selected = survey.selected(store, container)
        yield Subject("container", container.id, container.name.encode(), container.state, None, selected)
    wanted = {layer.id for container in chosen for layer in container.layers} if scope.layers is Layers.ALL else set()
    seen: set[str] = set()
    for container in store.containers:
        for layer in container.layers:
            if layer.id not in seen:
                seen.add(layer.id)
                yield Subject("layer", layer.id, layer.diff_id.encode(), "", layer.size, layer.id in wanted)
    ids = {container.id for container in chosen}
    for volume in store.volumes.values():
        selected = bool(ids.intersection(volume.users)) or (not survey.narrowed and not volume.users)
        state = f"used by {len(volume.users)}" if volume.users else "unused"
        yield Subject("volume", volume.name.decode("utf-8", "replace"), volume.name, state, None, selected)


def _item(
    names: ItemNames,
    name: str,
    archive: Archive,
    about: Mapping[str, object],
    *,
    below: str = "",
    size: int | None = None,
) -> Item:
    return Item(names.take(_DIRECTORY + below, name), _MEDIA_TYPE, archive, size, about)


@dataclass(slots=True)
class _Items:
    """The items of one data root."""

    host: Host
    scope: Scope
    names: ItemNames
    store: Store
    survey: _Survey
    stored: dict[bytes, str] = field(default_factory=dict)
    """Volume -> the item that it is stored in."""

    def runtime(self, gaps: list[Gap], flags: list[Flag], *, configuration: bool) -> Item:
        store = self.store
        parts = list(runtime_parts(store, configuration=configuration))
        flags = [*flags, *store.flags]
        gaps = [*gaps, *store.gaps]
        if not self.survey.narrowed:
            gaps += store.strange
            for volume in store.volumes.values():
                if not volume.users:
                    gaps += [volume.gap] if volume.gap is not None else []
                    self._add_volume(volume, parts, flags)
        archive = Archive(self.host, self.scope, parts, gaps, flags)
        return _item(self.names, "runtime", archive, about_runtime(store))

    def containers(self) -> Iterator[Item]:
        for container in self.survey.chosen(self.store):
            path = self.names.take(_DIRECTORY, f"{container.id[:12]}-{container.name or 'unnamed'}")
            parts = list(container_parts(self.store, container))
            gaps, flags = list(container.gaps), list(container.flags)
            if container.writable is not None:
                gaps += container.writable.gaps
                flags += container.writable.flags
            for name in container.volumes:
                if name in self.stored:
                    detail = f"a volume of several containers: stored in {self.stored[name]}"
                    flags.append(Flag(FlagKind.ELSEWHERE, detail, self.store.volumes[name].path))
                    continue
                self.stored[name] = path
                self._add_volume(self.store.volumes[name], parts, flags)
            archive = Archive(self.host, self.scope, parts, gaps, flags)
            yield Item(path, _MEDIA_TYPE, archive, None, about_container(self.store, container))

    def unclaimed(self) -> Iterator[Item]:
        """Writable layers without a container: nobody can select them, so they are taken unless somebody does."""
        for writable in self.store.unclaimed if not self.survey.narrowed else []:
            parts = list(writable_parts(self.store, writable))
            archive = Archive(self.host, self.scope, parts, writable.gaps, writable.flags)
            about = {"runtime": "docker", "data_root": self.store.root.path, "unclaimed": writable.mount_id}
            yield _item(self.names, f"{writable.mount_id[:12]}-unclaimed", archive, about)

    def layers(self) -> Iterator[Item]:
        """Each image layer that something selected stands on, the most shared ones not twice."""
        if self.scope.layers is not Layers.ALL:
            return
        users: dict[str, list[str]] = {}
        layers: dict[str, Layer] = {}
        for container in self.survey.chosen(self.store):
            for layer in container.layers:
                layers.setdefault(layer.id, layer)
                users.setdefault(layer.id, []).append(container.id)
        for writable in self.store.unclaimed if not self.survey.narrowed else []:
            for layer in writable.layers:
                layers.setdefault(layer.id, layer)
        for layer in layers.values():
            archive = Archive(self.host, self.scope, [layer_part(self.store, layer)])
            about = about_layer(self.store, layer, users.get(layer.id, []))
            yield _item(self.names, layer.id[:12], archive, about, below="/layers", size=layer.size)

    def _add_volume(self, volume: Volume, parts: list[Part], flags: list[Flag]) -> None:
        if volume.is_link:
            return  # the link itself is among the records of all volumes
        part, flag = volume_part(self.host, self.store, volume)
        parts.append(part)
        if flag is not None:
            flags.append(flag)
