"""What the live machine says of a container that its record calls running."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from acquirers.containers.docker.areas import COPIES, OVERLAYS
from acquirers.mounts import parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.containers.docker.config import ContainerRecord
    from acquirers.host import Host

RUNNING = frozenset({"running", "paused", "restarting"})
_MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_UPPER = re.compile(rb"(?:.*/)?([0-9a-f]{64})/diff", re.DOTALL)
_LOWER = re.compile(rb"/(overlay2|fuse-overlayfs)/")
_COPY = re.compile(rb"(?:.*/)?(%s)/([0-9a-f]{64})" % "|".join(COPIES.values()).encode(), re.DOTALL)


def verified_state(host: Host, record: ContainerRecord, container_id: str) -> tuple[str, str]:
    """The state of the record, held against /proc where there is one, and what does not fit together.

    A record is as fresh as the daemon's last checkpoint. It is believed when its process is there and names the
    container in its cgroup or in what is mounted for it.
    """
    if record.state not in RUNNING or host.proc is None:
        return record.state, ""
    if not 0 < record.pid <= _MAX_PID:
        if record.state == "restarting":
            return record.state, ""
        return f"{record.state} (stale record)", f"the record says {record.state}, without a process"
    for name in (b"cgroup", b"mountinfo"):
        try:
            if container_id.encode() in host.read_proc(b"%d/%s" % (record.pid, name)):
                return record.state, ""
        except OSError:
            continue
    finding = f"the record says {record.state}, but process {record.pid} is none of this container"
    return f"{record.state} (stale record)", finding


def mounted_layer(host: Host, pid: int) -> Iterator[tuple[str, str]]:
    """(driver, mount id) of the overlay, or of the whole copy, that is the root of a process."""
    try:
        mounts = parse_mountinfo(host.read_proc(b"%d/mountinfo" % pid))
    except OSError:
        return
    for mount in mounts:
        copy = _COPY.fullmatch(mount.root) if mount.point == b"/" else None
        if copy is not None:
            yield next(driver for driver, place in COPIES.items() if place.encode() == copy[1]), copy[2].decode()
            continue
        upper = mount.option(b"upperdir") if mount.point == b"/" and mount.fstype == b"overlay" else None
        if upper is None or (match := _UPPER.fullmatch(upper)) is None:
            continue
        named = _LOWER.search(upper)
        for driver in (named[1].decode(),) if named else OVERLAYS:
            yield driver, match[1].decode()
