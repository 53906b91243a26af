"""`containers.podman`: every container of every graph root, and each image layer they need once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Availability, Gap, Layers, Reason, Scope, State, Subject
from acquirers.containers.item_names import ItemNames
from acquirers.containers.known import counted, limits_of
from acquirers.containers.parts import Archive
from acquirers.containers.storage.areas import Areas
from acquirers.containers.storage.items import Items, make_item
from acquirers.containers.storage.roots import Found, find_roots
from acquirers.containers.storage.store import Room, Store
from acquirers.containers.storage.survey import read_store

if TYPE_CHECKING:
    from acquirers.base import Item
    from acquirers.host import Host

_MAX_LISTED = 1000
"""Unclaimed layers that a plan lists."""
_DENIED = "there is, or may be, a graph root of containers/storage that this user may not look at"


class _Survey(msgspec.Struct):
    """What is there, and what of it is asked for."""

    found: Found
    stores: list[Store]
    room: Room
    narrowed: bool


class Podman:
    """podman, buildah and CRI-O. Reads the disk; neither asks a daemon nor starts a program."""

    name = "containers.podman"

    def __init__(self) -> None:
        self._probed: dict[tuple[bytes, str], str] = {}
        """What `probe` told of: (graph root, container id) -> name. What is gone when it is read was there."""
        self.claimed: set[bytes] = set()
        """Log files that are in the items that were made so far: nobody else need take them."""

    def probe(self, host: Host, scope: Scope) -> Availability:
        survey = _survey(host, scope)
        found = survey.found
        self._probed = {(store.root.path, entry.id): entry.name for store in survey.stores for entry in store.chosen}
        if not survey.stores:
            return _nothing(found)
        reads = {path for store in survey.stores for path in store.areas.places()}
        limits = len(found.denied) + len(found.gaps)
        told: set[bytes] = set()
        return Availability(
            State.AVAILABLE,
            reason=limits_of(scope, limits),
            remedy="run as root" if found.denied else "",
            subjects=tuple(subject for store in survey.stores for subject in _subjects(survey, store, scope, told)),
            matched=frozenset().union(*(entry.matched for store in survey.stores for entry in store.entries)),
            reads=tuple(host.here(path) for path in sorted(reads)),
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        survey = _survey(host, scope)
        names = ItemNames()
        gaps, flags = self._news(survey), list(survey.found.flags)
        stores = [store for store in survey.stores if store.chosen or not survey.narrowed]
        done: set[bytes] = set()
        if not stores and gaps:
            archive = Archive(host, scope, (), gaps, flags)
            yield make_item(names, "podman", "runtime", archive, {"runtime": "podman"})
        for position, store in enumerate(stores):
            first = position == 0
            with Areas(host, store.root) as areas:
                making = Items(host, scope, names, store, areas, survey.room, done)
                yield making.runtime(survey.found, gaps if first else [], flags if first else [], first=first)
                for item in making.containers():
                    logs = item.about.get("logs")
                    self.claimed.update(logs if isinstance(logs, list) else ())
                    yield item
                yield from making.unclaimed()
                yield from making.layers()

    def _news(self, survey: _Survey) -> list[Gap]:
        """What belongs to no store: places that could not be looked at, containers that are gone since the probe."""
        gaps = [Gap(Reason.DENIED, _DENIED, path) for path in survey.found.denied]
        gaps += survey.found.gaps
        here = {(store.root.path, entry.id) for store in survey.stores for entry in store.entries}
        for (root, container_id), name in self._probed.items():
            if (root, container_id) not in here:
                detail = f"container {name[:100]!r} was there when the run was planned and is gone"
                gaps.append(Gap(Reason.VANISHED, detail, root + b"/" + container_id.encode()))
        return gaps


def container_names(host: Host) -> dict[str, tuple[str, ...]]:
    """The names of all containers that any graph root holds, by their ids."""
    return {one.id: one.names for store in _survey(host, Scope()).stores for one in store.entries}


def _survey(host: Host, scope: Scope) -> _Survey:
    found = find_roots(host)
    stores = []
    room = Room()
    for root in found.roots:
        store = read_store(host, root, scope.containers, room)
        if store.areas.readable:
            stores.append(store)
        elif all(gap.reason is Reason.DENIED for gap in store.gaps):
            found.denied += [root.path] if root.path not in found.denied else []
        else:
            found.gaps += store.gaps
    return _Survey(found, stores, room, bool(scope.containers))


def _nothing(found: Found) -> Availability:
    """No graph root was found: there is none, or it cannot be seen."""
    if found.denied:
        places = ", ".join(path.decode("utf-8", "replace") for path in found.denied[:3])
        return Availability(State.UNAVAILABLE, f"{_DENIED}: {places}", "run as root")
    if found.gaps:
        gap = found.gaps[0]
        return Availability(State.UNAVAILABLE, f"{gap.detail}: {gap.where.decode('utf-8', 'replace')}")
    if found.unseen:
        return Availability(
            State.ABSENT, f"no graph root; {counted(len(found.unseen), 'home')} could not be looked into"
        )
    return Availability(State.ABSENT, "no graph root of podman or CRI-O")


def _subjects(survey: _Survey, store: Store, scope: Scope, told: set[bytes]) -> Iterator[Subject]:
    """What a person is shown. What there is too much of ends in a line that says so."""
    for entry in store.entries:
        name = entry.name.encode("utf-8", "surrogatepass")
        yield Subject("container", entry.id, name, entry.state, None, entry.selected)
    for path, layer in store.layers.items():
        if path not in told:
            told.add(path)
            selected = scope.layers is not Layers.UPPER and path in store.wanted
            yield Subject("layer", layer.id, layer.diff_id.encode(), "", layer.size, selected)
    for _, layer_id in store.unclaimed[:_MAX_LISTED]:
        yield Subject("layer", layer_id, b"", "claimed by no container", None, not survey.narrowed)
    if len(store.unclaimed) > _MAX_LISTED:
        more = f"{len(store.unclaimed) - _MAX_LISTED} more, claimed by no container"
        yield Subject("layer", "", b"", more, None, not survey.narrowed)
    for volume in store.listed:
        text = volume.decode("utf-8", "replace")
        use = store.uses.get(text)
        selected = use.selected if use is not None else not survey.narrowed
        yield Subject("volume", text, volume, f"used by {use.users}" if use is not None else "unused", None, selected)
    if store.more_volumes:
        yield Subject("volume", "", b"", "more, which are not listed", None, not survey.narrowed)
