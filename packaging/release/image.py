"""A container image from scratch, as an OCI layout in a tar: one layer with the binary, made by umoci.

Two variants, as two tags, of the same layer: as a user without rights, for a sidecar or a container's own files, and as
root, for a node (`--privileged` is the runtime's to give).
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from deb import ARCHITECTURES

USERS = {"": "65532:65532", "-root": "0:0"}
"""Suffix of the tag -> user and group."""
_DIRECTORIES = ("dev", "etc", "evidence", "host", "proc", "sys")
"""Where a runtime mounts, or a manifest of ours does: a read-only root cannot get them later."""
_SECONDS = 300


def build(binary: Path, machine: str, about: dict[str, str], epoch: int, out: Path) -> None:
    """`about`: version, home. `epoch`: the time of every file, in seconds since 1970.

    Raises `subprocess.CalledProcessError` where umoci refuses.
    """
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with tempfile.TemporaryDirectory(prefix="impound-image.") as name:
        work = Path(name)
        layout, layer = work / "layout", work / "layer.tar"
        _layer(binary, epoch, layer)
        _umoci("init", "--layout", layout)
        for suffix, user in USERS.items():
            image = f"{layout}:{about['version']}{suffix}"
            _umoci("new", "--image", image)
            _umoci("raw", "add-layer", "--image", image, "--history.created", created, layer)
            _umoci(
                "config", "--image", image, "--no-history", "--created", created,
                "--os", "linux", "--architecture", ARCHITECTURES[machine],
                "--config.user", user, "--config.entrypoint", "/impound", "--config.cmd", "--help",
                "--config.label", "org.opencontainers.image.title=impound",
                "--config.label", f"org.opencontainers.image.version={about['version']}",
                "--config.label", f"org.opencontainers.image.url={about['home']}",
                "--config.label", "org.opencontainers.image.licenses=Apache-2.0",
            )  # fmt: skip
        _umoci("gc", "--layout", layout)
        with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(layout.rglob("*")):
                if path.is_file():
                    _add(archive, str(path.relative_to(layout)), path.read_bytes(), 0o644, epoch)


def _umoci(*arguments: str | Path) -> None:
    subprocess.run(["umoci", *arguments], check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)


def _layer(binary: Path, epoch: int, out: Path) -> None:
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in _DIRECTORIES:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, epoch
            archive.addfile(info)
        _add(archive, "impound", binary.read_bytes(), 0o755, epoch)
        for suffix, name in ((".cdx.json", "impound.cdx.json"), (".licences.txt", "licences.txt")):
            _add(archive, name, Path(f"{binary}{suffix}").read_bytes(), 0o644, epoch)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int, epoch: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, epoch
    archive.addfile(info, io.BytesIO(data))
