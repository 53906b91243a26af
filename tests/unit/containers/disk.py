"""A machine's disk with a Docker data root, made by hand: what a daemon leaves, and whatever else a test puts there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acquirers.base import Scope
from acquirers.containers.docker import Docker
from acquirers.host import Host, Mode

if TYPE_CHECKING:
    from pathlib import Path

    from acquirers.base import Availability, Flag, Gap, Item, Member

ROOT = "[root]/var/lib/docker"
SECRET = b"root:$6$secret"
"""What stands in files that nothing may lead to."""
NEVER = "0001-01-01T00:00:00Z"


def hex_id(seed: str) -> str:
    """64 hexadecimal digits, the same for the same word."""
    return hashlib.sha256(seed.encode()).hexdigest()


def short(seed: str) -> str:
    """What a short link is called: 26 capitals and digits."""
    return hashlib.sha256(seed.encode()).hexdigest()[:26].upper()


class Disk:
    """`root` is the machine's root, `docker` its data root."""

    def __init__(self, root: Path, data_root: str = "var/lib/docker", driver: str = "overlay2") -> None:
        self.root = root
        self.driver = driver
        self.docker = root / data_root
        (root / "etc").mkdir(parents=True, exist_ok=True)
        for name in ("containers", f"image/{driver}/layerdb/sha256", f"image/{driver}/layerdb/mounts", "volumes"):
            (self.docker / name).mkdir(parents=True)
        (self.overlay / "l").mkdir(parents=True)
        (self.docker / "engine-id").write_text("an-engine\n")
        (self.docker / "volumes/metadata.db").write_bytes(b"bolt")
        self.image("base", "top")

    @property
    def overlay(self) -> Path:
        return self.docker / self.driver

    @property
    def layerdb(self) -> Path:
        return self.docker / "image" / self.driver / "layerdb"

    def image(self, *names: str) -> None:
        """A chain of image layers, the lowest first."""
        parent = ""
        for name in names:
            record = self.layerdb / "sha256" / hex_id("chain " + name)
            record.mkdir()
            (record / "cache-id").write_text(hex_id("layer " + name))
            (record / "diff").write_text("sha256:" + hex_id("diff " + name))
            (record / "size").write_text("12")
            if parent:
                (record / "parent").write_text("sha256:" + hex_id("chain " + parent))
            self.layer(hex_id("layer " + name), f"file of {name}")
            parent = name

    def layer(self, layer_id: str, content: str = "") -> Path:
        directory = self.overlay / layer_id
        (directory / "diff").mkdir(parents=True)
        if content:
            (directory / "diff" / "content").write_text(content)
        (directory / "link").write_text(short(layer_id))
        (directory / "work").mkdir()
        (self.overlay / "l" / short(layer_id)).symlink_to(f"../{layer_id}/diff")
        return directory

    def container(self, name: str, *, lowers: tuple[str, ...] = ("top", "base"), **record: Any) -> str:
        """A container with everything a daemon writes of it; `record` overrides parts of its config.v2.json."""
        container_id = hex_id("container " + name)
        mount_id = hex_id("mount " + name)
        directory = self.docker / "containers" / container_id
        (directory / "mounts/shm").mkdir(parents=True)
        log = f"/var/lib/docker/containers/{container_id}/{container_id}-json.log"
        config: dict[str, Any] = {
            "ID": container_id,
            "Name": "/" + name,
            "Driver": self.driver,
            "Image": "sha256:" + hex_id("image"),
            "Created": "2026-01-02T03:04:05.678901234Z",
            "LogPath": log,
            "State": {"Running": False, "Pid": 0, "ExitCode": 3, "StartedAt": "2026-01-02T03:04:06Z"},
            "Config": {"Image": "shop:1", "Labels": {"a": "b", "c": "d"}, "Env": ["PASSWORD=hunter2"]},
            "MountPoints": {},
        }
        config.update(record)
        self.write_config(container_id, json.dumps(config).encode())
        (directory / "hostconfig.json").write_text(json.dumps({"Privileged": True, "LogConfig": {"Type": "json-file"}}))
        (directory / f"{container_id}-json.log").write_text('{"log":"hello\\n"}\n')
        (directory / f"{container_id}-json.log.1.gz").write_bytes(b"\x1f\x8bcompressed")
        mounts = self.layerdb / "mounts" / container_id
        mounts.mkdir()
        (mounts / "mount-id").write_text(mount_id)
        (mounts / "init-id").write_text(mount_id + "-init")
        (mounts / "parent").write_text("sha256:" + hex_id("chain " + lowers[0]))
        self.layer(mount_id + "-init")
        writable = self.layer(mount_id, f"written by {name}")
        (writable / "merged").mkdir()
        links = [short(mount_id + "-init"), *(short(hex_id("layer " + lower)) for lower in lowers)]
        (writable / "lower").write_text(":".join("l/" + link for link in links))
        return container_id

    def write_config(self, container_id: str, data: bytes) -> Path:
        path = self.docker / "containers" / container_id / "config.v2.json"
        path.write_bytes(data)
        return path

    def writable(self, name: str) -> Path:
        return self.overlay / hex_id("mount " + name)

    def mount_record(self, name: str) -> Path:
        return self.layerdb / "mounts" / hex_id("container " + name)

    def volume(self, name: str) -> Path:
        data = self.docker / "volumes" / name / "_data"
        data.mkdir(parents=True)
        (data / "file").write_text(f"in volume {name}\n")
        (data.parent / "opts.json").write_text("{}")
        return data

    def host(self) -> Host:
        return Host(Mode.DEAD, os.fsencode(self.root))


def volume_mount(name: str, destination: str = "/data", driver: str = "local") -> dict[str, Any]:
    return {"Type": "volume", "Name": name, "Driver": driver, "Destination": destination, "Source": "", "RW": True}


@dataclass
class Taken:
    """One item that was read, and what it told."""

    item: Item
    data: bytes
    members: list[Member]
    gaps: list[Gap]
    flags: list[Flag]

    def names(self) -> list[str]:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as tar:
            return [member.name for member in tar]

    def content(self, name: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as tar:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()


@dataclass
class Recorder:
    members: list[Member] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def member(self, member: Member) -> None:
        self.members.append(member)

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)


def read(item: Item) -> Taken:
    recorder = Recorder()
    data = b"".join(bytes(chunk) for chunk in item.read(recorder))
    return Taken(item, data, recorder.members, recorder.gaps, recorder.flags)


def take(host: Host, scope: Scope | None = None, docker: Docker | None = None) -> dict[str, Taken]:
    """Every item, by its path."""
    found: dict[str, Taken] = {}
    for item in (docker or Docker()).items(host, scope or Scope()):
        assert item.path not in found
        found[item.path] = read(item)
    return found


def probe(host: Host, scope: Scope | None = None) -> Availability:
    return Docker().probe(host, scope or Scope())


def all_gaps(taken: dict[str, Taken]) -> list[Gap]:
    return [gap for one in taken.values() for gap in one.gaps]


def all_flags(taken: dict[str, Taken]) -> list[Flag]:
    return [flag for one in taken.values() for flag in one.flags]


def has_upper(one: Taken) -> bool:
    return f"{ROOT}/overlay2/{hex_id('mount web')}/diff/content" in one.names()


def has_logs(one: Taken) -> bool:
    container = hex_id("container web")
    return f"{ROOT}/containers/{container}/{container}-json.log" in one.names()
