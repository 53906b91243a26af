"""What stands in the core of a real process: what is present, and nothing that was not."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acquirers.base import Member, Scope
from acquirers.memory.process import ProcessMemory
from tests.unit.memory.process.helpers import (
    HERE,
    PAGE,
    PRELUDE,
    Core,
    Remembered,
    core_of,
    items,
    pagemap,
    python,
    read,
    resident,
    running,
    state,
    table,
    taken,
)


def test_what_is_present_is_there_as_it_is() -> None:
    with python('tell(os.getpid(), area(1 << 20, b"KNOWN CONTENT 42 "), area(1 << 16, b"HIDDEN", prot=0))') as target:
        report = Remembered()
        core = core_of(target, report)
        known, hidden = target.said
        assert core.at(known, 1 << 20) == (b"KNOWN CONTENT 42 " * 70_000)[: 1 << 20]
        assert core.at(hidden, 1 << 16) == (b"HIDDEN" * 12_000)[: 1 << 16]  # PROT_NONE hides nothing
        assert core.process["missing"] == 0
        assert core.lines[-1] == {"type": "end"}
        assert not report.gaps
        assert not report.flags


def test_nothing_is_brought_back() -> None:
    code = 'a = area(1 << 20, b"X"); b = area(256 << 20); f = mmap.mmap(os.open(sys.executable, 0), 0, 2, 1)\n'
    code += "tell(os.getpid(), a, b, ctypes.addressof(ctypes.c_char.from_buffer(mmap.mmap(-1, 4096))))"
    with python(code) as target:
        started = {area: pagemap(target.pid, *area) for area in mapped(target.pid)}
        before = resident(target.pid)
        core = core_of(target)
        assert resident(target.pid) == before
        assert {area: pagemap(target.pid, *area) for area in started} == started
        never = core.area(target.said[1])
        assert never["absent"] >= 256 << 20
        assert never["absent_is"] == "zeros"
        assert core.at(target.said[1], 4096) == bytes(4096)
        assert len(core.data) < 40 << 20


def mapped(pid: int) -> list[tuple[int, int]]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "[v" not in line:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            found.append((start, end - start))
    return found


def test_a_page_of_a_file_that_is_not_present_has_no_segment(tmp_path: Path) -> None:
    """Zeros there would be a lie: the file says what it holds."""
    file = tmp_path / "file"
    file.write_bytes(b"F" * (64 * PAGE))
    code = f"""
fd = os.open({str(file)!r}, os.O_RDONLY)
at = libc.mmap(None, {64 * PAGE}, 1, 2, fd, 0)
libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t({64 * PAGE}), 1)  # MADV_RANDOM: no neighbours
touched = ctypes.string_at(at + {3 * PAGE}, 1)
tell(os.getpid(), at)
"""
    with python(code) as target:
        start = target.said[0]
        present = [bool(top & 0x80) for top in pagemap(target.pid, start, 64 * PAGE)]
        core = core_of(target)
        assert present[3]
        assert not all(present)
        for page, there in enumerate(present):
            assert core.at(start + page * PAGE, PAGE) == (b"F" * PAGE if there else None)
        assert core.area(start)["absent_is"] == "unknown"


def test_fault_in_reads_what_was_not_present(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"F" * (64 * PAGE))
    code = f"""
fd = os.open({str(file)!r}, os.O_RDONLY)
tell(os.getpid(), libc.mmap(None, {64 * PAGE}, 1, 2, fd, 0), area(1 << 30))
"""
    with python(code) as target:
        core = core_of(target, fault_in=True)
        assert core.at(target.said[0], 64 * PAGE) == b"F" * (64 * PAGE)
        assert core.at(target.said[1], 1) == b"\0"
        assert len(core.data) < 100 << 20  # a gigabyte that was never touched is no content, asked for or not


def test_all_threads_have_registers() -> None:
    code = "[threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range(40)]\n"
    with python(code + "tell(os.getpid())") as target:
        core = core_of(target)
        statuses = [data for owner, kind, data in core.notes() if (owner, kind) == (b"CORE", 1)]
        pids = [struct.unpack_from("<i", data, 32)[0] for data in statuses]
        assert pids[0] == target.pid
        assert sorted(pids) == sorted(int(name) for name in os.listdir(f"/proc/{target.pid}/task"))
        assert core.process["registers"] == "all"
        assert core.process["threads"] == 41
        assert 0 < core.process["stopped_us"] < 500_000
        assert state(target.pid) == "S"  # and it runs on


def test_what_the_kernel_would_write_of_it() -> None:
    with python("tell(os.getpid())") as target:
        notes = {kind: data for _, kind, data in core_of(target).notes()}
        assert notes[6] == Path(f"/proc/{target.pid}/auxv").read_bytes()
        info = struct.unpack("<bcbbxxxxQIIiiii16s80s", notes[3])
        assert info[7] == target.pid
        assert info[11].rstrip(b"\0") == Path(f"/proc/{target.pid}/comm").read_bytes().rstrip(b"\n")
        assert info[12].startswith(os.fsencode(sys.executable))
        count, page = struct.unpack_from("<QQ", notes[0x46494C45])
        names = notes[0x46494C45][16 + 24 * count :].split(b"\0")
        assert page == PAGE
        assert len(names) == count + 1
        assert any(b"python" in name for name in names)


def test_deleted_files_and_memfds_are_recovered_whole(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(os.path.realpath(sys.executable), program)
    env = f"import sys; sys.path = {[path for path in sys.path if path]!r}\n"
    gone = tmp_path / "gone"
    code = f"""
fd = os.memfd_create("hidden tool")
os.write(fd, b"in memory only " * 100_000)
file = open({str(gone)!r}, "wb+")
file.write(b"removed " * 1000); file.seek(1 << 30); file.write(b"end"); file.flush()
twice = os.dup(file.fileno())
pipe = {str(tmp_path / "fifo")!r}
os.mkfifo(pipe); fifo = os.open(pipe, os.O_RDWR); os.unlink(pipe)
os.unlink({str(gone)!r}); os.unlink({str(program)!r})
tell(os.getpid(), fd, file.fileno())
"""
    home = str(Path(os.path.realpath(sys.executable)).parents[1])
    with running(["/usr/bin/env", f"PYTHONHOME={home}", str(program), "-c", PRELUDE + env + code]) as target:
        before = os.stat(f"/proc/{target.pid}/fd/{target.said[1]}").st_atime_ns
        found = taken(target)
        assert [item.path.rpartition(".")[2] for item, _, _ in found] == ["core", "tar", "jsonl"]
        _, data, report = found[1]
        base = f"/proc/{target.pid}".encode()
        memfd, removed = (b"%s/fd/%d" % (base, number) for number in target.said)
        members = {member.path: member for member in report.members}
        assert set(members) == {base + b"/exe", memfd, removed}
        assert not report.gaps
        assert members[memfd].size == 1_500_000
        assert members[removed].size == (1 << 30) + 3
        assert len(data) < 40 << 20  # a hole takes no space
        assert os.stat(f"/proc/{target.pid}/fd/{target.said[1]}").st_atime_ns == before
        extracted = extract(data, tmp_path / "out")
        assert (extracted / f"proc/{target.pid}/exe").read_bytes() == Path(
            os.path.realpath(sys.executable)
        ).read_bytes()
        assert (extracted / f"proc/{target.pid}/fd/{target.said[0]}").read_bytes() == b"in memory only " * 100_000
        index = {one["link"]: one for one in table((extracted / f"index-{target.pid}.jsonl").read_bytes())}
        assert index[f"fd/{target.said[0]}"]["memfd"]
        assert index[f"fd/{target.said[1]}"]["path"] == str(gone)
        assert index["exe"]["path"] == str(program)


def extract(data: bytes, directory: Path) -> Path:
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", str(directory)], input=data, check=True, timeout=60)
    return directory / "deleted"


def test_what_many_hold_is_stored_once(tmp_path: Path) -> None:
    code = """
fd = os.memfd_create("shared")
os.write(fd, b"M" * 1_000_000)
child = os.fork()
if child:
    tell(os.getpid(), child, fd)
while True:
    signal.pause()
"""
    with python(code) as target:
        child, fd = target.said
        archives: list[tuple[str, list[Member], Path]] = []
        try:
            for item in items(Scope(pids=(target.pid, child))):
                report = Remembered()
                data = read(item, report)
                if item.path.endswith(".tar"):
                    archives.append((item.path, report.members, extract(data, tmp_path / str(len(archives)))))
        finally:
            os.kill(child, signal.SIGKILL)
        (first, members, _), (_, none, second) = archives
        assert [member.size for member in members] == [1_000_000]
        assert not none
        (line,) = table((second / f"index-{child}.jsonl").read_bytes())
        assert line["item"] == first
        assert line["link"] == f"fd/{fd}"


def test_an_executable_that_the_snapshot_holds_is_left_to_it(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    with running(["/bin/sh", "-c", 'echo $$; exec "$0" 1000', str(program)]) as target:
        wait_for(lambda: os.readlink(f"/proc/{target.pid}/exe") == str(program))
        found = program.stat()
        program.unlink()
        held = ProcessMemory(held=lambda: frozenset({(found.st_dev, found.st_ino)}))
        assert [item.path.rpartition(".")[2] for item in items(target, held)] == ["core", "jsonl"]
        assert [item.path.rpartition(".")[2] for item in items(target)] == ["core", "tar", "jsonl"]


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_never_itself_and_what_it_started() -> None:
    acquirer = ProcessMemory()
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        try:
            found = acquirer.probe(HERE, Scope(pids=(os.getpid(), child.pid, 2)))
            assert found.matched == frozenset()
            assert not found.subjects
        finally:
            child.kill()


def test_the_table_tells_of_all() -> None:
    with python('tell(os.getpid(), area(1 << 20, b"X"))') as target:
        found = taken(target)
        lines = table(found[-1][1])
        assert found[-1][0].path == "memory/process/processes.jsonl"
        assert lines[0]["pid"] == target.pid
        assert lines[0]["item"] == found[0][0].path
        assert lines[0]["read"] == Core(found[0][1]).process["read"] > 1 << 20
        assert lines[-1] == {"type": "end", "processes": 1, "denied": 0}


def test_a_stopped_process_stays_stopped() -> None:
    with python("tell(os.getpid())") as target:
        os.kill(target.pid, signal.SIGSTOP)
        wait_for(lambda: state(target.pid) == "T")
        assert core_of(target).process["registers"] == "all"
        time.sleep(0.05)
        assert state(target.pid) == "T"


def test_a_process_that_ended_is_told_and_no_item() -> None:
    with python("tell(os.getpid())") as target, python("tell(os.getpid())") as other:
        found = items(Scope(pids=(target.pid, other.pid)))
        first = next(found)
        last = max(target.pid, other.pid)
        os.kill(last, signal.SIGKILL)
        wait_for(lambda: state(last) == "X")
        rest = list(found)
        assert first.path.startswith(f"memory/process/{min(target.pid, other.pid)}-")
        assert [item.path for item in rest] == ["memory/process/processes.jsonl"]
        assert table(read(rest[-1]))[1] == {"type": "process", "pid": last, "vanished": True, "comm": "python"}


def test_who_may_not_is_counted_once() -> None:
    """Thousands of processes that are refused are one gap."""
    if os.geteuid():
        pytest.skip("needs root")
    code = """
import os, sys
from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.memory.process import ProcessMemory
class Report:
    def gap(self, gap): print(gap.reason, gap.detail)
    def flag(self, flag): pass
    def member(self, member): pass
os.setgid(65534); os.setuid(65534)
for item in ProcessMemory().items(Host(Mode.HOST), Scope(pids=tuple(map(int, sys.argv[1:])))):
    print(item.path)
    for chunk in item.read(Report()): pass
"""
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(python("tell(os.getpid())")).pid for _ in range(3)]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, pids)],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PYTHONPATH": os.getcwd()},
        )
        assert not done.stderr
        assert done.stdout.splitlines()[0] == "memory/process/processes.jsonl"
        assert done.stdout.splitlines()[1].startswith("denied memory of 3 processes: ")
        assert len(done.stdout.splitlines()) == 2
