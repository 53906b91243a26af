"""Which container, pod, image and layer a path of the host belongs to."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.containers.paths import mount_of, other_paths, within
from acquirers.mounts import parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.containers.known import Known
    from acquirers.host import Host


SEES = "what it sees"
_OF_PROCESS = re.compile(rb"/proc/(\d{1,10}|self)/(root|cwd)(?:/(.*))?", re.DOTALL)
_MAX_MOUNTINFO = 1 << 20
_IN_A_DIRECTORY = frozenset({b"diff", b"fs"})
"""What the files of a layer are called where the layer has a directory with more in it."""
_VOLUME = re.compile(rb"/volumes/([^/]+)\Z")


class Place(msgspec.Struct, frozen=True):
    """One answer: `what` the path is of this container, and the `path` below the directory that makes it so."""

    what: str
    known: Known
    directory: bytes
    path: bytes


class Seen(msgspec.Struct, frozen=True):
    """A path that leads into what a container sees: its root is an overlay with this writable layer."""

    upper: bytes
    mount: bytes
    """Where that is mounted, by the path that was asked for."""
    path: bytes
    """Below it, without a leading slash."""


def seen(host: Host, path: bytes) -> Seen | bytes:
    """Of `…/merged`, a bundle's `rootfs`, `/proc/<pid>/root` and `/proc/<pid>/cwd`: what a container sees there, or the
    path of the machine that is mounted there. Any other path is what it is. Raises nothing.
    """
    asked = path
    match = _OF_PROCESS.fullmatch(path)
    base, mounts = b"", host.mounts
    try:
        if match is not None:
            pid, what, rest = match[1], match[2], match[3] or b""
            mounts = parse_mountinfo(host.read_proc(pid + b"/mountinfo", _MAX_MOUNTINFO))
            where = os.readlink(os.path.join(host.proc or b"/proc", pid, what)) if what == b"cwd" else b""
            base, path = b"/proc/" + pid + b"/" + what, os.path.normpath(b"/" + b"/".join((where, rest)).lstrip(b"/"))
    except OSError:
        return asked  # it has ended, or may not be looked at
    mount = mount_of(mounts, path)
    if mount is None or (mount.point == b"/" and match is None):
        return asked
    below = path[len(mount.point.rstrip(b"/")) :].lstrip(b"/")
    if mount.fstype == b"overlay" and (upper := mount.option(b"upperdir")):
        return Seen(upper, base or mount.point, below)
    if match is None:
        return asked
    return next((_joined(one, below) for one in other_paths(host.mounts, mount)), asked)


def _joined(directory: bytes, below: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + below if below else directory


def places(path: Seen | bytes, known: Iterable[Known]) -> Iterator[Place]:
    """Every container that the path is a part of. `path`: native, absolute and normal, or what `seen` made of it."""
    for one in known:
        if isinstance(path, Seen):
            if one.upper == path.upper:
                yield Place(SEES, one, path.mount, path.path)
            continue
        for what, directory in _directories(one):
            if directory and within(path, directory):
                yield Place(what, one, directory, path[len(directory) :].lstrip(b"/"))
                break


def _directories(known: Known) -> Iterator[tuple[str, bytes]]:
    yield "written by it", known.upper
    directory, _, name = known.upper.rpartition(b"/")
    if name in _IN_A_DIRECTORY:
        yield "beside what was written by it", directory
    for number, lower in enumerate(known.lowers):
        yield f"layer {len(known.lowers) - number} of {len(known.lowers)} below it", lower
    yield from (("its log", log) for log in known.logs)
    for other in known.other:
        volume = _VOLUME.search(other)
        yield (f"its volume {volume[1].decode('utf-8', 'backslashreplace')}" if volume else "its records"), other
