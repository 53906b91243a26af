"""A machine's disk with a containerd on it, made by hand: what no daemon of a test machine leaves."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acquirers.base import Scope
from acquirers.containers.containerd import Containerd
from acquirers.host import Host, Mode
from tests.support.bolt_maker import make
from tests.unit.containers.disk import Taken, hex_id, read

if TYPE_CHECKING:
    from pathlib import Path

    from acquirers.base import Availability

ROOT = "[root]/var/lib/containerd"


def uvarint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def any_of(kind: str, value: bytes) -> bytes:
    return b"\x0a" + uvarint(len(kind)) + kind.encode() + b"\x12" + uvarint(len(value)) + value


def go_time(seconds: int, nanoseconds: int = 0, minutes: int = -1) -> bytes:
    return struct.pack(">BqiH", 1, seconds + 62135596800, nanoseconds, minutes & 0xFFFF)


@dataclass
class Machine:
    """`root` is the machine's root."""

    root: Path
    place: str = "var/lib/containerd"
    namespaces: dict[str, dict[bytes, Any]] = field(default_factory=dict)
    records: dict[str, dict[bytes, Any]] = field(default_factory=dict)
    """Snapshotter -> name -> the record in its database."""
    outside: dict[str, str] = field(default_factory=dict)
    """Snapshotter -> its directory, where that is not in the root."""

    def __post_init__(self) -> None:
        (self.root / "etc").mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True)

    @property
    def data(self) -> Path:
        return self.root / self.place

    def namespace(self, name: str) -> dict[bytes, Any]:
        return self.namespaces.setdefault(name, {b"containers": {}, b"snapshots": {}})

    def snapshotter(self, name: str) -> Path:
        return (
            self.root / self.outside[name]
            if name in self.outside
            else self.data / f"io.containerd.snapshotter.v1.{name}"
        )

    def snapshot(
        self, key: str, *, parent: str = "", namespace: str = "k8s.io", snapshotter: str = "overlayfs",
        kind: int = 2, content: str = "", labels: dict[bytes, bytes] | None = None,
    ) -> int:  # fmt: skip
        """One snapshot in both databases and on disk; its number."""
        names = self.records.setdefault(snapshotter, {})
        number = len(names) + 1
        name = f"{namespace}/{number + 10}/{key}".encode()
        record: dict[bytes, Any] = {b"id": uvarint(number), b"kind": bytes([kind]), b"size": uvarint(2 * 4096)}
        if labels:
            record[b"labels"] = labels
        if parent:
            record[b"parent"] = self.name_of(parent, namespace, snapshotter)
        names[name] = record
        told = self.namespace(namespace)[b"snapshots"].setdefault(snapshotter.encode(), {})
        told[key.encode()] = {b"name": name, b"parent": parent.encode()}
        files = self.snapshotter(snapshotter) / "snapshots" / str(number) / "fs"
        files.mkdir(parents=True)
        (files / "content").write_text(content or f"of {key}")
        return number

    def name_of(self, key: str, namespace: str, snapshotter: str) -> bytes:
        found = self.namespace(namespace)[b"snapshots"][snapshotter.encode()][key.encode()][b"name"]
        assert isinstance(found, bytes)
        return found

    def container(
        self, container_id: str, *, namespace: str = "k8s.io", snapshotter: str = "overlayfs", key: str | None = None,
        labels: dict[str, str] | None = None, spec: Any = None, extensions: dict[bytes, bytes] | None = None,
    ) -> dict[bytes, Any]:  # fmt: skip
        record: dict[bytes, Any] = {
            b"image": b"docker.io/library/shop:1",
            b"createdat": go_time(1_700_000_000, 5),
            b"updatedat": go_time(1_700_000_001),
            b"runtime": {b"name": b"io.containerd.runc.v2"},
            b"labels": {name.encode(): value.encode() for name, value in (labels or {}).items()},
            b"spec": any_of("types.containerd.io/opencontainers/runtime-spec/1/Spec", json.dumps(spec or {}).encode()),
        }
        if key is None or key:
            record[b"snapshotter"] = snapshotter.encode()
            record[b"snapshotKey"] = (key or container_id).encode()
        if extensions:
            record[b"extensions"] = extensions
        self.namespace(namespace)[b"containers"][container_id.encode()] = record
        return record

    def image(self, namespace: str = "k8s.io", snapshotter: str = "overlayfs") -> str:
        """Two layers; the key of the upper one."""
        chains = ["sha256:" + hex_id(f"chain {number}") for number in range(2)]
        self.snapshot(chains[0], namespace=namespace, snapshotter=snapshotter, kind=3)
        self.snapshot(chains[1], parent=chains[0], namespace=namespace, snapshotter=snapshotter, kind=3)
        return chains[1]

    def write(self) -> Host:
        """Writes the databases; the machine as a mounted disk."""
        meta = self.data / "io.containerd.metadata.v1.bolt/meta.db"
        meta.parent.mkdir(exist_ok=True)
        tree: dict[bytes, Any] = {name.encode(): value for name, value in self.namespaces.items()}
        meta.write_bytes(make({b"v1": {**tree, b"version": b"\x08"}}))
        for name, records in self.records.items():
            self.snapshotter(name).mkdir(parents=True, exist_ok=True)
            (self.snapshotter(name) / "metadata.db").write_bytes(make({b"v1": {b"snapshots": records}}))
        return Host(Mode.DEAD, os.fsencode(self.root))


def take(host: Host, scope: Scope | None = None) -> dict[str, Taken]:
    """Every item, by its path; those that are no archives as well."""
    found: dict[str, Taken] = {}
    for item in Containerd().items(host, scope or Scope()):
        assert item.path not in found
        found[item.path] = read(item)
    return found


def probe(host: Host, scope: Scope | None = None) -> Availability:
    return Containerd().probe(host, scope or Scope())
