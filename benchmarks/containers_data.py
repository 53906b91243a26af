"""What `containers` runs on: mounted disks with one Docker container each, made by hand, and a tree of small files."""

from __future__ import annotations

import hashlib
import math
import os
import random
from pathlib import Path

from benchmarks.sealing_data import MIB, make_stream
from tests.support.docker_disk import make_disk

DIRECTORY = 100
"""Files of one directory."""
LARGE = 256 * MIB


def upper(disk: Path) -> Path:
    """The writable layer of the one container."""
    layerdb = disk / "var/lib/docker/image/overlay2/layerdb/mounts"
    (mount,) = layerdb.glob("*/mount-id")
    return disk / "var/lib/docker/overlay2" / mount.read_text() / "diff"


def large_files(disk: Path, size: int) -> Path:
    """A writable layer of `size` bytes in files of 256 MiB: archives of /usr. Gives one of the files."""
    make_disk(disk, containers=1, files=0)
    top = upper(disk)
    for number in range(max(1, size // LARGE)):
        make_stream("tar", top / f"large-{number}", min(size, LARGE))
    return top / "large-0"


def small_files(disk: Path, files: int) -> Path:
    """A writable layer of small files. Gives the directory that holds them."""
    make_disk(disk, containers=1, files=0)
    top = upper(disk) / "srv"
    fill(top, files)
    return top


def fill(top: Path, files: int) -> None:
    """Pieces of Python's own modules, 64 bytes to 16 KiB, small ones more often: 3 KiB on average."""
    generator = random.Random(11)  # noqa: S311 - the same data every time
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    for number in range(files):
        directory = top / f"{number // (DIRECTORY * DIRECTORY)}" / f"{number // DIRECTORY}"
        if number % DIRECTORY == 0:
            directory.mkdir(parents=True)
        size = int(math.exp(generator.uniform(math.log(64), math.log(1 << 14))))
        start = generator.randrange(len(text) - size)
        (directory / f"module-{number}.py").write_bytes(text[start : start + size])


def many_layers(disk: Path, layers: int, files: int) -> list[Path]:
    """A container of so many layers with so many files in all. Gives the layers' directories, the topmost first.

    Every layer has directories of its own and one that all of them have, in which it replaces a file of the layer below
    and deletes another.
    """
    (container,) = make_disk(disk, containers=1, files=0)
    docker = disk / "var/lib/docker"
    overlay = docker / "overlay2"
    top = upper(disk)
    found: list[Path] = []
    parent = ""
    for number in range(layers - 1):
        identity = hashlib.sha256(b"layer%d" % number).hexdigest()
        found.insert(0, overlay / identity / "diff")
        short = identity[:26].upper()
        found[0].mkdir(parents=True)
        (overlay / identity / "link").write_text(short)
        (overlay / "l" / short).symlink_to(f"../{identity}/diff")
        diff_id = "sha256:" + hashlib.sha256(b"diff%d" % number).hexdigest()
        chain = (
            hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest() if parent else diff_id.removeprefix("sha256:")
        )
        record = docker / "image/overlay2/layerdb/sha256" / chain
        record.mkdir(parents=True)
        (record / "cache-id").write_text(identity)
        (record / "diff").write_text(diff_id)
        (record / "size").write_text("0")
        if parent:
            (record / "parent").write_text(parent)
        parent = "sha256:" + chain
        _fill_layer(found[0], number, files // layers)
    _fill_layer(top, layers - 1, files // layers)
    (docker / "image/overlay2/layerdb/mounts" / container / "parent").write_text(parent)
    lower = top.parent / "lower"
    links = [f"l/{path.parent.name[:26].upper()}" for path in found]
    lower.write_text(":".join([lower.read_text(), *links]))
    return [top, *found]


def _fill_layer(layer: Path, number: int, files: int) -> None:
    shared = layer / "shared"
    shared.mkdir()
    for name in (f"a{number}", f"a{number - 1}", f"b{number}"):
        (shared / name).write_text(f"of layer {number}\n")
    if number:
        os.mknod(shared / f"b{number - 1}", 0o020000, 0)
    for file in range(files - 3):
        directory = layer / f"d{file % 20}" / f"l{number}"
        if file < 20:
            directory.mkdir(parents=True)
        (directory / f"f{file}").write_bytes(b"%d of %d\n" % (file, number) * 20)
