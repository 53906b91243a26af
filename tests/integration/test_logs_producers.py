"""Logs of other real producers: conmon (podman's `k8s-file`, which is CRI) and journald."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.logs import RuntimeLogs
from agent.analysis.logs import timeline
from agent.analysis.opening import new_output
from tests.rigs.docker import make_rootfs
from tests.rigs.trees import Recorder
from tests.support.log_files import items

pytestmark = pytest.mark.root

JOURNALD = "/lib/systemd/systemd-journald"
MACHINE = "0123456789abcdef" * 2


def missing(*programs: str) -> str:
    if os.geteuid() != 0:
        return "needs root"
    gone = [name for name in programs if shutil.which(name) is None and not Path(name).exists()]
    return f"needs {gone[0].rpartition('/')[2]}" if gone else ""


NO_PODMAN = missing("podman", "conmon", "runc", "busybox")
NO_JOURNALD = missing("journalctl", "unshare", "nsenter", JOURNALD)


@contextmanager
def podman() -> Iterator[list[str]]:
    """The beginning of a command line that has nothing to do with any other podman of the machine."""
    directory = Path(tempfile.mkdtemp(prefix="private-podman-"))  # short: sockets lie below
    command = [
        "podman", "--root", str(directory / "root"), "--runroot", str(directory / "run"),
        "--tmpdir", str(directory / "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
        "--events-backend", "none", "--runtime", "runc",
    ]  # fmt: skip
    try:
        yield command
    finally:
        subprocess.run([*command, "rm", "--force", "--all"], capture_output=True, timeout=60, check=False)
        left = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f"{directory}/" in line]
        for point in reversed(left):
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
        assert f"{directory}/" not in Path("/proc/mounts").read_text()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.skipif(bool(NO_PODMAN), reason=NO_PODMAN or "runs")
def test_what_conmon_writes(tmp_path: Path) -> None:
    make_rootfs(tmp_path / "rootfs")
    image = subprocess.run(["tar", "-C", tmp_path / "rootfs", "-c", "."], capture_output=True, check=True).stdout
    script = (
        "echo one; head -c 40000 /dev/zero | tr '\\0' x; echo; echo error >&2;"
        " printf '\\377 \\033[31m\\n\\n'; printf 'no newline'"
    )
    with podman() as command:
        subprocess.run([*command, "import", "-", "base:1"], input=image, capture_output=True, check=True, timeout=60)
        subprocess.run(
            [
                *command, "run", "--name", "chatter", "--network", "none", "--log-driver", "k8s-file",
                "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "base:1", "sh", "-c", script,
            ],
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        (log,) = Path(command[2]).glob("vfs-containers/*/userdata/ctr.log")
        content, identity = log.read_bytes(), log.parts[-3]
    run = items({f"containers/podman/{identity[:12]}-chatter.tar": {f"[root]{log}": content}})
    with new_output(str(tmp_path / "out")) as fd:
        made = timeline.export(run, fd, ["chatter"])
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == f"{identity[:12]}-chatter.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted((line["stream"], line["line"], line.get("unfinished", False)) for line in lines) == [
        ("stderr", "error", False),
        ("stdout", "", False),
        ("stdout", "\\xff \x1b[31m", False),
        ("stdout", "no newline", True),
        ("stdout", "one", False),
        ("stdout", "x" * 40_000, False),
    ]
    assert next(line["partial_joined"] for line in lines if len(line["line"]) == 40_000) > 1
    assert (made.counts.damaged, made.counts.unfinished) == (0, 1)
    assert content.count(b"\n") == sum(line["partial_joined"] for line in lines)


@contextmanager
def journald(log: Path) -> Iterator[int]:
    """A journald of its own, in a mount namespace of its own, that keeps its files in `log`."""
    (log / MACHINE).mkdir(parents=True)
    config = "[Journal]\nStorage=persistent\nReadKMsg=no\nAudit=no\n"
    script = (
        "mount -t tmpfs t /run && mount -t tmpfs t /etc && mkdir -p /run/systemd/journal /etc/systemd /var/log/journal"
        f" && echo {MACHINE} > /etc/machine-id && printf '%s' \"$2\" > /etc/systemd/journald.conf"
        f' && touch /run/systemd/journal/flushed && mount --bind "$1" /var/log/journal && exec {JOURNALD}'
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(log), config],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        # Through its root: the socket lies in a namespace that nobody else sees.
        while not Path(f"/proc/{process.pid}/root/run/systemd/journal/socket").exists():
            assert process.poll() is None, "journald did not start"
            assert time.monotonic() < deadline, "journald did not start"
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(bool(NO_JOURNALD), reason=NO_JOURNALD or "runs")
def test_a_journal_that_is_being_written_is_taken_raw_and_opens(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "etc").mkdir(parents=True)
    log = disk / "var/log/journal"
    identity = "a1" * 32
    with journald(log) as pid, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        directory = os.open(f"/proc/{pid}/root/run/systemd/journal", os.O_PATH)
        sender.connect(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
        for number in range(200):
            sender.send(b"MESSAGE=line %d\nCONTAINER_ID_FULL=%s\nPRIORITY=6\n" % (number, identity.encode()))
        deadline = time.monotonic() + 20
        while len(told(log)) < 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        found = {item.path: item for item in RuntimeLogs().items(Host(Mode.DEAD, os.fsencode(disk)), Scope())}
        assert list(found) == ["logs/journal.tar"]
        report = Recorder()
        with (tmp_path / "journal.tar").open("wb") as file:
            for chunk in found["logs/journal.tar"].read(report):
                file.write(chunk)
    assert report.gaps == []
    with tarfile.open(tmp_path / "journal.tar") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    opened = told(tmp_path / "out/[root]/var/log/journal")
    assert [line["MESSAGE"] for line in opened] == [f"line {number}" for number in range(200)]


def told(directory: Path) -> list[dict[str, str]]:
    """What `journalctl` reads of the container in raw files."""
    arguments = ["--directory", str(directory), "--output", "json", "--no-pager"]
    done = subprocess.run(
        ["journalctl", *arguments, f"CONTAINER_ID_FULL={'a1' * 32}"], capture_output=True, check=False, timeout=30
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
