"""One data root as its records describe it: containers, their layers and volumes, and what belongs to none of them.

Everything is read afresh from disk, and whatever is malformed costs no more than itself: it becomes a gap, and all
else that is there is still found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, reason_of
from acquirers.containers.docker import live
from acquirers.containers.docker.areas import OVERLAYS, Areas
from acquirers.containers.docker.config import (
    ContainerRecord,
    MountPoint,
    parse_config,
    parse_host_config,
)
from acquirers.containers.docker.layers import UNSUPPORTED, Layer, LayerStore, Writable
from acquirers.containers.records import MalformedError

if TYPE_CHECKING:
    from acquirers.containers.docker.roots import DataRoot
    from acquirers.containers.records import Records
    from acquirers.host import Host

_CONTAINER = re.compile(rb"[0-9a-f]{64}")
_VOLUME = re.compile(rb"[^/\0]{1,255}")
_ORDER = ("running", "restarting", "paused", "removing", "dead", "exited", "created")


@dataclass(slots=True)
class Container:
    """One container, running or not."""

    id: str
    path: bytes
    """`<root>/containers/<id>`."""
    present: bool = True
    """That directory is there. Without it only layerdb knows of the container."""
    record: ContainerRecord = field(default_factory=ContainerRecord)
    host_config: Mapping[str, object] = field(default_factory=dict)
    state: str = "unknown"
    writable: Writable | None = None
    volumes: list[bytes] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.record.name.removeprefix("/")

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.writable.layers if self.writable is not None else ()


@dataclass(slots=True)
class Volume:
    """One volume of the local driver: `<root>/volumes/<name>`."""

    name: bytes
    path: bytes
    users: list[str] = field(default_factory=list)
    """Ids of the containers whose records name it."""
    gap: Gap | None = None
    """Why it is not read whole."""
    is_link: bool = False
    """It is no directory at all."""


@dataclass(slots=True)
class Store:
    """One data root."""

    root: DataRoot
    areas: Areas
    """Closed: only its paths are of use."""
    containers: list[Container] = field(default_factory=list)
    """Those that run come first."""
    volumes: dict[bytes, Volume] = field(default_factory=dict)
    unclaimed: list[Writable] = field(default_factory=list)
    """Writable layers that belong to no container that has a record."""
    strangers: list[bytes] = field(default_factory=list)
    """Names in `containers` that are no containers."""
    strange: list[Gap] = field(default_factory=list)
    """What is wrong with them: of no interest to whoever asks for one container."""
    gaps: list[Gap] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)


def read_store(host: Host, root: DataRoot) -> Store:
    """Reads the records of one data root. Raises nothing for what they hold."""
    with Areas(host, root.path) as areas:
        store = Store(root, areas)
        _Reader(host, store).read()
        store.gaps += areas.gaps
        store.flags += areas.flags
    return store


class _Reader:
    def __init__(self, host: Host, store: Store) -> None:
        self._host = host
        self._store = store
        self._areas = store.areas
        self._layers = LayerStore(store.areas)

    def read(self) -> None:
        self._read_volumes()
        in_layerdb = self._layers.mounts()
        ids = dict.fromkeys(self._container_ids(), "")
        present = set(ids)
        for container_id, driver in in_layerdb.items():
            ids[container_id] = driver
        for container_id, driver in ids.items():
            self._store.containers.append(self._container(container_id, driver, present=container_id in present))
        rank = {state: position for position, state in enumerate(_ORDER)}
        self._store.containers.sort(key=lambda one: (rank.get(one.state.partition(" ")[0], len(rank)), one.id))
        claimed = {one.writable.mount_id for one in self._store.containers if one.writable is not None}
        for driver, mount_id in self._layers.unclaimed(claimed):
            writable = self._layers.from_mount_id(driver, mount_id)
            if writable is not None:
                detail = "a writable layer that no container claims: its container was removed, or hidden"
                writable.flags.append(
                    Flag(FlagKind.FINDING, detail, self._areas.overlay_path(driver) + b"/" + mount_id.encode())
                )
                self._store.unclaimed.append(writable)

    def _container_ids(self) -> list[str]:
        found = []
        records = self._areas.containers
        for name, kind in self._areas.listing(records) if records is not None else []:
            if _CONTAINER.fullmatch(name) and kind is Kind.DIRECTORY:
                found.append(name.decode("ascii"))
                continue
            self._store.strangers.append(name)
            where = self._areas.path("containers") + b"/" + name
            if _CONTAINER.fullmatch(name):
                detail = f"a {kind}, where the directory of a container should be: not followed"
                self._store.strange.append(Gap(Reason.MALFORMED, detail, where))
            else:
                self._store.flags.append(Flag(FlagKind.FINDING, "no container, among the containers", where))
        return found

    def _read_volumes(self) -> None:
        records = self._areas.volumes
        base = self._areas.path("volumes")
        for name, kind in self._areas.listing(records) if records is not None else []:
            volume = Volume(name, base + b"/" + name)
            if kind is Kind.SYMLINK:
                volume.is_link = True
                volume.gap = Gap(Reason.MALFORMED, "a volume that is a link: not followed", volume.path)
            elif kind is not Kind.DIRECTORY:
                continue
            elif records is not None and _is_link(records, name, b"_data"):
                detail = "a volume whose data is a link: not followed"
                volume.gap = Gap(Reason.MALFORMED, detail, volume.path + b"/_data")
            self._store.volumes[name] = volume

    def _container(self, container_id: str, driver: str, *, present: bool) -> Container:
        path = self._areas.path("containers") + b"/" + container_id.encode()
        container = Container(container_id, path, present)
        try:
            if present:
                self._read_records(container)
            else:
                container.state = "record is gone"
                detail = "layerdb knows a container that has no directory: it was removed halfway, or hidden"
                container.flags.append(Flag(FlagKind.FINDING, detail, path))
            self._find_writable(container, driver)
            self._find_mounts(container)
        except Exception as error:  # noqa: BLE001 - one container must never cost the others
            detail = f"its records could not be followed: {type(error).__name__}: {str(error)[:200]}"
            container.gaps.append(Gap(Reason.INTERNAL, detail, path))
        return container

    def _read_records(self, container: Container) -> None:
        records = self._areas.containers
        if records is None:
            return
        name = container.id.encode()
        where = container.path + b"/config.v2.json"
        try:
            container.record = parse_config(records.read(name, b"config.v2.json"))
        except OSError as error:
            reason = Reason.MALFORMED if isinstance(error, FileNotFoundError) else reason_of(error)
            container.gaps.append(Gap(reason, f"the container's record: {error.strerror}", where))
        except MalformedError as error:
            container.gaps.append(Gap(Reason.MALFORMED, f"the container's record: {error}", where))
        record = container.record
        for complaint in record.complaints:
            if complaint.startswith("MountPoints"):
                container.gaps.append(Gap(Reason.MALFORMED, f"volumes may be missing: {complaint}", where))
            else:
                container.flags.append(Flag(FlagKind.FINDING, f"the container's record: {complaint}", where))
        if record.id not in {"", container.id}:
            detail = f"the record is that of another container: {record.id[:80]!r}"
            container.flags.append(Flag(FlagKind.FINDING, detail, where))
        tail = f"/containers/{container.id}/{container.id}-json.log"
        if record.log_path and not record.log_path.endswith(tail):
            log_path = record.log_path.encode()
            detail = "the record names a log outside of the container's directory: not followed"
            container.flags.append(Flag(FlagKind.FINDING, detail, log_path))
        where = container.path + b"/hostconfig.json"
        try:
            container.host_config = parse_host_config(records.read(name, b"hostconfig.json"))
        except OSError as error:
            container.flags.append(Flag(FlagKind.FINDING, f"the host configuration: {error.strerror}", where))
        except MalformedError as error:
            container.flags.append(Flag(FlagKind.FINDING, f"the host configuration: {error}", where))
        container.state, finding = live.verified_state(self._host, record, container.id)
        if finding:
            container.flags.append(Flag(FlagKind.FINDING, finding, container.path))

    def _find_writable(self, container: Container, driver: str) -> None:
        driver = container.record.driver or driver
        container.writable = self._layers.writable(container.id, driver)
        if container.writable is None:
            container.writable = self._find_live(container)
        if container.writable is not None:
            return
        where = self._areas.image_path + b"/" + (driver[:40].encode() or b"overlay2") + b"/layerdb/mounts"
        if driver in UNSUPPORTED:
            gap = Gap(Reason.UNSUPPORTED, f"the writable layer, driver {driver!r}: {UNSUPPORTED[driver]}", where)
        elif driver and driver not in OVERLAYS:
            detail = (
                f"the writable layer, driver {driver[:40]!r}: a snapshotter of containerd keeps it "
                "(Docker 29 and later); it is in containerd's own store"
            )
            gap = Gap(Reason.UNSUPPORTED, detail, container.path)
        else:
            gap = Gap(Reason.MALFORMED, "layerdb has no record of the container: no writable layer was found", where)
        container.gaps.append(gap)

    def _find_live(self, container: Container) -> Writable | None:
        """The writable layer of a running container that layerdb does not know, from its own mount table."""
        if container.state not in live.RUNNING:
            return None
        for driver, mount_id in live.mounted_layer(self._host, container.record.pid):
            writable = self._layers.from_mount_id(driver, mount_id)
            if writable is not None:
                detail = "layerdb has no record of the container: its writable layer is the one that is mounted"
                writable.flags.append(Flag(FlagKind.FINDING, detail, container.path))
                return writable
        return None

    def _find_mounts(self, container: Container) -> None:
        for mount in container.record.mounts:
            if mount.kind != "volume":
                self._note_other_mount(container, mount)
                continue
            name = mount.name.encode()
            where = self._areas.path("volumes") + b"/" + name
            if mount.driver not in {"", "local"}:
                detail = f"a volume of the driver {mount.driver[:80]!r}, which keeps it outside of the data root"
                container.gaps.append(Gap(Reason.UNSUPPORTED, detail, mount.source.encode()))
            elif not _VOLUME.fullmatch(name) or name in {b".", b".."}:
                detail = f"a volume whose name is no name: {mount.name[:80]!r}"
                container.gaps.append(Gap(Reason.MALFORMED, detail, container.path + b"/config.v2.json"))
            elif name not in self._store.volumes:
                container.gaps.append(Gap(Reason.VANISHED, "a volume that is not there", where))
            elif name not in container.volumes:
                volume = self._store.volumes[name]
                container.volumes.append(name)
                volume.users.append(container.id)
                container.gaps += [volume.gap] if volume.gap is not None else []

    @staticmethod
    def _note_other_mount(container: Container, mount: MountPoint) -> None:
        if mount.kind == "tmpfs":
            return  # memory: there is nothing of it on disk
        what = "a bind mount" if mount.kind == "bind" else f"a mount of type {mount.kind[:32]!r}"
        detail = f"{what}, seen at {mount.destination[:200]!r}: outside of the data root and not part of this archive"
        container.flags.append(Flag(FlagKind.ELSEWHERE, detail, mount.source.encode()))


def _is_link(records: Records, *parts: bytes) -> bool:
    try:
        return records.kind(*parts) is Kind.SYMLINK
    except (OSError, MalformedError):
        return False
