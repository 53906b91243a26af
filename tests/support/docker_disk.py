"""A mounted disk with a Docker data root on it, made by hand, for tests that need a source of a chosen size."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_disk(root: Path, containers: int = 3, files: int = 20, size: int = 100_000) -> list[str]:
    """Containers named c0, c1, … with `files` files of `size` random bytes each. Gives their ids."""
    docker = root / "var/lib/docker"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/hostname").write_text("disk\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    overlay = docker / "overlay2"
    (overlay / "l").mkdir(parents=True, exist_ok=True)
    generator = random.Random(7)
    ids = []
    for number in range(containers):
        name = f"c{number}"
        identity = hashlib.sha256(name.encode()).hexdigest()
        mount = hashlib.sha256(b"mount" + name.encode()).hexdigest()
        ids.append(identity)
        home = docker / "containers" / identity
        home.mkdir(parents=True)
        config = {
            "ID": identity,
            "Name": "/" + name,
            "Driver": "overlay2",
            "Image": "sha256:" + "0" * 64,
            "State": {"Running": False},
            "Config": {"Labels": {}},
            "MountPoints": {},
        }
        (home / "config.v2.json").write_text(json.dumps(config))
        (home / "hostconfig.json").write_text("{}")
        (home / f"{identity}-json.log").write_text('{"log":"x\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n')
        mounts = docker / "image/overlay2/layerdb/mounts" / identity
        mounts.mkdir(parents=True)
        (mounts / "mount-id").write_text(mount)
        (mounts / "init-id").write_text(mount + "-init")
        for layer in (mount, mount + "-init"):
            (overlay / layer / "diff").mkdir(parents=True)
            link = hashlib.sha256(layer.encode()).hexdigest()[:26].upper()
            (overlay / layer / "link").write_text(link)
            (overlay / "l" / link).symlink_to(f"../{layer}/diff")
            if layer == mount:
                init = hashlib.sha256((mount + "-init").encode()).hexdigest()[:26].upper()
                (overlay / layer / "lower").write_text("l/" + init)
        for file in range(files):
            (overlay / mount / "diff" / f"f{file}").write_bytes(generator.randbytes(size))
    return ids
