"""One data root in short: which containers, layers and volumes there are, and which of them are asked for.

This is kept while a run lasts, so of each thing there is little, and of all things together no more than there is
`Room` for. A container is read again, whole, when its turn comes (`container`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason
from acquirers.containers.docker.areas import Areas
from acquirers.containers.docker.container import ContainerReader
from acquirers.containers.records import TooManyNamesError
from acquirers.selectors import matching

if TYPE_CHECKING:
    from acquirers.containers.docker.container import Container
    from acquirers.containers.docker.layers import Layer
    from acquirers.containers.docker.roots import DataRoot
    from acquirers.host import Host

_CONTAINER = re.compile(rb"[0-9a-f]{64}")
_STRANGER = re.compile(rb"(?![0-9a-f]{64}\Z).*", re.DOTALL)
_MAX_STRANGERS = 100
"""Those among the containers that are told of one by one. All are taken."""
_MAX_LISTED = 10_000
"""Volumes that a plan lists. All are taken."""
_MAX_NAME = 200
_ORDER = ("running", "restarting", "paused", "removing", "dead", "exited", "created")


class Room(msgspec.Struct):
    """What all data roots of a machine may have together."""

    containers: int = 20_000
    layers: int = 20_000
    volumes: int = 50_000
    unclaimed: int = 20_000


class Summary(msgspec.Struct, frozen=True):
    """What is kept of a container."""

    id: str
    driver: str
    """In whose layerdb it was found, or ""."""
    present: bool
    """`<root>/containers/<id>` is there. Without it only layerdb knows of the container."""
    name: str
    """At most `_MAX_NAME` characters of it."""
    state: str
    volumes: tuple[bytes, ...]
    matched: frozenset[str]
    """The selectors that mean it."""
    selected: bool


class Use(msgspec.Struct):
    """Who uses a volume of the local driver."""

    name: bytes
    users: int = 0
    selected: bool = False
    """One of them is asked for."""


class Store(msgspec.Struct):
    """One data root."""

    root: DataRoot
    areas: Areas
    """Closed: only its paths are of use."""
    containers: list[Summary] = msgspec.field(default_factory=list)
    """Those that run come first."""
    layers: dict[tuple[str, str], Layer] = msgspec.field(default_factory=dict)
    """(driver, id) -> each image layer that a container or an unclaimed layer stands on."""
    wanted: set[tuple[str, str]] = msgspec.field(default_factory=set)
    """Those of them that are asked for."""
    volumes: dict[bytes, Use] = msgspec.field(default_factory=dict)
    """Those that a container uses. Whatever else lies among the volumes is used by none."""
    listed: list[bytes] = msgspec.field(default_factory=list)
    """Volumes, used or not, as many as a plan lists."""
    more_volumes: bool = False
    unclaimed: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """(driver, mount id) of writable layers that belong to no container."""
    strangers: bool = False
    """There are names in `containers` that are no containers."""
    strange: list[Gap] = msgspec.field(default_factory=list)
    """What is wrong with them: of no interest to whoever asks for one container."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    @property
    def chosen(self) -> list[Summary]:
        return [container for container in self.containers if container.selected]

    def need(self, layers: Iterable[Layer], room: Room, *, wanted: bool) -> None:
        """Notes image layers. Beyond what there is room for they are a gap, and not taken."""
        for layer in layers:
            key = (layer.driver, layer.id)
            if key not in self.layers:
                if room.layers <= 0:
                    self._no_room(room)
                    continue
                room.layers -= 1
                self.layers[key] = layer
            if wanted:
                self.wanted.add(key)

    def _no_room(self, room: Room) -> None:
        if room.layers == 0:  # said once
            room.layers = -1
            detail = f"more image layers than the {Room().layers} that are taken at the most: the rest is not"
            self.gaps.append(Gap(Reason.LIMIT, detail, self.root.path))


def read_store(host: Host, root: DataRoot, selectors: Sequence[str], room: Room) -> Store:
    """Reads the records of one data root. Raises nothing for what they hold."""
    with Areas(host, root.path) as areas:
        store = Store(root, areas)
        _Survey(host, store, selectors, room).go()
        store.gaps += areas.gaps
        store.flags += areas.flags
    return store


class _Survey:
    def __init__(self, host: Host, store: Store, selectors: Sequence[str], room: Room) -> None:
        self._store = store
        self._selectors = selectors
        self._room = room
        self._areas = store.areas
        self._reader = ContainerReader(host, store.areas)
        self._claimed: set[str] = set()

    def go(self) -> None:
        self._list_volumes()
        ids = dict.fromkeys(self._container_ids(), "")
        present = frozenset(ids)
        ids.update(self._reader.layers.mounts())
        if len(ids) > self._room.containers:
            detail = f"{len(ids)} containers, of which {self._room.containers} were looked at"
            self._store.gaps.append(Gap(Reason.LIMIT, detail, self._areas.path("containers")))
        for container_id, driver in islice(ids.items(), self._room.containers):
            self._add(self._reader.read(container_id, driver, present=container_id in present), driver)
        self._room.containers -= len(self._store.containers)
        rank = {state: position for position, state in enumerate(_ORDER)}
        self._store.containers.sort(key=lambda one: (rank.get(one.state.partition(" ")[0], len(rank)), one.id))
        self._find_unclaimed()

    def _add(self, container: Container, driver: str) -> None:
        matched = matching(self._selectors, container.id, [container.name])
        selected = bool(matched) or not self._selectors
        uses = [use for name in container.volumes if (use := self._use(name)) is not None]
        for use in uses:
            use.users += 1
            use.selected |= selected
        self._store.need(container.layers, self._room, wanted=selected)
        if container.writable is not None:
            self._claimed.add(container.writable.mount_id)
        self._store.containers.append(
            Summary(
                container.id,
                driver,
                container.present,
                container.name[:_MAX_NAME],
                container.state,
                tuple(use.name for use in uses),
                matched,
                selected,
            )
        )

    def _use(self, name: bytes) -> Use | None:
        """None when there is no room for more: then it is taken as if no container used it, and with each that does."""
        use = self._store.volumes.get(name)
        if use is None and self._room.volumes:
            self._room.volumes -= 1
            use = self._store.volumes[name] = Use(name)
        return use

    def _find_unclaimed(self) -> None:
        store, layers = self._store, self._reader.layers
        wanted, too_many = not self._selectors, 0
        for driver, mount_id in layers.unclaimed(self._claimed, store.layers):
            if not self._room.unclaimed:
                too_many += 1
                continue
            writable = layers.from_mount_id(driver, mount_id)
            if writable is not None:
                self._room.unclaimed -= 1
                store.unclaimed.append((driver, mount_id))
                store.need(writable.layers, self._room, wanted=wanted)
        if too_many:
            detail = f"{too_many} further layers that no container claims: not taken"
            store.gaps.append(Gap(Reason.LIMIT, detail, store.root.path))

    def _container_ids(self) -> list[str]:
        found = []
        records = self._areas.containers
        if records is None:
            return []
        base = self._areas.path("containers") + b"/"
        for name, kind in self._areas.listing(records, matching=_CONTAINER):
            if kind is Kind.DIRECTORY:
                found.append(name.decode("ascii"))
                continue
            self._store.strangers = True
            if len(self._store.strange) < _MAX_STRANGERS:
                detail = f"a {kind}, where the directory of a container should be: not followed"
                self._store.strange.append(Gap(Reason.MALFORMED, detail, base + name))
        try:
            strangers = records.names(matching=_STRANGER, limit=_MAX_STRANGERS)
        except TooManyNamesError as error:
            strangers = error.first
            detail = f"more than {len(strangers)} names that are no containers, among the containers"
            self._store.flags.append(Flag(FlagKind.FINDING, detail, base.rstrip(b"/")))
        except OSError:
            return found  # told when they were listed
        for name, _ in strangers:
            self._store.strangers = True
            self._store.flags.append(Flag(FlagKind.FINDING, "no container, among the containers", base + name))
        return found

    def _list_volumes(self) -> None:
        records = self._areas.volumes
        try:
            names = records.names(limit=_MAX_LISTED) if records is not None else []
        except TooManyNamesError as error:
            names, self._store.more_volumes = error.first, True
        except OSError:
            return  # told when they are read
        self._store.listed = [name for name, kind in names if kind in {Kind.DIRECTORY, Kind.SYMLINK}]
