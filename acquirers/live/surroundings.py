"""The machine around the containers: what tells a volume of theirs from the machine itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acquirers.host import Mode
from acquirers.live.verdicts import Key, Machine, place_of
from acquirers.mounts import top_mount
from acquirers.root import ForeignMountError

if TYPE_CHECKING:
    from acquirers.host import Host
    from acquirers.live.groups import Group
    from acquirers.mounts import Mount

MAX_LAYERS = 1000


def machine_around(host: Host, groups: Sequence[Group]) -> Machine:
    """What the machine's own list of mounts says. Inside of a container there is none to ask."""
    if host.mode is Mode.INSIDE:
        return Machine()
    try:
        mounts = host.mounts
    except OSError:
        return Machine(check=lambda _group, mount: _trouble(host, mount))
    top = top_mount(mounts)
    return Machine(
        root=(top.device, top.root) if top is not None else None,
        layers=frozenset(filter(None, (_place(host, mounts, group.upper) for group in groups if group.upper))),
        overlays=frozenset(mount.device for mount in mounts if mount.fstype == b"overlay" and mount.local),
        check=lambda _group, mount: _trouble(host, mount),
    )


def _place(host: Host, mounts: Sequence[Mount], path: bytes) -> Key | None:
    """Where a writable layer lies."""
    if not path.startswith(b"/"):
        return None
    try:
        return place_of(mounts, host.native(path))
    except OSError:
        return place_of(mounts, os.path.normpath(path))


def _trouble(host: Host, overlay: Mount) -> str:
    """Why the layers of a container's root may not answer: one of them lies on a filesystem in user space, or remote.

    Layers that cannot be found (of another user's namespace, or removed since) are nothing against it; such a root is
    called with a deadline.
    """
    layers = list(overlay.layers())[:MAX_LAYERS]
    upper = overlay.option(b"upperdir") or b""
    base = os.path.dirname(os.path.dirname(upper))  # what long lists are relative to (containerd, dockerd)
    for layer in layers:
        path = layer if layer.startswith(b"/") else os.path.join(base, layer)
        try:
            os.close(host.open_path(path))
        except ForeignMountError as error:
            return f"a layer of its root lies {error.strerror}"
        except OSError:
            continue
    return ""
