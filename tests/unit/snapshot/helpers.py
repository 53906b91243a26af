"""What the tests of the snapshot share: a report that remembers, and /proc trees and processes made for a test."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from acquirers.base import Flag, Gap, Item, Member, Reason, Scope
from acquirers.host import Host, Mode
from acquirers.snapshot import Processes
from acquirers.snapshot.watch import Patience

P = ParamSpec("P")
Test = TypeVar("Test", bound=Callable[..., object])

QUICK = Patience(first=0.3, later=0.1, generous=2, most=4)
NO_SCOPE = Scope()


def may_administer() -> bool:
    """CAP_SYS_ADMIN, which root in an ordinary container has not."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> 21 & 1)


def needs_root(test: Test) -> Test:
    """For what plants namespaces, mounts and other users' processes."""
    marked: Test = pytest.mark.root(pytest.mark.skipif(not may_administer(), reason="needs root")(test))
    return marked


class Remembered:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []

    def member(self, member: Member) -> None:
        raise AssertionError("nothing here has members")

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)

    def of(self, reason: Reason) -> list[Gap]:
        return [gap for gap in self.gaps if gap.reason is reason]


def content(item: Item, report: Remembered | None = None) -> bytes:
    return b"".join(bytes(chunk) for chunk in item.read(report or Remembered()))


def records(data: bytes) -> list[dict[str, Any]]:
    """Every line is one JSON object, and the text is UTF-8."""
    assert data.endswith(b"\n")
    return [json.loads(line.decode()) for line in data.split(b"\n")[:-1]]


def snapshot(
    host: Host, scope: Scope = NO_SCOPE, report: Remembered | None = None, processes: Processes | None = None
) -> list[dict[str, Any]]:
    """What `snapshot.processes` yields, read whole; executables are let go unless `processes` is given."""
    mine = processes or Processes()
    try:
        (item,) = mine.items(host, scope)
        return records(content(item, report))
    finally:
        if processes is None:
            mine.close()


def here() -> Host:
    return Host(Mode.HOST)


def process(lines: Sequence[dict[str, Any]], pid: int) -> dict[str, Any]:
    (found,) = [line for line in lines if line["type"] == "process" and line["pid"] == pid]
    return found


# -- real processes ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    arguments: Sequence[str | bytes | Path], *, ready: bytes = b"", **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is killed and waited for. With `ready`, waits until it has written that on its standard output."""
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE if ready else subprocess.DEVNULL, **options)
    try:
        if ready:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == ready
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def in_child(function: Callable[[], object]) -> Any:
    """What `function` returns when a fork of this process calls it: for what a test must not do to itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = function()
        except BaseException:  # noqa: BLE001 - told to the test, which fails with it
            answer = {"failed": traceback.format_exc()}
        with open(writing, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    answer = json.loads(text)
    assert not (isinstance(answer, dict) and "failed" in answer), answer["failed"]
    return answer


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """What this process mounts from now on, only this process sees; it is gone with it."""
    assert libc().unshare(0x00020000) == 0  # CLONE_NEWNS
    assert libc().mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None) == 0  # MS_REC | MS_PRIVATE


def in_own_mounts(test: Callable[P, None]) -> Callable[P, None]:
    """The test runs in a fork with mounts of its own.

    However it ends, nothing stays mounted in a temporary directory: whoever clears those removes what is mounted there.
    """

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        def call() -> None:
            own_mounts()
            test(*args, **kwargs)

        in_child(call)

    return wrapped


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def children() -> set[int]:
    """The children of this process, zombies included."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= set(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- a /proc tree made of ordinary files -------------------------------------------------------------------------------

STATUS = b"Name:\tx\nUmask:\t0022\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t4 27 \nNSpid:\t%d\nCapEff:\t00ff\n"


def stat_line(pid: int, comm: bytes = b"x", *, state: str = "S", flags: int = 0, start: int = 500) -> bytes:
    rest = f"{state} 1 {pid} {pid} 0 -1 {flags} 0 0 0 0 7 3 0 0 20 0 1 0 {start} 4096 10 18446744073709551615"
    return b"%d (%s) %s" % (pid, comm, rest.encode()) + b" 0" * 27 + b"\n"


def fake_proc(root: Path) -> Host:
    """A machine whose /proc is an ordinary directory, and on which nothing is mounted."""
    proc = root / "proc"
    proc.mkdir()
    (root / "etc").mkdir()
    (proc / "stat").write_bytes(b"cpu 0\nbtime 1700000000\n")
    return Host(Mode.HOST, root=os.fsencode(root), proc=os.fsencode(proc))


def fake_process(host: Host, pid: int, comm: bytes = b"x", **stat: Any) -> Path:
    assert host.proc is not None
    here = Path(os.fsdecode(host.proc)) / str(pid)
    for name in ("ns", "fd", "fdinfo", "net"):
        (here / name).mkdir(parents=True)
    (here / "stat").write_bytes(stat_line(pid, comm, **stat))
    (here / "statm").write_bytes(b"100 50 10 1 0 20 0\n")
    (here / "status").write_bytes(STATUS % pid)
    (here / "cgroup").write_bytes(b"0::/user.slice\n")
    (here / "mountinfo").write_bytes(b"")
    (here / "cmdline").write_bytes(b"run\0it\0")
    (here / "environ").write_bytes(b"A=1\0B=2\0")
    (here / "exe").symlink_to("/bin/sh")
    (here / "cwd").symlink_to("/")
    (here / "root").symlink_to("/")
    (here / "net/dev").write_bytes(b"")
    (here / "ns/net").symlink_to("net:[77]")
    (here / "ns/mnt").symlink_to(f"mnt:[{pid}]")
    (here / "fd/0").symlink_to("/dev/null")
    return here
