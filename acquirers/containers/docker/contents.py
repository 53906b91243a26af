"""Which directories of a data root go into which archive."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, Report
from acquirers.containers.docker.areas import COPIES, OVERLAYS
from acquirers.containers.docker.layers import Layer
from acquirers.containers.parts import Keep, Part, one_file, only, top_level
from acquirers.containers.paths import other_paths, within

if TYPE_CHECKING:
    from acquirers.containers.docker.container import Container
    from acquirers.containers.docker.layers import Writable
    from acquirers.containers.docker.store import Store
    from acquirers.mounts import Mount

_CONFIGURATION = b"/etc/docker"
_KNOWN = frozenset(
    b"containers image volumes overlay2 fuse-overlayfs vfs btrfs network buildkit swarm runtimes plugins"
    b" engine-id".split()
)
"""Names of a data root that this acquirer looks into."""

UNCLAIMED = "a writable layer that no container claims: its container was removed, or hidden"
_MOUNTED = frozenset({b"merged"})
"""Where the overlay of a layer is mounted: the same files once more."""
_CONTAINER = re.compile(rb"[0-9a-f]{64}")


def container_parts(store: Store, container: Container) -> Iterator[Part]:
    """Records, logs, the writable layer and its links. Volumes come from `volume_parts`."""
    if container.present:
        yield Part(container.path, recursive=True)  # mounts/shm, secrets and configs are tmpfs
    writable = container.writable
    if writable is None:
        return
    mounts = store.areas.image_path + f"/{writable.driver}/layerdb/mounts/{container.id}".encode()
    yield Part(mounts, optional=True)
    if writable.driver in OVERLAYS or writable.driver in COPIES:
        yield from writable_parts(store, writable)


def writable_parts(store: Store, writable: Writable) -> Iterator[Part]:
    overlay = store.areas.overlay_path(writable.driver)
    for name in (writable.mount_id, writable.init_id):
        if name:
            yield layer_part(store, Layer(writable.driver, name))
    if writable.links:
        yield Part(overlay + b"/l", only(frozenset(writable.links)), optional=True)


def layer_part(store: Store, layer: Layer) -> Part:
    path = store.areas.overlay_path(layer.driver) + b"/" + layer.id.encode()
    return Part(path, mounted=frozenset() if layer.driver in COPIES else _MOUNTED)


def unclaimed_part(store: Store, driver: str, mount_ids: frozenset[str]) -> Part:
    """Many writable layers that belong to no container, each of them a finding."""
    base = store.areas.overlay_path(driver)

    def make(report: Report) -> Keep:
        def keep(path: bytes, _kind: Kind) -> bool:
            name = path.partition(b"/")[0]
            mount_id = name.decode("latin-1").removesuffix("-init")
            if mount_id not in mount_ids:
                return False
            if path == mount_id.encode():
                report.flag(Flag(FlagKind.FINDING, UNCLAIMED, base + b"/" + path))
            return True

        return keep

    return Part(base, make)


def short_links_part(store: Store, driver: str) -> Part:
    """All short links: what the layers below one are called in its `lower`."""
    links = store.areas.overlay_path(driver) + b"/l"
    return Part(links, lambda _: lambda path, kind: kind is Kind.SYMLINK and b"/" not in path, optional=True)


def volume_parts(store: Store, mounts: Sequence[Mount], names: Iterable[bytes]) -> tuple[list[Part], list[Flag]]:
    """Volumes with what is mounted over their data, unless that is a directory which holds the data root itself."""
    over = showing_the_root(store, mounts)
    parts, flags = [], []
    for name in names:
        path = store.areas.path("volumes") + b"/" + name
        parts.append(Part(path, recursive=name not in over))
        if name in over:
            where = over[name].decode("utf-8", "replace")
            detail = f"the volume shows the host's {where}, which holds the data root itself: not part of this"
            flags.append(Flag(FlagKind.ELSEWHERE, detail, path + b"/_data"))
    return parts, flags


def showing_the_root(store: Store, mounts: Sequence[Mount]) -> dict[bytes, bytes]:
    """Names of volumes over whose data a directory is mounted that holds the data root -> that directory."""
    base = store.areas.path("volumes") + b"/"
    found = {}
    for mount in mounts:
        name, _, rest = mount.point.removeprefix(base).partition(b"/")
        if not mount.point.startswith(base) or rest != b"_data":
            continue
        holding = [path for path in other_paths(mounts, mount) if within(store.root.path, path)]
        if holding:
            found[name] = holding[0]
    return found


def runtime_parts(store: Store, apart: frozenset[bytes] | None, *, configuration: bool) -> Iterator[Part]:
    """What belongs to no container: the daemon's databases, its configuration, and all volumes but those of `apart`.

    Of volumes that are stored elsewhere, and of all of them when `apart` is None, there are the records only.
    """
    root, areas = store.root, store.areas
    yield Part(root.path, _top_level(root.path))
    yield Part(areas.image_path, optional=True)
    yield Part(root.path + b"/network", optional=True)
    volumes = areas.path("volumes")
    if apart is None:
        yield Part(volumes, _volume_records, optional=True)
    else:
        yield Part(volumes, _unused_volumes(volumes, apart), recursive=True, optional=True)
    yield Part(root.path + b"/buildkit", _databases, optional=True)
    yield Part(root.path + b"/swarm", _without_keys(root.path + b"/swarm"), optional=True)
    yield Part(root.path + b"/runtimes", optional=True)
    yield Part(root.path + b"/plugins", _plugin_records, optional=True)
    if store.strangers:
        yield Part(areas.path("containers"), _strangers)
    if configuration:
        yield Part(_CONFIGURATION, _without_keys(_CONFIGURATION), optional=True)
    for path in (*root.configs, *root.links):
        if not within(path, _CONFIGURATION):
            yield one_file(path)


def _top_level(root: bytes) -> Callable[[Report], Keep]:
    """The directories as such, and the engine's id; what else lies there is named."""
    return top_level(
        root,
        lambda path, kind: path in _KNOWN or kind in {Kind.DIRECTORY, Kind.SYMLINK},
        lambda path, _: path not in _KNOWN,
        "in the data root, and its content not part of this archive",
    )


def _volume_records(_: Report) -> Keep:
    """Each volume as a directory, its options, and whatever is no volume."""
    return _is_volume_record


def _is_volume_record(path: bytes, kind: Kind) -> bool:
    _, below, rest = path.partition(b"/")
    return not below or (rest == b"opts.json" and kind is not Kind.DIRECTORY)


def _unused_volumes(directory: bytes, apart: frozenset[bytes]) -> Callable[[Report], Keep]:
    """The records of all, and of those that are not stored elsewhere everything: one walk, however many there are."""

    def make(report: Report) -> Keep:
        def keep(path: bytes, kind: Kind) -> bool:
            name, _, rest = path.partition(b"/")
            if name in apart:
                return _is_volume_record(path, kind)
            if kind is Kind.SYMLINK and rest in {b"", b"_data"}:
                detail = "a volume whose data is a link: not followed" if rest else "a volume that is a link"
                report.gap(Gap(Reason.MALFORMED, detail, directory + b"/" + path))
            return True

        return keep

    return make


def _databases(_: Report) -> Keep:
    return lambda path, kind: b"/" not in path and kind is Kind.FILE and path.endswith(b".db")


def _plugin_records(_: Report) -> Keep:
    """plugins/<id>/config.json, and not their root filesystems."""

    def keep(path: bytes, kind: Kind) -> bool:
        depth = path.count(b"/")
        return (depth == 0 and kind is Kind.DIRECTORY) or (depth == 1 and path.endswith(b"/config.json"))

    return keep


def _strangers(_: Report) -> Keep:
    """Whatever lies among the containers and is none, with all that is below it."""

    def keep(path: bytes, kind: Kind) -> bool:
        name, below, _ = path.partition(b"/")
        return not _CONTAINER.fullmatch(name) or not (below or kind is Kind.DIRECTORY)

    return keep


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
