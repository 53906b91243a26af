"""`meta.db`: all namespaces of one containerd. `read_metadata` is what `bolt.read` is given.

Buckets: `v1/<namespace>/{containers,snapshots/<snapshotter>,images,content/{blob,ingests},leases,sandboxes}`.
Source: containerd `core/metadata/buckets.go`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from acquirers.containers.containerd.record import ContainerRecord, parse_container, parse_sandbox

if TYPE_CHECKING:
    from acquirers.bolt import Bucket, Database

DOCKER = "moby"
"""The namespace in which Docker keeps what containerd does for it."""
MAX_CONTAINERS = 20_000
_MANY = 4000
"""Containers of which more is kept than what decides what is taken."""
MAX_BYTES = 24 << 20
"""Of records that are kept, in memory."""
_MAX_NAMESPACES = 1000
_RECORD = 1500
"""Bytes that a container takes in memory, roughly."""
_CONTAINER = re.compile(rb"[0-9a-f]{64}")
_COUNTED = ("images", "leases")


class Metadata(msgspec.Struct):
    """What one `meta.db` says, as far as it decides what is taken."""

    containers: list[ContainerRecord] = msgspec.field(default_factory=list)
    snapshots: dict[tuple[str, str], tuple[str, bytes]] = msgspec.field(default_factory=dict)
    """(namespace, container id) -> (snapshotter, name in the snapshotter's own database)."""
    docker: list[str] = msgspec.field(default_factory=list)
    """Ids with a snapshot in Docker's namespace and no record: what Docker ran, and what it is about to run."""
    snapshotters: set[str] = msgspec.field(default_factory=set)
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    left_out: int = 0
    """Containers for which there was no room."""
    version: bytes = b""
    room: int = MAX_BYTES


def read_metadata(database: Database) -> Metadata:
    """Raises nothing for what the database holds."""
    found = Metadata()
    schema = database.root.bucket(b"v1")
    if schema is None:
        return found
    found.version = (schema.get(b"version") or b"")[:16]
    for count, (name, namespace) in enumerate(schema.buckets()):
        if count >= _MAX_NAMESPACES:
            break
        _namespace(found, name[:255].decode("utf-8", "replace"), namespace)
    return found


def _namespace(found: Metadata, name: str, bucket: Bucket) -> None:
    found.counts["namespaces"] += 1
    known: set[bytes] = set()
    containers = bucket.bucket(b"containers")
    for key, inner in containers.buckets() if containers is not None else ():
        known.add(key)
        _keep(found, parse_container(name, key[:512].decode("utf-8", "replace"), inner), bucket)
    sandboxes = bucket.bucket(b"sandboxes")
    for key, inner in sandboxes.buckets() if sandboxes is not None else ():
        found.counts["sandboxes"] += 1
        if key not in known:
            _keep(found, parse_sandbox(name, key[:512].decode("utf-8", "replace"), inner), bucket)
    snapshots = bucket.bucket(b"snapshots")
    for key, inner in snapshots.buckets() if snapshots is not None else ():
        if len(found.snapshotters) < 100:
            found.snapshotters.add(key[:128].decode("utf-8", "replace"))
        if name == DOCKER:
            _without_record(found, key, inner, known)
    for kind in _COUNTED:
        inside = bucket.bucket(kind.encode())
        found.counts[kind] += sum(1 for _ in inside.items()) if inside is not None else 0
    for kind, keys in (("blobs", (b"content", b"blob")), ("ingests", (b"content", b"ingests"))):
        inside = bucket.bucket(*keys)
        found.counts[kind] += sum(1 for _ in inside.items()) if inside is not None else 0


def _keep(found: Metadata, record: ContainerRecord, namespace: Bucket) -> None:
    if len(found.containers) >= _MANY:
        record.mounts = ()  # they stand in the database, which is stored whole
    if len(found.containers) >= MAX_CONTAINERS or found.room < record.size:
        found.left_out += 1
        return
    found.room -= record.size
    found.containers.append(record)
    key = (record.namespace, record.id)
    if record.snapshotter and record.snapshot_key:
        name = _backend_name(namespace, record.snapshotter, record.snapshot_key)
        if name is not None:
            found.snapshots[key] = record.snapshotter, name
        return
    # Docker does not note the snapshot with the container: its key is the container's id.
    snapshots = namespace.bucket(b"snapshots")
    for snapshotter, inner in snapshots.buckets() if snapshots is not None else ():
        one = inner.bucket(record.id.encode())
        name = one.get(b"name") if one is not None else None
        if name:
            found.snapshots[key] = snapshotter[:128].decode("utf-8", "replace"), name
            return


def _without_record(found: Metadata, snapshotter: bytes, bucket: Bucket, known: set[bytes]) -> None:
    """Docker's containers that do not run: their record goes when they end, their snapshot stays.

    moby `daemon/delete.go`, `daemon/containerd/image_snapshot.go`: the key is the container's id.
    """
    for key, snapshot in bucket.buckets():
        name = snapshot.get(b"name") if key not in known and _CONTAINER.fullmatch(key) else None
        if not name:
            continue
        if len(found.containers) + len(found.docker) >= MAX_CONTAINERS or found.room < len(name) + _RECORD:
            found.left_out += 1
            continue
        found.room -= len(name) + _RECORD
        found.docker.append(key.decode("ascii"))
        found.snapshots[DOCKER, key.decode("ascii")] = snapshotter[:128].decode("utf-8", "replace"), name


def _backend_name(namespace: Bucket, snapshotter: str, key: bytes) -> bytes | None:
    bucket = namespace.bucket(b"snapshots", snapshotter.encode(), key)
    return bucket.get(b"name") if bucket is not None else None
