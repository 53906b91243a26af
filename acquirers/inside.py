"""Whether this process runs in a container, from what the kernel shows.

Marker files such as `/.dockerenv` say nothing: images of virtual machines are built from containers, too.
"""

from __future__ import annotations

import os
import re

from acquirers.mounts import parse_mountinfo

_CGROUP = re.compile(rb"(docker|libpod|crio|cri-containerd|kubepods|ecstasks|/ecs/|lxc|machine-)")
_BOUND = {b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf"}
_UPPER = re.compile(rb"/(overlay2|overlay|snapshots|containers/storage)/")


def in_container(proc: bytes = b"/proc") -> str:
    """One line that says why this is a container, or "" when it is none."""
    try:
        with open(os.path.join(proc, b"self/mountinfo"), "rb") as file:
            mounts = parse_mountinfo(file.read(4 << 20))
        with open(os.path.join(proc, b"1/cgroup"), "rb") as file:
            cgroup = file.read(65536)
    except OSError:
        return ""
    root = next((mount for mount in reversed(mounts) if mount.point == b"/"), None)
    if root is not None and root.fstype == b"overlay" and _UPPER.search(root.option(b"upperdir") or b""):
        return "the root filesystem is a container's overlay"
    if _CGROUP.search(cgroup):
        return "process 1 is in a container's control group"
    if len({mount.point for mount in mounts} & _BOUND) > 1:
        return "a container runtime has mounted its own files over those in /etc"
    return ""
