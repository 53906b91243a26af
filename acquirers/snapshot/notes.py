"""The steps in which a process is read, and what a step tells the parent besides the text of the record."""

from __future__ import annotations

import enum

import msgspec

from acquirers.base import Reason


class Step(enum.IntEnum):
    """What is read of a process, in this order. A step that hangs is left out, the next one is tried."""

    BASIC = 0  # stat, status, links, namespaces, open files: takes no lock that others hold for long
    PLACE = 1  # cgroup (cgroup_mutex), mountinfo (namespace_sem)
    IMAGE = 2  # opening the executable: asks the filesystem, which may ask a dead server
    MEMORY = 3  # cmdline, environ: mmap_lock, and pages that may have to be read from anywhere


STEPS = tuple(Step)
SAYS = {
    Step.BASIC: "stat, status and open files",
    Step.PLACE: "cgroup and mountinfo",
    Step.IMAGE: "executable",
    Step.MEMORY: "cmdline and environ",
}


class Executable(msgspec.Struct, omit_defaults=True):
    """The file that a process runs, as the link `/proc/<pid>/exe` leads to it."""

    dev: int
    ino: int
    path: bytes
    comm: bytes
    size: int
    nlink: int


class Notes(msgspec.Struct, omit_defaults=True):
    """What the parent has to know of a step besides the text of the record."""

    vanished: bool = False
    denied: list[str] = []
    gaps: list[tuple[Reason, str, str]] = []
    """(reason, what is alike, detail)."""
    comm: bytes = b""
    start_ticks: int = 0
    net: int = 0
    """Inode of the network namespace."""
    net_fds: list[tuple[int, int]] = []
    """(inode, descriptor) of network namespaces that are held open."""
    sockets: list[tuple[int, int]] = []
    """(inode, descriptor)."""
    executable: Executable | None = None
