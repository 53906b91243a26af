"""Small questions about native paths that every container runtime's acquirer asks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.host import Host
    from acquirers.mounts import Mount


def within(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or lies below it; both absolute and normal."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def mount_of(mounts: Iterable[Mount], path: bytes) -> Mount | None:
    """The mount that `path` lies on: the deepest one, and the last of those that cover each other."""
    points = {mount.point: mount for mount in mounts}
    here = path.rstrip(b"/")
    while here:
        if here in points:
            return points[here]
        here = here.rpartition(b"/")[0]
    return points.get(b"/")


def other_paths(mounts: Iterable[Mount], mount: Mount) -> Iterator[bytes]:
    """Where else the directory that is mounted there can be seen: a bind mount's source."""
    for other in mounts:
        if other.mount_id != mount.mount_id and other.device == mount.device and within(mount.root, other.root):
            yield (other.point.rstrip(b"/") + mount.root[len(other.root.rstrip(b"/")) :]).rstrip(b"/") or b"/"


def resolve(host: Host, path: bytes) -> tuple[bytes, list[bytes]]:
    """`path` with every link followed inside the machine, and the native paths of these links. Raises `OSError`."""
    place = host.follow(path)
    os.close(place.fd)
    return place.native, place.links
