"""The kernel as the judge of the union: random layers, mounted by overlayfs and merged by `acquirers.overlay`.

And as layers of an image, applied one upon the other, they must give the same files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import ENVIRONMENT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

# What a run must have been about, or it was about nothing.
EXERCISED = {
    "cases", "redirects", "metacopy", "opaque", "xattr whiteout", "data-only", "deleted paths", "older versions",
    "images", "redirect by hand", "metacopy by hand", "opaque by hand", "rename", "exchange",
}  # fmt: skip


def compared(directory: Path, first: int, count: int, program: str = "overlay_cases") -> dict[str, Any]:
    """The cases live in a process of their own, in a mount namespace of its own: nothing is left mounted."""
    directory.mkdir()
    command = [sys.executable, "-B", "-m", f"tests.rigs.{program}", str(directory), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=ENVIRONMENT, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert os.listdir(directory) == []
    assert not found.get("refused"), found["refused"]
    return found


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_the_union_is_what_the_kernel_shows(tmp_path: Path, first: int) -> None:
    found = compared(tmp_path / "cases", first, 150)
    assert not found["wrong"], json.dumps(found["wrong"], indent=1)
    assert found["used"]["cases"] == 150
    assert set(found["used"]) >= EXERCISED


@pytest.mark.slow
@pytest.mark.parametrize("first", range(2_000_000, 2_010_000, 2000))
def test_thousands_of_overlays(tmp_path: Path, first: int) -> None:
    found = compared(tmp_path / "cases", first, 2000)
    assert not found["wrong"], json.dumps(found["wrong"], indent=1)


@pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="needs fuse-overlayfs")
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_the_union_is_what_fuse_overlayfs_shows(tmp_path: Path) -> None:
    found = compared(tmp_path / "cases", 0, 30, "overlay_fuse")
    assert not found["wrong"], json.dumps(found["wrong"], indent=1)
    assert found["used"]["opaque"]
    assert found["used"]["deleted"]
