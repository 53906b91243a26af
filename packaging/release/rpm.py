"""An RPM of a tree, made by rpmbuild. It has no scriptlet: to install it is to copy files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_SPEC = Path(__file__).with_name("impound.spec")
_MACROS = {
    "debug_package": "%{nil}",
    "__os_install_post": "%{nil}",  # it would strip, and compile what looks like Python
    "_build_id_links": "none",
    "_buildhost": "impound",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "_binary_payload": "w9.xzdio",  # rpm before 4.14 knows no zstd
}


def build(root: Path, machine: str, about: dict[str, str], epoch: int, out: Path) -> None:
    """`about`: version, maintainer, home. `epoch`: the time of every file, in seconds since 1970.

    A version of Debian's form, `1.0~rc1-2`, has the release behind its dash. Raises `subprocess.CalledProcessError`.
    """
    version, _, release = about["version"].partition("-")
    with tempfile.TemporaryDirectory(prefix="impound-rpm.") as name:
        macros = {
            **_MACROS,
            "_topdir": f"{name}/top",
            "_rpmdir": f"{name}/made",
            "_rpmfilename": "impound.rpm",
            "given_version": version,
            "given_release": release or "1",
            "given_root": str(root.resolve()),
            "given_home": about["home"],
            "given_maintainer": about["maintainer"],
        }
        defined = [word for key, value in macros.items() for word in ("--define", f"{key} {value}")]
        subprocess.run(
            ["rpmbuild", "-bb", "--quiet", "--nodeps", "--target", f"{machine}-linux", *defined, _SPEC],
            check=True, timeout=600, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C"},
        )  # fmt: skip
        shutil.copyfile(f"{name}/made/impound.rpm", out)
