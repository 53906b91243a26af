"""A podman of one's own: private graph root, run root, locks and events, and nothing left behind.

It never touches what another podman on the machine keeps. Needs root, `podman`, `conmon`, `runc` and `busybox`; with
`uid`, everything is done by that user without root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.docker import RigError, make_rootfs
from tests.rigs.leftovers import command_line, kill, mounts_below, pids

# Limits that need no privilege to be set, and locks that are no shared memory of the whole machine.
_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
lock_type = "file"
[network]
network_config_dir = "{networks}"
"""
_CACHE = Path("/var/lib/containers/cache")
_OURS = (_CACHE, _CACHE.parent, Path("/run/containers/networks"), Path("/run/containers"))
"""What podman makes outside of all its roots: removed again where it was not there before."""


def why_not() -> str:
    """Why no private podman can run here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("podman", "conmon", "runc", "busybox") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class PrivatePodman:
    """A machine's disk in a directory of its own, with podman's data where everybody expects it.

    `disk/var/lib/containers/storage` is the graph root, or with `uid` `disk/home/user/.local/share/containers/storage`.
    """

    def __init__(self, *, driver: str = "overlay", options: Sequence[str] = (), uid: int | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))  # podman wants short names of run roots
        self.driver = driver
        self.uid = uid
        self._options = list(options)
        self._made_by_us: list[Path] = []

    @property
    def disk(self) -> Path:
        """The root of a machine."""
        return self.directory / "disk"

    @property
    def home(self) -> Path:
        return self.disk / "home/user"

    @property
    def root(self) -> Path:
        """The graph root."""
        base = "var/lib/containers/storage" if self.uid is None else "home/user/.local/share/containers/storage"
        return self.disk / base

    @property
    def run_root(self) -> Path:
        return self.disk / ("run/containers/storage" if self.uid is None else f"run/user/{self.uid}/containers")

    @property
    def tmp(self) -> Path:
        return self.disk / ("run/libpod" if self.uid is None else f"run/user/{self.uid}/libpod/tmp")

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        reason = why_not()
        if reason:
            raise RigError(reason)
        self._made_by_us = [path for path in _OURS if not path.exists()]
        networks = self.directory / "networks"
        for path in (self.root, self.run_root, self.tmp, self.home, self.disk / "etc", networks):
            path.mkdir(parents=True, exist_ok=True)
        user = self.uid or 1000
        passwd = f"root:x:0:0:root:/root:/bin/sh\nuser:x:{user}:{user}::/home/user:/bin/sh\n"
        (self.disk / "etc/passwd").write_text(passwd)
        (self.directory / "containers.conf").write_text(_CONF.format(networks=networks))
        if self.uid is not None:
            for name in (self.home, self.disk / f"run/user/{self.uid}", networks):
                subprocess.run(["chown", "-R", f"{self.uid}:{self.uid}", name], check=True)
            self.directory.chmod(0o711)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all containers, unmounts and removes everything below the directory."""
        if not self.directory.exists():
            return
        pods = self._podman("pod", "ps", "--no-trunc", "--quiet", timeout=60).stdout.decode().split()
        ids = [*self._ids(), *pods]
        self._podman("rm", "--all", "--force", "--time", "0", timeout=60)
        self._podman("pod", "rm", "--all", "--force", "--time", "0", timeout=60)
        self.kill_everything()
        for point in sorted(mounts_below(self.directory), key=len, reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        left = mounts_below(self.directory)
        if left:  # removing would go on through them, into whatever is mounted there
            raise RigError(f"still mounted, and so not removed: {left}")
        _remove_cgroups(ids)
        shutil.rmtree(self.directory, ignore_errors=True)
        for path in _CACHE.glob("blob-info-cache-v1.*") if _CACHE in self._made_by_us else ():
            path.unlink()
        for path in self._made_by_us:
            try:
                path.rmdir()
            except OSError:
                continue  # somebody else has put something there by now

    def kill_everything(self) -> None:
        """Ends conmon and the containers at once, as a crash of the machine does: records stay as they are."""
        for _ in range(40):
            left = self.processes()
            for pid in left:
                kill(pid)
            if not left:
                return
            time.sleep(0.05)
        raise RigError(f"processes that cannot be ended: {left}")

    def reboot(self) -> None:
        """Everything ends, and what lay in memory is gone."""
        self.kill_everything()
        for point in sorted(mounts_below(self.directory), key=len, reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        shutil.rmtree(self.disk / "run")

    def processes(self) -> list[int]:
        """conmon, what it watches, and the process that holds a rootless user's namespaces."""
        found = []
        for pid in pids():
            command = command_line(pid)
            if not command:
                continue
            name = os.path.basename(command.partition("\0")[0])
            if f"{self.directory}/" in command and name in {"conmon", "podman", "fuse-overlayfs", "runc"}:
                found.append(pid)
                continue
            try:
                mounts = Path(f"/proc/{pid}/mountinfo").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            ours = (
                os.fsencode(f"upperdir={self.root}/"),
                os.fsencode(f"{self.root}/"),
                os.fsencode(f"{self.directory}/"),
            )
            if (pid != os.getpid() and _is_root_of(mounts, ours[:2])) or (
                name in {"podman", "catatonit"} and ours[2] in environment
            ):
                found.append(pid)
        return found

    def settle(self) -> None:
        """Waits until what conmon starts after each exec and each exit is done: it reads the records once more."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = [command_line(pid).split("\0") for pid in pids()]
            if not any(os.path.basename(words[0]) == "podman" and "cleanup" in words for words in left):
                return
            time.sleep(0.05)
        raise RigError("podman goes on cleaning up")

    def _ids(self) -> list[str]:
        try:
            return [path.name for path in (self.root / f"{self.driver}-containers").iterdir() if len(path.name) == 64]
        except OSError:
            return []

    # -- use ----------------------------------------------------------------------------------------------------------

    def _podman(
        self, *arguments: str, timeout: float, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        command = [
            "podman", "--root", str(self.root), "--runroot", str(self.run_root), "--tmpdir", str(self.tmp),
            "--storage-driver", self.driver, "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--runtime", "runc", *self._options, *arguments,
        ]  # fmt: skip
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.home),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
        }
        if self.uid is not None:
            command = [
                "setpriv", "--reuid", str(self.uid), "--regid", str(self.uid), "--clear-groups", "--", "podman",
                "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc",
                *self._options, *arguments,
            ]  # fmt: skip
            environment["XDG_RUNTIME_DIR"] = str(self.disk / f"run/user/{self.uid}")
        return subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=self.home,
            env=environment,
        )

    def podman(self, *arguments: str, timeout: float = 60, stdin: bytes | None = None) -> str:
        """`podman …` with its output. Raises `RigError` when it fails."""
        done = self._podman(*arguments, timeout=timeout, stdin=stdin)
        if done.returncode:
            raise RigError(f"podman {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()[-1000:]}")
        return done.stdout.decode(errors="replace").strip()

    def import_base(self, tag: str = "base:1") -> str:
        """An image of one layer: busybox with its applets, and files that a container can change or delete."""
        rootfs = self.directory / "rootfs"
        make_rootfs(rootfs)
        owner = ["--owner=0", "--group=0"] if self.uid is not None else []  # it has one id in its user namespace
        pack = ["tar", "--numeric-owner", *owner, "-C", str(rootfs), "-c", "."]
        tar = subprocess.run(pack, capture_output=True, check=True).stdout
        shutil.rmtree(rootfs)
        return self.podman("import", "-", tag, stdin=tar)

    def run(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Starts a container in the background; its id."""
        network = () if any(option.startswith("--pod") for option in options) else ("--network", "none")
        return self.podman("run", "--detach", *network, "--name", name, *options, image, *command)

    def create(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> str:
        return self.podman("create", "--network", "none", "--name", name, *options, image, *command)

    def exec(self, container: str, *command: str) -> str:
        return self.podman("exec", container, *command)

    def wait(self, container: str) -> int:
        return int(self.podman("wait", container))

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.podman("inspect", "--type", "container", container))[0]
        return found

    def root_of(self, container: str) -> Path:
        """The root of a running container, as the kernel shows it to root. Absolute links in it lead outside!"""
        return Path(f"/proc/{int(self.inspect(container)['State']['Pid'])}/root")


def _is_root_of(mounts: bytes, ours: Sequence[bytes]) -> bool:
    """Whether what is mounted as somebody's root lies in our graph root."""
    for line in mounts.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 5 and fields[4] == b"/":
            return ours[0] in line or ours[1] in fields[3]
    return False


def _remove_cgroups(ids: Sequence[str]) -> None:
    base = Path("/sys/fs/cgroup")
    for top in [base, *(path for path in base.iterdir() if path.is_dir())] if base.is_dir() else []:
        parent = top / "libpod_parent"
        if not parent.is_dir():
            continue
        for directory, _, _ in os.walk(parent, topdown=False):
            if any(container in directory for container in ids) or directory in {str(parent), f"{parent}/conmon"}:
                try:
                    os.rmdir(directory)
                except OSError:
                    continue  # another podman's
