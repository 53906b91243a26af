"""Logs without a name that are still held open, of real processes, and of a /proc made by hand."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Reason, Scope, State
from acquirers.host import Host, Mode
from acquirers.logs import RuntimeLogs, unlinked
from acquirers.logs.unlinked import Archive, Search, search
from tests.rigs.trees import Recorder

CONTAINER = "a1" * 32


@contextmanager
def holding(directory: Path, comm: str, *files: Path) -> Iterator[int]:
    """A process called `comm` that holds the files open, which are then removed."""
    program = directory / comm
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    fds = [os.open(path, os.O_RDWR | os.O_APPEND) for path in files]
    process = subprocess.Popen(
        [program, "1000"], pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for fd in fds:
        os.close(fd)
    for path in files:
        path.unlink()
    try:
        # The parent is told of an exec a moment before the kernel gives the process its new name.
        while Path(f"/proc/{process.pid}/comm").read_text().rstrip("\n") != comm[:15]:
            time.sleep(0.001)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def of(pid: int, found: Search) -> Search:
    return Search(
        [file for file in found.files if file.pid == pid], [gap for gap in found.gaps if b"%d" % pid in gap.where]
    )


def read(host: Host, found: Search) -> tuple[dict[str, bytes], Recorder]:
    report = Recorder()
    data = b"".join(bytes(chunk) for chunk in Archive(host, found)(report))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}, report


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / f"containers/{CONTAINER}/{CONTAINER}-json.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"log":"gone\\n"}\n' * 10_000)
    return path


def test_a_log_that_its_daemon_still_holds(tmp_path: Path, log: Path) -> None:
    name = tmp_path / os.fsdecode(b"not utf-8 \xff\n")
    name.write_bytes(b"odd")
    host = Host(Mode.HOST)
    stat = log.stat()
    with holding(tmp_path, "dockerd", log, name) as pid:
        found = of(pid, search(host))
        assert [(file.comm, file.path, file.size) for file in found.files] == [
            (b"dockerd", os.fsencode(log), 170_000),
            (b"dockerd", os.fsencode(name), 3),
        ]
        files, report = read(host, found)
        availability = RuntimeLogs().probe(host, Scope())
        assert availability.state is State.AVAILABLE
        assert "logs/deleted.tar" in [item.path for item in RuntimeLogs().items(host, Scope())]
    index = [json.loads(line) for line in files["deleted/index.jsonl"].splitlines()]
    assert [set(files) - {"deleted/index.jsonl"}] == [{one["member"] for one in index}]
    first, second = index
    assert files[first["member"]] == b'{"log":"gone\\n"}\n' * 10_000
    assert (first["path"], first["ino"], first["pid"], first["comm"]) == (str(log), stat.st_ino, pid, "dockerd")
    assert int(first["flags"], 8) & os.O_APPEND
    assert files[second["member"]] == b"odd"
    assert second["path"].endswith("not utf-8 \\xff\n")
    assert "path_b64" in second
    assert report.gaps == []
    assert {flag.kind for flag in report.flags} <= {FlagKind.ATIME_MOVED}
    assert [member.path for member in report.members] == [f"/proc/{pid}/fd/{one['fd']}".encode() for one in index]


def test_each_file_once_however_many_hold_it(tmp_path: Path, log: Path) -> None:
    host = Host(Mode.HOST)
    other = tmp_path / "other"
    other.hardlink_to(log)
    with holding(tmp_path, "containerd-shim-runc-v2", log) as one, holding(tmp_path, "conmon", other) as two:
        found = [file for file in search(host).files if file.pid in {one, two}]
    assert len(found) == 1


def test_what_writes_no_logs_is_left_to_the_memory_of_processes(tmp_path: Path, log: Path) -> None:
    with holding(tmp_path, "nginx", log) as pid:
        assert of(pid, search(Host(Mode.HOST))).files == []


def test_what_is_closed_meanwhile_is_a_gap(tmp_path: Path, log: Path) -> None:
    host = Host(Mode.HOST)
    with holding(tmp_path, "kubelet", log) as pid:
        found = of(pid, search(host))
    files, report = read(host, found)
    assert set(files) == {"deleted/index.jsonl"}
    assert [(gap.reason, gap.where, gap.missing) for gap in report.gaps] == [
        (Reason.VANISHED, found.files[0].where, 170_000)
    ]


def test_a_mounted_disk_has_no_open_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert search(Host(Mode.DEAD, os.fsencode(tmp_path))) == Search()


class Proc:
    """A /proc made by hand with one dockerd, whose descriptors lead where a test says."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "proc"
        for name in ("fd", "fdinfo"):
            (self.path / "7" / name).mkdir(parents=True)
        (self.path / "7/comm").write_text("dockerd\n")
        self.mountinfo = ""
        (directory / "etc").mkdir()
        self.root = directory

    def link(self, number: int, target: str, mount: int) -> None:
        (self.path / f"7/fd/{number}").symlink_to(target)
        (self.path / f"7/fdinfo/{number}").write_text(f"pos:\t5\nflags:\t02002\nmnt_id:\t{mount}\nino:\t1\n")

    def host(self) -> Host:
        (self.path / "7/mountinfo").write_text(self.mountinfo)
        return Host(Mode.HOST, os.fsencode(self.root), os.fsencode(self.path))


def test_nothing_is_asked_of_a_filesystem_that_may_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = Proc(tmp_path)
    proc.mountinfo = (
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:40 / /efs rw - nfs4 127.0.0.1:/ rw\n"
        "23 21 0:41 / /fuse rw - fuse.s3 s3 rw\n"
    )
    for number, (target, mount) in enumerate(
        [
            ("/efs/x.log (deleted)", 22),
            ("/fuse/\x1b.log (deleted)", 23),
            ("/x (deleted)", 99),
            ("/memfd:a (deleted)", 21),
        ]
    ):
        proc.link(number, target, mount)
    real = os.open

    def opening(path: bytes, flags: int, *args: int, **named: int) -> int:
        assert not flags & os.O_PATH or not os.fsencode(path).isdigit()
        return real(path, flags, *args, **named)

    host = proc.host()
    monkeypatch.setattr("acquirers.logs.unlinked.os.open", opening)
    found = search(host)
    assert found.files == []
    assert sorted((gap.reason, gap.where) for gap in found.gaps) == [
        (Reason.NOT_CROSSED, b"/proc/7/fd/%d" % number) for number in (0, 1, 2)
    ]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    proc.mountinfo = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    os.mkfifo(tmp_path / "fifo (deleted)")
    (tmp_path / "directory (deleted)").mkdir()
    (tmp_path / "file (deleted)").write_text("bears such a name")
    for number, name in enumerate(("fifo", "directory", "file", "gone")):
        proc.link(number, f"{tmp_path}/{name} (deleted)", 21)
    found = search(proc.host())
    assert [(file.fd, file.position, file.flags) for file in found.files] == [(2, 5, "02002")]
    assert found.gaps == []


def test_a_daemon_with_open_files_without_end_is_looked_at_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = Proc(tmp_path)
    proc.mountinfo = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    for number in range(20):
        (tmp_path / f"{number} (deleted)").touch()
        proc.link(number, f"{tmp_path}/{number} (deleted)", 21)
    monkeypatch.setattr(unlinked, "MAX_FOUND", 5)
    found = search(proc.host())
    assert len(found.files) == 5
    assert [gap.reason for gap in found.gaps] == [Reason.LIMIT]
