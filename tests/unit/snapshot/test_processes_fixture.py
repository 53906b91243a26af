"""The stream of processes over a /proc made of ordinary files: what hangs, vanishes, lies or is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import AcquirerError, Reason, Scope, State
from acquirers.host import Host, Mode
from acquirers.snapshot import Executables, Processes, notes, reader, stream
from acquirers.snapshot.holdings import Holdings
from acquirers.snapshot.notes import Step
from acquirers.snapshot.process_files import PF_KTHREAD
from acquirers.snapshot.reader import ProcessReader
from tests.unit.snapshot.helpers import (
    NO_SCOPE,
    QUICK,
    Remembered,
    children,
    content,
    fake_proc,
    fake_process,
    open_files,
    process,
    records,
    snapshot,
)

ID = "4f" * 32


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return fake_proc(tmp_path)


def test_the_shape_of_the_stream(host: Host) -> None:
    fake_process(host, 10)
    fake_process(host, 9)
    lines = snapshot(host)
    assert [line["type"] for line in lines] == ["snapshot", "process", "process", "end"]
    assert [line["pid"] for line in lines[1:3]] == [9, 10]
    assert lines[0]["pids"] == 2
    assert lines[0]["boot_time"] == 1_700_000_000
    assert {"wall_ns", "monotonic_ns", "boottime_ns"} <= set(lines[0]["clock"])
    assert lines[-1]["processes"] == 2
    assert lines[-1]["netns"] == 1


def test_a_record(host: Host) -> None:
    fake_process(host, 10, b"my ) (x\n")
    found = process(snapshot(host), 10)
    exe = os.stat("/bin/sh")
    assert found["comm"] == "my ) (x\n"
    assert (found["ppid"], found["threads"], found["uids"], found["groups"]) == (1, 1, [0, 0, 0, 0], [4, 27])
    assert (found["start_ticks"], found["started"]) == (500, 1_700_000_000 + 500 / os.sysconf("SC_CLK_TCK"))
    assert found["cpu_user"] == 7 / os.sysconf("SC_CLK_TCK")
    assert (found["rss"], found["status"]) == (50 * os.sysconf("SC_PAGE_SIZE"), "sleeping")
    assert (found["cmdline"], found["environ"]) == (["run", "it"], ["A=1", "B=2"])
    assert (found["exe"], found["cwd"], found["root"]) == ("/bin/sh", "/", "/")
    assert (found["exe_file"]["ino"], found["exe_deleted"]) == (exe.st_ino, False)
    assert found["ns"] == {"net": 77, "mnt": 10}
    assert found["fds"] == [{"fd": 0, "kind": "file", "target": "/dev/null"}]
    assert not {"denied", "vanished", "not_read"} & set(found)


@pytest.mark.parametrize(
    ("name", "missing", "kept"),
    [
        ("cmdline", "cmdline and environ", "exe_file"),
        ("environ", "cmdline and environ", "exe_file"),
        ("cgroup", "cgroup and mountinfo", "environ"),
        ("status", "stat, status and open files", "environ"),
    ],
)
def test_a_read_that_hangs_costs_its_own_step(host: Host, name: str, missing: str, kept: str) -> None:
    before, files = children(), open_files()
    fake_process(host, 9)
    here = fake_process(host, 10)
    (here / name).unlink()
    os.mkfifo(here / name)
    fake_process(host, 11)
    report, processes = Remembered(), Processes(QUICK)
    started = time.monotonic()
    lines = snapshot(host, report=report, processes=processes)
    assert time.monotonic() - started < 2
    found = process(lines, 10)
    assert found["not_read"] == [missing]
    assert kept in found
    assert "not_read" not in process(lines, 9)
    assert process(lines, 11)["environ"] == ["A=1", "B=2"]
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.STUCK, b"/proc/10")]
    assert "no answer for" in report.gaps[0].detail
    assert lines[-1]["not_read"] == 1
    processes.close()
    assert (children(), open_files()) == (before, files)


def test_a_process_that_hangs_everywhere_still_has_a_line(host: Host) -> None:
    here = fake_process(host, 10)
    (here / "stat").unlink()
    os.mkfifo(here / "stat")
    lines = snapshot(host, report=(report := Remembered()), processes=Processes(QUICK))
    assert process(lines, 10)["not_read"] == list(notes.SAYS.values())
    assert {gap.reason for gap in report.gaps} == {Reason.STUCK}


def test_after_too_many_that_hang_the_rest_keeps_what_cannot_hang(host: Host) -> None:
    for pid in range(10, 20):
        here = fake_process(host, pid)
        (here / "cmdline").unlink()
        os.mkfifo(here / "cmdline")
    lines = snapshot(host, report=(report := Remembered()), processes=Processes(QUICK))
    assert all(process(lines, pid)["state"] == "S" for pid in range(10, 20))
    assert process(lines, 19)["not_read"] == [notes.SAYS[step] for step in (Step.PLACE, Step.IMAGE, Step.MEMORY)]
    assert len(report.gaps) == len(report.of(Reason.STUCK))
    assert any("not tried" in gap.detail for gap in report.gaps)


def test_a_socket_table_that_hangs_does_not_take_the_others_along(host: Host) -> None:
    here = fake_process(host, 10)
    os.mkfifo(here / "net/tcp")
    (here / "net/udp").write_text("heading\n")
    lines = snapshot(host, report=(report := Remembered()), processes=Processes(QUICK))
    assert [line["family"] for line in lines if line["type"] == "sockets"] == ["udp"]
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.STUCK, b"/proc/10/net/tcp")]
    assert "tcp of network namespace 77" in report.gaps[0].detail


def test_a_process_that_is_gone_is_no_gap(host: Host) -> None:
    assert host.proc is not None
    (Path(os.fsdecode(host.proc)) / "10").mkdir()
    lines = snapshot(host, report=(report := Remembered()))
    assert process(lines, 10) == {"type": "process", "pid": 10, "vanished": True}
    assert lines[-1]["vanished"] == 1
    assert report.gaps == []


def test_a_process_that_ends_midway_keeps_what_was_read(host: Host) -> None:
    here = fake_process(host, 10)
    read = ProcessReader(os.open(here.parent, os.O_RDONLY))
    list(read((10, Step.BASIC)))
    for name in ("stat", "cgroup", "cmdline", "environ", "exe"):
        (here / name).unlink()
    parts = [part for step in (Step.PLACE, Step.IMAGE, Step.MEMORY) for part in read((10, step))]
    found = [stream._notes.decode(part.notes) for part in parts]
    assert [bytes(part.data) for part in parts] == [b"", b"", b""]
    assert [note.vanished for note in found] == [True, True, True]
    assert not any(note.gaps or note.denied for note in found)


def test_a_pid_that_was_given_away_is_not_continued(host: Host) -> None:
    """After a child was left behind, the next one must not put another process into the same record."""
    here = fake_process(host, 10, start=501)
    proc = os.open(here.parent, os.O_RDONLY)
    (part,) = ProcessReader(proc, expected=lambda _: 500)((10, Step.MEMORY))
    assert part.data == b""
    assert stream._notes.decode(part.notes).vanished
    (part,) = ProcessReader(proc, expected=lambda _: 501)((10, Step.MEMORY))
    assert b"environ" in part.data


def test_a_file_that_a_kernel_lacks_is_not_the_end_of_the_process(host: Host) -> None:
    here = fake_process(host, 10)
    (here / "cgroup").unlink()
    (here / "statm").unlink()
    found = process(snapshot(host, report=(report := Remembered())), 10)
    assert "vanished" not in found
    assert found["environ"] == ["A=1", "B=2"]
    assert found["comm"] == "x"
    assert report.gaps == []


def test_kernel_threads_and_zombies_are_no_gaps(host: Host) -> None:
    for pid, stat in ((2, {"flags": PF_KTHREAD}), (3, {"state": "Z"})):
        here = fake_process(host, pid, **stat)
        for name in ("exe", "cwd", "root", "fd/0"):
            (here / name).unlink()
    lines = snapshot(host, report=(report := Remembered()))
    assert process(lines, 2)["kernel_thread"] is True
    assert process(lines, 3)["state"] == "Z"
    assert all(process(lines, pid).keys().isdisjoint({"environ", "exe", "vanished"}) for pid in (2, 3))
    assert report.gaps == []


def test_another_process_mounted_over_this_one_is_not_believed(host: Host) -> None:
    """`mount --bind /proc/1 /proc/10`, which the detached clone of /proc sees through where there may be one."""
    here = fake_process(host, 10)
    (here / "stat").write_bytes((fake_process(host, 1) / "stat").read_bytes())
    found = process(snapshot(host, report=(report := Remembered())), 10)
    assert found == {"type": "process", "pid": 10, "covered": True}
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.NOT_CROSSED, b"/proc/10")]


def test_what_is_refused_is_counted_and_named_in_the_record(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path in {b"environ", b"fd"}:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    for pid in range(10, 40):
        fake_process(host, pid)
    monkeypatch.setattr(os, "open", refusing)
    lines = snapshot(host, report=(report := Remembered()))
    assert process(lines, 20)["denied"] == ["fd", "environ"]
    assert process(lines, 20)["cmdline"] == ["run", "it"]
    *named, rest = [gap.detail for gap in report.gaps]
    assert len(named) == 5
    assert re.fullmatch(r"pid 10 \(.+\): fd, environ: permission denied", named[0])
    assert rest == "25 more processes: environ of 25, fd of 25: permission denied"
    assert lines[-1]["denied"] == {"fd": 30, "environ": 30}


def test_arguments_and_environment_are_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_WORDS", 1000)
    here = fake_process(host, 10)
    (here / "cmdline").write_bytes(b"a" * 399 + b"\0")
    (here / "environ").write_bytes(b"b" * 5000)
    report = Remembered()
    found = process(snapshot(host, report=report), 10)
    assert found["cmdline"] == ["a" * 399]
    assert found["environ"] == ["b" * 600]
    assert found["environ_truncated"] is True
    assert [(gap.reason, gap.detail) for gap in report.gaps] == [(Reason.LIMIT, "environ is longer than 600 bytes")]


def test_open_files_are_bounded_and_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_FDS", 5)
    here = fake_process(host, 10)
    for fd in range(1, 12):
        (here / "fd" / str(fd)).symlink_to(f"socket:[{fd}]")
    found = process(snapshot(host, report=(report := Remembered())), 10)
    assert (len(found["fds"]), found["fd_count"]) == (5, 12)
    assert [(gap.reason, gap.detail) for gap in report.gaps] == [(Reason.LIMIT, "12 open files, 5 are listed")]


def test_the_largest_record_is_one_line_in_bounded_chunks(host: Host) -> None:
    here = fake_process(host, 10)
    (here / "environ").write_bytes(b"\xff" * (1 << 20))
    (item,) = (mine := Processes()).items(host, NO_SCOPE)
    chunks = [bytes(chunk) for chunk in item.read(Remembered())]
    mine.close()
    assert max(map(len, chunks)) <= 1 << 20
    assert len(process(records(b"".join(chunks)), 10)["environ_b64"]) > 1 << 20


def test_containers(host: Host) -> None:
    (fake_process(host, 10) / "cgroup").write_text(f"0::/system.slice/docker-{ID}.scope\n")
    behind = fake_process(host, 11)
    (behind / "cgroup").write_text("0::/\n")
    (behind / "mountinfo").write_text(
        f"1 0 8:1 /var/lib/docker/containers/{ID}/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"
    )
    fake_process(host, 12)
    lines = snapshot(host)
    assert (process(lines, 10)["container"], process(lines, 10)["placed_by"]) == (ID, "cgroup")
    assert (process(lines, 11)["container"], process(lines, 11)["placed_by"]) == (ID, "mountinfo")
    assert process(lines, 11)["cgroup"] == ["0::/"]
    assert "container" not in process(lines, 12)


def test_names_that_are_no_pids_are_passed_over(host: Host) -> None:
    assert host.proc is not None
    for name in ("self", "12a", "99999999999999", "1.5"):
        (Path(os.fsdecode(host.proc)) / name).mkdir()
    assert [line["type"] for line in snapshot(host)] == ["snapshot", "end"]


def test_a_malformed_stat_is_kept_as_it_stands(host: Host) -> None:
    here = fake_process(host, 10)
    (here / "stat").write_bytes(b"nonsense \xff")
    found = process(snapshot(host, report=(report := Remembered())), 10)
    assert found["stat_raw"] == "nonsense \\xff"
    assert found["environ"] == ["A=1", "B=2"]
    assert report.of(Reason.MALFORMED)


# -- probe and scope --------------------------------------------------------------------------------------------------


def test_a_mounted_disk_has_no_processes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    host = Host(Mode.DEAD, root=os.fsencode(tmp_path))
    processes = Processes()
    for acquirer in (processes, Executables(processes)):
        found = acquirer.probe(host, NO_SCOPE)
        assert (found.state, found.reason) == (State.ABSENT, "a mounted disk has no processes")


def test_scope_narrows_to_pids_and_says_which_there_are(host: Host) -> None:
    for pid in (10, 11, 12):
        fake_process(host, pid)
    scope = Scope(pids=(11, 12, 4711))
    found = Processes().probe(host, scope)
    assert found.matched == {"11", "12"}
    assert found.estimate == 2 * 4096
    lines = snapshot(host, scope)
    assert [line["pid"] for line in lines if line["type"] == "process"] == [11, 12]
    assert lines[0]["selected"] == [11, 12, 4711]


def test_a_container_does_not_narrow_the_snapshot(host: Host) -> None:
    fake_process(host, 10)
    scope = Scope(containers=(ID, "web"))
    assert Processes().probe(host, scope).matched == frozenset()
    assert len(snapshot(host, scope)) == 3


def test_an_empty_proc_is_unavailable_and_not_absent(host: Host) -> None:
    assert Processes().probe(host, NO_SCOPE).state is State.UNAVAILABLE
    missing = Host(Mode.HOST, proc=b"/nonexistent")
    assert Processes().probe(missing, NO_SCOPE).state is State.UNAVAILABLE
    with pytest.raises(AcquirerError):
        snapshot(missing)


def test_a_reader_that_stops_early_leaves_no_child(host: Host) -> None:
    for pid in range(10, 200):
        (fake_process(host, pid) / "environ").write_bytes(b"x" * 20_000)
    before, files = children(), open_files()
    (item,) = (mine := Processes()).items(host, NO_SCOPE)
    chunks = item.read(Remembered())
    assert json.loads(bytes(next(chunks)).split(b"\n")[0])["type"] == "snapshot"
    assert len(children() - before) == 1
    chunks.close()  # type: ignore[attr-defined]
    mine.close()
    assert (children(), open_files()) == (before, files)


# -- executables ------------------------------------------------------------------------------------------------------


def test_only_regular_files_are_opened_as_executables(host: Host, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for pid, target in ((10, "/dev/zero"), (11, str(tmp_path / "fifo")), (12, "/etc"), (13, "/nonexistent")):
        here = fake_process(host, pid)
        (here / "exe").unlink()
        (here / "exe").symlink_to(target)
    processes = Processes(QUICK)
    lines = snapshot(host, report=(report := Remembered()), processes=processes)
    assert processes.holdings.files() == []
    assert all("exe_file" not in process(lines, pid) for pid in (10, 11, 12, 13))
    assert report.gaps == []


def test_beyond_the_bound_executables_are_opened_when_they_are_hashed(host: Host, tmp_path: Path) -> None:
    for pid in range(10, 16):
        (tmp_path / f"e{pid}").write_bytes(b"%d" % pid)
        here = fake_process(host, pid)
        (here / "exe").unlink()
        (here / "exe").symlink_to(tmp_path / f"e{pid}")
    before = open_files()
    processes = Processes(holdings=Holdings(limit=2))
    snapshot(host, processes=processes)
    assert open_files() == before + 2
    (tmp_path / "e15").unlink()
    items = Executables(processes).items(host, NO_SCOPE)
    table = records(content(next(items), report := Remembered()))
    assert [line["sha256"] is not None for line in table] == [True] * 5 + [False]
    assert [(gap.reason, gap.where) for gap in report.gaps] == [(Reason.VANISHED, os.fsencode(tmp_path / "e15"))]
    assert list(items) == []
    assert open_files() == before
