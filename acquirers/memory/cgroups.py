"""The directories of the memory control groups of a machine, by inode number.

In version 1 the hierarchy with the controller `memory`, else the one of version 2 (cgroups(7)). Names are chosen by
whoever may make a group: bytes, which may look like a container's id and be none.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from typing import TYPE_CHECKING

from acquirers import container_id
from acquirers.memory import child
from acquirers.snapshot.encode import put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host

MAX_DEPTH = 64
MAX_GROUPS = 1 << 16
MAX_BYTES = 16 << 20
"""Of all paths together."""
SECONDS = 10.0

_ENTRY = struct.Struct("=QI")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_USUAL = (b"/sys/fs/cgroup/memory", b"/sys/fs/cgroup")


def inodes(host: Host) -> dict[int, bytes]:
    """Path in the hierarchy by inode number; empty where no such hierarchy can be read."""
    top = _top(host)
    if top < 0:
        return {}
    try:
        found = child.call(lambda: b"".join(_ENTRY.pack(ino, len(path)) + path for ino, path in walk(top)), SECONDS)
    except (child.StuckError, child.ChildError):
        return {}
    finally:
        os.close(top)
    groups: dict[int, bytes] = {}
    at = 0
    while at < len(found):
        inode, length = _ENTRY.unpack_from(found, at)
        at += _ENTRY.size + length
        groups[inode] = found[at - length : at]
    return groups


def _top(host: Host) -> int:
    """A descriptor of the root of the hierarchy, `O_PATH`; -1 where there is none."""
    try:
        mounts = [mount for mount in host.mounts if mount.root == b"/"]
    except OSError:
        mounts = []
    first = [mount for mount in mounts if mount.fstype == b"cgroup" and b"memory" in mount.super_options.split(b",")]
    second = [mount for mount in mounts if mount.fstype == b"cgroup2"]
    for mount in first or second:
        with contextlib.suppress(OSError):
            fd = host.open_path(mount.point)
            if os.fstat(fd).st_dev == mount.device:
                return fd
            os.close(fd)  # something else is mounted over it
    for path in _USUAL if host.root != b"/" else ():  # a tree that was kept, not a kernel
        with contextlib.suppress(OSError):
            return host.open_path(path)
    return -1


def walk(top: int) -> Iterator[tuple[int, bytes]]:
    """(inode, path) of `top` and of the directories below it, breadth first, no link followed.

    `top` may be `O_PATH`. What vanishes or cannot be opened is left out. Raises nothing.
    """
    count, size = 0, 0
    level = [b""]
    for _ in range(MAX_DEPTH):
        below: list[bytes] = []
        for path in level:
            try:
                fd = _open_below(top, path)
            except OSError:
                continue
            try:
                yield os.fstat(fd).st_ino, path or b"/"
                count += 1
                size += len(path)
                if count >= MAX_GROUPS or size >= MAX_BYTES:
                    return
                below += [path + b"/" + name for name in _directories(fd, MAX_GROUPS - len(below))]
            except OSError:
                continue
            finally:
                os.close(fd)
        level = below


def _open_below(top: int, path: bytes) -> int:
    fd = os.open(b".", _DIRECTORY, dir_fd=top)
    for name in path.split(b"/")[1:]:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _directories(fd: int, most: int) -> list[bytes]:
    found: list[bytes] = []
    device = os.fstat(fd).st_dev
    with os.scandir(fd) as entries:
        for entry in entries:
            if len(found) >= most:
                break
            with contextlib.suppress(OSError):
                seen = os.lstat(entry.name, dir_fd=fd) if entry.is_dir(follow_symlinks=False) else None
                if seen is not None and stat.S_ISDIR(seen.st_mode) and seen.st_dev == device:
                    found.append(os.fsencode(entry.name))
    return sorted(found)


def describe(inode: int, path: bytes | None, pages: int) -> dict[str, object]:
    """The line of one owner; 0 is what is charged to none."""
    line: dict[str, object] = {"type": "owner", "cgroup": inode, "path": None, "container": None, "pages": pages}
    if path is None:
        return line
    put(line, "path", path)
    # A line break in a name must not begin a new line of what the parser takes for /proc/<pid>/cgroup.
    placement = container_id.from_cgroup(b"0::" + path.replace(b"\n", b"?"))
    line["container"] = placement.container or None
    if placement.pod:
        line["pod"] = placement.pod
    return line
