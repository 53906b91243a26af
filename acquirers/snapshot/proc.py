"""/proc itself: how it is opened, which processes it lists, and which it keeps to itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from acquirers import syscalls

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.host import Host
    from acquirers.mounts import Mount


def open_proc(host: Host) -> int:
    """/proc, if possible as a detached clone of its mount, which shows it without what is mounted over parts of it.

    A bind mount over `/proc/<pid>` hides a process from everybody who lists; the clone sees through it. Where kernel
    or privilege refuse one (`open_tree(2)`: Linux 5.2, CAP_SYS_ADMIN), /proc is read as it lies. Raises `OSError`.
    """
    if host.proc is None:
        raise FileNotFoundError(2, "a mounted disk has no processes")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        tree = syscalls.open_tree_clone(syscalls.AT_FDCWD, host.proc, recursive=False)
    except OSError:
        return os.open(host.proc, flags)
    try:
        return os.open(b".", flags, dir_fd=tree)
    finally:
        os.close(tree)


def list_pids(proc: int, scope: Scope) -> list[int]:
    pids = {int(name) for name in os.listdir(proc) if name.isascii() and name.isdigit() and len(name) < 10}
    return sorted(pids & set(scope.pids) if scope.pids else pids)


def mounts_of(host: Host) -> list[Mount]:
    """What is mounted where; nothing, where that is refused: it only adds to what is read."""
    try:
        return host.mounts
    except OSError:
        return []


def hidden(host: Host) -> str:
    """What the mount options of /proc keep from this process (`hidepid`, proc(5))."""
    if "sys_ptrace" in host.facts.capabilities:
        return ""
    options: list[bytes] = []
    for mount in mounts_of(host):
        if mount.point == host.proc and mount.fstype == b"proc":
            options = mount.super_options.split(b",")  # the last one listed lies on top
    if b"hidepid=2" in options or b"hidepid=invisible" in options:
        return "/proc does not list the processes of other users (hidepid=invisible)"
    if b"hidepid=4" in options or b"hidepid=ptraceable" in options:
        return "/proc lists only processes that may be traced (hidepid=ptraceable)"
    return ""
