"""The kernel's out-of-memory killer, at a moment that a test chooses.

The agent runs in a memory cgroup of its own. To have it killed, a second process that the kernel may not choose takes
what memory the group still has: the next page that anybody in the group wants ends the agent, by SIGKILL, as it would
on a machine that is out of memory. Works with cgroup v1 and v2, as root; leaves no group behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")

_BALLAST = """
import os, sys, time
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1], "w").write(str(os.getpid()))
kept = []
while True:
    kept.append(b"x" * (1 << 20))
    time.sleep(0.0005)
"""


class MemoryGroup:
    """A cgroup with a limit. Use as a context manager."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes. Raises `OSError` where no group can be made here."""
        first = V1.is_dir()
        self.path = (V1 if first else V2) / f"oom-{secrets.token_hex(6)}"
        self._limit = "memory.limit_in_bytes" if first else "memory.max"
        if not first and "memory" not in (V2 / "cgroup.subtree_control").read_text().split():
            raise OSError("the memory controller is not given to groups below the root")
        self.path.mkdir()
        (self.path / self._limit).write_text(str(limit))
        with contextlib.suppress(OSError):
            (self.path / ("memory.memsw.limit_in_bytes" if first else "memory.swap.max")).write_text(
                str(limit) if first else "0"
            )
        self._ballast: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ballast is not None:
            self._ballast.kill()
            self._ballast.wait(timeout=30)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                self.path.rmdir()
            except OSError:  # the kernel has not yet let go of who was killed
                time.sleep(0.05)
            else:
                return
        raise OSError(f"{self.path} could not be removed")

    @property
    def members(self) -> str:
        """The file that a process writes its id to, to be in the group."""
        return str(self.path / "cgroup.procs")

    def join(self) -> None:
        """For `preexec_fn`: the child is in the group, and the first to be chosen."""
        with open(self.members, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")

    def strike(self, process: subprocess.Popen[bytes], seconds: float = 30) -> int:
        """Takes all memory until the process is dead; gives how it ended (-9 is SIGKILL)."""
        self._ballast = subprocess.Popen([sys.executable, "-c", _BALLAST, self.members])
        try:
            return process.wait(timeout=seconds)
        finally:
            self._ballast.kill()
            self._ballast.wait(timeout=30)
            self._ballast = None
