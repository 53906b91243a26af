"""Reads the records of one graph root and joins what they say of the same container."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from acquirers.base import Gap, Kind, Reason, reason_of
from acquirers.containers.paths import resolve
from acquirers.containers.records import MalformedError, TooManyNamesError
from acquirers.containers.records import Records as RecordFiles
from acquirers.containers.storage.areas import Area, Areas, Driver
from acquirers.containers.storage.databases import read_bolt, read_sqlite
from acquirers.containers.storage.layers import LayerStore
from acquirers.containers.storage.libpod import Podman
from acquirers.containers.storage.lists import Oversized, elements
from acquirers.containers.storage.live import verified_state
from acquirers.containers.storage.model import ContainerRecord, parse_container, parse_image, parse_layer
from acquirers.containers.storage.spec import parse_crio_state
from acquirers.containers.storage.store import MAX_LISTED, ORDER, Entry, Records, Room, Store, Use

if TYPE_CHECKING:
    from acquirers.containers.storage.areas import Home
    from acquirers.containers.storage.roots import GraphRoot
    from acquirers.host import Host

_CONTAINER = re.compile(rb"[0-9a-f]{64}")
_STRANGER = re.compile(
    rb"(?!(?:[0-9a-f]{64}|(?:volatile-)?containers\.(?:json|lock)|\.tmp-.*)\Z).*",
    re.DOTALL,
)
_MAX_STRANGERS = 100
_MAX_TOLD = 20
"""Complaints about one list or database that are told one by one."""
_MAX_STATE = 1 << 20

_T = TypeVar("_T")


def read_store(host: Host, root: GraphRoot, selectors: Sequence[str], room: Room) -> Store:
    """Reads the records of one graph root. Raises nothing for what they hold."""
    with Areas(host, root) as areas:
        store = Store(root, areas)
        if areas.readable:
            _Survey(host, store, selectors, room).go()
        store.gaps += areas.gaps
        store.flags += areas.flags
    return store


class _Survey:
    def __init__(self, host: Host, store: Store, selectors: Sequence[str], room: Room) -> None:
        self._host = host
        self._store = store
        self._areas = store.areas
        self._selectors = selectors
        self._room = room

    def go(self) -> None:
        store = self._store
        podman = self._podman()
        self._note_places(podman)
        if store.root.transient and not any(home.containers for one in self._areas.drivers for home in one.runs):
            detail = "containers are recorded in the run root only (transient_store), and there is none"
            store.finding(detail, store.root.path)
        self._list_volumes()
        known: set[str] = set()
        for driver in self._areas.drivers:
            store.records[driver.name] = self._records(driver)
            store.mount_program[driver.name] = _is_mounted_by_program(driver)
            entries = self._entries(driver, podman)
            known.update(entries)
            self._add(driver, list(entries.values()))
        self._add_rest(podman, known)
        rank = {state: position for position, state in enumerate(ORDER)}
        store.entries.sort(key=lambda one: (rank.get(one.state.partition(" ")[0], len(rank)), one.id))
        for driver in self._areas.drivers:
            self._find_unclaimed(driver)

    # -- containers ---------------------------------------------------------------------------------------------------

    def _entries(self, driver: Driver, podman: Podman) -> dict[str, Entry]:
        """Every container of a driver: of its lists, of its directories, with what podman says of it."""
        entries: dict[str, Entry] = {}
        for record in self._list(driver.graph.containers, b"containers.json", parse_container):
            self._enter(entries, Entry(record.id, driver.name, record))
        for home in driver.runs:
            for record in self._list(home.containers, b"volatile-containers.json", parse_container):
                if self._is_here(driver, record):
                    self._enter(entries, Entry(record.id, driver.name, record, volatile=home.root))
        area = driver.graph.containers
        for name, kind in self._areas.listing(area, matching=_CONTAINER):
            container_id = name.decode("ascii")
            if kind is not Kind.DIRECTORY:
                detail = f"a {kind}, where the directory of a container should be: not followed"
                self._gap(Gap(Reason.MALFORMED, detail, area.path + b"/" + name if area is not None else b""))
                continue
            if container_id not in entries:
                self._enter(entries, Entry(container_id, driver.name))
            if container_id in entries:
                entries[container_id].present = True
        if area is not None:
            self._strangers(area)
        for container_id, entry in entries.items():
            entry.podman = podman.containers.get(container_id)
            if entry.podman is not None:
                entry.pod = podman.pods.get(entry.podman.pod_id, "")
        return entries

    @staticmethod
    def _is_here(driver: Driver, record: ContainerRecord) -> bool:
        """Several graph roots may share a run root: a record belongs to the one that holds anything of it."""
        graph = driver.graph
        places = ((graph.containers, record.id), (graph.files, record.layer or record.id))
        return any(area is not None and _is_directory(area, name.encode()) for area, name in places)

    def _enter(self, entries: dict[str, Entry], entry: Entry) -> None:
        if entry.id in entries:
            if entries[entry.id].record is not None and entry.record is not None:
                self._store.finding(
                    "two records of the same container", self._store.root.path + b"/" + entry.id.encode()
                )
            return
        cost = _size_of(entry.record) if entry.record is not None else 500
        if self._room.containers <= 0 or self._room.text < cost:
            if self._room.containers > -1:
                self._room.containers = -1  # said once
                detail = "more containers than there is room for: the rest was not looked at"
                self._gap(Gap(Reason.LIMIT, detail, self._store.root.path))
            return
        self._room.containers -= 1
        self._room.text -= cost
        entries[entry.id] = entry

    def _add(self, driver: Driver, entries: list[Entry]) -> None:
        layers = LayerStore(self._areas, driver, self._store.records[driver.name].layers)
        for entry in entries:
            self._note_state(driver, entry)
            self._select(entry)
            if entry.layer:
                writable = layers.writable(entry.layer)
                self._store.need(writable.layers, self._room, wanted=entry.selected)
            self._store.entries.append(entry)

    def _add_rest(self, podman: Podman, known: set[str]) -> None:
        """Containers that only podman knows: their root is a directory of the machine, or their storage is gone."""
        drivers = self._areas.drivers
        for container_id, record in podman.containers.items():
            if container_id in known or not drivers:
                continue
            fresh: dict[str, Entry] = {}
            self._enter(fresh, Entry(container_id, drivers[0].name, podman=record))
            for entry in fresh.values():
                entry.pod = podman.pods.get(record.pod_id, "")
                self._note_state(drivers[0], entry)
                self._select(entry)
                self._store.entries.append(entry)

    def _select(self, entry: Entry) -> None:
        entry.select(self._selectors)
        for volume in entry.volumes:
            use = self._store.uses.get(volume)
            if use is None and self._room.volumes:
                self._room.volumes -= 1
                use = self._store.uses[volume] = Use()
            if use is not None:
                use.users += 1
                use.selected |= entry.selected

    def _note_state(self, driver: Driver, entry: Entry) -> None:
        """What its record says, held against the live machine."""
        if entry.podman is not None:
            entry.state, entry.pid = entry.podman.state, entry.podman.pid
        elif entry.runtime == "crio":
            entry.state, entry.pid = self._crio_state(driver, entry)
        elif entry.record is None:
            entry.state = "record is gone"
            entry.finding = "a container's directory that no record names: it was removed halfway, or hidden"
        else:
            entry.state = "working container" if self._is_of_buildah(driver, entry) else "unknown"
        entry.state, finding = verified_state(self._host, entry.state, entry.pid, entry.id)
        entry.finding = entry.finding or finding

    @staticmethod
    def _crio_state(driver: Driver, entry: Entry) -> tuple[str, int]:
        homes = [driver.graph, *driver.runs]
        for area in (home.containers for home in homes):
            if area is None:
                continue
            try:
                data = area.folder.read(entry.id.encode(), b"userdata", b"state.json", limit=_MAX_STATE)
                state = parse_crio_state(data)
            except (OSError, MalformedError):
                continue  # told when the container's turn comes
            return state.status, state.pid
        return "unknown", 0

    @staticmethod
    def _is_of_buildah(driver: Driver, entry: Entry) -> bool:
        area = driver.graph.containers
        try:
            return area is not None and area.folder.kind(entry.id.encode(), b"buildah.json") is Kind.FILE
        except (OSError, MalformedError):
            return False

    def _strangers(self, area: Area) -> None:
        """Names among the containers that are none."""
        try:
            strangers = area.folder.names(matching=_STRANGER, limit=_MAX_STRANGERS)
        except TooManyNamesError as error:
            strangers = error.first
            self._store.finding(f"more than {len(strangers)} names that are no containers", area.path)
        except OSError:
            return  # told when they were listed
        for name, _ in strangers:
            self._store.finding("no container, among the containers", area.path + b"/" + name)

    # -- lists --------------------------------------------------------------------------------------------------------

    def _records(self, driver: Driver) -> Records:
        found = Records()
        for home in (*driver.homes, *driver.runs):
            names = (b"layers.json", b"volatile-layers.json") if home in driver.runs else (b"layers.json",)
            for name in (*names, *((b"volatile-layers.json",) if home is driver.graph else ())):
                for record in self._list(home.layers, name, parse_layer):
                    if record.id not in found.layers and self._has_room(home):
                        found.layers[record.id] = record
            for image in self._list(home.images, b"images.json", parse_image):
                if image.id not in found.images and self._has_room(home):
                    found.images[image.id] = image
        return found

    def _has_room(self, home: Home) -> bool:
        if self._room.records > 0:
            self._room.records -= 1
            return True
        if self._room.records == 0:  # said once
            self._room.records = -1
            detail = f"more than {Room().records} records of layers and images: the rest was not looked at"
            self._gap(Gap(Reason.LIMIT, detail, home.root))
        return False

    def _list(self, area: Area | None, name: bytes, parse: Callable[[bytes], _T]) -> Iterator[_T]:
        """What a list holds, as far as it can be read. What cannot is a gap: something may not be found for it."""
        if area is None:
            return
        where = area.path + b"/" + name
        wrong = 0
        try:
            for element in elements(area.folder.chunks(name)):
                found = self._parsed(element, parse)
                if not isinstance(found, MalformedError):
                    yield found
                    continue
                wrong += 1
                if wrong <= _MAX_TOLD:
                    self._gap(Gap(Reason.MALFORMED, f"a record that cannot be read: {found}", where))
        except FileNotFoundError:
            return
        except OSError as error:
            self._gap(Gap(reason_of(error), f"a list of records: {error.strerror}", where))
        except MalformedError as error:
            reason = Reason.LIMIT if "bytes, of which" in str(error) else Reason.MALFORMED
            self._gap(Gap(reason, f"a list of records: {error}", where))
        if wrong > _MAX_TOLD:
            self._gap(Gap(Reason.MALFORMED, f"{wrong - _MAX_TOLD} further records that cannot be read", where))

    @staticmethod
    def _parsed(element: bytes | Oversized, parse: Callable[[bytes], _T]) -> _T | MalformedError:
        if isinstance(element, Oversized):
            return MalformedError("it is longer than any that is read")
        try:
            return parse(element)
        except MalformedError as error:
            return error

    def _gap(self, gap: Gap) -> None:
        if gap not in self._store.gaps:
            self._store.gaps.append(gap)

    # -- podman -------------------------------------------------------------------------------------------------------

    def _podman(self) -> Podman:
        """The first database that can be read; what others say is taken raw."""
        found = Podman()
        top, libpod = self._areas.top, self._areas.libpod
        places = [(top, b"db.sql"), (libpod, b"db.sql"), *((area, b"db.sql") for area in self._areas.run_tops)]
        for area, name in (*places, (libpod, b"bolt_state.db")):
            podman = self._database(area, name)
            if podman is None:
                continue
            if self._store.databases:
                detail = f"a second database of podman: {self._store.databases[0]} was read, this one is only taken"
                self._store.finding(detail, (area.path if area is not None else b"") + b"/" + name)
                continue
            self._store.databases.append(
                (area.path if area is not None else b"").decode("utf-8", "replace") + "/" + name.decode()
            )
            found = podman
        return found

    def _database(self, area: Area | None, name: bytes) -> Podman | None:
        if area is None:
            return None
        where = area.path + b"/" + name
        try:
            podman = read_sqlite(area.folder, name) if name == b"db.sql" else read_bolt(area.folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._gap(Gap(reason_of(error), f"the database of podman: {error.strerror}", where))
            return None
        except MalformedError as error:
            # It is taken raw all the same: no more is missing than what it says of states, pods and volumes.
            self._store.finding(f"the database of podman cannot be read: {error}", where)
            return None
        for complaint in podman.complaints[:_MAX_TOLD]:
            self._store.finding(f"the database of podman: {complaint}", where)
        if podman.cut:
            self._gap(Gap(Reason.LIMIT, "more containers or pods than are looked at, in the database of podman", where))
        return podman

    def _note_places(self, podman: Podman) -> None:
        """Where podman says that it keeps things. What has not the shape of such a place is none."""
        root = self._store.root
        if self._areas.add_run_root(podman.run_root):
            root.run_roots.append(podman.run_root)
        if podman.volume_path.startswith(b"/") and podman.volume_path not in root.volume_paths:
            root.volume_paths.append(podman.volume_path)
        for path in dict.fromkeys((*root.tmp_dirs, podman.tmp_dir)):
            if path.startswith(b"/") and self._is_tmp_dir(path):
                self._store.tmp_dirs.append(path)

    def _is_tmp_dir(self, path: bytes) -> bool:
        try:
            native, _ = resolve(self._host, path)
            with RecordFiles.open(self._host, native) as records:
                return native == path and records.kind(b"exits") is Kind.DIRECTORY
        except (OSError, MalformedError):
            return False

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _find_unclaimed(self, driver: Driver) -> None:
        store = self._store
        records = store.records[driver.name]
        layers = LayerStore(self._areas, driver, records.layers)
        claimed = {entry.layer for entry in store.entries if entry.layer}
        too_many = 0
        for layer_id in layers.unclaimed(claimed, records.image_layers(), store.layers):
            if self._room.unclaimed <= 0:
                too_many += 1
                continue
            self._room.unclaimed -= 1
            store.unclaimed.append((driver.name, layer_id))
            store.need(layers.writable(layer_id).layers, self._room, wanted=not self._selectors)
        if too_many:
            detail = f"{too_many} further layers that no container claims: not taken"
            self._gap(Gap(Reason.LIMIT, detail, store.root.path))

    def _list_volumes(self) -> None:
        area = self._areas.volumes
        if area is None:
            return
        try:
            names = area.folder.names(limit=MAX_LISTED)
        except TooManyNamesError as error:
            names, self._store.more_volumes = error.first, True
        except OSError:
            return  # told when they are read
        self._store.listed = [name for name, kind in names if kind in {Kind.DIRECTORY, Kind.SYMLINK}]


def _is_mounted_by_program(driver: Driver) -> bool:
    """overlay.go: mountProgramFlagFile."""
    try:
        files = driver.graph.files
        return files is not None and files.folder.text(b".has-mount-program", limit=16) == "true"
    except (OSError, MalformedError):
        return False


def _is_directory(area: Area, name: bytes) -> bool:
    try:
        return area.folder.kind(name) is Kind.DIRECTORY
    except (OSError, MalformedError):
        return False


def _size_of(record: ContainerRecord) -> int:
    """Bytes of memory that a record takes, roughly."""
    kubernetes = record.kubernetes
    more = (kubernetes.pod, kubernetes.namespace, kubernetes.container) if kubernetes is not None else ()
    return 1000 + sum(map(sys.getsizeof, (*record.names, record.image_name, *record.complaints, *more)))
