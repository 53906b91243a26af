"""What this run cost the machine: time of its processors, memory, what it read and wrote. For the manifest."""

from __future__ import annotations

import os
import resource
import time

_FIELDS = {"rchar": "read_bytes", "read_bytes": "read_from_disk_bytes", "write_bytes": "written_to_disk_bytes"}
"""/proc/<pid>/io, what it is called here: bytes that calls gave, and that went to and from block devices. proc(5)"""


def footprint(started: float, stored: int) -> dict[str, float]:
    """`started`: by the monotonic clock. Of `children`, the processes that it started and that have ended, the kernel
    keeps the time of all and the memory of the largest.
    """
    own = resource.getrusage(resource.RUSAGE_SELF)
    resident = _resident_kib() or own.ru_maxrss
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(own.ru_utime + own.ru_stime, 3),
        "max_resident_kib": resident,
        "max_resident_frames": resident * 1024 // os.sysconf("SC_PAGE_SIZE"),
        "children_cpu_seconds": round(others.ru_utime + others.ru_stime, 3),
        "children_max_resident_kib": others.ru_maxrss,
        "page_faults_from_disk": own.ru_majflt,
        "context_switches": own.ru_nvcsw + own.ru_nivcsw,
        "stored_bytes": stored,
        **_io(),
    }


def _resident_kib() -> int:
    """Of this program alone: `ru_maxrss` has that of whoever started it as well. 0 where it is not shown."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = file.read(8192).splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _io() -> dict[str, int]:
    """Nothing where the kernel keeps no such account, or does not show it."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            lines = [line.split(":") for line in file.read(4096).splitlines()]
        return {_FIELDS[key]: int(value) for key, value in lines if key in _FIELDS}
    except (OSError, ValueError):
        return {}
