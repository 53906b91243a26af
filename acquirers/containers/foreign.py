"""Processes in another mount namespace (snap, rootless, one runtime in another): their paths are their own.

A path of theirs is translated through both mount tables, and the translation is believed only if it leads to the very
same directory.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from acquirers.containers.paths import mount_of, within
from acquirers.host import Mode
from acquirers.mounts import Mount, find_mount, parse_mountinfo
from acquirers.root import ForeignMountError, Resolver

if TYPE_CHECKING:
    from types import TracebackType

    from acquirers.host import Host


def same_namespace(host: Host, process: bytes) -> bool:
    """Whether the process sees the files that native paths name. Yes where nobody may ask."""
    ours = b"1" if host.mode is Mode.LIVE_ROOT else b"self"
    try:
        same = os.stat(os.path.join(os.path.dirname(process), ours, b"ns/mnt")).st_ino
        theirs = os.stat(os.path.join(process, b"ns/mnt")).st_ino
        root = os.readlink(os.path.join(process, b"root"))
    except OSError:
        return True
    return same == theirs and (root == b"/" or host.mode is Mode.LIVE_ROOT)


def native_path(host: Host, process: bytes, path: bytes, *, foreign: bool) -> bytes | None:
    """The machine's own path of what a process names; `foreign`: it does not see the same files. None: there is none.

    Raises `ForeignMountError` where it lies on a filesystem that is not entered.
    """
    if not path.startswith(b"/"):
        try:
            path = os.path.normpath(os.path.join(os.readlink(os.path.join(process, b"cwd")), path))
        except OSError:
            return None
    if not foreign:
        return path
    try:
        theirs = parse_mountinfo(host.read_proc(os.path.join(process, b"mountinfo")))
        with _TheirFiles(host, process) as files:
            path, identity = files.find(path)
    except ForeignMountError:
        raise
    except OSError:
        return None
    mount = mount_of(theirs, path)
    if mount is None:
        return None
    inside = os.path.normpath(mount.root + b"/" + path[len(mount.point.rstrip(b"/")) :])
    for ours in host.mounts:
        if ours.device != mount.device or not within(inside, ours.root):
            continue
        below = inside[len(ours.root.rstrip(b"/")) :]
        candidate = ours.point.rstrip(b"/") + below
        try:
            if host.identity_of(candidate) == identity:
                return candidate
        except OSError:
            continue
    return None


class _TheirFiles(Resolver):
    """What a process in another mount namespace sees. A context manager."""

    def __init__(self, host: Host, process: bytes) -> None:
        self._host = host
        self._mountinfo = os.path.join(process, b"mountinfo")
        root = os.open(os.path.join(process, b"root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            super().__init__(root, checked=True)
        except BaseException:
            os.close(root)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root_fd)

    def find(self, path: bytes) -> tuple[bytes, tuple[int, int]]:
        """The path without links, and (device, inode)."""
        place = self.follow(path)
        try:
            found = os.fstat(place.fd)
        finally:
            os.close(place.fd)
        return place.native, (found.st_dev, found.st_ino)

    def _mount(self, mount_id: int) -> Mount | None:
        mount = find_mount(self._host.read_proc(self._mountinfo), mount_id)
        if mount is None:  # of another list, if only their root directory is their own
            return super()._mount(mount_id)
        if mount.fstype != b"overlay":
            return mount
        # The root of a container, mostly: its layers are out of sight in there, and named in the machine's own list.
        same = (ours for ours in self._host.mounts if ours.device == mount.device and ours.local)
        return next(same, replace(mount, among=()))
