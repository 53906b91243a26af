"""For Docker: the snapshots that containerd keeps for it (Docker 29 and later, or where it was switched on).

Docker names the snapshot of a container after the container's id, in the namespace `moby` and the snapshotter that
`config.v2.json` has as `Driver`; below it are `<id>-init` and the layers of the image.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from acquirers.bolt import BoltError, Database, open_file, read
from acquirers.containers.containerd.metadata import DOCKER
from acquirers.containers.containerd.roots import find_roots
from acquirers.containers.containerd.snapshots import Snapshotter, Stack, find_snapshotters
from acquirers.containers.containerd.store import META

if TYPE_CHECKING:
    from acquirers.base import Gap
    from acquirers.host import Host

_MAX_NAMES = 50_000


class DockerSnapshots:
    """All snapshots in the namespace of Docker, looked for when the first one is asked for, and then kept."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def stack(self, container_id: str, driver: str = "") -> Stack | None:
        """The writable layer of a container and all below it; None when containerd has none for it.

        `driver`: the snapshotter that the container's record names, or "" for any. Raises nothing.
        """
        for snapshotter, names in self._known:
            if driver and snapshotter.name != driver:
                continue
            name = names.get((snapshotter.name, container_id))
            stack = snapshotter.stack(name) if name is not None else None
            if stack is not None:
                return stack
        return None

    @cached_property
    def _known(self) -> list[tuple[Snapshotter, dict[tuple[str, str], bytes]]]:
        found: list[tuple[Snapshotter, dict[tuple[str, str], bytes]]] = []
        everything = find_roots(self._host)
        for root in everything.roots:
            try:
                with open_file(self._host, root.path + b"/" + META) as source:
                    names = read(source, _names).value
            except (OSError, BoltError):
                continue  # told by the acquirer of containerd
            gaps: list[Gap] = []
            snapshotters = {snapshotter for snapshotter, _ in names}
            if names:
                told = find_snapshotters(self._host, root.path, snapshotters, gaps, everything.snapshotters)
                found += [(one, names) for one in told]
        return found


def docker_snapshot(host: Host, container_id: str, driver: str = "") -> Stack | None:
    """One look-up; for several containers keep a `DockerSnapshots`."""
    return DockerSnapshots(host).stack(container_id, driver)


def _names(database: Database) -> dict[tuple[str, str], bytes]:
    """(snapshotter, key) -> name in the snapshotter's database, of keys that may be a container's id."""
    found: dict[tuple[str, str], bytes] = {}
    bucket = database.root.bucket(b"v1", DOCKER.encode(), b"snapshots")
    for snapshotter, inner in bucket.buckets() if bucket is not None else ():
        for key, snapshot in inner.buckets():
            name = snapshot.get(b"name") if len(key) == 64 else None
            if name and len(name) <= 4096 and len(found) < _MAX_NAMES:
                found[snapshotter[:128].decode("utf-8", "replace"), key.decode("ascii", "replace")] = name
    return found
