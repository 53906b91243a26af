"""A package for SSM Distributor: a zip for each machine and a manifest, to be put into a bucket and published there.

The agent of SSM unpacks the zip below /var/lib/amazon/ssm/packages, in which it stays, and runs `sh install.sh` or
`sh uninstall.sh` there.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
_PLACE = Path(__file__).parents[1] / "images/install.sh"
_INSTALL = """\
#!/bin/sh
# What it puts there, and whether it runs: place.sh says so, and fails where not.
exec sh place.sh {sha256} ./impound
"""
_UNINSTALL = """\
#!/bin/sh
set -eu
rm -f /opt/impound/bin/impound
rmdir /opt/impound/bin /opt/impound 2>/dev/null || true
"""


def build(binaries: dict[str, Path], version: str, epoch: int, out: Path) -> None:
    """`binaries`: machine -> file. `epoch`: the time of every file, in seconds since 1970. `out` is made."""
    out.mkdir()
    packages, files = {}, {}
    for machine, binary in sorted(binaries.items()):
        name = f"impound-{version}-{ARCHITECTURES[machine]}.zip"
        _zip(binary, epoch, out / name)
        packages[ARCHITECTURES[machine]] = {"file": name}
        files[name] = {"checksums": {"sha256": hashlib.sha256((out / name).read_bytes()).hexdigest()}}
    manifest = {
        "schemaVersion": "2.0",
        "publisher": "impound",
        "version": version,
        "packages": {"_any": {"_any": packages}},
        "files": files,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _zip(binary: Path, epoch: int, out: Path) -> None:
    data = binary.read_bytes()
    members = {
        "impound": data,
        "install.sh": _INSTALL.format(sha256=hashlib.sha256(data).hexdigest()).encode(),
        "place.sh": _PLACE.read_bytes(),
        "uninstall.sh": _UNINSTALL.encode(),
    }
    when = datetime.fromtimestamp(epoch, UTC).timetuple()[:6]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, when)
            info.external_attr = 0o100755 << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 9)
