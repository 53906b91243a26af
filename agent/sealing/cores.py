"""How many threads the pipeline gets where nobody says it: the cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

MAX_WORKERS = 8
"""More find nothing to do: the digest of the plaintext is one thread's work, and a core does about 1.7 GB/s of it."""

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MAX_FILE = 1 << 16
_MAX_DEPTH = 32
_MAX_DIGITS = 18


def default_workers(*, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """1 to `MAX_WORKERS`: the cores this process may be scheduled on, less where its cgroup has a smaller quota."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroups=cgroups, membership=membership)
    if quota is not None:
        cores = min(cores, max(1, -int(-quota // 1)))
    return max(1, min(cores, MAX_WORKERS))


def cpu_quota(*, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """The smallest CPU quota of this process' cgroup and those above it, in cores; None where there is none.

    `cpu.max` of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst), `cpu.cfs_quota_us` and `cpu.cfs_period_us` of v1
    (Documentation/scheduler/sched-bwc.rst). In a container the paths of `membership` may be those of the host: what is
    not there says nothing, and the container's own limit stands at the top.
    """
    quotas: list[float] = []
    for line in _read(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part]
        if ".." in parts or len(parts) > _MAX_DEPTH:
            parts = []
        if number == "0" and not controllers:
            tops = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [cgroups / "cpu", cgroups / controllers]
        else:
            continue
        for top in tops:
            for depth in range(len(parts) + 1):
                quotas += _quotas(top.joinpath(*parts[:depth]))
    return min(quotas, default=None)


def _quotas(group: Path) -> list[float]:
    both = _read(group / "cpu.max").split()
    if len(both) != 2:
        both = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
    if not all(word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS for word in both):
        return []  # "max" and -1 are no limit
    quota, period = map(int, both)
    return [quota / period] if quota and period else []


def _read(path: Path) -> str:
    """The beginning of a small file; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE).decode("ascii", "replace")
    except OSError:
        return ""
