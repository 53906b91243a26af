"""Which directories of a data root go into which archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from acquirers.base import Flag, FlagKind, Kind, Report
from acquirers.containers.docker.areas import OVERLAYS
from acquirers.containers.parts import Keep, Part, only, without
from acquirers.containers.paths import mount_of, other_paths, within

if TYPE_CHECKING:
    from acquirers.containers.docker.layers import Layer, Writable
    from acquirers.containers.docker.store import Container, Store, Volume
    from acquirers.host import Host

_CONFIGURATION = b"/etc/docker"
_KNOWN = frozenset(
    b"containers image volumes overlay2 fuse-overlayfs network buildkit swarm runtimes plugins engine-id".split()
)
"""Names of a data root that this acquirer looks into."""


_MAX_NAMED = 50


def container_parts(store: Store, container: Container) -> Iterator[Part]:
    """Records, logs, the writable layer and its links. Volumes come from `volume_part`."""
    if container.present:
        yield Part(container.path, recursive=True)  # mounts/shm, secrets and configs are tmpfs
    writable = container.writable
    if writable is None:
        return
    mounts = store.areas.image_path + f"/{writable.driver}/layerdb/mounts/{container.id}".encode()
    yield Part(mounts, optional=True)
    if writable.driver in OVERLAYS:
        yield from writable_parts(store, writable)


def writable_parts(store: Store, writable: Writable) -> Iterator[Part]:
    """`merged` is where the overlay is mounted: the same files once more."""
    overlay = store.areas.overlay_path(writable.driver)
    for name in (writable.mount_id, writable.init_id):
        if name:
            yield Part(overlay + b"/" + name.encode(), without(b"merged"))
    if writable.links:
        yield Part(overlay + b"/l", only(frozenset(writable.links)), optional=True)


def layer_part(store: Store, layer: Layer) -> Part:
    return Part(store.areas.overlay_path(layer.driver) + b"/" + layer.id.encode(), without(b"merged"))


def volume_part(host: Host, store: Store, volume: Volume) -> tuple[Part, Flag | None]:
    """A volume with what is mounted over its data, unless that is a directory which holds the data root itself."""
    data = volume.path + b"/_data"
    mount = mount_of(host.mounts, data)
    if mount is not None and mount.point == data:
        for source in other_paths(host.mounts, mount):
            if within(store.root.path, source):
                where = source.decode("utf-8", "replace")
                detail = f"the volume shows the host's {where}, which holds the data root itself: not part of this"
                return Part(volume.path), Flag(FlagKind.ELSEWHERE, detail, data)
    return Part(volume.path, recursive=True), None


def runtime_parts(store: Store, *, configuration: bool) -> Iterator[Part]:
    """What belongs to no container: the daemon's databases and its configuration."""
    root, areas = store.root, store.areas
    yield Part(root.path, _top_level(root.path))
    yield Part(areas.image_path, optional=True)
    yield Part(root.path + b"/network", optional=True)
    yield Part(areas.path("volumes"), _volume_records, optional=True)
    yield Part(root.path + b"/buildkit", _databases, optional=True)
    yield Part(root.path + b"/swarm", _without_keys(root.path + b"/swarm"), optional=True)
    yield Part(root.path + b"/runtimes", optional=True)
    yield Part(root.path + b"/plugins", _plugin_records, optional=True)
    if store.strangers:
        yield Part(areas.path("containers"), _below(store.strangers))
    if configuration:
        yield Part(_CONFIGURATION, _without_keys(_CONFIGURATION), optional=True)
    for path in (*root.configs, *root.links):
        if not within(path, _CONFIGURATION):
            yield Part(os.path.dirname(path), only(frozenset({os.path.basename(path)})), optional=True)


def _top_level(root: bytes) -> Callable[[Report], Keep]:
    """The directories as such, and the engine's id; what else lies there is named."""

    def make(report: Report) -> Keep:
        named = 0

        def keep(path: bytes, kind: Kind) -> bool:
            nonlocal named
            if b"/" in path:
                return False
            if path not in _KNOWN and named < _MAX_NAMED:
                named += 1
                more = " (nor is anything that follows)" if named == _MAX_NAMED else ""
                detail = f"in the data root, and its content not part of this archive{more}"
                report.flag(Flag(FlagKind.ELSEWHERE, detail, root + b"/" + path))
            return path in _KNOWN or kind in {Kind.DIRECTORY, Kind.SYMLINK}

        return keep

    return make


def _volume_records(_: Report) -> Keep:
    """Each volume as a directory, its options, and whatever is no volume."""

    def keep(path: bytes, kind: Kind) -> bool:
        _, below, rest = path.partition(b"/")
        return not below or (rest == b"opts.json" and kind is not Kind.DIRECTORY)

    return keep


def _databases(_: Report) -> Keep:
    return lambda path, kind: b"/" not in path and kind is Kind.FILE and path.endswith(b".db")


def _plugin_records(_: Report) -> Keep:
    """plugins/<id>/config.json, and not their root filesystems."""

    def keep(path: bytes, kind: Kind) -> bool:
        depth = path.count(b"/")
        return (depth == 0 and kind is Kind.DIRECTORY) or (depth == 1 and path.endswith(b"/config.json"))

    return keep


def _below(names: Iterable[bytes]) -> Callable[[Report], Keep]:
    """These names of the directory, with all that is below them."""
    wanted = frozenset(names)
    return lambda _: lambda path, _kind: path.partition(b"/")[0] in wanted


def _without_keys(directory: bytes) -> Callable[[Report], Keep]:
    """Everything but private keys, which are no evidence of anything and a loss to everybody if they leak."""

    def make(report: Report) -> Keep:
        def keep(path: bytes, kind: Kind) -> bool:
            name = os.path.basename(path)
            if kind is Kind.DIRECTORY or not (
                name in {b"key.json", b"key.pem"} or name.endswith((b".key", b"-key.pem"))
            ):
                return True
            report.flag(Flag(FlagKind.ELSEWHERE, "a private key: left out", directory + b"/" + path))
            return False

        return keep

    return make
