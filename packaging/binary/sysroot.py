"""A root filesystem of pinned packages, to compile against and to take the runtime from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pins

TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


def make(machine: str, root: Path) -> None:
    """Unpacks Debian's packages into the new directory `root`. No script of a package runs."""
    for directory in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin"):
        (root / directory).mkdir(parents=True)
        (root / Path(directory).name).symlink_to(directory)  # Debian's packages expect the merged /usr
    for pin in pins.read(machine).debian:
        unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", pins.fetch(pin)], stdout=subprocess.PIPE)
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root],
            stdin=unpacked.stdout,
            check=True,
            timeout=pins.SECONDS,
        )
        if unpacked.wait():
            raise SystemExit(f"{pin.file}: cannot be unpacked")


def library(root: Path, machine: str, soname: str) -> Path:
    """The file behind a shared object's name, links followed inside the root."""
    for place in ("usr/lib", "lib"):
        path = inside(root, Path(place) / TRIPLETS[machine] / soname)
        if path.is_file():
            return path
    raise SystemExit(f"{soname}: not in the pinned packages")


def inside(root: Path, name: Path) -> Path:
    """Where `name` leads, its last links followed inside the root."""
    path = root / name
    for _ in range(8):
        if not path.is_symlink():
            break
        target = path.readlink()
        path = root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
    return path


def wheels(machine: str, root: Path) -> None:
    """Unpacks the pinned wheels into the new directory `root`."""
    for pin in pins.read(machine).wheels:
        shutil.unpack_archive(pins.fetch(pin), root, "zip")
