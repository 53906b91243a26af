"""Whether something was mounted over a file of /proc: what is read there then is not the kernel's word.

Each file of /proc lies on the mount of /proc itself (`stx_mnt_id`, statx(2), Linux 5.8); before, the table of mounts is
asked. Container runtimes cover files as well; inside of one physical memory is not asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from acquirers import syscalls

if TYPE_CHECKING:
    from acquirers.host import Host

FILES = (b"iomem", b"kcore", b"kpageflags", b"kpagecgroup", b"kallsyms")


def covered(host: Host) -> frozenset[bytes]:
    """Those of `FILES` that are not what /proc has under that name. Raises nothing."""
    proc = host.proc or b"/proc"
    try:
        base = syscalls.statx(syscalls.AT_FDCWD, proc, flags=0)
    except OSError:
        return frozenset()
    points: frozenset[bytes] | None = None
    found = set()
    for name in FILES:
        path = os.path.join(proc, name)
        try:
            there = syscalls.statx(syscalls.AT_FDCWD, path)
        except OSError:
            continue
        if base.mnt_id is not None and there.mnt_id is not None:
            other = base.mnt_id != there.mnt_id
        else:
            points = _points(host) if points is None else points
            other = path in points
        if other:
            found.add(name)
    return frozenset(found)


def _points(host: Host) -> frozenset[bytes]:
    try:
        return frozenset(mount.point for mount in host.mounts)
    except OSError:
        return frozenset()
