"""Docker daemons that run now, and what their arguments say of the place where they keep their data.

A daemon may live in another mount namespace (snap, rootless, Docker in Docker): its paths are its own. They are
translated through both mount tables, and the translation is believed only if it leads to the very same directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from acquirers.base import Gap, Reason
from acquirers.containers.docker.settings import parse_arguments
from acquirers.containers.paths import mount_of, within
from acquirers.host import Mode
from acquirers.mounts import Mount, find_mount, parse_mountinfo
from acquirers.root import ForeignMountError, Resolver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from acquirers.host import Host

# The command names, cut to 15 bytes by the kernel: moby's, and that of RHEL 7.
_COMMANDS = (b"dockerd", b"dockerd-current")
_DEFAULT = b"/var/lib/docker"
_MAX_DAEMONS = 64


@dataclass(frozen=True, slots=True)
class Daemon:
    """One live dockerd; paths are native to the machine, not to the daemon's namespace."""

    pid: int
    data_root: bytes | None
    config_file: bytes | None


def live_daemons(host: Host, gaps: list[Gap]) -> Iterator[Daemon]:
    """Every live dockerd. What it names and cannot be found from here is added to `gaps`."""
    if host.proc is None:
        return
    pids = sorted({pid for command in _COMMANDS for pid in host.processes_named(command)})
    for pid in pids[:_MAX_DAEMONS]:
        process = os.path.join(host.proc, b"%d" % pid)
        try:
            arguments = host.read_proc(b"%d/cmdline" % pid, 1 << 16).rstrip(b"\0").split(b"\0")
        except OSError:
            continue  # it ended
        settings = parse_arguments(arguments[1:])
        foreign = not _same_namespace(host, process)
        told = settings.data_root
        if told is None and foreign and settings.config_file is None:
            told = _default_of(host, process)
        found = {}
        for what, path in (("data root", told), ("configuration", settings.config_file)):
            if path is None:
                continue
            try:
                native = _native(host, process, path, foreign=foreign)
            except ForeignMountError as error:
                detail = f"the {what} of the live dockerd {pid}, in its own mount namespace: {error.strerror}"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
                continue
            if native is None:
                detail = f"the {what} of the live dockerd {pid} lies in its own mount namespace, with no path from here"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
            else:
                found[what] = native
        yield Daemon(pid, found.get("data root"), found.get("configuration"))


def _default_of(host: Host, process: bytes) -> bytes:
    """Where this daemon keeps its data when nobody says so: `getDefaultDataRoot`, moby daemon/config."""
    try:
        rootless = os.stat(process).st_uid != 0
        pairs = host.read_proc(os.path.join(process, b"environ"), 1 << 17).split(b"\0") if rootless else []
    except OSError:
        return _DEFAULT
    environment = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    home, data = environment.get(b"HOME", b""), environment.get(b"XDG_DATA_HOME", b"")
    if data.startswith(b"/"):
        return data + b"/docker"
    return home + b"/.local/share/docker" if home.startswith(b"/") else _DEFAULT


def _same_namespace(host: Host, process: bytes) -> bool:
    """Whether the process sees the files that native paths name. Yes where nobody may ask."""
    ours = b"1" if host.mode is Mode.LIVE_ROOT else b"self"
    try:
        same = os.stat(os.path.join(os.path.dirname(process), ours, b"ns/mnt")).st_ino
        theirs = os.stat(os.path.join(process, b"ns/mnt")).st_ino
        root = os.readlink(os.path.join(process, b"root"))
    except OSError:
        return True
    return same == theirs and (root == b"/" or host.mode is Mode.LIVE_ROOT)


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


def _native(host: Host, process: bytes, path: bytes, *, foreign: bool) -> bytes | None:
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
