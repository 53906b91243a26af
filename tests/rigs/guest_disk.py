"""Disks of guests: made from a directory and read back without a mount, with the tools of e2fsprogs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.rigs.s3_process import RigError

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def make_disk(path: Path, mebibytes: int, content: Path | None = None) -> None:
    """An ext4 filesystem in a sparse file, with what lies in `content`. Nothing is left to be initialised later."""
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0,root_owner=0:0"]
    _run(["mkfs.ext4", *options, *(["-d", str(content)] if content else []), str(path)])


def copy_out(disk: Path, path: str, target: Path) -> None:
    """Copies a file or a directory, named from the root of the filesystem, into the directory `target`."""
    target.mkdir(parents=True, exist_ok=True)
    done = _run(["debugfs", "-R", f'rdump "/{path}" "{target}"', str(disk)])
    if not (target / Path(path).name).exists():
        raise RigError(f"{disk.name} has no {path}: {done}")


def _run(arguments: list[str]) -> str:
    program = shutil.which(arguments[0], path=_PATH)
    if program is None:
        raise RigError(f"needs {arguments[0]}")
    done = subprocess.run([program, *arguments[1:]], capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
    if done.returncode:
        raise RigError(f"{arguments[0]}: {said}")
    return said
