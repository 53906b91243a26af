"""Which directories of a graph root go into which archive."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, Report
from acquirers.containers.parts import Keep, Part, one_file, only, top_level
from acquirers.containers.paths import other_paths, within
from acquirers.containers.storage.areas import OVERLAYS

if TYPE_CHECKING:
    from acquirers.containers.storage.container import Container, PodLog
    from acquirers.containers.storage.layers import Layer, Writable
    from acquirers.containers.storage.roots import Found
    from acquirers.containers.storage.store import Store
    from acquirers.mounts import Mount

UNCLAIMED = "a layer that no container claims and no image is made of: its container was removed, or hidden"
_CONFIGURATION = (b"/etc/containers", b"/etc/crio", b"/usr/share/containers")
_CRIO_STATE = (b"/run/crio", b"/var/lib/crio")
_LIBPOD_STATE = b"/run/libpod"
_ID = re.compile(rb"[0-9a-f]{64}")
_KEPT_TOP = frozenset(
    b"db.sql db.sql-wal db.sql-shm db.sql-journal storage.lock userns.lock defaultNetworkBackend auth.json".split()
)
"""Files of a graph root or a run root itself."""
_KEPT_STATE = frozenset(b"exits alive alive.lck events pause.pid rundir auth.json networks version".split())
_MOUNTED = frozenset({b"merged", b"merged.1"})
"""Where an overlay is mounted: the same files once more."""


def container_parts(container: Container) -> Iterator[Part]:
    """Records, logs, and the writable layer with its links. Volumes come from `volume_parts`."""
    for directory in container.directories:
        yield Part(directory, recursive=True)  # shm and secrets are tmpfs
    if container.pod_log is not None:
        yield Part(container.pod_log.directory, _of_log(container.pod_log))
    if container.writable is not None:
        yield from writable_parts(container.writable)


def writable_parts(writable: Writable) -> Iterator[Part]:
    if writable.layer is not None:
        yield layer_part(writable.layer)
    yield from link_parts(writable)


def link_parts(writable: Writable) -> Iterator[Part]:
    """The short links: what layers are called in `lower`."""
    links: dict[bytes, set[bytes]] = {}
    for directory, name in writable.links:
        links.setdefault(directory, set()).add(name)
    for directory, names in links.items():
        yield Part(directory, only(frozenset(names)), optional=True)


def layer_part(layer: Layer) -> Part:
    return Part(layer.path, mounted=_MOUNTED if layer.driver in OVERLAYS else frozenset())


def tar_split_parts(store: Store, layer: Layer) -> Iterator[Part]:
    """What is needed to build the layer's tar anew, bit for bit."""
    driver = store.areas.driver(layer.driver)
    name = layer.id.encode() + b".tar-split.gz"
    for home in driver.homes if driver is not None else ():
        if home.root == layer.root and home.layers is not None:
            yield Part(home.layers.path, only(frozenset({name})), optional=True)


def _of_log(log: PodLog) -> Callable[[Report], Keep]:
    return lambda _: lambda path, kind: b"/" not in path and kind is Kind.FILE and log.takes(path)


def volume_parts(store: Store, mounts: Sequence[Mount], paths: Iterable[bytes]) -> tuple[list[Part], list[Flag]]:
    """Volumes with what is mounted over their data, unless that is a directory which holds the graph root itself."""
    over = showing_the_root(store, mounts)
    parts, flags = [], []
    for path in paths:
        parts.append(Part(path, recursive=path not in over))
        if path in over:
            where = over[path].decode("utf-8", "replace")
            detail = f"the volume shows the host's {where}, which holds the graph root itself: not part of this"
            flags.append(Flag(FlagKind.ELSEWHERE, detail, path + b"/_data"))
    return parts, flags


def showing_the_root(store: Store, mounts: Sequence[Mount]) -> dict[bytes, bytes]:
    """Volumes over whose data a directory is mounted that holds the graph root -> that directory."""
    found = {}
    for mount in mounts:
        volume, _, name = mount.point.rpartition(b"/")
        if name != b"_data":
            continue
        holding = [path for path in other_paths(mounts, mount) if within(store.root.path, path)]
        if holding:
            found[volume] = min(holding, key=len)
    return found


def runtime_parts(store: Store, found: Found, apart: frozenset[bytes] | None, *, first: bool) -> Iterator[Part]:
    """What belongs to no one container. `apart`: names of volumes that are stored elsewhere; None: only the records."""
    root, areas = store.root, store.areas
    yield Part(root.path, _top_level(root.path))
    for driver in areas.drivers:
        for home in (*driver.homes, *driver.runs):
            for area, keep in ((home.containers, _lists), (home.layers, _records), (home.images, _records)):
                if area is not None:
                    yield Part(area.path, keep, optional=True)
        if driver.graph.files is not None:
            yield Part(driver.graph.files.path, _loose_files, optional=True)
    if areas.libpod is not None:
        yield Part(areas.libpod.path, optional=True)
    yield Part(root.path + b"/networks", optional=True)
    yield Part(root.path + b"/secrets", _without_secrets(root.path + b"/secrets"), optional=True)
    for area in areas.run_tops:
        yield Part(area.path, _top_level(area.path, quiet=True), optional=True)
    for path in store.tmp_dirs:
        yield Part(path, _state_files, optional=True)
    if areas.volumes is not None:
        volumes = areas.volumes.path
        kept = _volume_names if apart is None else _unused_volumes(volumes, apart)
        yield Part(volumes, kept, recursive=apart is not None, optional=True)
    for path in root.links:
        yield one_file(path)
    if first:
        yield from _configuration(found, store.tmp_dirs)
    for path in root.configs:
        if not any(within(path, directory) for directory in _configuration_directories(found)):
            yield one_file(path)


def _configuration(found: Found, tmp_dirs: Sequence[bytes]) -> Iterator[Part]:
    for path in (*_configuration_directories(found), *_CRIO_STATE):
        yield Part(path, optional=True)
    if _LIBPOD_STATE not in tmp_dirs:
        yield Part(_LIBPOD_STATE, _state_files, optional=True)
    yield Part(b"/run/containers/0", _state_files, optional=True)  # credentials of registries, networks
    for path in found.configs:
        if not any(within(path, directory) for directory in _configuration_directories(found)):
            yield one_file(path)


def _configuration_directories(found: Found) -> list[bytes]:
    return [*_CONFIGURATION, *(home + b"/.config/containers" for home in found.homes)]


def _top_level(root: bytes, *, quiet: bool = False) -> Callable[[Report], Keep]:
    """The directories as such, databases and locks; what else lies there is named."""

    def keep(path: bytes, kind: Kind) -> bool:
        return path in _KEPT_TOP or kind in {Kind.DIRECTORY, Kind.SYMLINK}

    def told(path: bytes, kind: Kind) -> bool:
        return not quiet and not keep(path, kind)

    return top_level(root, keep, told, "in the graph root, and not part of this archive")


def _lists(_: Report) -> Keep:
    """Lists and locks, and whatever lies among the containers and is none."""
    return lambda path, kind: (
        not _ID.fullmatch(path.partition(b"/")[0]) or (b"/" not in path and kind is not Kind.DIRECTORY)
    )


def _records(_: Report) -> Keep:
    """Lists and locks, and the small files of each image and layer; no tar-split, which is stored with its layer."""

    def keep(path: bytes, kind: Kind) -> bool:
        name, below, rest = path.partition(b"/")
        if not _ID.fullmatch(name.removesuffix(b".tar-split.gz")):
            return True
        if not below:
            return kind is Kind.DIRECTORY
        return b"/" not in rest and kind is Kind.FILE

    return keep


def _loose_files(_: Report) -> Keep:
    """Small files of the driver, such as `.has-mount-program`."""
    return lambda path, kind: b"/" not in path and kind is Kind.FILE


def _state_files(_: Report) -> Keep:
    """Exit codes, events, credentials: what a reboot takes away."""
    return lambda path, _kind: path.partition(b"/")[0] in _KEPT_STATE and path.count(b"/") < 3


def _without_secrets(directory: bytes) -> Callable[[Report], Keep]:
    """Which secrets there are, and not what they are."""

    def make(report: Report) -> Keep:
        def keep(path: bytes, _kind: Kind) -> bool:
            if path.endswith(b"secretsdata.json"):
                detail = "the secrets themselves: left out, their names and times are in secrets.json"
                report.flag(Flag(FlagKind.ELSEWHERE, detail, directory + b"/" + path))
                return False
            return True

        return keep

    return make


def _volume_names(_: Report) -> Keep:
    """Each volume as a directory, and whatever is none."""
    return lambda path, _kind: b"/" not in path


def _unused_volumes(directory: bytes, apart: frozenset[bytes]) -> Callable[[Report], Keep]:
    """The names of all, and of those that are not stored elsewhere everything: one walk, however many there are."""

    def make(report: Report) -> Keep:
        def keep(path: bytes, kind: Kind) -> bool:
            name, _, rest = path.partition(b"/")
            if name in apart:
                return not rest
            if kind is Kind.SYMLINK and rest in {b"", b"_data"}:
                detail = "a volume whose data is a link: not followed" if rest else "a volume that is a link"
                report.gap(Gap(Reason.MALFORMED, detail, directory + b"/" + path))
            return True

        return keep

    return make


def temporary_parts(store: Store) -> list[Part]:
    """Layers that were being pulled or deleted: `overlay/staging`, `overlay/tempdirs`, as far as they are there."""
    parts = []
    for driver in store.areas.drivers:
        for home in driver.homes:
            if home.files is not None and driver.name in OVERLAYS:
                parts += [Part(home.files.path + b"/" + name, optional=True) for name in (b"staging", b"tempdirs")]
    return parts
