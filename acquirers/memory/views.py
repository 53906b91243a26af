"""Two views of the processes, the kernel's own list and /proc: what stays in only one was hidden from the other."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from acquirers.host import Host
    from acquirers.memory.tasks import Listing, Task

INIT_PID_NS = 0xEFFFFFFC
"""PROC_PID_INIT_INO, include/linux/proc_ns.h: the inode of the PID namespace of the machine itself."""
MAX_FOUND = 1000
"""Findings of each kind that are kept."""

_PAUSE = 0.25
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


class Finding(msgspec.Struct, frozen=True):
    """A process that only one view shows, at two looks."""

    pid: int
    comm: bytes
    missing: str
    """`proc` or `tasks`: the view that does not show it."""
    physical: int = 0
    """Of its task_struct, where that is known."""
    opens: bool = False
    """/proc/PID is not listed but can be opened by its name."""


def comparable(host: Host) -> str:
    """Why this /proc cannot be compared with the kernel's list; empty if it can.

    It must show the machine's own PID namespace. Who may not see the namespace of pid 1 knows it by the kernel's
    threads, which are in no other.
    """
    if host.proc is None:
        return "there is no /proc"
    try:
        own = os.stat(os.path.join(host.proc, b"1/ns/pid")).st_ino == INIT_PID_NS
    except OSError:
        own = _is_kernel_thread(host, 2)
    return "" if own else "/proc shows another PID namespace than the machine's own"


def _is_kernel_thread(host: Host, pid: int) -> bool:
    try:
        fields = host.read_proc(b"%d/stat" % pid, 4096).rpartition(b")")[2].split()
        return bool(int(fields[6]) & _PF_KTHREAD)  # proc(5): the ninth, of which two stand before the bracket
    except (OSError, ValueError, IndexError):
        return False


def compare(host: Host, walk: Callable[[], Listing]) -> tuple[Listing, list[Finding]]:
    """Walks the list between two looks at /proc, and where they differ a second time, a little later.

    The listing is that of the last walk. A process that began or ended in between is in only one of the looks, and no
    finding; so nothing is found if the list could not be walked whole.
    """
    pids, listing = _look(host, walk)
    if listing.why:
        return listing, []
    unlisted, unseen = _differences(pids, listing)
    if not unlisted and not unseen:
        return listing, []
    time.sleep(_PAUSE)
    pids, again = _look(host, walk)
    if again.why:
        return listing, []
    later_unlisted, later_unseen = _differences(pids, again)
    found = [
        Finding(pid, _comm(host, pid), "tasks") for pid in sorted(unlisted & later_unlisted)[:MAX_FOUND]
    ]  # fmt: skip
    for pid in sorted(unseen.keys() & later_unseen.keys()):
        task = later_unseen[pid]
        if task.address == unseen[pid].address and len(found) < 2 * MAX_FOUND:
            found.append(Finding(pid, task.name, "proc", task.physical, _opens(host, pid)))
    return again, found


def _look(host: Host, walk: Callable[[], Listing]) -> tuple[tuple[set[int], set[int]], Listing]:
    before = set(host.pids())
    listing = walk()
    return (before, set(host.pids())), listing


def _differences(pids: tuple[set[int], set[int]], listing: Listing) -> tuple[set[int], dict[int, Task]]:
    """Those that /proc showed before and after but the list did not, and those of the list that it showed never."""
    before, after = pids
    listed = {task.pid: task for task in listing.tasks}
    unseen = {pid: task for pid, task in listed.items() if pid not in before and pid not in after}
    return (before & after) - listed.keys(), unseen


def _comm(host: Host, pid: int) -> bytes:
    try:
        return host.read_proc(b"%d/comm" % pid, 64).rstrip(b"\n")
    except OSError:
        return b""


def _opens(host: Host, pid: int) -> bool:
    if host.proc is None:
        return False
    return os.path.isdir(os.path.join(host.proc, b"%d" % pid))
