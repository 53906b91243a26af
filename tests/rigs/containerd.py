"""A containerd of one's own: a machine's tree with its root and state where everybody expects them, below a directory.

It never touches a daemon that already runs. Needs root, `containerd`, `ctr`, `runc` and `busybox` (the static one).
Shims keep sockets and runc its records in /run/containerd, whoever starts them: what is ours there is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.rigs.docker import RigError, make_rootfs
from tests.rigs.leftovers import command_line, kill, mounts_below, pids

IMAGE = "docker.io/library/base:1"
_RUN = Path("/run/containerd")


def why_not() -> str:
    """Why no private daemon can run here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("containerd", "ctr", "runc", "busybox") if shutil.which(name) is None]
    return f"needs {missing[0]}" if missing else ""


class PrivateContainerd:
    """One private containerd. `machine` is the tree of a machine that holds its root. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.machine = self.directory / "machine"
        self.root = self.machine / "var/lib/containerd"
        self.state = self.machine / "run/containerd"
        self.pid = 0
        self._short: Path | None = None
        """For the socket, whose path must fit into 107 bytes."""
        self._daemon: subprocess.Popen[bytes] | None = None
        self._containers: list[tuple[str, str]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def socket(self) -> Path:
        assert self._short is not None
        return self._short / "c.sock"

    def __enter__(self) -> Self:
        reason = why_not()
        if reason:
            raise RigError(reason)
        for path in (self.root, self.state, self.machine / "etc/containerd", self.machine / "var/log"):
            path.mkdir(parents=True)
        self._short = Path(tempfile.mkdtemp(prefix="private-containerd-"))
        config = self.machine / "etc/containerd/config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemon, again if it was killed, and waits until it answers."""
        command = [
            "containerd", "--config", str(self.machine / "etc/containerd/config.toml"), "--root", str(self.root),
            "--state", str(self.state), "--address", str(self.socket),
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._daemon.pid
        for _ in range(300):
            if self._daemon.poll() is not None:
                break
            if self._ctr("version").returncode == 0:
                return
            time.sleep(0.1)
        raise RigError(f"containerd does not answer: {(self.directory / 'log').read_text()[-500:]}")

    def kill_daemon(self) -> None:
        """As an accident or an attacker would. Containers go on."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGKILL)
        self._daemon.wait(timeout=30)

    def stop(self) -> None:
        """Ends everything and leaves nothing: no process, no mount, no directory."""
        if self._daemon is not None and self._daemon.poll() is None:
            for namespace, container in self._containers:
                self._ctr("-n", namespace, "tasks", "delete", "--force", container)
            self._daemon.terminate()
            try:
                self._daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait(timeout=20)
        addresses = [path.read_text() for path in self.state.glob("io.containerd.runtime.v2.task/*/*/address")]
        for path in self.state.glob("io.containerd.runtime.v2.task/*/*/init.pid"):
            with contextlib.suppress(OSError, ValueError):
                number = int(path.read_text())
                if path.parent.name in Path(f"/proc/{number}/cgroup").read_text():
                    kill(number)
        for pid in pids():
            if self._short is not None and str(self._short) in command_line(pid) and "shim" in command_line(pid):
                kill(pid)
        time.sleep(0.1)
        for point in sorted(mounts_below(self.directory), key=len, reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for address in addresses:
            if address.startswith("unix:///run/containerd/s/"):
                Path(address.removeprefix("unix://")).unlink(missing_ok=True)
        for namespace, container in self._containers:
            for fifos in (_RUN / "fifo").glob(f"*/{container}-std*"):
                shutil.rmtree(fifos.parent, ignore_errors=True)
            shutil.rmtree(_RUN / "runc" / namespace / container, ignore_errors=True)
            for group in Path("/sys/fs/cgroup").glob(f"*/{namespace}/{container}"):
                with contextlib.suppress(OSError):
                    group.rmdir()
        for namespace in {namespace for namespace, _ in self._containers}:
            for empty in (_RUN / "runc" / namespace, *Path("/sys/fs/cgroup").glob(f"*/{namespace}")):
                with contextlib.suppress(OSError):  # somebody else's, or not empty
                    empty.rmdir()
        left = mounts_below(self.directory)
        if left:
            raise RigError(f"still mounted, and so not removed: {left}")
        for directory in (self.directory, self._short):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    # -- use ----------------------------------------------------------------------------------------------------------

    def _ctr(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["ctr", "--address", str(self.socket), *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def ctr(self, *arguments: str, stdin: bytes | None = None) -> str:
        """`ctr …` with its output. Raises `RigError` when it fails."""
        done = self._ctr(*arguments, stdin=stdin)
        if done.returncode:
            raise RigError(f"ctr {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def import_image(self, namespace: str = "default", snapshotter: str = "overlayfs") -> None:
        """The image `IMAGE` of two layers."""
        archive = self.directory / "image.tar"
        if not archive.exists():
            archive.write_bytes(make_image(self.directory))
        self.ctr("-n", namespace, "images", "import", "--snapshotter", snapshotter, str(archive))

    def create(self, container: str, *, namespace: str = "default", options: Sequence[str] = ()) -> None:
        """A container that was never started."""
        self._containers.append((namespace, container))
        self.ctr("-n", namespace, "containers", "create", *options, IMAGE, container, "/bin/sleep", "1000")

    def run(
        self,
        container: str,
        script: str,
        *,
        namespace: str = "default",
        options: Sequence[str] = (),
        wait: bool = False,
    ) -> None:
        """Runs a shell script in a new container. Waits for its end, or else until it is done and only sleeps."""
        self._containers.append((namespace, container))
        if wait:
            self.ctr("-n", namespace, "run", *options, IMAGE, container, "/bin/sh", "-c", script)
            return
        script += "\n: > /ready; exec sleep 1000"
        detached = ["--detach", "--null-io", *options, IMAGE, container]
        self.ctr("-n", namespace, "run", *detached, "/bin/sh", "-c", script)
        process = Path(f"/proc/{self.pid_of(container, namespace)}")
        for _ in range(200):
            if (process / "comm").read_text() == "sleep\n":
                return
            time.sleep(0.05)
        raise RigError(f"the script of {container} does not come to its end")

    def delete(self, container: str, *, namespace: str = "default", keep_snapshot: bool = False) -> None:
        """`keep_snapshot`: not even the garbage collector takes it. Otherwise waits until it has."""
        options = []
        upper = self.upper_of(container, namespace)
        if keep_snapshot:
            self.ctr("-n", namespace, "snapshots", "label", container, "containerd.io/gc.root=kept")
            options = ["--keep-snapshot"]
        self.ctr("-n", namespace, "containers", "delete", *options, container)
        for _ in range(200):
            if keep_snapshot or not upper.exists():
                return
            time.sleep(0.05)
        raise RigError(f"the snapshot of {container} is not collected")

    def settle(self) -> None:
        """Waits until nothing writes to the databases any more: garbage is collected a moment later."""
        seen: list[tuple[str, int]] = []
        for _ in range(50):
            now = sorted((str(path), path.stat().st_mtime_ns) for path in self.root.rglob("*.db"))
            if now == seen:
                return
            seen = now
            time.sleep(0.4)
        raise RigError("the databases do not come to rest")

    def pid_of(self, container: str, namespace: str = "default") -> int:
        return int((self.state / "io.containerd.runtime.v2.task" / namespace / container / "init.pid").read_text())

    def snapshots(self, snapshotter: str = "overlayfs") -> Path:
        return self.root / f"io.containerd.snapshotter.v1.{snapshotter}/snapshots"

    def upper_of(self, container: str, namespace: str = "default") -> Path:
        """Where the daemon itself says that a container's writable layer is."""
        text = self.ctr("-n", namespace, "snapshots", "mounts", "/nowhere", container)
        for word in text.replace(" ", ",").split(","):
            if word.startswith("upperdir="):
                return Path(word.removeprefix("upperdir="))
        raise RigError(f"no upper directory: {text}")


def make_image(directory: Path) -> bytes:
    """A Docker archive: busybox with its applets, and a layer that changes and deletes."""
    base = directory / "rootfs"
    make_rootfs(base)
    (base / "etc/removed").write_text("of the lowest layer\n")
    first = subprocess.run(
        ["tar", "--numeric-owner", "-C", str(base), "-c", "."], capture_output=True, check=True, timeout=60
    ).stdout
    shutil.rmtree(base)
    second = _tar({"etc/motd": b"of the second layer\n", "etc/.wh.removed": b"", "srv/added": b"added\n"})
    digests = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in (first, second)]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "TOKEN=of-the-image"]},
            "rootfs": {"type": "layers", "diff_ids": digests},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE], "Layers": ["1/layer.tar", "2/layer.tar"]}]).encode()
    return _tar({"1/layer.tar": first, "2/layer.tar": second, name: config, "manifest.json": manifest})


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@contextmanager
def private_containerd(directory: Path) -> Iterator[PrivateContainerd]:
    """The same as `with PrivateContainerd(directory)`, for fixtures."""
    with PrivateContainerd(directory) as containerd:
        yield containerd
