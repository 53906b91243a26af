"""What the manifest says of an item as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.containers.fitting import fitting, size_of
from acquirers.containers.storage.areas import OVERLAYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acquirers.containers.storage.container import Container
    from acquirers.containers.storage.layers import Layer, Writable
    from acquirers.containers.storage.store import Store

MAX_ABOUT = 256 << 10
"""Bytes of what is said of one container, encoded. Without its mounts it stays far below."""
_MAX_NAMED = 200
_MAX_LOWERS = 96 << 10
"""Bytes of paths of lower layers."""
_MAX_WORDS = 300
_SPARE = 1 << 14


def about_runtime(store: Store) -> Mapping[str, object]:
    root = store.root
    return {
        "runtime": store.runtime,
        "data_root": root.path,
        "found_by": [how[:_MAX_WORDS] for how in root.found_by],
        "daemons": list(root.pids),
        "owner": root.owner.name if root.owner is not None else b"",
        "uid": root.uid,
        "containers": len(store.entries),
        "volumes": len(store.uses),
        "drivers": [driver.name for driver in store.areas.drivers],
        "databases": store.databases,
        "run_roots": list(root.run_roots),
        "image_stores": list(root.image_stores),
    }


def about_container(store: Store, container: Container, *, userxattr: bool, driver: str) -> Mapping[str, object]:
    """The records in short. Strings are the machine's own; the environment is not among them (it holds secrets)."""
    entry, podman, spec, crio = container.entry, container.entry.podman, container.spec, container.crio
    record = entry.record
    kubernetes = record.kubernetes if record is not None else None
    image = store.records[entry.driver].images.get(record.image) if record is not None else None
    about: dict[str, object] = {
        "runtime": entry.runtime,
        "manager": spec.manager if spec.manager == "libpod" and not entry.manager else entry.manager,
        "data_root": store.root.path,
        "id": entry.id,
        "name": entry.name.encode("utf-8", "surrogatepass"),
        "names": [name.encode("utf-8", "surrogatepass") for name in entry.names],
        "state": entry.state,
        "pid": entry.pid or None,
        "exit_code": podman.exit_code if podman is not None else crio.exit_code,
        "oom_killed": podman.oom_killed if podman is not None else crio.oom_killed,
        "restarts": podman.restarts if podman is not None else (kubernetes.attempt if kubernetes is not None else 0),
        "created": (record.created if record is not None else "") or (podman.created if podman is not None else ""),
        "started": podman.started if podman is not None else crio.started,
        "finished": podman.finished if podman is not None else crio.finished,
        "image": (record.image_name if record is not None else "") or (podman.image if podman is not None else ""),
        "image_id": record.image if record is not None else "",
        "image_names": list(image.names) if image is not None else [],
        "hostname": spec.hostname,
        "labels": podman.labels if podman is not None else spec.labels,
        "privileged": podman.privileged if podman is not None else spec.privileged,
        "driver": entry.driver,
        "layer": entry.layer,
        "layers": [layer.id for layer in container.writable.layers[:_MAX_NAMED]] if container.writable else [],
        "rootfs": _rootfs(container.writable, driver, userxattr=userxattr),
        "logs": container.logs,
    }
    about.update(_place(container))
    mounts = list(fitting(spec.binds, MAX_ABOUT - size_of(about) - _SPARE))
    about["volumes"] = [name.encode("utf-8", "surrogatepass") for name in container.volumes]
    about["mounts"] = mounts
    if len(mounts) < len(spec.binds):
        about["mounts_left_out"] = len(spec.binds) - len(mounts)
    return about


def _place(container: Container) -> dict[str, object]:
    """The pod that it belongs to, if any."""
    entry, spec = container.entry, container.spec
    kubernetes = entry.record.kubernetes if entry.record is not None else None
    if kubernetes is None:
        infra = entry.podman is not None and entry.podman.infra
        return {"pod": entry.pod, "pod_id": entry.pod_id, "infra": infra} if entry.pod_id else {}
    return {
        "pod": kubernetes.pod or spec.pod,
        "pod_id": kubernetes.pod_id or spec.sandbox,
        "pod_uid": kubernetes.uid,
        "namespace": kubernetes.namespace or spec.namespace,
        "container": kubernetes.container or spec.container,
        "infra": kubernetes.sandbox,
    }


def about_unclaimed(store: Store, writable: Writable, driver: str, *, userxattr: bool) -> Mapping[str, object]:
    return {
        "runtime": store.runtime,
        "data_root": store.root.path,
        "unclaimed": writable.id,
        "layers": [layer.id for layer in writable.layers[:_MAX_NAMED]],
        "rootfs": _rootfs(writable, driver, userxattr=userxattr),
    }


def _rootfs(writable: Writable | None, driver: str, *, userxattr: bool) -> dict[str, object]:
    """What its root filesystem is merged of: native paths of directories, the lower ones from the top down."""
    rootfs: dict[str, object] = {"driver": driver, "upper": b"", "lowers": [], "userxattr": userxattr}
    if writable is None or writable.layer is None:
        return rootfs
    rootfs["upper"] = writable.layer.content
    if writable.layer.driver not in OVERLAYS:
        return rootfs  # each layer is a whole copy
    lowers: list[bytes] = []
    room = _MAX_LOWERS
    for layer in writable.layers:
        room -= 2 * len(layer.content)
        if room < 0:
            rootfs["lowers_left_out"] = len(writable.layers) - len(lowers)
            break
        lowers.append(layer.content)
    rootfs["lowers"] = lowers
    return rootfs


def about_layer(store: Store, layer: Layer, users: Sequence[str], count: int) -> Mapping[str, object]:
    """`users` are some of the containers that stand on it, `count` is how many do."""
    about: dict[str, object] = {
        "runtime": store.runtime,
        "data_root": store.root.path,
        "image_store": layer.root if layer.root != store.root.path else None,
        "layer": layer.id,
        "chain_id": layer.chain_id,
        "diff_id": layer.diff_id,
        "path": layer.content,
        "driver": layer.driver,
        "size": layer.size,
        "containers": list(users),
    }
    if count > len(users):
        about["containers_left_out"] = count - len(users)
    return about


def how_merged(store: Store, driver: str) -> tuple[str, bool]:
    """(name of the driver, whether overlayfs keeps its marks in `user.overlay.*`) of what that driver mounts."""
    found = store.areas.driver(driver)
    if found is None or found.graph.files is None or driver not in OVERLAYS:
        return driver, False
    return ("fuse-overlayfs", False) if store.mount_program.get(driver) else ("overlay", store.root.uid != 0)
