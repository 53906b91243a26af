"""One container as all of its records describe it, whatever is wrong with them.

It is read when its turn comes. What is malformed costs no more than itself: it becomes a gap, and all else that is
there is still found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason
from acquirers.containers.paths import resolve
from acquirers.containers.records import MalformedError, Records, TooManyNamesError
from acquirers.containers.storage.layers import LayerStore, Writable
from acquirers.containers.storage.spec import CrioState, Spec, parse_crio_state, parse_spec, pod_log

if TYPE_CHECKING:
    from acquirers.containers.storage.areas import Area, Areas, Driver
    from acquirers.containers.storage.store import Entry, Store
    from acquirers.host import Host

POD_LOGS = b"/var/log/pods"
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_OWN_LOG = re.compile(rb"ctr\.log.*", re.DOTALL)
_MAX_LOGS = 100

_T = TypeVar("_T")


class PodLog(msgspec.Struct, frozen=True):
    """The logs of one container among those of all pods."""

    directory: bytes
    """Native: `/var/log/pods/<namespace>_<pod>_<uid>/<container>`, what its beginning is a link to being followed."""
    number: bytes
    """How often it was started before: `<number>.log`, and what rotation makes of that name."""

    def takes(self, name: bytes) -> bool:
        return name == self.number + b".log" or name.startswith(self.number + b".log.")


class Container(msgspec.Struct):
    """One container, running or not."""

    entry: Entry
    directories: list[bytes] = msgspec.field(default_factory=list)
    """`<driver>-containers/<id>` of the graph root and of the run roots, as far as they are there."""
    spec: Spec = msgspec.field(default_factory=Spec)
    crio: CrioState = msgspec.field(default_factory=CrioState)
    writable: Writable | None = None
    volumes: dict[str, bytes] = msgspec.field(default_factory=dict)
    """Name -> directory of those that are there."""
    pod_log: PodLog | None = None
    logs: list[bytes] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    def finding(self, detail: str, where: bytes) -> None:
        self.flags.append(Flag(FlagKind.FINDING, detail, where))


class ContainerReader:
    """Reads the containers of one graph root, whose areas are open."""

    def __init__(self, host: Host, store: Store, areas: Areas) -> None:
        self._host = host
        self._store = store
        self._areas = areas
        self._layers: dict[str, LayerStore] = {}

    def layers(self, driver: str) -> LayerStore | None:
        """The layers of a driver; None when it is not there any more."""
        found = self._areas.driver(driver)
        if found is None:
            return None
        if driver not in self._layers:
            self._layers[driver] = LayerStore(self._areas, found, self._store.records[driver].layers)
        return self._layers[driver]

    def read(self, entry: Entry) -> Container:
        """Raises nothing for what the records hold."""
        container = Container(entry)
        where = self._store.root.path
        try:
            driver = self._areas.driver(entry.driver)
            if driver is None:
                container.gaps.append(Gap(Reason.VANISHED, "the container's records are not there", where))
                return container
            where = self._where(driver, entry)
            self._tell(container, where)
            self._read_records(container, driver)
            self._find_writable(container, where)
            self._find_volumes(container, where)
            self._find_logs(container)
        except Exception as error:  # noqa: BLE001 - one container must never cost the others
            detail = f"its records could not be followed: {type(error).__name__}: {str(error)[:200]}"
            container.gaps.append(Gap(Reason.INTERNAL, detail, where))
        return container

    @staticmethod
    def _where(driver: Driver, entry: Entry) -> bytes:
        area = driver.graph.containers
        base = area.path if area is not None else driver.graph.root + b"/" + driver.name.encode() + b"-containers"
        return base + b"/" + entry.id.encode()

    @staticmethod
    def _tell(container: Container, where: bytes) -> None:
        """What the survey found out."""
        entry = container.entry
        if entry.finding:
            container.finding(entry.finding, where)
        for complaint in entry.record.complaints if entry.record is not None else ():
            container.finding(f"the container's record: {complaint}", where)
        for complaint in entry.podman.complaints if entry.podman is not None else ():
            detail = f"the record in podman's database: {complaint}"
            if complaint.startswith("namedVolumes"):
                container.gaps.append(Gap(Reason.MALFORMED, f"volumes may be missing: {detail}", where))
            else:
                container.finding(detail, where)
        if entry.volatile:
            container.finding("only the volatile records know it: a reboot takes them away", entry.volatile)

    def _read_records(self, container: Container, driver: Driver) -> None:
        """`config.json` and `state.json`, wherever the container's directories are."""
        name = container.entry.id.encode()
        for home in (driver.graph, *driver.runs):
            area = home.containers
            if area is None or _kind(area, name) is not Kind.DIRECTORY:
                continue
            container.directories.append(area.path + b"/" + name)
            if container.spec == Spec():
                container.spec = self._record(container, area, b"config.json", parse_spec) or container.spec
            if container.entry.runtime == "crio" and container.crio == CrioState():
                container.crio = self._record(container, area, b"state.json", parse_crio_state) or container.crio
        for complaint in container.spec.complaints:
            container.finding(f"config.json: {complaint}", container.directories[0])

    @staticmethod
    def _record(container: Container, area: Area, name: bytes, parse: Callable[[bytes], _T]) -> _T | None:
        parts = (container.entry.id.encode(), b"userdata", name)
        where = b"/".join((area.path, *parts))
        try:
            return parse(area.folder.read(*parts))
        except FileNotFoundError:
            return None  # it was never started
        except OSError as error:
            container.finding(f"{name.decode()}: {error.strerror}", where)
        except MalformedError as error:
            container.finding(f"{name.decode()}: {error}", where)
        return None

    def _find_writable(self, container: Container, where: bytes) -> None:
        entry = container.entry
        layers = self.layers(entry.driver)
        rootfs = entry.podman.rootfs if entry.podman is not None else ""
        if entry.layer and layers is not None:
            container.writable = layers.writable(entry.layer)
        elif rootfs:
            detail = "its root is a directory of the machine, outside of the graph root and not part of this archive"
            container.flags.append(Flag(FlagKind.ELSEWHERE, detail, rootfs.encode("utf-8", "surrogatepass")))
        else:
            detail = "no record names a layer of the container: no writable layer was found"
            container.gaps.append(Gap(Reason.MALFORMED, detail, where))

    # -- volumes and other mounts -------------------------------------------------------------------------------------

    def _find_volumes(self, container: Container, where: bytes) -> None:
        for name in container.entry.volumes:
            if not _VOLUME.fullmatch(name):
                detail = f"a volume whose name is no name: {name[:80]!r}"
                container.gaps.append(Gap(Reason.MALFORMED, detail, where))
                continue
            self._find_volume(container, name)
        mine = tuple(path + b"/" for path in (*container.directories, *container.volumes.values()))
        for bind in container.spec.binds:
            source = bind.source.encode("utf-8", "surrogatepass")
            if not source.startswith(mine):
                detail = f"a bind mount, seen at {bind.destination[:200]!r}: not part of this archive"
                container.flags.append(Flag(FlagKind.ELSEWHERE, detail, source))

    def _find_volume(self, container: Container, name: str) -> None:
        area = self._areas.volumes
        kind = _kind(area, name.encode()) if area is not None else None
        path = (area.path if area is not None else self._store.root.path + b"/volumes") + b"/" + name.encode()
        if area is not None and kind is Kind.DIRECTORY:
            container.volumes[name] = path
            if _kind(area, name.encode(), b"_data") is Kind.SYMLINK:
                container.gaps.append(Gap(Reason.MALFORMED, "a volume whose data is a link: not followed", path))
        elif kind is Kind.SYMLINK:
            container.gaps.append(Gap(Reason.MALFORMED, "a volume that is a link: not followed", path))
        elif (elsewhere := self._elsewhere(name)) is not None:
            container.volumes[name] = elsewhere
        else:
            detail = "a volume that is not there: it was removed, or a plugin keeps it"
            container.gaps.append(Gap(Reason.VANISHED, detail, path))

    def _elsewhere(self, name: str) -> bytes | None:
        """The volume in a directory of volumes that a configuration or a process names."""
        for directory in self._store.root.volume_paths:
            path = directory + b"/" + name.encode()
            try:
                native, _ = resolve(self._host, path)
                with Records.open(self._host, native) as records:
                    if records.kind(b"_data") is Kind.DIRECTORY:
                        return native
            except (OSError, MalformedError):
                continue
        return None

    # -- logs ---------------------------------------------------------------------------------------------------------

    def _find_logs(self, container: Container) -> None:
        for directory in container.directories:
            userdata = directory + b"/userdata"
            container.logs += [userdata + b"/" + name for name in self._names(userdata) if _OWN_LOG.fullmatch(name)]
        if container.entry.podman is not None:
            self._check_log_path(container, container.entry.podman.log_path)
        if container.entry.runtime == "crio":
            self._find_pod_log(container)

    @staticmethod
    def _check_log_path(container: Container, path: str) -> None:
        log = path.encode("utf-8", "surrogatepass")
        if log and not any(log.startswith(directory + b"/userdata/") for directory in container.directories):
            detail = "the record names a log outside of the container's directory: not followed"
            container.finding(detail, log)

    def _find_pod_log(self, container: Container) -> None:
        """In `/var/log/pods`, by the name that CRI-O gave it or by the one that the kubelet builds."""
        record = container.entry.record
        kubernetes = record.kubernetes if record is not None else None
        if kubernetes is None or kubernetes.sandbox:
            return
        path = container.spec.log_path
        told = pod_log(path)
        if path and told is None:
            log = path.encode("utf-8", "surrogatepass")
            container.finding("the record names a log that is none of a pod: not followed", log)
        if told is None and kubernetes.namespace and kubernetes.uid:
            pod = f"{kubernetes.namespace}_{kubernetes.pod}_{kubernetes.uid}"
            told = pod_log(f"/var/log/pods/{pod}/{kubernetes.container}/{kubernetes.attempt}.log")
        if told is None:
            return
        pod_directory, of_container, number = told
        try:
            base, _ = resolve(self._host, POD_LOGS)
        except OSError:
            return
        found = PodLog(b"/".join((base, pod_directory, of_container)), number)
        names = [name for name in self._names(found.directory) if found.takes(name)]
        if names:
            container.pod_log = found
            container.logs += [found.directory + b"/" + name for name in names]
        elif container.crio.started:
            container.finding("its log is not there", found.directory + b"/" + number + b".log")

    def _names(self, directory: bytes) -> list[bytes]:
        """Names in a directory that may hold logs; no link is followed to it."""
        try:
            if resolve(self._host, directory)[1]:
                return []
            with Records.open(self._host, directory) as records:
                return [name for name, kind in records.names(limit=_MAX_LOGS) if kind is Kind.FILE]
        except TooManyNamesError as error:
            return [name for name, kind in error.first if kind is Kind.FILE]
        except OSError:
            return []  # told when the directory is read


def _kind(area: Area, *parts: bytes) -> Kind | None:
    try:
        return area.folder.kind(*parts)
    except (OSError, MalformedError):
        return None
