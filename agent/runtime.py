"""What this very program runs from: the one file that holds everything, or a Python of this machine.

The single file starts from memory (packaging/binary): its launcher chooses a stage, `memfd`, `tmpfs` or `dir`, and the
module `impound_boot` knows which it was. Everything else is an installation in somebody's Python, and what that loads
is as good as the machine it lies on.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys

import msgspec

_CHUNK = 1 << 20
_MAX_MAPS = 4 << 20
_MAP = re.compile(rb"[0-9a-f]+-[0-9a-f]+ (?:..x.) [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+) (\d+) +(\S.*)")
"""A mapping that holds code: device, inode, name (proc(5))."""
_KERNELS = re.compile(rb"\[(?:vdso|vvar|vsyscall|uprobes)[^]]*\]$")


class Runtime(msgspec.Struct, frozen=True):
    """`form`: `binary` or `python`."""

    form: str
    stage: str = ""
    """How the binary came into memory; nothing otherwise."""
    archive: str = ""
    """A path that leads to the binary's own file, even where it has been removed."""

    def as_dict(self) -> dict[str, str]:
        return {"form": self.form, **({"stage": self.stage} if self.stage else {})}


def current() -> Runtime:
    """What this process runs from."""
    boot = sys.modules.get("impound_boot")
    if boot is None:
        return Runtime("python")
    return Runtime("binary", str(boot.STAGE), str(boot.ARCHIVE))


def nameless(name: str) -> int:
    """A file without a name, open for writing, in memory. Raises `OSError` where the kernel or a filter refuses it."""
    boot = sys.modules.get("impound_boot")
    return boot.nameless(name) if boot is not None else os.memfd_create(name, os.MFD_CLOEXEC)


def sha256(runtime: Runtime) -> tuple[str, str]:
    """(SHA-256 of the binary's file, its name on this machine). Raises `OSError`."""
    digest = hashlib.sha256()
    with open(runtime.archive, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest(), os.fsdecode(os.readlink(os.fsencode(runtime.archive)))


def foreign_code() -> list[bytes]:
    """Names of files with code that this process has mapped and that did not come out of the binary. Raises `OSError`.

    What came out of it has no name: anonymous memory, or a file that was made without one. A file of the machine that
    was removed since says `(deleted)`, too, so only these two forms count as the binary's own.
    """
    with open("/proc/self/maps", "rb") as file:
        maps = file.read(_MAX_MAPS)
    found = {match[3] for line in maps.splitlines() if (match := _MAP.fullmatch(line))}
    return sorted(name for name in found if not _KERNELS.match(name) and not _OWN.fullmatch(name))


_OWN = re.compile(rb"/memfd:[^/]+ \(deleted\)|(?:/dev/shm|/run)?/#\d+ \(deleted\)")
