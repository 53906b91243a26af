"""Docker's containers for the census."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.base import Scope
from acquirers.containers.docker.areas import Areas
from acquirers.containers.docker.container import ContainerReader
from acquirers.containers.docker.roots import find_roots
from acquirers.containers.docker.store import Room, read_store
from acquirers.containers.known import UNCLAIMED, Known, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Gap
    from acquirers.containers.containerd import DockerSnapshots
    from acquirers.containers.docker.container import Container
    from acquirers.containers.docker.store import Store
    from acquirers.host import Host

_ECS_TASK = "com.amazonaws.ecs.task-arn"
_KUBERNETES = "io.kubernetes.pod."


def known(host: Host, gaps: list[Gap] | None = None) -> Iterator[Known]:
    """Every container of every data root, and writable layers that none of them claims."""
    from acquirers.containers.containerd import DockerSnapshots  # which knows of Docker, too

    room, snapshots = Room(), DockerSnapshots(host)
    found = find_roots(host)
    gaps = [] if gaps is None else gaps
    gaps += unknown(found.denied, found.gaps)
    for root in found.roots:
        store = read_store(host, root, Scope().containers, room)
        gaps += unknown(store=store.gaps)
        if not store.areas.readable:
            gaps += [gap for gap in store.gaps if gap not in gaps]
            continue
        with Areas(host, root.path) as areas:
            reader = ContainerReader(host, areas)
            for summary in store.containers:
                yield _known(store, reader.read(summary.id, summary.driver, present=summary.present), snapshots)
            for driver, mount_id in store.unclaimed:
                upper = areas.files_path(driver, mount_id)
                yield Known("docker", mount_id, state=UNCLAIMED, root=root.path, upper=upper, record=False)


def _known(store: Store, container: Container, snapshots: DockerSnapshots) -> Known:
    record, writable = container.record, container.writable
    upper, lowers = b"", []
    if writable is not None and writable.present:
        upper = store.areas.files_path(writable.driver, writable.mount_id)
        ids = [*([writable.init_id] if writable.init_id else []), *(layer.id for layer in writable.layers)]
        lowers = [store.areas.files_path(writable.driver, one) for one in ids]
    elif container.snapshotter and (stack := snapshots.stack(container.id, container.snapshotter)) is not None:
        upper, lowers = stack.upper_path, list(stack.lower_paths)
    labels = record.orchestrated
    return Known(
        runtime="docker",
        id=container.id,
        name=container.name,
        state=container.state,
        pid=record.pid,
        image=record.image,
        pod=labels.get(f"{_KUBERNETES}name", ""),
        namespace=labels.get(f"{_KUBERNETES}namespace", ""),
        pod_uid=labels.get(f"{_KUBERNETES}uid", ""),
        task=labels.get(_ECS_TASK, ""),
        root=store.root.path,
        upper=upper,
        lowers=tuple(lowers),
        logs=(record.log_path.encode(),) if record.log_path else (),
        other=(container.path, *(store.areas.path("volumes") + b"/" + name for name in container.volumes)),
        record=container.present,
        disk=bool(upper),
    )
