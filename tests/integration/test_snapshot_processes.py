"""`snapshot.processes` on processes that were planted: what a process says of itself, and what it would rather not."""

from __future__ import annotations

import base64
import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acquirers import syscalls
from acquirers.base import FlagKind, Reason, Scope, State
from acquirers.snapshot import Executables, Processes
from tests.unit.snapshot.helpers import (
    NO_SCOPE,
    Remembered,
    children,
    content,
    fake_proc,
    fake_process,
    here,
    in_child,
    libc,
    needs_root,
    open_files,
    own_mounts,
    process,
    records,
    running,
    snapshot,
)

if TYPE_CHECKING:
    from acquirers.host import Host

PRELUDE = "import ctypes, os, socket, sys, time\n"
WAIT = "\nprint('ready', flush=True); time.sleep(60)"


def only(*pids: int) -> Scope:
    return Scope(pids=pids)


def test_a_process_as_it_is() -> None:
    code = PRELUDE + "os.chdir('/usr'); f = open('/etc/hostname' if os.path.exists('/etc/hostname') else '/etc/passwd')"
    before = time.time()
    with running([sys.executable, "-c", code + WAIT, "one", "two"], ready=b"ready", env={"A": "1", "B": ""}) as child:
        found = process(snapshot(here(), only(child.pid)), child.pid)
        assert found["ppid"] == os.getpid()
        assert found["cmdline"][-2:] == ["one", "two"]
        assert {"A=1", "B="} <= set(found["environ"])
        assert (found["cwd"], found["root"]) == ("/usr", "/")
        assert os.path.samefile(found["exe"], sys.executable)
        assert abs(found["started"] - before) < 5
        assert found["uids"] == [os.getuid()] * 4
        assert (found["threads"], found["state"]) == (1, "S")
        assert found["ns"]["net"] == os.stat("/proc/self/ns/net").st_ino
        assert found["exe_file"]["ino"] == os.stat(sys.executable).st_ino
        targets = {entry["fd"]: entry for entry in found["fds"]}
        assert targets[0]["fd"] == 0
        assert targets[1]["kind"] == "pipe"
        assert found["fd_count"] == len(found["fds"]) == 4
        assert not {"denied", "vanished", "not_read"} & set(found)


def test_this_very_process_is_seen_and_named_as_the_agent() -> None:
    lines = snapshot(here(), only(os.getpid()))
    assert lines[0]["agent_pid"] == os.getpid()
    assert process(lines, os.getpid())["exe_deleted"] is False


def test_names_that_try_to_break_the_record() -> None:
    """A newline, a parenthesis and bytes that are no UTF-8 in comm, arguments and environment."""
    comm = b"a) R 1\n\xff("
    code = PRELUDE + f"ctypes.CDLL(None).prctl(15, {comm!r})"
    arguments = [os.fsencode(sys.executable), b"-c", (code + WAIT).encode(), b'\xfe\xff"\n}', b"\x01\xe2\x80\xa8"]
    with running(arguments, ready=b"ready", env={b"K\xff": b"\n{}"}) as child:
        lines = snapshot(here(), only(child.pid))
        found = process(lines, child.pid)
        assert base64.b64decode(found["comm_b64"]) == comm
        assert found["comm"] == "a) R 1\n\\xff("
        assert (found["ppid"], found["state"]) == (os.getpid(), "S")
        true = base64.b64decode(found["cmdline_b64"])
        assert true == Path(f"/proc/{child.pid}/cmdline").read_bytes()
        assert true.split(b"\0")[3:5] == arguments[3:]
        assert b"K\xff=\n{}\0" in base64.b64decode(found["environ_b64"])
        assert [line["type"] for line in lines].count("process") == 1


def test_open_files_with_no_name_any_more(tmp_path: Path) -> None:
    gone, odd, linked = tmp_path / "gone\n", tmp_path / "odd (deleted)", tmp_path / "linked"
    code = (
        f"g = open({str(gone)!r}, 'w+'); g.write('x' * 5000); g.flush(); os.unlink({str(gone)!r})\n"
        f"o = open({str(odd)!r}, 'w')\n"
        f"l = open({str(linked)!r}, 'w'); os.link({str(linked)!r}, {str(linked)!r} + '2'); os.unlink({str(linked)!r})\n"
        "m = os.memfd_create('hidden'); os.write(m, b'y' * 70)\n"
        "e = __import__('select').epoll()"
    )
    with running([sys.executable, "-c", PRELUDE + code + WAIT], ready=b"ready") as child:
        found = {entry["target"]: entry for entry in process(snapshot(here(), only(child.pid)), child.pid)["fds"]}
        deleted = found[f"{gone} (deleted)"]
        assert (deleted["kind"], deleted["size"], deleted["nlink"], deleted["pos"]) == ("deleted", 5000, 0, 5000)
        assert int(deleted["flags"], 8) & os.O_RDWR
        memfd = found["/memfd:hidden (deleted)"]
        assert (memfd["kind"], memfd["size"]) == ("memfd", 70)
        assert (found[str(odd)]["kind"], found[str(odd)]["nlink"]) == ("file", 1)
        assert (found[f"{linked} (deleted)"]["kind"], found[f"{linked} (deleted)"]["nlink"]) == ("file", 1)
        assert found["anon_inode:[eventpoll]"]["kind"] == "anon"


def test_processes_that_come_and_go_are_no_gaps() -> None:
    churn = (
        "import os\nprint('ready', flush=True)\nwhile True:\n p = os.fork()\n if not p: os._exit(0)\n os.waitpid(p, 0)"
    )
    with running([sys.executable, "-c", churn], ready=b"ready"):
        for _ in range(3):
            report = Remembered()
            lines = snapshot(here(), report=report)
            assert {gap.reason for gap in report.gaps} <= {Reason.DENIED}
            assert lines[-1]["processes"] == lines[0]["pids"]


def test_zombies_and_kernel_threads(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        report = Remembered()
        lines = snapshot(here(), Scope(pids=(2, child.pid)), report)
        found = process(lines, child.pid)
        assert (found["state"], found["status"]) == ("Z", "zombie")
        assert "vanished" not in found
        assert report.gaps == []
        if any(line["type"] == "process" and line["pid"] == 2 for line in lines):
            assert process(lines, 2).get("kernel_thread") is True
    finally:
        child.wait()


def proc_mounts() -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - proc " in line]


def test_nothing_is_left_behind() -> None:
    """No child, no descriptor, no mount: the detached clone of /proc is gone with its descriptor."""
    host = here()
    before, files, mounts = children(), open_files(), proc_mounts()
    snapshot(host)
    assert (children(), open_files()) == (before, files)
    assert proc_mounts() == mounts


# -- executables ------------------------------------------------------------------------------------------------------


def executables(
    processes: Processes, scope: Scope = NO_SCOPE, host: Host | None = None
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The table, and the content items by path, with an empty report for each."""
    table: list[dict[str, Any]] = []
    contents = {}
    for item in Executables(processes).items(host or here(), scope):
        report = Remembered()
        data = content(item, report)
        assert report.gaps == []
        assert report.flags == []
        if item.path == "snapshot/executables.jsonl":
            table = records(data)
        else:
            contents[item.path] = data
    return table, contents


def sha256(path: str | Path) -> str:
    return subprocess.run(["sha256sum", path], stdout=subprocess.PIPE, check=True).stdout.split()[0].decode()


def test_a_deleted_executable_is_held_hashed_and_kept_whole(tmp_path: Path) -> None:
    program = tmp_path / "im\nplant"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    true, size = sha256(shutil.which("sleep") or "/bin/sleep"), program.stat().st_size
    host, before = here(), open_files()
    processes = Processes()
    with running([program, "60"]) as child, running([program, "61"]) as other:
        program.unlink()
        found = process(snapshot(host, only(child.pid, other.pid), processes=processes), child.pid)
        assert found["exe"] == f"{program} (deleted)"
        assert found["exe_deleted"] is True
        assert open_files() == before + 1
        pids = sorted([child.pid, other.pid])
    # Both have ended: only the descriptor keeps the file.
    table, contents = executables(processes, host=host)
    (line,) = table
    assert (line["sha256"], line["size"], line["deleted"], line["pids"]) == (true, size, True, pids)
    assert line["item"] == f"snapshot/executables/{pids[0]}-im_plant.bin"
    ((path, data),) = contents.items()
    assert path == line["item"]
    assert data == Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    assert open_files() == before


def test_a_program_that_never_had_a_name(tmp_path: Path) -> None:
    program = Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    memfd = os.memfd_create("kworker")
    os.write(memfd, program)
    processes = Processes()
    path = f"/proc/self/fd/{memfd}"
    try:
        with running(["[kworker/0:1]", "60"], executable=path, pass_fds=[memfd]) as child:
            os.close(memfd)
            found = process(snapshot(here(), only(child.pid), processes=processes), child.pid)
            assert found["exe"] == "/memfd:kworker (deleted)"
            assert "kernel_thread" not in found
            assert found["cmdline"] == ["[kworker/0:1]", "60"]
    finally:
        processes_files = processes.holdings.files()
    assert [held.memfd for held in processes_files] == [True]
    table, contents = executables(processes)
    assert table[0]["memfd"] is True
    assert list(contents.values()) == [program]


def test_an_executable_that_is_deleted_after_the_snapshot_is_kept_too(tmp_path: Path) -> None:
    """Taking memory lasts minutes: time enough to remove what was seen."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    processes = Processes()
    with running([program, "60"]) as child:
        assert process(snapshot(here(), only(child.pid), processes=processes), child.pid)["exe_deleted"] is False
        program.unlink()
    table, contents = executables(processes)
    assert (table[0]["path"], table[0]["deleted"], table[0]["nlink"]) == (str(program), True, 0)
    assert len(contents) == 1


def test_one_program_is_hashed_once(tmp_path: Path) -> None:
    sleep = shutil.which("sleep") or "/bin/sleep"
    processes = Processes()
    with running([sleep, "60"]) as one, running([sleep, "60"]) as two:
        snapshot(here(), only(one.pid, two.pid), processes=processes)
        table, contents = executables(processes)
        assert [line["pids"] for line in table] == [sorted([one.pid, two.pid])]
        assert table[0]["sha256"] == sha256(sleep)
        assert contents == {}


def test_without_a_snapshot_what_runs_now_is_opened(tmp_path: Path) -> None:
    """A resumed run may have the first item already, and does not read it again."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with running([program, "60"]) as child:
        program.unlink()
        table, contents = executables(Processes(), only(child.pid))
        assert [line["pids"] for line in table] == [[child.pid]]
        assert [path.rpartition("/")[2] for path in contents] == [f"{child.pid}-program.bin"]


def test_descriptors_are_let_go_when_nobody_reads_them() -> None:
    host, before = here(), open_files()
    processes = Processes()
    snapshot(host, only(os.getpid()), processes=processes)
    assert open_files() == before + 1
    items = Executables(processes).items(host, NO_SCOPE)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert open_files() == before


def test_hashing_moves_no_access_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    processes = Processes()
    with running([program, "60"]) as child:
        snapshot(here(), only(child.pid), processes=processes)
        os.utime(program, ns=(1_000, 2_000))  # older than the last change: any ordinary read would move it
        executables(processes)
        assert program.stat().st_atime_ns == 1_000


# -- without privilege ------------------------------------------------------------------------------------------------


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    libc().prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: what a program of nobody's own is


@needs_root
def test_without_root_what_is_refused_is_named_and_counted() -> None:
    with running(["sleep", "60"]) as roots, running(["sleep", "61"], user=65534, group=65534, extra_groups=[]) as own:

        def look() -> object:
            become_nobody()
            report = Remembered()
            host = here()
            found = Processes().probe(host, NO_SCOPE)
            assert found.state is State.AVAILABLE
            assert found.reason.startswith("not root")
            lines = snapshot(host, Scope(pids=(roots.pid, own.pid)), report)
            return [process(lines, roots.pid), process(lines, own.pid), [[g.reason, g.detail] for g in report.gaps]]

        theirs, mine, gaps = in_child(look)
    assert set(theirs["denied"]) == {"exe", "cwd", "root", "ns", "fd", "executable", "environ"}
    assert (theirs["cmdline"], theirs["uids"], theirs["comm"]) == (["sleep", "60"], [0] * 4, "sleep")
    assert "denied" not in mine
    assert mine["environ"]
    assert mine["ns"]["net"]
    assert gaps == [["denied", f"pid {theirs['pid']} (sleep): {', '.join(theirs['denied'])}: permission denied"]]


@needs_root
def test_without_root_a_moved_access_time_is_flagged(tmp_path: Path) -> None:
    """O_NOATIME is for owners. The temporary directory of a test is root's alone, so this one is made beside it."""
    place = Path(f"/tmp/impound-atime-{os.getpid()}")
    place.mkdir()
    try:
        program = place / "program"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
        place.chmod(0o755)
        with running([program, "60"], user=65534, group=65534, extra_groups=[]) as child:
            os.utime(program, ns=(1_000, 2_000))

            def look() -> object:
                become_nobody()
                processes, report = Processes(), Remembered()
                snapshot(here(), only(child.pid), processes=processes)
                for item in Executables(processes).items(here(), NO_SCOPE):
                    content(item, report)
                return [[str(flag.kind), os.fsdecode(flag.where)] for flag in report.flags]

            flags = in_child(look)
        moved = program.stat().st_atime_ns != 1_000
        assert flags == ([[str(FlagKind.ATIME_MOVED), str(program)]] if moved else [])
    finally:
        shutil.rmtree(place)


@needs_root
def test_processes_that_proc_does_not_list_are_a_gap() -> None:
    """`hidepid=invisible`: what is not listed cannot be counted, but that there is more can be said."""

    def look() -> object:
        own_mounts()
        assert libc().mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), b"hidepid=2") == 0
        as_root = Processes().probe(here(), NO_SCOPE).reason
        become_nobody()
        report = Remembered()
        lines = snapshot(here(), NO_SCOPE, report)
        return [as_root, Processes().probe(here(), NO_SCOPE).reason, lines[0]["pids"], report.gaps[0].detail]

    as_root, reason, pids, gap = in_child(look)
    assert as_root == ""
    assert reason == gap == "/proc does not list the processes of other users (hidepid=invisible)"
    assert pids < 5


# -- hidden behind a mount --------------------------------------------------------------------------------------------


@needs_root
def test_a_process_that_is_hidden_behind_a_mount_is_seen(tmp_path: Path) -> None:
    """ATT&CK T1564.013: `mount --bind /empty /proc/<pid>`. The detached clone of /proc lies beneath such mounts."""
    with running(["sleep", "60"]) as child:

        def look() -> object:
            own_mounts()
            point = b"/proc/%d" % child.pid
            assert libc().mount(os.fsencode(tmp_path), point, None, ctypes.c_ulong(0x1000), None) == 0  # MS_BIND
            assert not os.path.exists(point + b"/stat")
            report = Remembered()
            found = process(snapshot(here(), only(child.pid), report), child.pid)
            covered = process(_without_clone(child.pid), child.pid)
            return [found, [[str(flag.kind), os.fsdecode(flag.where)] for flag in report.flags], covered]

        found, flags, covered = in_child(look)
    assert found["cmdline"] == ["sleep", "60"]
    assert flags == [["finding", f"/proc/{child.pid}"]]
    assert covered == {"type": "process", "pid": child.pid, "covered": True}


def _without_clone(pid: int) -> list[dict[str, Any]]:
    """Where the kernel refuses the clone, what is mounted over a process is not taken for the process."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "open_tree_clone", refuse)
        report = Remembered()
        lines = snapshot(here(), only(pid), report)
    assert [gap.reason for gap in report.gaps] == [Reason.NOT_CROSSED]
    return lines


# -- size -------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_processes(tmp_path: Path) -> None:
    host = fake_proc(tmp_path)
    large = tmp_path / "environ"
    large.write_bytes(b"A=" + b"x" * 1_000_000 + b"\0")
    for pid in range(10, 210):
        mine = fake_process(host, pid)
        (mine / "environ").unlink()
        (mine / "environ").hardlink_to(large)

    def resident(pid: int) -> int:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def peaks() -> object:
        processes, mine, theirs, size = Processes(), [], [], 0
        (item,) = processes.items(host, NO_SCOPE)
        for chunk in item.read(Remembered()):
            size += len(chunk)
            mine.append(resident(os.getpid()))
            theirs += [resident(pid) for pid in children()]
        return [size, max(mine[20:]) - mine[20], max(theirs[20:]) - theirs[20]]

    size, mine, theirs = in_child(peaks)
    assert size > 200_000_000
    assert mine < 16 << 20
    assert theirs < 16 << 20
