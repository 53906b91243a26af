"""What the manifest says of an item as a whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from acquirers.containers.docker.areas import COPIES, OVERLAYS
from acquirers.containers.fitting import fitting, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acquirers.containers.docker.container import Container
    from acquirers.containers.docker.layers import Layer
    from acquirers.containers.docker.store import Store

MAX_ABOUT = 256 << 10
"""Bytes of what is said of one container, encoded. Without its mounts it stays far below."""
_MAX_NAMED = 200
_MAX_LOWERS = 96 << 10
"""Bytes of paths of lower layers: a data root with a long name and hundreds of layers has more."""
_MAX_WORDS = 300
_REMAPPED = re.compile(rb".*/(\d{1,10}\.\d{1,10})", re.DOTALL)
_SPARE = 1 << 14
"""For the true bytes of a path that is not text, beside its readable form."""


def about_runtime(store: Store) -> Mapping[str, object]:
    root = store.root
    return {
        "runtime": "docker",
        "data_root": root.path,
        "found_by": [how[:_MAX_WORDS] for how in root.found_by],
        "daemons": list(root.pids),
        "containers": len(store.containers),
        "volumes": len(store.volumes),
        "drivers": list(store.areas.image_drivers),
    }


def about_container(store: Store, container: Container) -> Mapping[str, object]:
    """The record in short. Strings are the machine's own; the environment is not among them (it holds secrets)."""
    record, writable = container.record, container.writable
    about: dict[str, object] = {
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
        "layers": [layer.id for layer in container.layers[:_MAX_NAMED]],
        "log_path": record.log_path.encode(),
        "host_config": dict(container.host_config),
        "rootfs": _rootfs(store, container),
    }
    if len(container.layers) > _MAX_NAMED:
        about["layers_left_out"] = len(container.layers) - _MAX_NAMED
    mounts = list(fitting(record.mounts, MAX_ABOUT - size_of(about) - _SPARE))
    about["mounts"] = mounts
    if len(mounts) < len(record.mounts):
        about["mounts_left_out"] = len(record.mounts) - len(mounts)
    return about


def _rootfs(store: Store, container: Container) -> dict[str, object]:
    """What its root filesystem is merged of: native paths of directories, the lower ones from the top down."""
    writable = container.writable
    rootfs: dict[str, object] = {
        "driver": writable.driver if writable is not None else container.record.driver,
        "upper": b"",
        "lowers": [],
        # Where no mount tells. Rootless daemons cannot set `trusted.*`.
        "userxattr": any("rootless" in how for how in store.root.found_by),
    }
    if writable is None or writable.driver not in (*OVERLAYS, *COPIES) or not writable.mount_id:
        return rootfs
    if remapped := _REMAPPED.fullmatch(store.root.path):
        rootfs["remapped"] = remapped[1]  # uid and gid that its root has on the machine
    rootfs["upper"] = store.areas.files_path(writable.driver, writable.mount_id)
    if writable.driver in COPIES:
        return rootfs  # it has everything
    lowers: list[bytes] = []
    room = _MAX_LOWERS
    names = [*([writable.init_id] if writable.init_id else []), *(layer.id for layer in container.layers)]
    for name in names:
        path = store.areas.files_path(writable.driver, name)
        room -= 2 * len(path)
        if room < 0:
            rootfs["lowers_left_out"] = len(names) - len(lowers)
            break
        lowers.append(path)
    rootfs["lowers"] = lowers
    return rootfs


def about_layer(store: Store, layer: Layer, users: Sequence[str], count: int) -> Mapping[str, object]:
    """`users` are some of the containers that stand on it, `count` is how many do."""
    about: dict[str, object] = {
        "runtime": "docker",
        "data_root": store.root.path,
        "cache_id": layer.id,
        "chain_id": layer.chain_id,
        "diff_id": layer.diff_id,
        "path": store.areas.files_path(layer.driver, layer.id),
        "driver": layer.driver,
        "size": layer.size,
        "containers": list(users),
    }
    if count > len(users):
        about["containers_left_out"] = count - len(users)
    return about
