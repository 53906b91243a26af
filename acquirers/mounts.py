"""`/proc/<pid>/mountinfo`: which filesystem is mounted where, and which of them may be entered.

Format: proc(5). Octal escapes stand for blanks, tabs, newlines, backslashes, and in options for commas and colons.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LOCAL = frozenset(
    b"ext2 ext3 ext4 xfs btrfs f2fs tmpfs ramfs overlay erofs squashfs vfat exfat zfs iso9660 reiserfs jfs".split()
)
"""Filesystems whose reads return: a disk or memory of this machine."""

KERNEL = frozenset(
    b"proc sysfs cgroup cgroup2 devpts devtmpfs mqueue tracefs debugfs securityfs bpf pstore binfmt_misc configfs "
    b"fusectl hugetlbfs nsfs rpc_pipefs selinuxfs efivarfs autofs".split()
)
"""Views of the kernel, not files that anybody stored."""

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

    @property
    def local(self) -> bool:
        return self.fstype in LOCAL

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


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def parse_mountinfo(data: bytes) -> list[Mount]:
    """All lines that are well-formed; a line that is not is left out."""
    mounts = []
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
            )
        )
    return mounts


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
