"""The one file for arm64, on this machine: QEMU's user-mode emulation, registered in a user namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.docker_disk import make_disk
from tests.support.runs import impound, keygen

BINARY = Path(__file__).parents[2] / ".cache/binary/impound-aarch64"
QEMU = "/usr/bin/qemu-aarch64-static"
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# Since Linux 6.7 each user namespace has handlers of its own; what is registered here ends with it.
IN_IT = f"""
set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' ':impound-arm64:M::{MAGIC}:{MASK}:{QEMU}:OCF' > /proc/sys/fs/binfmt_misc/register
exec "$@"
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BINARY.exists(), reason="needs the binary")]


def emulated(*arguments: str | Path) -> tuple[int, dict[str, object], str]:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_IT, "sh", BINARY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(autouse=True)
def needs_emulation() -> None:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs qemu-aarch64-static")
    register = IN_IT.replace('exec "$@"', "true")
    if subprocess.run(["unshare", "-Urm", "sh", "-c", register], capture_output=True, check=False).returncode:
        pytest.skip("a kernel before 6.7")


def test_it_checks_itself() -> None:
    code, result, said = emulated("self-check")
    assert (code, result["verdict"], result["stage"]) == (0, "good", "memfd"), said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_acquires_a_disk(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", containers=2, files=20, size=10_000)
    key, recipient = keygen(tmp_path)
    to = tmp_path / "ev"
    code, result, said = emulated(
        "acquire", "--case", "C", "--to", to, "-r", recipient, "--root", tmp_path / "disk", "--json"
    )
    assert (code, result["verdict"]) == (0, "complete"), said
    assert impound("verify", to, "-i", key)[0] == 0
    assert impound("open", to, "-i", key, "--output", tmp_path / "opened")[0] == 0
    assert len(list((tmp_path / "opened").rglob("containers/docker/*.tar"))) >= 2
