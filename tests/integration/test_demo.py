"""What the README shows first: `scripts/demo`, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rigs.docker import why_not

HOUSE = Path(__file__).parents[2]


def demo(*arguments: str) -> str:
    """What it prints; what it left in the checkout is taken away again."""
    done = subprocess.run(
        [HOUSE / "scripts/demo", *arguments], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )
    for left in re.findall(r"rm -rf (evidence/DEMO-\w+) (demo/\w+)\)", done.stdout):
        for name in left:
            shutil.rmtree(HOUSE / name)
            if not os.listdir((HOUSE / name).parent):
                (HOUSE / name).parent.rmdir()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.docker
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
def test_the_intruded_container_is_found() -> None:
    out = demo("--with-docker")
    assert "verdict 'intact'" in out
    assert "plaintext too: True" in out
    assert re.search(r"^  containers +\d+, and \d+ image layers$", out, re.MULTILINE)
    assert re.search(r" web: running, image shop:2\.4\n +wrote \d+ files: .*/etc/cron\.d/sysupdate", out)
    assert re.search(r"^ +deleted 2 files: /etc/motd ", out, re.MULTILINE)
    assert "runs /tmp/.cache/busyboxd (deleted): snapshot/executables/" in out
    assert "stopping the private Docker" in out
    assert not list(Path("/var/tmp").glob("impound-demo.*"))


def test_what_is_here() -> None:
    out = demo()
    assert "verdict 'intact'" in out
    assert re.search(r"^  processes +\d+: ", out, re.MULTILINE)
