"""What the manifest says of an item as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from acquirers.containers.containerd.snapshots import Snapshot, Snapshotter
    from acquirers.containers.containerd.store import Entry, Store

_MAX_NAMED = 600
_MAX_MOUNTS = 64
_MAX_LOGS = 200


def about_runtime(store: Store, configs: Sequence[bytes]) -> Mapping[str, object]:
    root = store.root
    return {
        "runtime": "containerd",
        "root": root.path,
        "states": list(root.states),
        "found_by": [how[:300] for how in root.found_by],
        "daemons": list(root.pids),
        "configs": list(configs)[:20],
        "containers": len(store.entries),
        "containers_of_docker": store.docker,
        "snapshotters": {one.name: len(one.by_name) for one in store.snapshotters},
        **{name: store.counts[name] for name in ("namespaces", "images", "blobs", "leases", "sandboxes", "ingests")},
    }


def about_container(store: Store, entry: Entry, logs: Iterable[bytes]) -> Mapping[str, object]:
    """The record in short. The environment is not among it: it holds secrets."""
    record, stack = entry.record, entry.stack
    about: dict[str, object] = {
        "runtime": "containerd",
        "root": store.root.path,
        "containerd_namespace": record.namespace,
        "id": record.id,
        "name": (entry.name or record.id).encode("utf-8", "surrogatepass"),
        "kind": record.kind,
        "state": entry.task.state,
        "pid": entry.task.pid or None,
        "exit_code": entry.task.exit_code,
        "created": record.created,
        "updated": record.updated,
        "image": record.image,
        "image_id": record.image_ref,
        "hostname": record.hostname,
        "labels": record.labels,
        "oci_runtime": record.runtime,
        "snapshotter": record.snapshotter or (stack.snapshotter.name if stack is not None else ""),
        "snapshot_key": record.snapshot_key,
        "cgroup": record.cgroup.encode("utf-8", "surrogatepass"),
        "log_path": record.log_path.encode("utf-8", "surrogatepass"),
        "logs": list(logs)[:_MAX_LOGS],
        "mounts": [mount.about() for mount in record.mounts[:_MAX_MOUNTS]],
    }
    if len(record.mounts) > _MAX_MOUNTS:
        about["mounts_left_out"] = len(record.mounts) - _MAX_MOUNTS
    if record.pod:
        about |= {
            "pod": record.pod,
            "namespace": record.pod_namespace,
            "pod_uid": record.pod_uid,
            "sandbox": record.id if record.kind == "sandbox" else record.sandbox_id,
        }
    if stack is not None:
        lowers = stack.lower_paths
        about["rootfs"] = {
            "driver": stack.snapshotter.name,
            "upper": stack.upper_path,
            "lowers": lowers[:_MAX_NAMED],
            "userxattr": entry.userxattr,
        }
        about["snapshot"] = stack.upper.id
        about["layers"] = [lower.chain_id or str(lower.id) for lower in stack.lowers[:_MAX_NAMED]]
    else:
        about["rootfs"] = {"driver": record.snapshotter, "upper": b"", "lowers": [], "userxattr": False}
    return about


def about_layer(
    store: Store, snapshotter: Snapshotter, snapshot: Snapshot, users: Sequence[str], count: int
) -> Mapping[str, object]:
    """`users` are some of the containers that stand on it, `count` is how many do."""
    about: dict[str, object] = {
        "runtime": "containerd",
        "root": store.root.path,
        "path": snapshotter.layer_path(snapshot.id),
        "snapshot": snapshot.id,
        "key": snapshot.name[:600],
        "chain_id": snapshot.chain_id,
        "driver": snapshotter.name,
        "size": snapshot.size,
        "containers": list(users),
    }
    if count > len(users):
        about["containers_left_out"] = count - len(users)
    return about
