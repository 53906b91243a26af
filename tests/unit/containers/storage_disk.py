"""A machine's disk with a graph root, made by hand: what podman and CRI-O leave, and what else a test puts there."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from acquirers.base import Scope
from acquirers.containers.storage import Podman
from acquirers.host import Host, Mode
from tests.unit.containers.disk import Taken, hex_id, read, short

if TYPE_CHECKING:
    from pathlib import Path

    from acquirers.base import Availability

ROOT = "[root]/var/lib/containers/storage"
POD_UID = "11111111-2222-3333-4444-555555555555"
TABLES = {
    "DBConfig": "ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL, OS TEXT NOT NULL, StaticDir TEXT "
    "NOT NULL, TmpDir TEXT NOT NULL, GraphRoot TEXT NOT NULL, RunRoot TEXT NOT NULL, GraphDriver TEXT NOT NULL, "
    "VolumeDir TEXT NOT NULL, CHECK (ID IN (1))",
    "ContainerConfig": "ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL",
    "ContainerState": "ID TEXT PRIMARY KEY NOT NULL, State INTEGER NOT NULL, ExitCode INTEGER, JSON TEXT NOT NULL, "
    "CHECK (ExitCode BETWEEN -1 AND 255)",
    "PodConfig": "ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, JSON TEXT NOT NULL",
    "VolumeConfig": "Name TEXT PRIMARY KEY NOT NULL, StorageID TEXT, JSON TEXT NOT NULL",
}
"""As podman 5 makes them (libpod/sqlite_state_internal.go), foreign keys apart."""


class StorageDisk:
    """`root` is the machine's root, `graph` its graph root. `close` writes the lists."""

    def __init__(self, root: Path, graph: str = "var/lib/containers/storage", driver: str = "overlay") -> None:
        self.root = root
        self.driver = driver
        self.graph = root / graph
        (root / "etc").mkdir(parents=True, exist_ok=True)
        for name in ("containers", "layers", "images"):
            (self.graph / f"{driver}-{name}").mkdir(parents=True)
            (self.graph / f"{driver}-{name}/{name}.lock").touch()
        (self.files if driver != "overlay" else self.files / "l").mkdir(parents=True)
        self.lists: dict[str, list[dict[str, Any]]] = {"containers": [], "layers": [], "images": []}
        self.volatile: list[dict[str, Any]] = []
        self.podman: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.pods: dict[str, str] = {}
        self.image("shop", "base", "top")

    @property
    def files(self) -> Path:
        return self.graph / {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes"}.get(self.driver, self.driver)

    @property
    def containers(self) -> Path:
        return self.graph / f"{self.driver}-containers"

    @property
    def layers(self) -> Path:
        return self.graph / f"{self.driver}-layers"

    def image(self, name: str, *layers: str) -> None:
        """An image of these layers, the lowest first."""
        parent = ""
        for layer in layers:
            layer_id = hex_id("layer " + layer)
            record = {"id": layer_id, "diff-digest": "sha256:" + hex_id("diff " + layer), "diff-size": 1024}
            if parent:
                record["parent"] = parent
            self.lists["layers"].append(record)
            self.layer(layer_id, f"file of {layer}", lowers=[parent] if parent else [])
            (self.layers / f"{layer_id}.tar-split.gz").write_bytes(b"\x1f\x8bsplit")
            parent = layer_id
        image_id = hex_id("image " + name)
        self.lists["images"].append({"id": image_id, "names": [f"localhost/{name}:1"], "layer": parent})
        directory = self.graph / f"{self.driver}-images" / image_id
        directory.mkdir()
        (directory / "manifest").write_text("{}")
        (directory / "=c2hhMjU2").write_text("{}")

    def layer(self, layer_id: str, content: str = "", lowers: list[str] | None = None) -> Path:
        directory = self.files / layer_id
        if self.driver != "overlay":
            directory.mkdir()
            (directory / "content").write_text(content)
            return directory
        (directory / "diff").mkdir(parents=True)
        if content:
            (directory / "diff/content").write_text(content)
        (directory / "link").write_text(short(layer_id))
        (directory / "work").mkdir()
        (self.files / "l" / short(layer_id)).symlink_to(f"../{layer_id}/diff")
        if lowers:
            (directory / "lower").write_text(":".join("l/" + short(lower) for lower in lowers))
        return directory

    def container(self, name: str, *, metadata: dict[str, Any] | None = None, **record: Any) -> str:
        """A container on the image `shop`, with what the runtime keeps of it; `record` overrides its record."""
        container_id, layer_id = hex_id("container " + name), hex_id("writable " + name)
        entry = {
            "id": container_id,
            "names": [name],
            "image": hex_id("image shop"),
            "layer": layer_id,
            "metadata": json.dumps(metadata or {"image-name": "localhost/shop:1", "name": name}),
            "created": "2026-01-02T03:04:05.678901234Z",
            "flags": {"MountLabel": ""},
        }
        entry.update(record)
        self.lists["containers"].append(entry)
        self.lists["layers"].append({"id": layer_id, "parent": hex_id("layer top"), "names": [f"{name}-layer"]})
        writable = self.layer(layer_id, f"written by {name}", [hex_id("layer top"), hex_id("layer base")])
        if self.driver == "overlay":
            (writable / "merged").mkdir()
            (writable / "merged/beneath").touch()
        userdata = self.containers / container_id / "userdata"
        (userdata / "shm").mkdir(parents=True)
        (userdata / "config.json").write_text(json.dumps({"hostname": name, "annotations": {}}))
        (userdata / "ctr.log").write_text("2026-01-02T03:04:05.678901234+00:00 stdout F hello\n")
        return container_id

    def podmans(self, name: str, *, pod: str = "", **more: Any) -> str:
        """A container that podman made; `state` and the configuration can be overridden."""
        container_id = self.container(name)
        state = {"state": 6, "exitCode": 3, "startedTime": "2026-01-02T03:04:06Z", **more.pop("state", {})}
        config = {"name": name, "labels": {"a": "b"}, "rootfsImageName": "localhost/shop:1", **more}
        if pod:
            config["pod"] = self.pod(pod)
        self.podman[container_id] = config, state
        return container_id

    def pod(self, name: str) -> str:
        pod_id = hex_id("pod " + name)
        self.pods[pod_id] = name
        return pod_id

    def crio(self, name: str, pod: str = "shop-1", namespace: str = "prod", *, sandbox: bool = False) -> str:
        """A container of CRI-O, or a pod's sandbox, with its log where the kubelet wants it."""
        pod_id = hex_id(f"container k8s_POD_{pod}_{namespace}_{POD_UID}_0")
        full = f"k8s_{'POD' if sandbox else name}_{pod}_{namespace}_{POD_UID}_0"
        metadata = {
            "pod-name": f"k8s_{pod}_{namespace}_{POD_UID}_0", "pod-id": pod_id, "image-name": "registry/shop:1",
            "name": full, "metadata-name": pod if sandbox else name, "pod": sandbox,
        }  # fmt: skip
        container_id = self.container(full, metadata=metadata)
        userdata = self.containers / container_id / "userdata"
        log = f"/var/log/pods/{namespace}_{pod}_{POD_UID}/{name}/0.log"
        annotations = {
            "io.container.manager": "cri-o", "io.kubernetes.cri-o.Namespace": namespace,
            "io.kubernetes.cri-o.KubeName": pod, "io.kubernetes.cri-o.LogPath": log,
            "io.kubernetes.cri-o.SandboxID": pod_id, "io.kubernetes.cri-o.Labels": '{"app":"shop"}',
        }  # fmt: skip
        (userdata / "config.json").write_text(json.dumps({"hostname": pod, "annotations": annotations}))
        state = {"status": "stopped", "pid": 0, "exitCode": 9, "started": "2026-01-02T03:04:06Z"}
        (userdata / "state.json").write_text(json.dumps(state))
        if not sandbox:
            path = self.root / log.lstrip("/")
            path.parent.mkdir(parents=True)
            path.write_text("2026-01-02T03:04:05.678901234Z stdout F hello\n")
            (path.parent / "0.log.20260102-030405.gz").write_bytes(b"\x1f\x8brotated")
            (path.parent / "1.log").write_text("of the next attempt")
        return container_id

    def volume(self, name: str) -> Path:
        data = self.graph / "volumes" / name / "_data"
        data.mkdir(parents=True)
        (data / "file").write_text(f"in volume {name}\n")
        return data

    def writable(self, name: str) -> Path:
        return self.files / hex_id("writable " + name)

    # -- writing ------------------------------------------------------------------------------------------------------

    def close(self) -> StorageDisk:
        for name, entries in self.lists.items():
            (self.graph / f"{self.driver}-{name}/{name}.json").write_text(json.dumps(entries))
        if self.volatile:
            run = self.root / f"run/containers/storage/{self.driver}-containers"
            run.mkdir(parents=True, exist_ok=True)
            (run / "volatile-containers.json").write_text(json.dumps(self.volatile))
        if self.podman:
            self.database(self.graph / "db.sql")
        return self

    def database(self, path: Path) -> None:
        connection = sqlite3.connect(path)
        for table, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {table}({columns})")
        places = ("/var/lib/containers/storage/libpod", "/run/libpod", "/var/lib/containers/storage")
        volumes = "/var/lib/containers/storage/volumes"
        row = (1, 1, "linux", *places, "/run/containers/storage", "overlay", volumes)
        connection.execute("INSERT INTO DBConfig VALUES (?,?,?,?,?,?,?,?,?)", row)
        for pod_id, name in self.pods.items():
            connection.execute("INSERT INTO PodConfig VALUES (?,?,?)", (pod_id, name, "{}"))
        for container_id, (config, state) in self.podman.items():
            blob = json.dumps(config).encode()  # Go's driver stores bytes, whatever the column says
            values = (container_id, config["name"], config.get("pod"), blob)
            connection.execute("INSERT INTO ContainerConfig VALUES (?,?,?,?)", values)
            values = (container_id, state["state"], state.get("exitCode"), json.dumps(state).encode())
            connection.execute("INSERT INTO ContainerState VALUES (?,?,?,?)", values)
        connection.commit()
        connection.close()

    def host(self) -> Host:
        return Host(Mode.DEAD, os.fsencode(self.root))

    def take(self, scope: Scope | None = None) -> dict[str, Taken]:
        """Every item, by its path."""
        found: dict[str, Taken] = {}
        for item in Podman().items(self.host(), scope or Scope()):
            assert item.path not in found
            found[item.path] = read(item)
        return found

    def probe(self, scope: Scope | None = None) -> Availability:
        return Podman().probe(self.host(), scope or Scope())


def item_of(name: str, runtime: str = "podman") -> str:
    return f"containers/{runtime}/{hex_id('container ' + name)[:12]}-{name}.tar"


def layer_item(name: str, runtime: str = "podman") -> str:
    return f"containers/{runtime}/layers/{hex_id('layer ' + name)[:12]}.tar"
