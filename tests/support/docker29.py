"""What a real Docker 29 leaves on a disk when it is killed: made once, kept in `tests/golden/docker29`.

`python -m tests.support.docker29` makes it anew; see `tests.rigs.docker29` for what that needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.rigs.docker29 import docker29, why_not
from tests.rigs.faithful import survey

if TYPE_CHECKING:
    from tests.rigs.docker import PrivateDocker

GOLDEN = Path(__file__).parents[1] / "golden/docker29"
_DISK, _TRUTH = GOLDEN / "disk.tar.xz", GOLDEN / "truth.json"
_MOUNTED = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys", "data", ".dockerenv")
"""What Docker mounts over the container's own files, or puts there so that it can."""

# A container's whole software, some KiB of it: with busybox the golden file would be a hundred times as large.
_APP = r"""
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
static void put(const char *path, const char *text, long size, long flags) {
    long fd = call(2, (long)path, flags, 0640);
    call(1, fd, (long)text, size);
    call(3, fd, 0, 0);
}
void start(long *stack) {
    call(1, 1, (long)"to stdout\n", 10);
    call(1, 2, (long)"to stderr\n", 10);
    put("/etc/passwd", "evil:x:0:0::/:/bin/app\n", 23, 02001);
    call(87, (long)"/etc/motd", 0, 0);
    call(84, (long)"/opt/old", 0, 0);
    call(83, (long)"/opt/old", 0750, 0);
    put("/opt/old/new", "new\n", 4, 0101);
    put("/tmp/written", "written\n", 8, 0101);
    put("/data/kept", "kept\n", 5, 0101);
    if (stack[0] > 1) call(60, 3, 0, 0);
    for (;;) call(34, 0, 0, 0);
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
"""


@dataclass
class Truth:
    """What was so when it was made. Everything is from Docker and the kernel, nothing from what is tested."""

    ids: dict[str, str]
    trees: dict[str, dict[str, list[Any]]]
    """Name -> path -> type, mode, owner, group, and target or SHA-256: as the kernel merges it."""
    version: str


def unpack(machine: Path) -> Truth:
    """The golden disk below the root of a machine. Needs root: whiteouts are devices."""
    root = machine / "var/lib/docker"
    root.mkdir(parents=True)
    (machine / "etc").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", str(root), "-xpJf", str(_DISK)]
    subprocess.run(command, check=True)
    return Truth(**json.loads(_TRUTH.read_text()))


def build(docker: PrivateDocker) -> Truth:
    """Containers of a started Docker 29: `web` runs, `job` has ended, one was removed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "app.c").write_text(_APP)
        gcc = "gcc -Os -static -nostdlib -fno-stack-protector -fno-asynchronous-unwind-tables -Wl,--build-id=none -s"
        subprocess.run([*gcc.split(), "-o", "app", "app.c"], cwd=directory, check=True)
        docker.docker("import", "-", "base:1", stdin=_rootfs((directory / "app").read_bytes()))
    docker.build("shop:1", "FROM base:1\nCOPY page /srv/page\nLABEL tier=web\n", {"page": b"<h1>shop</h1>\n"})
    docker.run("gone", "shop:1", "/bin/app", "once")
    docker.wait("gone")
    docker.rm("gone")
    ids = {
        "web": docker.run("web", "shop:1", "/bin/app", options=("--volume", "uploads:/data")),
        "job": docker.run("job", "shop:1", "/bin/app", "once"),
    }
    docker.wait("job")
    trees = {"web": _seen(docker.root_of("web")), "job": _exported(docker, "job")}
    return Truth(ids, trees, docker.docker("version", "--format", "API {{.Server.APIVersion}}"))


def _rootfs(app: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in {
            "bin/app": app,
            "etc/passwd": b"root:x:0:0::/:/bin/app\n",
            "etc/motd": b"from the image\n",
            "opt/keep": b"kept\n",
            "opt/old": None,
            "srv/page": b"of the base\n",
            "tmp": None,
        }.items():
            member = tarfile.TarInfo(path)
            member.mode, member.mtime = 0o755, 1_700_000_000
            member.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return out.getvalue()


def _seen(root: Path) -> dict[str, list[Any]]:
    """By the kernel's own merge."""
    found: dict[str, list[Any]] = {}
    for raw, node in survey(f"{root}/.", frozenset({b"proc", b"sys", b"dev"})).items():
        path = os.fsdecode(raw)
        what = os.fsdecode(node.target)
        if stat.S_ISREG(node.stat.st_mode):
            what = hashlib.sha256((root / path).read_bytes()).hexdigest()
        _note(found, path, node.stat.st_mode, node.stat.st_uid, node.stat.st_gid, what)
    return found


def _exported(docker: PrivateDocker, name: str) -> dict[str, list[Any]]:
    """By the daemon's own merge."""
    output = docker.directory / "export.tar"
    docker.docker("export", "-o", str(output), name)
    found = tree_of(output)
    output.unlink()
    return found


def tree_of(tar_file: Path) -> dict[str, list[Any]]:
    """The same of a tar file with a whole root filesystem."""
    found: dict[str, list[Any]] = {}
    with tarfile.open(tar_file) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            what = hashlib.sha256(file.read()).hexdigest() if file is not None else member.linkname
            kind = stat.S_IFREG if member.isreg() else stat.S_IFDIR if member.isdir() else stat.S_IFLNK
            path = member.name.removeprefix("./").rstrip("/")
            _note(found, "" if path == "." else path, kind | member.mode, member.uid, member.gid, what)
    return found


def _note(found: dict[str, list[Any]], path: str, mode: int, uid: int, gid: int, what: str) -> None:
    if path and not any(path == one or path.startswith(f"{one}/") for one in _MOUNTED):
        found[path] = [stat.S_IFMT(mode), stat.S_IMODE(mode), uid, gid, what]


def main() -> None:
    """Makes the golden files."""
    if reason := why_not():
        sys.exit(reason)
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, docker29(Path(name), as_default=True) as docker:
        truth = build(docker)
        docker.kill_everything()
        command = ["tar", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner", "--sort=name"]
        subprocess.run([*command, "-C", docker.data, "-cJf", _DISK, "."], check=True)
    _TRUTH.write_text(json.dumps(truth.__dict__, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
