"""The containers of podman, buildah and CRI-O for the census."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.base import Scope
from acquirers.containers.known import UNCLAIMED, Known, unknown
from acquirers.containers.storage.areas import OVERLAYS, Areas
from acquirers.containers.storage.container import ContainerReader
from acquirers.containers.storage.roots import find_roots
from acquirers.containers.storage.store import Room
from acquirers.containers.storage.survey import read_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Gap
    from acquirers.containers.storage.container import Container
    from acquirers.containers.storage.store import Store
    from acquirers.host import Host


def known(host: Host, gaps: list[Gap] | None = None) -> Iterator[Known]:
    """Every container of every graph root, and writable layers that none of them claims."""
    room = Room()
    found = find_roots(host)
    gaps = [] if gaps is None else gaps
    gaps += unknown(found.denied, found.gaps)
    for root in found.roots:
        store = read_store(host, root, Scope().containers, room)
        gaps += unknown(store=store.gaps)
        if not store.areas.readable:
            gaps += [gap for gap in store.gaps if gap not in gaps]
            continue
        with Areas(host, root) as areas:
            reader = ContainerReader(host, store, areas)
            for entry in store.entries:
                yield _known(store, reader.read(entry))
            for driver, layer_id in store.unclaimed:
                layers = reader.layers(driver)
                layer = layers.writable(layer_id).layer if layers is not None else None
                if layer is not None:
                    upper = layer.content
                    yield Known(store.runtime, layer_id, state=UNCLAIMED, root=root.path, upper=upper, record=False)


def _known(store: Store, container: Container) -> Known:
    entry, writable = container.entry, container.writable
    layer = writable.layer if writable is not None else None
    stacked = layer is not None and layer.driver in OVERLAYS
    kubernetes = entry.record.kubernetes if entry.record is not None else None
    podman = entry.podman
    rootfs = podman.rootfs.encode("utf-8", "surrogatepass") if podman is not None else b""
    image = (entry.record.image_name if entry.record is not None else "") or (
        podman.image if podman is not None else ""
    )
    return Known(
        runtime=entry.runtime,
        id=entry.id,
        name=entry.name,
        state=entry.state,
        pid=entry.pid,
        image=image,
        pod=kubernetes.pod if kubernetes is not None else entry.pod,
        namespace=kubernetes.namespace if kubernetes is not None else "",
        pod_uid=kubernetes.uid if kubernetes is not None else "",
        root=store.root.path,
        upper=layer.content if layer is not None else rootfs,
        lowers=tuple(one.content for one in writable.layers) if writable is not None and stacked else (),
        logs=tuple(container.logs),
        other=(*container.directories, *container.volumes.values()),
        record=entry.record is not None or podman is not None,
        disk=layer is not None,
        sandbox=kubernetes.sandbox if kubernetes is not None else podman is not None and podman.infra,
    )
