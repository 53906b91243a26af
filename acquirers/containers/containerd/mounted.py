"""What is mounted for containers just now: a second opinion on which snapshot belongs to which of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.containers.containerd.metadata import DOCKER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from acquirers.mounts import Mount

_ROOTFS = re.compile(rb"/.+/io\.containerd\.runtime\.v2\.task/([^/]+)/([^/]+)/rootfs")
_DOCKER = re.compile(rb"/.+/rootfs/[^/]+/([0-9a-f]{64})")
"""Docker 29 mounts it in its own data root: `<root>/rootfs/<snapshotter>/<id>`."""
_UPPER = re.compile(rb"(/.+)/snapshots/([0-9]{1,20})/fs")
_LOWER = re.compile(rb"(?:.*/)?([0-9]{1,20})/fs", re.DOTALL)


class Mounted(msgspec.Struct, frozen=True):
    """The overlay that is a container's root."""

    snapshotter: bytes
    """Its directory, as it was named when it was mounted."""
    upper: int
    lowers: tuple[int, ...]
    """The topmost first."""
    userxattr: bool


def mounted_snapshots(mounts: Iterable[Mount]) -> dict[tuple[str, str], Mounted]:
    """(namespace, container id) -> what is mounted on its bundle's `rootfs`, or where Docker mounts it."""
    found = {}
    for mount in mounts:
        if mount.fstype != b"overlay":
            continue
        place, docker = _ROOTFS.fullmatch(mount.point), _DOCKER.fullmatch(mount.point)
        upper = _UPPER.fullmatch(mount.option(b"upperdir") or b"") if place or docker else None
        if upper is None:
            continue
        # Too long a list is given relative to `snapshots` (containerd `core/mount/mount_linux.go`).
        named = (_LOWER.fullmatch(one) for one in (mount.option(b"lowerdir") or b"").split(b":"))
        if place is not None:
            key = place[1].decode("utf-8", "replace"), place[2].decode("utf-8", "replace")
        elif docker is not None:
            key = DOCKER, docker[1].decode("ascii")
        flags = mount.super_options.split(b",")
        found[key] = Mounted(upper[1], int(upper[2]), tuple(int(one[1]) for one in named if one), b"userxattr" in flags)
    return found
