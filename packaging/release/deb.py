"""A Debian package of a tree, made by dpkg-deb. It has no maintainer script: to install it is to copy files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CONTROL = """\
Package: impound
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Section: admin
Priority: optional
Homepage: {home}
Description: forensic acquisition of Linux hosts and containers
 One file that acquires memory, container filesystems and logs, seals every byte to
 the investigator's public key while it streams, and stores it where the examined
 machine can neither read nor change it.
 .
 Dormant: no service, no timer, no open port, nothing outside /opt/impound and
 /etc/impound. What it does, somebody asks for.
"""


def build(root: Path, machine: str, about: dict[str, str], epoch: int, out: Path) -> None:
    """`about`: version, maintainer, home. `epoch`: the time of every file, in seconds since 1970.

    Raises `subprocess.CalledProcessError` where dpkg-deb refuses.
    """
    with tempfile.TemporaryDirectory(prefix="impound-deb.") as name:
        staged = Path(name) / "root"
        shutil.copytree(root, staged)
        size = -(-sum(path.stat().st_size for path in staged.rglob("*") if path.is_file()) // 1024)
        (staged / "DEBIAN").mkdir(mode=0o755)
        fields = {**about, "architecture": ARCHITECTURES[machine], "size": str(size)}
        (staged / "DEBIAN/control").write_text(_CONTROL.format_map(fields))
        for path in [staged, *staged.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", "-Zxz", staged, out],
            check=True, timeout=600, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        )  # fmt: skip
