"""Whether a destination lies in what is evidence, by whatever name it is reached.

A path says little: links, bind mounts, the merged view of a container and `/proc/<pid>/root` give other names to the
same directories. So places are compared as the kernel has them: the filesystem, and the path inside of it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.mounts import parse_mountinfo, top_mount
from acquirers.root import read_kernel_file
from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from acquirers.mounts import Mount

_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)


class _Place(msgspec.Struct, frozen=True):
    """A directory of a filesystem."""

    device: int
    path: bytes

    def within(self, other: _Place) -> bool:
        return self.device == other.device and (self.path + b"/").startswith(other.path.rstrip(b"/") + b"/")


def check_outside(to: str, trees: Iterable[bytes]) -> None:
    """Raises `UsageError` when the destination lies in one of the directories that are read, or cannot be told."""
    mounts = _mounts()
    above, places = _look(os.fsencode(to), mounts)
    if not places:
        raise UsageError(
            f"the destination {to!r} lies in another mount namespace: choose a place of this machine's own"
        )
    for tree in trees:
        ids, seen = _look(tree, mounts)
        if (ids and ids[0] in above) or any(place.within(other) for place in places for other in seen[:1]):
            raise UsageError(
                f"the destination {to!r} lies inside {os.fsdecode(tree)!r}, which is evidence: choose another place"
            )


def check_beside_root(to: str) -> None:
    """For a run inside of a container. Raises `UsageError` when the destination lies in the container's own layer."""
    mounts = _mounts()
    root = top_mount(list(mounts.values()))
    places = _look(os.fsencode(to), mounts)[1]
    if root is not None and root.fstype == b"overlay" and places and places[0].device == root.device:
        raise UsageError(
            f"the destination {to!r} lies in the container's own filesystem, which is evidence: use a volume, a tmpfs "
            "such as /dev/shm (often of 64 MiB only: `df /dev/shm`), or s3://…"
        )


def _mounts() -> dict[int, Mount]:
    return {mount.mount_id: mount for mount in parse_mountinfo(read_kernel_file(b"/proc/self/mountinfo"))}


def _look(path: bytes, mounts: dict[int, Mount]) -> tuple[list[tuple[int, int]], list[_Place]]:
    """(device, inode) of the nearest directory that is there and of all above it, and where it lies.

    The second place, behind that of an overlay, is its writable layer: what is written goes there.
    """
    while True:
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            break
        except OSError:
            if path in {b"/", b""}:
                return [], []
            path = os.path.dirname(path.rstrip(b"/"))
    try:
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        match = _MOUNT_ID.search(read_kernel_file(b"/proc/self/fdinfo/%d" % fd, 4096))
        mount = mounts.get(int(match[1])) if match else None
        places: list[_Place] = []
        while mount is not None and len(places) < 8 and (real + b"/").startswith(mount.point.rstrip(b"/") + b"/"):
            places.append(_Place(mount.device, _inside(mount, real)))
            upper = mount.option(b"upperdir") if mount.fstype == b"overlay" else None
            if upper is None:
                break
            real = upper + b"/" + places[-1].path.lstrip(b"/")
            mount = _mount_of(real, mounts)
        return _above(fd), places
    finally:
        os.close(fd)


def _inside(mount: Mount, path: bytes) -> bytes:
    below = path[len(mount.point.rstrip(b"/")) :]
    return (mount.root.rstrip(b"/") + b"/" + below.lstrip(b"/")).rstrip(b"/") or b"/"


def _mount_of(path: bytes, mounts: dict[int, Mount]) -> Mount | None:
    """The mount that a path without links lies on: the deepest, the last where several lie upon each other."""
    found = [mount for mount in mounts.values() if (path + b"/").startswith(mount.point.rstrip(b"/") + b"/")]
    return max(found, key=lambda mount: len(mount.point), default=None)


def _above(fd: int) -> list[tuple[int, int]]:
    """(device, inode) of an open directory and of all above it."""
    found: list[tuple[int, int]] = []
    here = os.dup(fd)
    try:
        while True:
            status = os.fstat(here)
            identity = status.st_dev, status.st_ino
            if found and identity == found[-1]:
                return found
            found.append(identity)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = above
    except OSError:
        return found
    finally:
        os.close(here)
