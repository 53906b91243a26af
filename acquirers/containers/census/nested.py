"""Runtimes inside of containers (Docker in Docker, kind, k3s in a pod): their data lie in what a container wrote.

They are taken with the container, raw. Here they are named, so that nobody has to stumble over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from acquirers.containers.paths import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.containers.known import Known
    from acquirers.host import Host

_DATA = {
    # What a data root has in it -> where it lies below a root filesystem.
    "docker": (b"image/overlay2/layerdb", (b"var/lib/docker",)),
    "containerd": (
        b"io.containerd.metadata.v1.bolt",
        (b"var/lib/containerd", b"var/lib/docker/containerd/daemon", b"var/lib/rancher/k3s/agent/containerd"),
    ),
    "podman": (b"overlay-containers", (b"var/lib/containers/storage",)),
}


class Nested(msgspec.Struct, frozen=True):
    """The data root of a runtime, inside of a container."""

    runtime: str
    path: bytes
    inside: str
    """Id of the container."""

    def line(self) -> dict[str, object]:
        return {"type": "nested", "runtime": self.runtime, "path": self.path, "inside": self.inside}


def nested(host: Host, known: Known) -> Iterator[Nested]:
    """Those in its writable layer and in its volumes. Raises nothing."""
    for runtime, (mark, places) in _DATA.items():
        for place in places:
            path = known.upper + b"/" + place
            if known.upper and _is_root(host, path, mark):
                yield Nested(runtime, path, known.id)
        for directory in known.other:
            if _is_root(host, directory + b"/_data", mark):
                yield Nested(runtime, directory + b"/_data", known.id)


def _is_root(host: Host, path: bytes, mark: bytes) -> bool:
    try:
        # A link in what a container wrote may lead to the machine's own runtime.
        return not resolve(host, path + b"/" + mark)[1] and host.is_dir(path + b"/" + mark)
    except OSError:
        return False
