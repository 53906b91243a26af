"""Promise 4: neither memory nor time runs away with how much there is in a data root, or with what its records hold."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.test_limits import peak
from tests.support.runs import keygen
from tests.unit.containers.disk import Disk

CEILING_KIB = 100 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path / "disk")
    made.container("witness")
    return made


def check(tmp_path: Path, disk: Disk, code: int, seconds: float) -> None:
    """Plan and acquire, with a peak below the ceiling and within a time that is ample for what there is."""
    _, recipient = keygen(tmp_path)
    for arguments in (
        ("plan", "--root", disk.root, "--json"),
        ("acquire", "--root", disk.root, "--case", "C", "--to", tmp_path / "ev", "-r", recipient, "--json"),
    ):
        began = time.monotonic()
        found, resident = peak(*arguments)
        assert found == (0 if arguments[0] == "plan" else code)
        assert resident < CEILING_KIB, f"{arguments[0]}: {resident >> 10} MiB"
        assert time.monotonic() - began < seconds


def test_many_mounts_of_many_containers(tmp_path: Path, disk: Disk) -> None:
    """About 1 MiB of each container's record is of no use to anybody before its turn comes."""
    mounts = {f"/{number}": {"Type": "bind", "Source": "x" * 900, "Destination": "\U0001f600"} for number in range(250)}
    for number in range(150):
        container = hashlib.sha256(b"%d" % number).hexdigest()
        (disk.docker / "containers" / container).mkdir()
        record = {"ID": container, "Name": f"/c{number}", "Driver": "overlay2", "MountPoints": mounts}
        disk.write_config(container, json.dumps(record, ensure_ascii=False).encode())
    check(tmp_path, disk, code=1, seconds=20)


def test_a_record_that_is_nested_deeply(tmp_path: Path, disk: Disk) -> None:
    for levels in (2, 100, 500, 700, 900, 970, 5000):
        container = disk.container(f"c{levels}")
        config = disk.docker / "containers" / container / "hostconfig.json"
        config.write_text(f'{{"CapAdd": {"[" * levels}{"]" * levels}}}')
    check(tmp_path, disk, code=0, seconds=10)


def test_a_data_root_with_very_many_names(tmp_path: Path, disk: Disk) -> None:
    (disk.root / "etc/docker").mkdir()
    (disk.root / "etc/docker/daemon.json").write_text('{"data-root": "/big"}')
    (disk.root / "big").mkdir()
    fd = os.open(disk.root / "big", os.O_RDONLY | os.O_DIRECTORY)
    for number in range(150_000):
        os.mknod(f"{number:07}" + "n" * 200, dir_fd=fd)
    os.close(fd)
    check(tmp_path, disk, code=1, seconds=10)


def test_many_volumes(tmp_path: Path, disk: Disk) -> None:
    fd = os.open(disk.docker / "volumes", os.O_RDONLY | os.O_DIRECTORY)
    for number in range(10_000):
        os.mkdir(f"{number:07}" + "n" * 200, dir_fd=fd)
    os.close(fd)
    check(tmp_path, disk, code=0, seconds=8)


def test_many_layers_that_nobody_claims(tmp_path: Path, disk: Disk) -> None:
    for number in range(2000):
        layer = hashlib.sha256(b"%d" % number).hexdigest()
        (disk.overlay / layer / "diff").mkdir(parents=True)
        if number % 2:
            (disk.overlay / (layer + "-init")).mkdir()
    check(tmp_path, disk, code=1, seconds=8)
