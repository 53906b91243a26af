"""containerd from disk alone: every namespace, snapshotter and container, whether Kubernetes, Docker or nobody uses it.

`settings` and `roots` find where it lies; `values`, `record`, `metadata` and `snapshots` read its databases; `tasks`
and `kubernetes` say what runs and where a pod's files are; `store` joins them; `contents`, `about`, `carved`, `items`
and `acquirer` turn that into items. `docker` is for Docker, which keeps its containers here since version 29.
"""

from __future__ import annotations

from acquirers.containers.containerd.acquirer import Containerd, container_inits, container_names
from acquirers.containers.containerd.docker import DockerSnapshots, docker_snapshot
from acquirers.containers.containerd.snapshots import Snapshot, Snapshotter, Stack

__all__ = [
    "Containerd",
    "DockerSnapshots",
    "Snapshot",
    "Snapshotter",
    "Stack",
    "container_inits",
    "container_names",
    "docker_snapshot",
]
