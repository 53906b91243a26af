"""What a container of Docker stands on, by the records in its own archive: for runs that left no manifest.

`image/<driver>/layerdb/mounts/<id>/mount-id` names the writable layer, `<driver>/<mount id>/lower` the short links of
those below it, from the top down, and `<driver>/l/<short>` are links to their directories.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.analysis.containers import RootFs, shift_of

if TYPE_CHECKING:
    from agent.analysis.tarindex import TarIndex

_MOUNT_ID = re.compile(rb"[0-9a-f]{64}")
_RECORD = re.compile(
    rb"(/.*)/image/(overlay2|fuse-overlayfs|vfs|btrfs)/layerdb/mounts/([0-9a-f]{64})/mount-id", re.DOTALL
)
_COPIES = {b"vfs": b"vfs/dir", b"btrfs": b"btrfs/subvolumes"}
"""Each of their layers is a whole root filesystem."""
_SHORT = re.compile(rb"l/[A-Z0-9]{26}")
_TARGET = re.compile(rb"\.\./([0-9a-z]{25,64}(?:-init)?)/diff")
_MAX_RECORD = 1 << 16


def rootfs_of(index: TarIndex, container: str) -> RootFs | None:
    """Only what the archive of one container names. None where it has no such records. Raises `DamagedError`."""
    for path in index.named(b"mount-id"):
        match = _RECORD.fullmatch(path)
        if match is None or not match[3].startswith(container.encode()):
            continue
        mount_id = (index.read(path, 256) or b"").strip()
        if _MOUNT_ID.fullmatch(mount_id):
            shift = shift_of(match[1].rpartition(b"/")[2])
            if match[2] in _COPIES:
                upper = b"/".join((match[1], _COPIES[match[2]], mount_id))
                return RootFs(match[2].decode(), upper, shift=shift)
            base = match[1] + b"/" + match[2]
            upper = base + b"/" + mount_id + b"/diff"
            return RootFs(match[2].decode(), upper, _lowers(index, base, mount_id), shift=shift)
    return None


def _lowers(index: TarIndex, base: bytes, mount_id: bytes) -> tuple[bytes, ...]:
    lower = index.read(base + b"/" + mount_id + b"/lower", _MAX_RECORD) or b""
    found = []
    for part in lower.strip().split(b":"):
        node = index.node(base + b"/" + part) if _SHORT.fullmatch(part) else None
        target = _TARGET.fullmatch(node.target or b"") if node is not None else None
        if target is not None:
            found.append(base + b"/" + target[1] + b"/diff")
    return tuple(found)
