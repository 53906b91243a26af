"""One container as its records describe it, whatever is wrong with them.

It is read afresh whenever it is wanted, because all containers of a host are too much to be kept. What is malformed
costs no more than itself: it becomes a gap, and all else that is there is still found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, reason_of
from acquirers.containers.docker import live
from acquirers.containers.docker.areas import COPIES, OVERLAYS
from acquirers.containers.docker.config import ContainerRecord, MountPoint, parse_config, parse_host_config
from acquirers.containers.docker.layers import UNSUPPORTED, Layer, LayerStore, Writable
from acquirers.containers.records import MalformedError

if TYPE_CHECKING:
    from acquirers.containers.docker.areas import Areas
    from acquirers.containers.records import Records
    from acquirers.host import Host

_VOLUME = re.compile(rb"[^/\0]{1,255}")


class Container(msgspec.Struct):
    """One container, running or not."""

    id: str
    path: bytes
    """`<root>/containers/<id>`."""
    present: bool = True
    """That directory is there. Without it only layerdb knows of the container."""
    record: ContainerRecord = msgspec.field(default_factory=ContainerRecord)
    host_config: Mapping[str, object] = msgspec.field(default_factory=dict)
    state: str = "unknown"
    writable: Writable | None = None
    snapshotter: str = ""
    """Of containerd, which keeps the writable layer."""
    volumes: list[bytes] = msgspec.field(default_factory=list)
    """Names of those of the local driver that are there."""
    links: list[bytes] = msgspec.field(default_factory=list)
    """Those of them that are links, which stand among the records of all volumes."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.record.name.removeprefix("/")

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.writable.layers if self.writable is not None else ()


class ContainerReader:
    """Reads the containers of one data root, whose areas are open."""

    def __init__(self, host: Host, areas: Areas) -> None:
        self._host = host
        self._areas = areas
        self.layers = LayerStore(areas)

    def read(self, container_id: str, driver: str, *, present: bool) -> Container:
        """`driver` is the one in whose layerdb it was found, or "". Raises nothing for what the records hold."""
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
        if records is None:  # it was listed, and can be opened no more
            container.gaps.append(Gap(Reason.VANISHED, "the container's records are not there", container.path))
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
        container.writable = self.layers.writable(container.id, driver)
        if container.writable is None:
            container.writable = self._find_live(container)
        if container.writable is not None:
            return
        where = self._areas.image_path + b"/" + (driver[:40].encode() or b"overlay2") + b"/layerdb/mounts"
        if driver in UNSUPPORTED:
            gap = Gap(Reason.UNSUPPORTED, f"the writable layer, driver {driver!r}: {UNSUPPORTED[driver]}", where)
        elif driver and driver not in OVERLAYS and not (driver in COPIES and driver in self._areas.image_drivers):
            # Docker 29 and later, or where it was switched on: only containerd's records lead to it.
            container.snapshotter = driver[:40]
            return
        else:
            gap = Gap(Reason.MALFORMED, "layerdb has no record of the container: no writable layer was found", where)
        container.gaps.append(gap)

    def _find_live(self, container: Container) -> Writable | None:
        """The writable layer of a running container that layerdb does not know, from its own mount table."""
        if container.state not in live.RUNNING:
            return None
        for driver, mount_id in live.mounted_layer(self._host, container.record.pid):
            writable = self.layers.from_mount_id(driver, mount_id)
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
            elif name not in container.volumes:
                self._find_volume(container, name, where)

    def _find_volume(self, container: Container, name: bytes, where: bytes) -> None:
        records = self._areas.volumes
        kind = _kind(records, name) if records is not None else None
        if kind not in {Kind.DIRECTORY, Kind.SYMLINK}:
            container.gaps.append(Gap(Reason.VANISHED, "a volume that is not there", where))
            return
        container.volumes.append(name)
        if kind is Kind.SYMLINK:
            container.links.append(name)
            container.gaps.append(Gap(Reason.MALFORMED, "a volume that is a link: not followed", where))
        elif records is not None and _kind(records, name, b"_data") is Kind.SYMLINK:
            detail = "a volume whose data is a link: not followed"
            container.gaps.append(Gap(Reason.MALFORMED, detail, where + b"/_data"))

    @staticmethod
    def _note_other_mount(container: Container, mount: MountPoint) -> None:
        if mount.kind == "tmpfs":
            return  # memory: there is nothing of it on disk
        what = "a bind mount" if mount.kind == "bind" else f"a mount of type {mount.kind[:32]!r}"
        detail = f"{what}, seen at {mount.destination[:200]!r}: outside of the data root and not part of this archive"
        container.flags.append(Flag(FlagKind.ELSEWHERE, detail, mount.source.encode()))


def _kind(records: Records, *parts: bytes) -> Kind | None:
    try:
        return records.kind(*parts)
    except (OSError, MalformedError):
        return None
