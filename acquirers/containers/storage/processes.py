"""Live conmon, podman, buildah and CRI-O processes, and what their arguments say of the place of their data.

Each may live in a mount namespace of its own (rootless podman always does). Then its paths are translated through both
mount tables, without asking any filesystem; where the machine has no such path, that is a gap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from acquirers.base import Gap, Reason
from acquirers.containers.paths import mount_of, within
from acquirers.containers.storage.settings import COMMANDS, Told, parse_arguments, parse_environment
from acquirers.mounts import parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host
    from acquirers.mounts import Mount

_MAX_PROCESSES = 4096
_ROOTLESS = b"/containers/storage"


class Process(msgspec.Struct, frozen=True):
    """One live process; paths are native to the machine, not to its namespace."""

    pid: int
    command: str
    uid: int
    told: Told
    data_home: bytes = b""
    """`$XDG_DATA_HOME/containers/storage` of a process that is not root's."""
    config_home: bytes = b""


def live_processes(host: Host, gaps: list[Gap]) -> Iterator[Process]:
    """Those that say anything, each thing said once. What they name and cannot be found from here goes to `gaps`."""
    if host.proc is None:
        return
    ours = host.mounts
    said: set[tuple[object, ...]] = set()
    pids = ((pid, command) for command in COMMANDS for pid in host.processes_named(command))
    for count, (pid, command) in enumerate(sorted(pids)):
        if count >= _MAX_PROCESSES:
            gaps.append(
                Gap(Reason.LIMIT, f"more than {_MAX_PROCESSES} processes of podman and CRI-O: not all were asked")
            )
            return
        process = _process(host, pid, command)
        if process is None:
            continue
        key = (process.command, process.uid, process.told, process.data_home, process.config_home)
        if key in said and command == b"conmon":
            continue
        said.add(key)
        yield _native(host, process, ours, gaps)


def _process(host: Host, pid: int, command: bytes) -> Process | None:
    try:
        arguments = host.read_proc(b"%d/cmdline" % pid, 1 << 16).rstrip(b"\0").split(b"\0")
        uid = os.stat(os.path.join(host.proc or b"", b"%d" % pid)).st_uid
    except OSError:
        return None  # it ended
    told = parse_arguments(command, arguments[1:])
    try:
        named, data, config = parse_environment(host.read_proc(b"%d/environ" % pid, 1 << 17).split(b"\0"))
    except OSError:
        named, data, config = Told(), b"", b""
    told = replace(told, configs=told.configs + named.configs)
    if uid == 0:
        data = config = b""
    return Process(pid, command.decode(), uid, told, data + _ROOTLESS if data else b"", config)


def _native(host: Host, process: Process, ours: list[Mount], gaps: list[Gap]) -> Process:
    """The same, with paths as the machine has them."""
    try:
        theirs = parse_mountinfo(host.read_proc(b"%d/mountinfo" % process.pid))
    except OSError:
        return process

    def move(path: bytes) -> bytes:
        if not path.startswith(b"/"):
            return path
        moved = translate(path, theirs, ours)
        if moved is None:
            detail = f"named by the live {process.command} {process.pid}, in its own mount namespace: no path from here"
            gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
            return b""
        return moved

    told = process.told
    return replace(
        process,
        told=replace(
            told,
            graph_root=move(told.graph_root),
            run_root=move(told.run_root),
            image_store=move(told.image_store),
            more_stores=tuple(filter(None, map(move, told.more_stores))),
            tmp_dir=move(told.tmp_dir),
            volume_path=move(told.volume_path),
            configs=tuple(filter(None, map(move, told.configs))),
        ),
        data_home=move(process.data_home),
        config_home=move(process.config_home),
    )


def translate(path: bytes, theirs: list[Mount], ours: list[Mount]) -> bytes | None:
    """What the native path is of a path in another mount namespace, links not considered; None when there is none."""
    path = os.path.normpath(path)
    their_mount, our_mount = mount_of(theirs, path), mount_of(ours, path)
    if their_mount is None or our_mount is None:
        return path
    inside = _inside(their_mount, path)
    if our_mount.device == their_mount.device and _inside(our_mount, path) == inside:
        return path
    for mount in ours:
        if mount.device == their_mount.device and within(inside, mount.root):
            below = inside[len(mount.root.rstrip(b"/")) :]
            return mount.point.rstrip(b"/") + below
    return None


def _inside(mount: Mount, path: bytes) -> bytes:
    """The path inside of the filesystem that is mounted."""
    return os.path.normpath(mount.root + b"/" + path[len(mount.point.rstrip(b"/")) :])
