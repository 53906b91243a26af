"""The one file on machines with a kernel of their own: it takes memory and Docker, and is gone afterwards."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.rigs.guest import EVIDENCE, Done, Guest, Machine, cache, why_not
from tests.rigs.guest_disk import make_disk
from tests.support.runs import impound, keygen

BINARIES = {
    "amd64": Path(__file__).parents[2] / ".cache/binary/impound",
    "arm64": Path(__file__).parents[2] / ".cache/binary/impound-aarch64",
}
PROGRAM = "/tmp/product/impound"
SECONDS = 900

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def disk_with(binary: Path, directory: Path) -> Path:
    content = directory / "content"
    content.mkdir()
    shutil.copyfile(binary, content / "impound")
    (content / "impound").chmod(0o755)
    make_disk(directory / "product.img", 96, content)
    return directory / "product.img"


def mount(guest: Guest, device: str, place: str, *options: str) -> None:
    guest.run(["busybox", "mkdir", "-p", place], check=True)
    guest.run(["busybox", "mount", *options, device, place], check=True)


def result(done: Done) -> dict[str, object]:
    found: dict[str, object] = json.loads(done.out.splitlines()[-1])
    return found


READ_ONLY_NO_MORE = """
set -e
insmod /lib/modules/*/kernel/fs/overlayfs/overlay.ko
mkdir /tmp/home /tmp/upper /tmp/work
mount -t overlay -o lowerdir=/etc,upperdir=/tmp/upper,workdir=/tmp/work none /etc
echo /tmp/docker/usr/lib/x86_64-linux-gnu > /etc/ld.so.conf
ldconfig
"""
DOCKER = """
set -e
export PATH=/tmp/docker/usr/sbin:/tmp/docker/usr/bin:$PATH
exec dockerd --host unix:///tmp/docker.sock --data-root /evidence/docker --exec-root /run/docker \
  --pidfile /run/docker.pid --iptables=false --ip6tables=false --bridge none --storage-driver overlay2
"""
READY = """
export PATH=/tmp/docker/usr/bin:$PATH
exec docker --host unix:///tmp/docker.sock version
"""
SCENE = """
set -e
export PATH=/tmp/docker/usr/sbin:/tmp/docker/usr/bin:$PATH
docker() { command docker --host unix:///tmp/docker.sock "$@"; }
mkdir -p /tmp/base/bin
cp /usr/bin/busybox /tmp/base/bin/busybox
ln -s busybox /tmp/base/bin/sh
tar -C /tmp/base -c . | docker import - base:1 > /dev/null
docker run --detach --network none --name web base:1 sh -c \
  'echo it was said; echo kept > /kept; exec /bin/busybox sleep 1000000'
"""


def test_it_takes_memory_and_docker_and_is_gone(tmp_path: Path) -> None:
    if not BINARIES["amd64"].exists():
        pytest.skip("needs the binary")
    if reason := why_not():
        pytest.skip(reason)
    if not (cache() / "docker.img").exists():
        pytest.skip("needs a guest with Docker: scripts/guests.sh amd64 --docker")
    key, recipient = keygen(tmp_path)
    disks = [disk_with(BINARIES["amd64"], tmp_path), cache() / "docker.img"]
    with Guest(Machine(memory=1024, options="apparmor=0"), tmp_path / "guest", disks=disks) as guest:
        mount(guest, "/dev/vdd", "/tmp/product", "-o", "ro")
        mount(guest, "/dev/vde", "/tmp/docker", "-o", "ro")
        guest.run(["sh", "-c", READ_ONLY_NO_MORE], check=True)
        daemon = guest.start(["sh", "-c", DOCKER], output="/tmp/dockerd.log", env={"HOME": "/tmp/home"})
        deadline = time.monotonic() + 60
        while guest.run(["sh", "-c", READY]).code:
            assert time.monotonic() < deadline, guest.read("/tmp/dockerd.log")[-2000:]
            time.sleep(1)
        container = guest.run(["sh", "-c", SCENE], seconds=180, check=True).out.decode().split()[-1]
        before = mounts_and_modules(guest)
        asked = ["--case", "GUEST", "--to", f"{EVIDENCE}/case", "--recipient", recipient, "--json"]
        only = ["--only", "memory.physical", "--only", "containers.docker", "--only", "snapshot"]
        done = guest.run([PROGRAM, "acquire", *asked, *only], seconds=SECONDS)
        assert done.code == 0, str(done)[-3000:]
        assert mounts_and_modules(guest) == before
        processes = guest.run(["busybox", "ps", "-o", "comm"], check=True).out.split()
        assert b"impound" not in processes
        assert b"dockerd" in processes
        guest.copy_out("case", tmp_path / "out")
        guest.kill(daemon)
    code, verdict, _ = impound("verify", tmp_path / "out/case", "-i", key)
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), verdict
    opened = tmp_path / "opened"
    assert impound("open", tmp_path / "out/case", "-i", key, "--output", opened)[0] == 0
    images = list(opened.rglob("physical.lime"))
    assert len(images) == 1
    assert images[0].stat().st_size > 900 << 20
    archives = list(opened.rglob(f"containers/docker/{container[:12]}-web.tar"))
    assert len(archives) == 1
    assert b"it was said" in archives[0].read_bytes()


def mounts_and_modules(guest: Guest) -> tuple[bytes, bytes, bytes]:
    """What a run could have left in the kernel."""
    modules = b"\n".join(line.split()[0] for line in guest.read("/proc/modules").splitlines())
    programs = guest.run(["sh", "-c", "ls -l /proc/*/fd 2>/dev/null | grep -c bpf-prog"]).out
    return guest.read("/proc/1/mountinfo"), modules, programs


def test_on_arm64(tmp_path: Path) -> None:
    if not BINARIES["arm64"].exists():
        pytest.skip("needs the binary")
    if reason := why_not("arm64"):
        pytest.skip(reason)
    key, recipient = keygen(tmp_path)
    disks = [disk_with(BINARIES["arm64"], tmp_path)]
    with Guest(Machine(memory=512, architecture="arm64"), tmp_path / "guest", disks=disks) as guest:
        mount(guest, "/dev/vdd", "/tmp/product", "-o", "ro")
        for stage in ("memfd", "tmpfs", "dir"):
            checked = guest.run([PROGRAM, "self-check"], env={"IMPOUND_STAGE": stage}, seconds=120)
            assert (checked.code, result(checked)["stage"]) == (0, stage), str(checked)
        asked = ["--case", "GUEST", "--to", f"{EVIDENCE}/case", "--recipient", recipient, "--json"]
        only = ["--only", "memory.physical", "--only", "snapshot"]
        done = guest.run([PROGRAM, "acquire", *asked, *only], seconds=SECONDS)
        assert done.code == 0, str(done)[-3000:]
        guest.copy_out("case", tmp_path / "out")
    code, verdict, _ = impound("verify", tmp_path / "out/case", "-i", key)
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), verdict
