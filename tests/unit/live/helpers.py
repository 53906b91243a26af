"""Containers without a runtime: a root and namespaces of their own, and what is read of them."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acquirers.base import Item, Scope
from acquirers.host import Host, Mode
from acquirers.live import LiveFiles
from tests.rigs.docker import make_rootfs
from tests.rigs.trees import Recorder

PIVOT = """
set -e
root=$1
mount --bind "$root" "$root"
cd "$root"
mount -t tmpfs none dev
mount -t proc none proc
{outside}
mkdir -p .old
pivot_root . .old
exec chroot . /bin/sh -ec '
  umount -l /.old
  rmdir /.old
  {inside}
  echo ready
  exec sleep 600'
"""


@dataclass
class Box:
    """A container that runs."""

    pid: int
    root: Path
    """What its root was made of, on the machine."""

    @property
    def seen(self) -> Path:
        """Its root as it sees it. Absolute links in it lead outside!"""
        return Path(f"/proc/{self.pid}/root")

    @property
    def mnt(self) -> int:
        return os.stat(f"/proc/{self.pid}/ns/mnt").st_ino

    @property
    def mounts(self) -> bytes:
        return Path(f"/proc/{self.pid}/mountinfo").read_bytes()


@contextmanager
def box(
    directory: Path, *, outside: str = "", inside: str = "", options: Sequence[str] = (), root: Path | None = None
) -> Iterator[Box]:
    """`outside` runs in its namespace before it has its root, in that root; `inside` runs in it."""
    if root is None:
        root = directory / "rootfs"
        make_rootfs(root)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", *options, "--"]
    script = PIVOT.replace("{outside}", outside).replace("{inside}", inside)
    process = subprocess.Popen(
        [*command, "sh", "-c", script, "sh", root], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line == b"ready\n", process.stderr.read()
        (pid,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        _wait_for(pid, b"sleep\n")
        ended, waiting = os.pidfd_open(pid), select.poll()
        waiting.register(ended, select.POLLIN)
        try:
            yield Box(pid, root)
        finally:
            process.kill()
            process.wait()
            assert waiting.poll(10_000)  # the kernel kills it after its parent
            os.close(ended)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


_JOIN = """
import ctypes, os, sys, time
fd = os.open(f'/proc/{sys.argv[1]}/ns/mnt', os.O_RDONLY)
assert ctypes.CDLL(None).setns(fd, 0x20000) == 0
os.close(fd)
if os.fork():
    os._exit(0)
"""


@contextmanager
def joined(one: Box, code: str) -> Iterator[int]:
    """A process that has come into a container from outside, and is no child of this one: its pid."""
    tail = "\nprint(os.getpid(), flush=True); time.sleep(600)"
    command = [sys.executable, "-c", _JOIN + code + tail, str(one.pid)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _wait_for(pid: int, comm: bytes) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_bytes() != comm:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class Read:
    """One item, read whole."""

    item: Item
    report: Recorder
    data: bytes
    files: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            self.files = {member.name: member for member in archive}

    def content(self, name: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

    @property
    def names(self) -> set[str]:
        """Of its files, absolute."""
        return {name.removeprefix("[root]") or "/" for name in self.files if name.startswith("[root]")}

    @property
    def gaps(self) -> list[tuple[str, bytes]]:
        return [(str(gap.reason), gap.where) for gap in self.report.gaps]

    def flagged(self, kind: str) -> list[bytes]:
        return [flag.where for flag in self.report.flags if flag.kind == kind]


def read(item: Item) -> Read:
    report = Recorder()
    chunks = []
    for chunk in item.read(report):
        assert len(chunk) <= 1 << 20
        chunks.append(bytes(chunk))
    return Read(item, report, b"".join(chunks))


def items_of(boxes: Sequence[Box], scope: Scope | None = None, *, remote: bool = False, **options: Any) -> list[Item]:
    """Those of these containers, in the order of the run. Other containers may run on the machine."""
    wanted = {one.mnt for one in boxes}
    live = LiveFiles(**options)
    found = []
    asked = scope or Scope(containers=tuple(f"mnt-{mnt}" for mnt in wanted), remote=remote)
    for item in live.items(Host(Mode.HOST), asked):
        namespaces = item.about["namespaces"]
        assert isinstance(namespaces, dict)
        if namespaces["mnt"] in wanted:
            found.append(item)
    return found


def read_box(one: Box, **options: Any) -> Read:
    (item,) = items_of([one], **options)
    return read(item)
