"""What a runtime leaves on a machine when it ends badly: processes, frozen cgroups, mounts. Standard library only."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

DEFAULT_ROOT = Path("/var/lib/docker")
_MARK = "user.private-docker"


def make_default_root() -> None:
    """The directory to mount on, with a mark that it is ours to remove."""
    try:
        DEFAULT_ROOT.mkdir()
    except FileExistsError:
        return
    os.setxattr(DEFAULT_ROOT, _MARK, b"1")


def remove_default_root() -> None:
    """Unless somebody has mounted on it in another namespace: to remove it would unmount that."""
    for pid in pids():
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
        except OSError:
            continue
        if f" {DEFAULT_ROOT} " in mounts:
            return
    try:
        os.getxattr(DEFAULT_ROOT, _MARK)
        DEFAULT_ROOT.rmdir()
    except OSError:
        pass  # not ours, or not there any more


def pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def command_line(pid: int) -> str:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        return "" if state == "Z" else Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (OSError, IndexError):
        return ""


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def processes_of(ids: Sequence[str]) -> list[int]:
    """Processes in the cgroups of these containers."""
    found = []
    for pid in pids() if ids else []:
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            continue
        if any(container in groups for container in ids):
            found.append(pid)
    return found


def cgroups(container: str) -> list[Path]:
    base = Path("/sys/fs/cgroup")
    names = (f"docker/{container}", f"system.slice/docker-{container}.scope")
    bases = [base, *(path for path in base.iterdir() if path.is_dir())] if base.is_dir() else []
    return [path / name for path in bases for name in names if (path / name).is_dir()]


def thaw(container: str) -> None:
    """A frozen process cannot even be killed."""
    for path in cgroups(container):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (path / name).exists():
                try:
                    (path / name).write_text(value)
                except OSError:
                    continue


def remove_cgroups(container: str) -> None:
    for path in cgroups(container):
        try:
            path.rmdir()
        except OSError:
            continue


def mounts_below(directory: Path) -> list[str]:
    found = []
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
            if point.startswith(f"{directory}/"):
                found.append(point)
    return found
