"""`containers.containerd`: every container of every containerd, and each layer they need once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Availability, Gap, Layers, Reason, Scope, State, Subject
from acquirers.container_id import is_id
from acquirers.containers import docker
from acquirers.containers.containerd.items import Items, Shared, carved_item, make_item
from acquirers.containers.containerd.kubernetes import Pods
from acquirers.containers.containerd.roots import Found, find_roots
from acquirers.containers.containerd.store import META, Store, read_store
from acquirers.containers.item_names import ItemNames
from acquirers.containers.known import limits_of
from acquirers.containers.parts import Archive

if TYPE_CHECKING:
    from acquirers.base import Item
    from acquirers.host import Host

_MAX_LISTED = 1000
_DENIED = "there is, or may be, a root of containerd that this user may not look at"


class Survey(msgspec.Struct):
    """What is there, and what of it is asked for."""

    found: Found
    stores: list[Store]
    narrowed: bool


class Containerd:
    """Reads the disk; neither asks the daemon nor needs one."""

    name = "containers.containerd"

    def __init__(self) -> None:
        self._probed: dict[tuple[bytes, str, str], str] = {}
        """What `probe` told of: (root, namespace, id) -> name. What is gone when it is read was there."""
        self.claimed: set[bytes] = set()
        """Directories of logs and pods that are in the items that were made so far: nobody else need take them."""

    def probe(self, host: Host, scope: Scope) -> Availability:
        survey = take_survey(host, scope)
        found = survey.found
        self._probed = {
            (store.root.path, entry.record.namespace, entry.record.id): entry.name
            for store in survey.stores
            for entry in store.chosen
        }
        if not survey.stores:
            return _nothing(found)
        reads = {path for store in survey.stores for path in _places(store)}
        limits = len(found.denied) + len(found.gaps)
        return Availability(
            State.AVAILABLE,
            reason=limits_of(scope, limits),
            remedy="run as root" if found.denied else "",
            subjects=tuple(subject for store in survey.stores for subject in _subjects(survey, store, scope)),
            matched=frozenset().union(*(entry.matched for store in survey.stores for entry in store.entries)),
            reads=tuple(host.here(path) for path in sorted(reads)),
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        survey = take_survey(host, scope)
        names = ItemNames()
        gaps, flags = self._news(survey), list(survey.found.flags)
        stores = [store for store in survey.stores if store.chosen or not survey.narrowed]
        if not stores and gaps:
            yield make_item(names, "runtime", Archive(host, scope, (), gaps, flags), {"runtime": "containerd"})
        shared = Shared(Pods(host))
        databases: list[bytes] = []
        for position, store in enumerate(stores):
            first = position == 0
            making = Items(host, scope, names, store, shared)
            yield making.runtime(gaps if first else [], flags if first else [], survey.found.configs, first=first)
            yield from making.containers()
            yield from making.unclaimed()
            self.claimed.update(shared.stored)
            yield from making.layers()
            databases += making.databases()
        if databases and not survey.narrowed:
            yield carved_item(host, names, databases)

    def _news(self, survey: Survey) -> list[Gap]:
        """What belongs to no store: places that could not be looked at, containers that are gone since the probe."""
        gaps = [Gap(Reason.DENIED, _DENIED, path) for path in survey.found.denied]
        gaps += survey.found.gaps
        here = {
            (store.root.path, entry.record.namespace, entry.record.id)
            for store in survey.stores
            for entry in store.entries
        }
        for (root, namespace, container_id), name in self._probed.items():
            if (root, namespace, container_id) not in here:
                called = name or container_id
                detail = f"container {called[:100]!r} was there when the run was planned and is gone"
                gaps.append(Gap(Reason.VANISHED, detail, root + b"/" + META))
        return gaps


def container_names(host: Host) -> dict[str, tuple[str, ...]]:
    """What all containers of any containerd may be called, by their ids."""
    entries = (entry for store in take_survey(host, Scope()).stores for entry in store.entries)
    return {entry.record.id: tuple(filter(None, (entry.name, *entry.record.names[1:]))) for entry in entries}


def container_inits(host: Host) -> dict[int, str]:
    """First processes of the containers whose ids no control group tells: whoever calls containerd chooses them."""
    entries = (entry for store in take_survey(host, Scope()).stores for entry in store.entries)
    return {
        entry.task.pid: entry.record.id
        for entry in entries
        if entry.task.pid and entry.task.state == "running" and not is_id(entry.record.id)
    }


def take_survey(host: Host, scope: Scope) -> Survey:
    """All roots of containerd, and what is asked for of them. Raises nothing for what the machine holds."""
    found = find_roots(host)

    @cache
    def docker_names() -> Mapping[str, Sequence[str]]:
        return docker.container_names(host)

    stores = []
    for root in found.roots:
        store = read_store(host, root, scope.containers, docker_names, found.snapshotters)
        if store.entries or store.snapshotters or not store.gaps:
            stores.append(store)
        elif all(gap.reason is Reason.DENIED for gap in store.gaps):
            found.denied += [root.path] if root.path not in found.denied else []
        else:
            stores.append(store)
    return Survey(found, stores, bool(scope.containers))


def _nothing(found: Found) -> Availability:
    """No root was found: there is none, or it cannot be seen."""
    if found.denied:
        places = ", ".join(path.decode("utf-8", "replace") for path in found.denied[:3])
        return Availability(State.UNAVAILABLE, f"{_DENIED}: {places}", "run as root")
    if found.gaps:
        gap = found.gaps[0]
        return Availability(State.UNAVAILABLE, f"{gap.detail}: {gap.where.decode('utf-8', 'replace')}")
    return Availability(State.ABSENT, "no root of containerd")


def _places(store: Store) -> list[bytes]:
    """The trees that are read whole."""
    return [store.root.path, *(one.path for one in store.snapshotters)]


def _subjects(survey: Survey, store: Store, scope: Scope) -> Iterator[Subject]:
    """What a person is shown. What there is too much of ends in a line that says so."""
    for entry in store.entries:
        record = entry.record
        name = "/".join(filter(None, (record.pod_namespace, record.pod, record.name))) if record.pod else entry.name
        state = entry.task.state + (", pod sandbox" if record.kind == "sandbox" else "")
        shown = (name or record.id).encode("utf-8", "surrogatepass")
        yield Subject("container", record.id, shown, state, None, entry.selected)
    for key, (snapshotter, snapshot) in store.layers.items():
        selected = scope.layers is not Layers.UPPER and key in store.wanted
        name = snapshot.chain_id or f"{snapshotter.name}-{snapshot.id}"
        yield Subject("layer", str(snapshot.id), name.encode(), "", snapshot.size, selected)
    for one in store.unclaimed[:_MAX_LISTED]:
        called = one.snapshot.key[:200] if one.snapshot is not None else b""
        number = one.directory.decode("ascii", "replace")
        yield Subject("layer", number, called, "claimed by no container", None, not survey.narrowed)
    if len(store.unclaimed) > _MAX_LISTED:
        more = f"{len(store.unclaimed) - _MAX_LISTED} more, claimed by no container"
        yield Subject("layer", "", b"", more, None, not survey.narrowed)
