"""`/proc/<pid>/mountinfo`: which filesystem is mounted where, and which of them may be entered.

Format: proc(5). Octal escapes stand for blanks, tabs, newlines, backslashes, and in options for commas and colons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LOCAL = frozenset(
    b"ext2 ext3 ext4 xfs btrfs f2fs tmpfs ramfs overlay erofs squashfs vfat exfat zfs iso9660 reiserfs jfs".split()
)
"""Filesystems whose reads return: a disk or memory of this machine; an overlay, if its layers do (`Mount.local`).

Nobody tells that the disk is a loop or device-mapper device whose image lies on a filesystem that does not answer.
"""

KERNEL = frozenset(
    b"proc sysfs cgroup cgroup2 devpts devtmpfs mqueue tracefs debugfs securityfs bpf pstore binfmt_misc configfs "
    b"fusectl hugetlbfs nsfs rpc_pipefs selinuxfs efivarfs autofs".split()
)
"""Views of the kernel, not files that anybody stored."""

PASSABLE = KERNEL - {b"autofs"}
"""Those in which a name can be looked up without waiting for anybody: autofs asks its daemon."""

_OVERLAY = b"overlay"
_LAYERS = frozenset({b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir", b"workdir"})
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MAX_LINES = 100_000


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    device: int
    root: bytes
    """The directory inside the filesystem that is mounted here."""
    point: bytes
    options: bytes
    fstype: bytes
    source: bytes
    super_options: bytes
    """As it stands, escapes included: commas inside values are escaped, those between options are not."""
    among: Sequence[Mount] = field(default=(), repr=False, compare=False)
    """The list that it stands in."""

    @property
    def local(self) -> bool:
        """Whether its reads return: of an overlay, only when all its layers lie on mounts of which that is true."""
        return self.fstype in LOCAL and (self.fstype != _OVERLAY or _on_local_layers(self))

    @property
    def kernel(self) -> bool:
        return self.fstype in KERNEL

    def option(self, name: bytes) -> bytes | None:
        """The value of one super option (`upperdir` of an overlay), escapes undone; None when it is not there."""
        for part in self.super_options.split(b","):
            key, equals, value = part.partition(b"=")
            if key == name and equals:
                return _unescape(value)
        return None

    def layers(self) -> Iterator[bytes]:
        """The directories that an overlay is made of, as they were named when it was mounted."""
        for part in self.super_options.split(b","):
            key, _, value = part.partition(b"=")
            if key in _LAYERS:
                yield from filter(None, _unescape(value).split(b":"))


def _on_local_layers(overlay: Mount) -> bool:
    """As far as their names tell, which is what is mounted there now.

    What is mounted at the root holds all the rest, and is not asked for its layers: in a container it is an overlay,
    and they lie out of sight.
    """
    points: dict[bytes, list[Mount]] = {}
    for mount in overlay.among:
        points.setdefault(mount.point, []).append(mount)
    root = {mount.device for mount in points.get(b"/", ())}
    todo, judged = [overlay], {overlay.mount_id}
    while todo:
        mount = todo.pop()
        if mount.fstype not in LOCAL:
            return False
        if mount.fstype != _OVERLAY or mount.device in root:
            continue
        layers = list(mount.layers())
        for layer in layers:
            # A backslash stands before a colon that is part of a name; nobody who has one here is an ordinary host.
            below = _lies_on(layer, points, mount) if layer.startswith(b"/") and b"\\" not in layer else []
            if not below:
                return False
            todo += [found for found in below if found.mount_id not in judged]
            judged.update(found.mount_id for found in below)
        if not layers:
            return False
    return True


def _lies_on(path: bytes, points: dict[bytes, list[Mount]], overlay: Mount) -> list[Mount]:
    """All that is mounted at the deepest mount point on the way to `path`, but for an overlay over its own layers."""
    path = os.path.normpath(b"/" + path.lstrip(b"/"))
    for point in (path, *_above(path)):
        if found := [mount for mount in points.get(point, ()) if mount.mount_id != overlay.mount_id]:
            return found
    return []


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def parse_mountinfo(data: bytes) -> list[Mount]:
    """All lines that are well-formed; a line that is not is left out."""
    mounts: list[Mount] = []
    for line in data.split(b"\n")[:_MAX_LINES]:
        left, dash, right = line.partition(b" - ")
        fields, rest = left.split(b" "), right.split(b" ")
        if not dash or len(fields) < 6 or len(rest) < 3:
            continue
        major, _, minor = fields[2].partition(b":")
        if not all(number.isdigit() and len(number) < 12 for number in (fields[0], fields[1], major, minor)):
            continue
        mounts.append(
            Mount(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=os.makedev(int(major) & 0xFFF, int(minor) & 0xFFFFF),
                root=_unescape(fields[3]),
                point=_unescape(fields[4]),
                options=fields[5],
                fstype=rest[0],
                source=_unescape(rest[1]),
                super_options=rest[2],
                among=mounts,
            )
        )
    return mounts


def find_mount(data: bytes, mount_id: int) -> Mount | None:
    """The line with that id. Of a long list no other line is looked at, if this one is no overlay."""
    start = 0 if data.startswith(b"%d " % mount_id) else data.find(b"\n%d " % mount_id) + 1
    line = data[start:].partition(b"\n")[0]
    found = parse_mountinfo(data if b" - overlay " in line else line)
    return next((mount for mount in found if mount.mount_id == mount_id), None)


def below(mounts: list[Mount], path: bytes) -> dict[bytes, Mount]:
    """What is mounted below `path` (not at it) and can be reached there: mount point -> mount.

    Mountinfo also lists what another mount hides, at the same point or further up; which is on top is told by the
    parents and not by the order of the lines (a mount that was moved keeps its place in the list).
    """
    prefix = path.rstrip(b"/") + b"/"
    hidden = _hidden(mounts)
    return {
        mount.point: mount
        for mount in mounts
        if mount.point.startswith(prefix) and mount.point != path and mount.mount_id not in hidden
    }


def _hidden(mounts: list[Mount]) -> set[int]:
    """The mounts that no path leads to any more."""
    stacked = {(mount.parent_id, mount.point) for mount in mounts if mount.parent_id != mount.mount_id}
    hidden = {mount.mount_id for mount in mounts if (mount.mount_id, mount.point) in stacked}
    cut_off = {
        mount.mount_id for mount in mounts if any((mount.parent_id, above) in stacked for above in _above(mount.point))
    }
    # What is mounted inside a mount that is cut off cannot be reached either. (What is mounted on the root of a hidden
    # mount is what hides it.)
    children: dict[int, list[int]] = {}
    for mount in mounts:
        if mount.parent_id != mount.mount_id:
            children.setdefault(mount.parent_id, []).append(mount.mount_id)
    todo = list(cut_off)
    while todo:
        for child in children.pop(todo.pop(), ()):
            if child not in cut_off:
                cut_off.add(child)
                todo.append(child)
    return hidden | cut_off


def _above(point: bytes) -> list[bytes]:
    """The directories above a path, the root last."""
    found = []
    while point not in {b"/", b""}:
        point = point.rpartition(b"/")[0] or b"/"
        found.append(point)
    return found


def top_mount(mounts: list[Mount]) -> Mount | None:
    """What lies uppermost at `/`."""
    here = [mount for mount in mounts if mount.point == b"/"]
    covered = {mount.parent_id for mount in here if mount.parent_id != mount.mount_id}
    return next((mount for mount in reversed(here) if mount.mount_id not in covered), None)
