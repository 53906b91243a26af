"""A run leaves no trace: no time of a file, no line of the kernel, no event of a daemon, no mount even for a moment."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rigs import containerd, podman
from tests.rigs import docker as docker_rig
from tests.rigs.docker import PrivateDocker
from tests.rigs.faithful import age_access_times, survey
from tests.support.evidence import take
from tests.support.runs import keygen

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

_MOUNTED = frozenset({b"merged", b"rootfs", b"shm"})
_ATTEMPTS = 3
_WRITES = "echo said; echo more >> /etc/motd; mkdir -p /srv/a; echo x > /srv/a/b; ln -s /etc/passwd /srv/link; exec "


@dataclass
class Machine:
    """One runtime with a running container."""

    trees: list[Path]
    """Everything that it keeps on disk, but for what is mounted there."""
    pids: list[int]
    """Of the daemon, and of the container: in whose mount namespaces nothing may change."""
    container: str
    """How its items begin."""
    events: Callable[[], list[str]]
    """All that the runtime has told of itself so far."""
    within: Callable[[Sequence[str]], list[str]] | None = None


def of_docker(directory: Path, stack: contextlib.ExitStack) -> Machine:
    rig = stack.enter_context(PrivateDocker(directory / "rig", as_default=True))
    rig.import_base()
    container_id = rig.run("web", "base:1", "sh", "-c", _WRITES + "sleep 1000000", options=("--volume", "data:/data"))
    log = (directory / "events").open("wb")
    stack.enter_context(log)
    watcher = subprocess.Popen(["docker", "-H", f"unix://{rig.socket}", "events"], stdout=log, stderr=log)
    stack.callback(_end, watcher)

    def heard() -> bool:
        rig.docker("tag", "base:1", "mark:1")  # an event that must be there: the watcher says nothing when it is ready
        return b"mark:1" in (directory / "events").read_bytes()

    _until(heard)
    time.sleep(0.5)

    def events() -> list[str]:
        return (directory / "events").read_text().splitlines()

    trees = [rig.data, *([rig.exec_root] if rig.exec_root is not None else [])]
    pids = [rig.pid, rig.pid_of("web")]
    return Machine(trees, pids, f"containers/docker/{container_id[:12]}-web", events, rig.command)


def of_containerd(directory: Path, stack: contextlib.ExitStack) -> Machine:
    rig = stack.enter_context(containerd.private_containerd(directory))
    rig.import_image()
    rig.run("web", script=_WRITES + "sleep 1000000")
    log = (directory / "events").open("wb")
    stack.enter_context(log)
    watcher = subprocess.Popen(["ctr", "-a", str(rig.socket), "events"], stdout=log, stderr=log)
    stack.callback(_end, watcher)
    for number in range(100):  # it says nothing when it is ready
        rig.ctr("containers", "label", "web", f"number={number}")
        if (directory / "events").read_bytes():
            break
    time.sleep(0.5)

    def events() -> list[str]:
        return (directory / "events").read_text().splitlines()

    return Machine([rig.root, rig.state], [rig.pid, rig.pid_of("web")], "containers/containerd/web", events)


def of_podman(directory: Path, stack: contextlib.ExitStack) -> Machine:
    rig = stack.enter_context(podman.PrivatePodman())
    rig.import_base()
    container_id = rig.run("web", "base:1", "sh", "-c", _WRITES + "sleep 1000000")
    pid = int(str(rig.inspect("web")["State"]["Pid"]))
    rig.settle()

    def events() -> list[str]:
        """From the file: to ask podman is to change its directories."""
        files = [path for path in rig.directory.rglob("events*") if path.is_file()]
        return [line for path in files for line in path.read_text().splitlines()]

    return Machine([rig.disk, directory / "none"], [pid], f"containers/podman/{container_id[:12]}-web", events)


RUNTIMES = {"docker": (docker_rig, of_docker), "containerd": (containerd, of_containerd), "podman": (podman, of_podman)}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(params=RUNTIMES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    module, make = RUNTIMES[request.param]
    if reason := module.why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        made = make(tmp_path, stack)
        made.trees = [path for path in made.trees if path.exists()]
        if made.within is None:  # what others mount on the machine meanwhile is not to be seen
            keeper = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "--", "sleep", "1000"])
            stack.callback(_end, keeper)
            own = os.readlink("/proc/self/ns/mnt")
            _until(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != own)
            _until(lambda: Path(f"/proc/{keeper.pid}/cmdline").read_bytes().startswith(b"sleep"))
            made.within = lambda command: ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--", *command]
            made.pids.append(keeper.pid)
        yield made


class Mounts:
    """The mount tables of some processes: whether anything was mounted or unmounted there since it was asked."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._fds = [os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY) for pid in pids]
        self._poll = select.poll()
        for fd in self._fds:
            self._poll.register(fd, select.POLLPRI)
        self.before = self.now()
        self._poll.poll(0)

    def changed(self) -> bool:
        """Also what is gone again by now: the kernel counts (`poll` of proc_pid_mountinfo(5))."""
        return bool(self._poll.poll(0))

    def now(self) -> list[bytes]:
        found = []
        for fd in self._fds:
            os.lseek(fd, 0, os.SEEK_SET)
            found.append(b"".join(iter(lambda fd=fd: os.read(fd, 1 << 16), b"")))  # type: ignore[misc]
        return found

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class Kernel:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            pytest.skip(f"/dev/kmsg cannot be read: {error.strerror}")
        os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(os.read(self._fd, 8192))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.EPIPE:  # older ones were overwritten
                    raise

    def close(self) -> None:
        os.close(self._fd)


def wait_for_quiet(machine: Machine) -> None:
    """Until the daemons have written nothing for two seconds: they go on for a while after a container has started."""
    deadline = time.monotonic() + 60
    now = [written(tree) for tree in machine.trees]
    while True:
        time.sleep(2)
        before, now = now, [written(tree) for tree in machine.trees]
        if now == before:
            return
        assert time.monotonic() < deadline, "its daemons never rest"


def written(tree: Path) -> dict[bytes, tuple[int, int]]:
    """When each file was written and changed, not when it was read."""
    return {path: node.times[1:] for path, node in survey(str(tree), _MOUNTED, deep=False).items()}


def test_a_run_leaves_no_trace(machine: Machine, tmp_path: Path) -> None:
    key, recipient = keygen(tmp_path)
    said: list[bytes] = []
    for attempt in range(_ATTEMPTS):
        wait_for_quiet(machine)
        events = machine.events()
        for tree in machine.trees:
            age_access_times(str(tree), survey(str(tree), _MOUNTED, deep=False))
        before = [survey(str(tree), _MOUNTED, deep=False) for tree in machine.trees]
        with contextlib.closing(Mounts(machine.pids)) as mounts, contextlib.closing(Kernel()) as kernel:
            assert machine.within is not None
            evidence = take(
                tmp_path / f"run-{attempt}", key, recipient,
                "--only", "containers", "--only", "logs", "--only", "live", within=machine.within,
            )  # fmt: skip
            said = kernel.lines()
            if mounts.changed():
                said.append(b"something was mounted or unmounted")
            if mounts.now() != mounts.before:
                said.append(b"what is mounted is not what was")
        assert [item for item in evidence.items if item.startswith(machine.container)], "it was not seen at all"
        assert [item for item in evidence.items if item.startswith("live/")], "it was not seen as it sees itself"
        time.sleep(0.5)
        after = [survey(str(tree), _MOUNTED, deep=False) for tree in machine.trees]
        for one, other in zip(before, after, strict=True):
            said += [
                b"%s: %s" % (path, repr((node.times, other[path].times)).encode())
                for path, node in one.items()
                if path in other and node.times != other[path].times
            ]
            said += [b"new or gone: " + path for path in one.keys() ^ other]
        assert sum(len(tree) for tree in before) > 100
        said += [line.encode() for line in machine.events()[len(events) :]]
        assert events, "there are none to compare with"
        if not said:
            return
    # Others make the kernel speak, too, or remove what is mounted in a copy of the machine's namespace, and a daemon
    # collects its garbage when it likes; not each time.
    raise AssertionError(said)


def test_a_mount_of_a_moment_would_be_seen(tmp_path: Path) -> None:
    """A test of the test: a mount that is gone before anybody looks."""
    keeper = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "--", "sleep", "1000"])
    try:
        own = os.readlink("/proc/self/ns/mnt")
        _until(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != own)
        _until(lambda: Path(f"/proc/{keeper.pid}/cmdline").read_bytes().startswith(b"sleep"))
        with contextlib.closing(Mounts([keeper.pid])) as mounts:
            assert not mounts.changed()
            script = f"mount -t tmpfs none {tmp_path} && umount {tmp_path}"
            command = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--", "sh", "-c", script]
            subprocess.run(command, check=True)
            assert mounts.changed()
            assert mounts.now() == mounts.before
    finally:
        _end(keeper)
