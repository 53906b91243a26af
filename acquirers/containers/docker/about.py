"""What the manifest says of an item as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acquirers.containers.docker.layers import Layer
    from acquirers.containers.docker.store import Container, Store

_MAX_NAMED = 200


def about_runtime(store: Store) -> Mapping[str, object]:
    root = store.root
    return {
        "runtime": "docker",
        "data_root": root.path,
        "found_by": list(root.found_by),
        "daemons": list(root.pids),
        "containers": len(store.containers),
        "volumes": len(store.volumes),
        "drivers": list(store.areas.image_drivers),
    }


def about_container(store: Store, container: Container) -> Mapping[str, object]:
    """The record in short. Strings are the machine's own; the environment is not among them (it holds secrets)."""
    record, writable = container.record, container.writable
    return {
        "runtime": "docker",
        "data_root": store.root.path,
        "id": container.id,
        "name": container.name.encode(),
        "state": container.state,
        "pid": record.pid or None,
        "exit_code": record.exit_code,
        "oom_killed": record.oom_killed,
        "restarts": record.restarts,
        "created": record.created,
        "started": record.started,
        "finished": record.finished,
        "image": record.image,
        "image_id": record.image_id,
        "hostname": record.hostname,
        "labels": record.labels,
        "driver": record.driver or (writable.driver if writable is not None else ""),
        "mount_id": writable.mount_id if writable is not None else "",
        "layers": [layer.id for layer in container.layers],
        "mounts": [mount.about() for mount in record.mounts],
        "log_path": record.log_path.encode(),
        "host_config": dict(container.host_config),
    }


def about_layer(store: Store, layer: Layer, users: Sequence[str]) -> Mapping[str, object]:
    return {
        "runtime": "docker",
        "data_root": store.root.path,
        "cache_id": layer.id,
        "chain_id": layer.chain_id,
        "diff_id": layer.diff_id,
        "driver": layer.driver,
        "size": layer.size,
        "containers": list(users[:_MAX_NAMED]),
    }
