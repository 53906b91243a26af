"""A Docker daemon of one's own: private paths, a private socket, and nothing left behind.

It never touches a daemon that already runs. Needs root, `dockerd`, `docker` and `busybox` (the static one); uses the
standard library only, because `scripts/private-docker` starts it without a virtual environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.leftovers import (
    DEFAULT_ROOT,
    command_line,
    kill,
    make_default_root,
    mounts_below,
    pids,
    processes_of,
    remove_cgroups,
    remove_default_root,
    thaw,
)

_START_SECONDS = 60
_STOP_SECONDS = 30


class RigError(Exception):
    """A real component did not do what the test needs of it."""


def why_not() -> str:
    """Why no private daemon can run here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("dockerd", "docker", "busybox") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class PrivateDocker:
    """One private dockerd below `directory`, which should be new. A context manager.

    `as_default` starts it in a mount namespace of its own, in which its data root is /var/lib/docker: what runs through
    `command` sees a machine with Docker where everybody expects it, and nobody else sees anything. `mounts` are
    arguments of `mount`, done there before. `driver` "" leaves the choice to the daemon. `programs` is a directory with
    another `dockerd` and what belongs to it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        as_default: bool = False,
        driver: str = "overlay2",
        options: Sequence[str] = (),
        mounts: Sequence[Sequence[str]] = (),
        programs: Path | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.driver = driver
        self.options = (*options, *(("--storage-driver", driver) if driver else ()))
        self.mounts = mounts
        self.environment = dict(os.environ)
        if programs is not None:
            # The client may be older than what a new daemon speaks with by itself.
            self.environment |= {"PATH": f"{programs}:{os.environ.get('PATH', '')}", "DOCKER_MIN_API_VERSION": "1.40"}
        self.as_default = as_default
        self.socket = self.directory / "docker.sock"
        self.exec_root: Path | None = None
        """What the daemon keeps while it runs: a short path, because containerd's sockets must fit into 107 bytes."""
        self.pid = 0
        self._children: list[subprocess.Popen[bytes]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The data root as everybody else sees it."""
        return self.directory / "data"

    @property
    def data_root(self) -> Path:
        """The data root as the daemon sees it."""
        return DEFAULT_ROOT if self.as_default else self.data

    @property
    def seen(self) -> Path:
        """The data root as everybody else sees it, also where it is mounted for the daemon alone and that runs."""
        return Path(f"/proc/{self.pid}/root{self.data_root}") if self.mounts else self.data

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemon and waits until it answers. Raises `RigError`, and then nothing is left of it."""
        reason = why_not()
        if reason:
            raise RigError(reason)
        self.data.mkdir(parents=True, mode=0o711)
        self.exec_root = Path(tempfile.mkdtemp(prefix="private-docker-"))
        config = self.directory / "daemon.json"
        config.write_text("{}\n")  # the machine's own /etc/docker/daemon.json is none of our business
        daemon = [
            "dockerd", "--config-file", str(config), "--data-root", str(self.data_root),
            "--exec-root", str(self.exec_root), "-p", str(self.directory / "pid"),
            "-H", f"unix://{self.socket}", "--bridge=none", "--iptables=false", *self.options,
        ]  # fmt: skip
        if self.as_default:
            make_default_root()
            # Each `mount` as its number of arguments and these.
            script = (
                'while [ "$1" -gt 0 ]; do n=$1; shift; m=; while [ "$n" -gt 0 ]; do m="$m $1"; n=$((n-1)); shift; done;'
                ' mount $m || exit 1; done; shift; exec "$@"'
            )
            prefix = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]
            mounts = [*self.mounts, ("--bind", str(self.data), str(DEFAULT_ROOT))]
            words = [word for mount in mounts for word in (str(len(mount)), *mount)]
            daemon = [*prefix, *words, "0", *daemon]
        with (self.directory / "log").open("wb") as log:
            # Its own session: an interrupt from the terminal is for the test, which then stops the daemon in order.
            process = subprocess.Popen(
                daemon, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self.environment
            )
        self._children.append(process)
        self.pid = process.pid
        self._save()
        try:
            self._wait_until_ready(process)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if self.socket.exists() and self._docker("version", timeout=10).returncode == 0:
                return
            time.sleep(0.1)
        log = (self.directory / "log").read_text(errors="replace")[-2000:]
        raise RigError(f"dockerd did not become ready:\n{log}")

    @classmethod
    def attach(cls, directory: Path) -> PrivateDocker:
        """The daemon that an earlier process started below `directory`. Raises `RigError` when there is none."""
        try:
            state = json.loads((directory / "rig.json").read_text())
        except (OSError, ValueError) as error:
            raise RigError(f"no private Docker was started in {directory}") from error
        found = cls(directory, as_default=bool(state["as_default"]))
        found.pid = int(state["pid"])
        found.exec_root = Path(state["exec_root"])
        return found

    def _save(self) -> None:
        state = {
            "pid": self.pid,
            "exec_root": str(self.exec_root),
            "as_default": self.as_default,
        }
        (self.directory / "rig.json").write_text(json.dumps(state) + "\n")

    def kill_daemon(self) -> None:
        """Ends the daemon alone, at once: its containers run on, their records stay as they are."""
        for pid in self._daemons():
            kill(pid)
        self._reap()

    def kill_everything(self) -> None:
        """Ends the daemon, its containerd, shims and containers, at once: a machine that lost its power."""
        ids = self._ids()
        for _ in range(20):
            for container in ids:
                thaw(container)
            left = [*self._daemons(), *processes_of(ids)]
            for pid in left:
                kill(pid)
            self._reap()
            if not left:
                return
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the daemon and its containers, unmounts and removes everything below the directory."""
        if not self.directory.exists():
            return
        ids = self._ids()
        if self._ours(self.pid):
            self._docker("unpause", *ids, timeout=30) if ids else None
            self._docker("rm", "--force", "--volumes", *ids, timeout=60) if ids else None
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
            self._wait_until(lambda: not self._ours(self.pid), _STOP_SECONDS)
        for container in ids:
            thaw(container)
        # What outlives a daemon that was killed: shims, their containers, the containerd beside it.
        for _ in range(20):
            left = [*self._daemons(), *processes_of(ids)]
            for pid in left:
                kill(pid)
            self._reap()
            if not left:
                break
            time.sleep(0.1)
        places = [self.directory, *([self.exec_root] if self.exec_root is not None else [])]
        for directory in places:
            for point in sorted(mounts_below(directory), key=len, reverse=True):
                subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for container in ids:
            remove_cgroups(container)
        left_mounted = [point for directory in places for point in mounts_below(directory)]
        if left_mounted:  # removing would go on through them, into whatever is mounted there
            raise RigError(f"still mounted, and so not removed: {left_mounted}")
        for directory in places:
            shutil.rmtree(directory, ignore_errors=True)
        if self.as_default:
            remove_default_root()

    def _ids(self) -> list[str]:
        try:
            places = [*self.seen.glob("containers/*"), *self.seen.glob("*.*/containers/*")]  # userns-remap
            return sorted(path.name for path in places if len(path.name) == 64)
        except OSError:
            return []

    def _ours(self, pid: int) -> bool:
        """Whether that process is one of this rig: numbers are given anew."""
        return pid > 0 and str(self.directory) in command_line(pid)

    def _daemons(self) -> list[int]:
        """The daemon, its containerd and its shims: all have a private directory among their arguments."""
        own = [f"{self.directory}/", *([f"{self.exec_root}/"] if self.exec_root is not None else [])]
        found = []
        for pid in pids():
            command = command_line(pid)
            name = os.path.basename(command.partition("\0")[0])
            if any(path in command for path in own) and name in {
                "dockerd",
                "containerd",
                "containerd-shim-runc-v2",
                "containerd-shim",
            }:
                found.append(pid)
        return found

    def _reap(self) -> None:
        for child in self._children:
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                continue
        self._children = [child for child in self._children if child.returncode is None]

    def _wait_until(self, condition: Any, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for child in self._children:
                child.poll()
            if condition():
                return True
            time.sleep(0.05)
        return False

    # -- use ----------------------------------------------------------------------------------------------------------

    def command(self, arguments: Sequence[str]) -> list[str]:
        """How to run something on the machine as the daemon sees it."""
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--", *arguments] if self.as_default else [*arguments]

    def _docker(
        self, *arguments: str, timeout: float, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            # A configuration, a context or a proxy of whoever runs the tests must not matter.
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.directory),
                "DOCKER_BUILDKIT": "0",
            },
        )

    def docker(self, *arguments: str, timeout: float = 120, stdin: bytes | None = None) -> str:
        """`docker …` with its output. Raises `RigError` when it fails."""
        done = self._docker(*arguments, timeout=timeout, stdin=stdin)
        if done.returncode:
            raise RigError(f"docker {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def import_base(self, tag: str = "base:1") -> str:
        """An image of one layer: busybox with its applets, and files that a container can change or delete."""
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            make_rootfs(Path(directory))
            tar = subprocess.run(
                ["tar", "--numeric-owner", "-C", directory, "-c", "."], capture_output=True, check=True
            ).stdout
        return self.docker("import", "-", tag, stdin=tar)

    def build(self, tag: str, dockerfile: str, files: dict[str, bytes]) -> str:
        """An image whose Dockerfile may COPY `files`; one layer per instruction."""
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            context = Path(directory)
            (context / "Dockerfile").write_text(dockerfile)
            for name, content in files.items():
                path = context / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            arguments = ["build", "--quiet", "--network", "none", "--tag", tag, directory]
            return self.docker(*arguments, timeout=300)

    def run(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Starts a container in the background; its id."""
        return self.docker("run", "--detach", "--network", "none", "--name", name, *options, image, *command)

    def exec(self, container: str, *command: str, background: bool = False) -> str:
        return self.docker("exec", *(["--detach"] if background else []), container, *command)

    def pause(self, container: str) -> None:
        self.docker("pause", container)

    def unpause(self, container: str) -> None:
        self.docker("unpause", container)

    def kill(self, container: str) -> None:
        self.docker("kill", container)

    def rm(self, container: str) -> None:
        self.docker("rm", "--force", container)

    def wait(self, container: str) -> int:
        return int(self.docker("wait", container))

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]
        return found

    def pid_of(self, container: str) -> int:
        return int(self.inspect(container)["State"]["Pid"])

    def root_of(self, container: str) -> Path:
        """The root of a running container, as the kernel shows it to root. Absolute links in it lead outside!"""
        return Path(f"/proc/{self.pid_of(container)}/root")

    def upper_of(self, container: str) -> Path:
        """The writable layer on disk, as everybody else sees it."""
        record = self.data / "image/overlay2/layerdb/mounts" / str(self.inspect(container)["Id"])
        return self.data / "overlay2" / (record / "mount-id").read_text()


def make_rootfs(root: Path) -> None:
    """A small root filesystem: static busybox with a link per applet, users, and files to be changed."""
    for name in ("bin", "dev", "etc/cron.d", "home/app", "opt/config", "opt/old/deep", "proc", "root", "srv", "sys"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(0o1777)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RigError("needs busybox")
    shutil.copy(busybox, root / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        "etc/shadow": "root:*:19000:0:99999:7:::\napp:!:19000:0:99999:7:::\n",
        "etc/group": "root:x:0:\napp:x:1000:\n",
        "etc/os-release": 'ID=base\nNAME="Base"\nVERSION_ID=1\n',
        "etc/motd": "from the image\n",
        "opt/config/app.conf": "level = image\n",
        "opt/config/other.conf": "level = image\n",
        "opt/old/deep/file": "to be deleted\n",
        "home/app/.profile": "export PATH=/bin\n",
    }
    for name, content in files.items():
        (root / name).write_text(content)
    (root / "etc/shadow").chmod(0o600)
    os.chown(root / "home/app", 1000, 1000)
