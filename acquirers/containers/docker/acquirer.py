"""`containers.docker`: every container of every data root, and each image layer they need once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Availability, Gap, Item, Layers, Reason, Scope, State, Subject
from acquirers.containers.docker.areas import Areas
from acquirers.containers.docker.events import MEDIA_TYPE as EVENTS
from acquirers.containers.docker.events import EventRing
from acquirers.containers.docker.items import Items, make_item
from acquirers.containers.docker.proving import digest_of
from acquirers.containers.docker.roots import Found, find_roots
from acquirers.containers.docker.store import Room, Store, read_store
from acquirers.containers.item_names import ItemNames
from acquirers.containers.known import counted
from acquirers.containers.parts import Archive
from acquirers.host import Mode

if TYPE_CHECKING:
    from acquirers.host import Host

_MAX_LISTED = 1000
"""Unclaimed layers that a plan lists."""
_DENIED = "there is, or may be, a Docker data root that this user may not look at"


class _Survey(msgspec.Struct):
    """What is there, and what of it is asked for."""

    found: Found
    stores: list[Store]
    room: Room
    narrowed: bool


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
            (store.root.path, container.id): container.name for store in survey.stores for container in store.chosen
        }
        if not survey.stores:
            return _nothing(found)
        reads = {path for store in survey.stores for path in store.areas.places()}
        limits = len(found.denied) + len(found.gaps)
        return Availability(
            State.AVAILABLE,
            reason=f"{counted(limits, 'further place')} could not be looked at" if limits else "",
            remedy="run as root" if found.denied else "",
            subjects=tuple(subject for store in survey.stores for subject in _subjects(survey, store, scope)),
            matched=frozenset().union(*(one.matched for store in survey.stores for one in store.containers)),
            reads=tuple(host.here(path) for path in sorted(reads)),
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        survey = _survey(host, scope)
        names = ItemNames()
        gaps, flags = self._news(survey), list(survey.found.flags)
        stores = [store for store in survey.stores if store.chosen or not survey.narrowed]
        if not stores and gaps:
            yield make_item(names, "runtime", Archive(host, scope, (), gaps, flags), {"runtime": "docker"})
        daemons = sorted({pid for store in stores for pid in store.root.pids})
        if daemons and host.mode is Mode.HOST and not survey.narrowed:
            about = {"runtime": "docker", "asserted_by": "the daemon", "daemons": daemons}
            yield Item(
                names.take("containers/docker", "events", ".jsonl"), EVENTS, EventRing(host, daemons), None, about
            )
        for position, store in enumerate(stores):
            first = position == 0
            with Areas(host, store.root.path) as areas:
                making = Items(host, scope, names, store, areas, survey.room)
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


def container_names(host: Host) -> dict[str, tuple[str, ...]]:
    """The names of all containers that any data root of Docker holds, by their ids."""
    return {one.id: (one.name,) for store in _survey(host, Scope()).stores for one in store.containers}


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
    """No data root was found: there is none, or it cannot be seen."""
    if found.denied:
        places = ", ".join(path.decode("utf-8", "replace") for path in found.denied[:3])
        return Availability(State.UNAVAILABLE, f"{_DENIED}: {places}", "run as root")
    if found.gaps:
        gap = found.gaps[0]
        return Availability(State.UNAVAILABLE, f"{gap.detail}: {gap.where.decode('utf-8', 'replace')}")
    if found.unseen:
        return Availability(
            State.ABSENT, f"no data root; {counted(len(found.unseen), 'home')} could not be looked into"
        )
    return Availability(State.ABSENT, "no Docker data root")


def _subjects(survey: _Survey, store: Store, scope: Scope) -> Iterator[Subject]:
    """What a person is shown. What there is too much of ends in a line that says so."""
    for container in store.containers:
        name = container.name.encode()
        yield Subject("container", container.id, name, container.state, None, container.selected)
    for key, layer in store.layers.items():
        selected = scope.layers is not Layers.UPPER and key in store.wanted
        known = scope.layers is Layers.CHANGED and digest_of(layer) in scope.known_layers
        state = "known: left out if it is unchanged" if known else ""
        yield Subject("layer", layer.id, layer.diff_id.encode(), state, layer.size, selected)
    for _, mount_id in store.unclaimed[:_MAX_LISTED]:
        yield Subject("layer", mount_id, b"", "claimed by no container", None, not survey.narrowed)
    if len(store.unclaimed) > _MAX_LISTED:
        more = f"{len(store.unclaimed) - _MAX_LISTED} more, claimed by no container"
        yield Subject("layer", "", b"", more, None, not survey.narrowed)
    for volume in store.listed:
        use = store.volumes.get(volume)
        selected = use.selected if use is not None else not survey.narrowed
        state = f"used by {use.users}" if use is not None else "unused"
        yield Subject("volume", volume.decode("utf-8", "replace"), volume, state, None, selected)
    if store.more_volumes:
        yield Subject("volume", "", b"", "more, which are not listed", None, not survey.narrowed)
