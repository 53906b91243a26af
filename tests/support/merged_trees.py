"""Two root filesystems, file by file."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

GIVEN = frozenset({b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf", b"/.dockerenv", b"/run/.containerenv"})
"""What a runtime mounts or makes by itself."""
_MADE = (b"/dev", b"/proc", b"/sys", b"/run/secrets")
_KEPT = (b"user.", b"security.capability")

Record = tuple[object, ...]


def survey(root: Path, *, times: bool = True) -> dict[bytes, Record]:
    """Path -> everything that is to be the same. Follows nothing, and stays on this filesystem."""
    base = os.fsencode(root)
    device = os.lstat(base + b"/.").st_dev
    found: dict[bytes, Record] = {}

    def look(path: bytes) -> None:
        real = base + path
        status = os.lstat(real if path else real + b"/.")
        kind = stat.S_IFMT(status.st_mode)
        if path in GIVEN or path.startswith(_MADE) or (kind == stat.S_IFDIR and status.st_dev != device):
            return
        digest = ""
        if kind == stat.S_IFREG:
            state = hashlib.sha256()
            with open(real, "rb") as file:
                while data := file.read(1 << 20):
                    state.update(data)
            digest = state.hexdigest()
        xattrs = {
            name: os.getxattr(real, name, follow_symlinks=False)
            for name in (
                os.listxattr(real, follow_symlinks=False) if kind in {stat.S_IFREG, stat.S_IFDIR} and path else []
            )
            if os.fsencode(name).startswith(_KEPT)
        }
        found[path or b"/"] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size if kind == stat.S_IFREG else 0,
            status.st_rdev,
            os.readlink(real) if kind == stat.S_IFLNK else None,
            digest,
            sorted(xattrs.items()),
            status.st_mtime_ns // 10**9 if times and kind == stat.S_IFREG else 0,
        )
        if kind == stat.S_IFDIR:
            for name in sorted(os.listdir(real or b"/")):
                look(path + b"/" + name)

    look(b"")
    return found


def differences(one: dict[bytes, Record], other: dict[bytes, Record]) -> list[str]:
    return [
        f"{path!r}: {one.get(path)} and {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
