"""Process memory where the process does not hold still: it ends, unmaps, hangs its reader, hides, or is somebody's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acquirers.base import AcquirerError, FlagKind, Reason, Scope
from acquirers.memory.process import ProcessMemory
from tests.unit.memory.process.helpers import (
    HERE,
    PAGE,
    Core,
    Made,
    Remembered,
    Target,
    core_of,
    items,
    python,
    resident,
    running,
    state,
    table,
    taken,
)

BIG = 64 << 20
"""More than what can be on its way from the reading child to the test."""


def interrupted(target: Target, act: Callable[[], None]) -> tuple[Core, Remembered]:
    """The core of a process to which something happens when its first pages have been read."""
    report = Remembered()
    parts = []
    found = items(target)
    for number, chunk in enumerate(next(found).read(report)):
        parts.append(bytes(chunk))
        if number == 1:
            act()
    return Core(b"".join(parts)), report


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_unmapped_meanwhile_is_a_gap_and_no_zeros() -> None:
    code = f"""
at = area({BIG}, b"CONTENT!")
signal.signal(signal.SIGUSR1, lambda *_: libc.munmap(at + {BIG // 2}, {BIG // 4}))
tell(os.getpid(), at)
"""
    with python(code) as target:
        start = target.said[0]

        def unmap() -> None:
            os.kill(target.pid, signal.SIGUSR1)
            wait_for(lambda: f"{start + BIG // 2:x}-" not in Path(f"/proc/{target.pid}/maps").read_text())
            wait_for(lambda: f"-{start + BIG // 2:x} " in Path(f"/proc/{target.pid}/maps").read_text())

        core, report = interrupted(target, unmap)
    assert core.at(start, BIG // 2) == b"CONTENT!" * (BIG // 16)
    assert core.at(start + BIG * 3 // 4, BIG // 4) == b"CONTENT!" * (BIG // 32)
    assert core.at(start + BIG // 2, PAGE) is None
    assert core.at(start + BIG * 3 // 4 - PAGE, PAGE) is None
    (gap,) = report.gaps
    assert gap.reason is Reason.VANISHED
    assert gap.missing == core.process["missing"] == BIG // 4
    assert {"type": "lost", "start": start + BIG // 2, "end": start + BIG * 3 // 4} in core.lines


@pytest.mark.parametrize("how", ["killed", "another program"])
def test_a_process_that_is_gone_in_the_middle(how: str) -> None:
    code = f'at = area({BIG}, b"CONTENT!")\n'
    code += 'signal.signal(signal.SIGUSR1, lambda *_: os.execv("/bin/sleep", ["sleep", "1000"]))\ntell(os.getpid(), at)'
    with python(code) as target:

        def end() -> None:
            os.kill(target.pid, signal.SIGKILL if how == "killed" else signal.SIGUSR1)
            wait_for(lambda: state(target.pid) in "ZX" or b"sleep" in Path(f"/proc/{target.pid}/comm").read_bytes())

        core, report = interrupted(target, end)
        (gap,) = report.gaps
        assert gap.reason is Reason.VANISHED
        assert gap.missing is not None
        assert BIG // 2 < gap.missing < core.process["present"]
        start = target.said[0]
        there = [core.at(start + page, PAGE) for page in range(0, BIG, PAGE)]
        assert set(there) <= {None, b"CONTENT!" * (PAGE // 8)}
        assert None in there
        assert core.process["registers"] == "all"  # of the program that was


USERFAULT = """
import fcntl, struct
fd = libc.syscall(323, os.O_CLOEXEC)
if fd < 0:
    tell(os.getpid(), 0)
fcntl.ioctl(fd, 0xc018aa3f, struct.pack("<QQQ", 0xAA, 0, 0))
at = area(1 << 20)
ctypes.memset(at, 0x41, 4096)
fcntl.ioctl(fd, 0xc020aa00, bytearray(struct.pack("<QQQQ", at, 1 << 20, 1, 0)))
other = area(1 << 20, b"OTHER")
tell(os.getpid(), at, other)
"""


def test_nobody_is_hung_by_a_page_that_never_comes() -> None:
    """userfaultfd: whoever touches an absent page waits until a handler says what it holds."""
    with python(USERFAULT) as target:
        if not target.said[0]:
            pytest.skip("needs root")
        at, other = target.said
        report = Remembered()
        core = core_of(target, report)
        assert not report.gaps
        assert core.at(at, PAGE) == b"A" * PAGE
        assert core.at(at + PAGE, PAGE) is None  # what it holds is for its handler to say: not zeros
        assert core.area(at)["absent_is"] == "unknown"

        report = Remembered()
        began = time.monotonic()
        core = core_of(target, report, fault_in=True)
        assert time.monotonic() - began < 20
        assert {gap.reason for gap in report.gaps} <= {Reason.STUCK, Reason.IO_ERROR}
        assert report.gaps
        assert core.at(other, 1 << 20) == (b"OTHER" * 300_000)[: 1 << 20] or core.at(other, PAGE) is None
        assert core.at(at + PAGE, PAGE) is None
        assert state(target.pid) == "S"


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_mapping_of_a_dead_filesystem_is_given_up(tmp_path: Path) -> None:
    """Its absent pages are not asked for; with `--fault-in` they hang their reader beyond the reach of SIGKILL."""
    (tmp_path / "content").write_bytes(b"FUSE" * (64 * PAGE // 4))
    (tmp_path / "mnt").mkdir()
    daemon = Path(__file__).parents[1] / "unit/snapshot/deadfs.py"
    code = f"""
fd = os.open({str(tmp_path / "mnt/program")!r}, os.O_RDONLY)
at = libc.mmap(None, {64 * PAGE}, 1, 2, fd, 0)
tell(os.getpid(), at, area(1 << 22, b"OTHER"))
"""
    with subprocess.Popen(
        [sys.executable, str(daemon), str(tmp_path / "mnt"), str(tmp_path / "content")], stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            with python(code) as target:
                at, other = target.said
                server.send_signal(signal.SIGUSR1)
                report = Remembered()
                assert core_of(target, report).at(at, PAGE) is None
                assert not report.gaps
                core = core_of(target, report, fault_in=True)
                server.kill()
                assert [gap.reason for gap in report.gaps] == [Reason.STUCK]
                assert core.at(at, PAGE) is None
                assert core.at(other + (3 << 20), 1 << 20) == (b"OTHER" * 900_000)[3 << 20 : 4 << 20]
        finally:
            server.kill()
            server.wait(10)
            subprocess.run(["umount", "--lazy", str(tmp_path / "mnt")], check=False, capture_output=True)


def test_a_process_that_is_traced_already_has_memory_but_no_registers() -> None:
    tracer = (
        "libc.ptrace.argtypes = [ctypes.c_long] * 4\nassert libc.ptrace(0x4206, {pid}, 0, 0) == 0\ntell(os.getpid())"
    )
    with python('tell(os.getpid(), area(1 << 16, b"X"))') as target, python(tracer.format(pid=target.pid)):
        report = Remembered()
        core = core_of(target, report)
        assert core.at(target.said[0], 1 << 16) == b"X" * (1 << 16)
        assert core.process["registers"].startswith("none: ")
        assert [flag.kind for flag in report.flags] == [FlagKind.FINDING]
        assert not report.gaps


def test_a_thread_that_cannot_stop_is_left_out() -> None:
    """The parent of a vfork waits uninterruptibly until its child has ended."""
    code = """
def wait():
    if libc.syscall(56, 0x4000 | 17, 0, 0, 0, 0) == 0:
        time.sleep(30)
        os._exit(0)
threading.Thread(target=wait, daemon=True).start()
time.sleep(0.3)
tell(os.getpid())
"""
    with python(code) as target:
        wait_for(lambda: len(children(target.pid)) == 1)
        try:
            began = time.monotonic()
            core = core_of(target)
            assert time.monotonic() - began < 5
            assert core.process["registers"].startswith("1 of 2 threads: ")
        finally:
            for child in children(target.pid):
                os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def test_a_process_whose_first_thread_has_ended_is_no_zombie() -> None:
    """Its `/proc/<pid>/maps` is empty, and whoever asks only there sees nothing."""
    code = """
at = area(1 << 20, b"HIDDEN")
def rest():
    time.sleep(0.2)
    print(os.getpid(), at, flush=True)
    time.sleep(1000)
threading.Thread(target=rest).start()
libc.pthread_exit(None)
"""
    with python(code) as target:
        wait_for(lambda: state(target.pid) == "Z")
        found = taken(target)
        core = Core(found[0][1])
        assert core.at(target.said[0], 1 << 20) == (b"HIDDEN" * 200_000)[: 1 << 20]
        assert core.process["missing"] == 0
        assert core.process["registers"] == "all"
        assert not found[0][2].gaps


def test_names_are_only_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a\nb\x1b[31m (deleted)"
    code = f"""
name = {str(file)!r}
libc.prctl(15, b"\\x1b[2J\\n../x/y)")
fd = os.open(name, os.O_RDWR | os.O_CREAT)
os.write(fd, b"content")
os.unlink(name)
tell(os.getpid(), area(4096, b"X"))
"""
    with python(code) as target:
        found = taken(target)
        assert [item.path for item, _, _ in found[:2]] == [
            f"memory/process/{target.pid}-_2J_.._x_y_{suffix}" for suffix in (".core", ".files.tar")
        ]
        assert found[0][0].about["comm"] == b"\x1b[2J\n../x/y)"
        assert [member.size for member in found[1][2].members] == [7]
        assert Core(found[0][1]).process["comm"] == "\x1b[2J\n../x/y)"
        for _, data, _ in (found[0], found[2]):
            assert b"\x1b[" not in data[-2000:]


def test_what_is_open_and_no_file_is_left_alone(tmp_path: Path) -> None:
    """A FIFO without a name, a socket, a device: opening them would act on them."""
    pipe = tmp_path / "pipe"
    code = f"""
os.mkfifo({str(pipe)!r})
a = os.open({str(pipe)!r}, os.O_RDONLY | os.O_NONBLOCK); os.unlink({str(pipe)!r})
os.mknod({str(pipe)!r}, 0o020600, os.makedev(1, 5))
b = os.open({str(pipe)!r}, os.O_RDONLY); os.unlink({str(pipe)!r})
tell(os.getpid(), a, b)
"""
    if os.geteuid():
        pytest.skip("needs root")
    with python(code) as target:
        assert [item.path.rpartition(".")[2] for item, _, _ in taken(target)] == ["core", "jsonl"]


@contextlib.contextmanager
def open_to_all() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        yield place


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_root_ones_own_processes_are_read() -> None:
    agent = """
import os, sys
from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.memory.process import ProcessMemory
os.setgroups([]); os.setgid(65534); os.setuid(65534)
class Report:
    def gap(self, gap): print("gap", gap.reason, gap.detail)
    def flag(self, flag): print("flag", flag.detail)
    def member(self, member): print("member", member.size)
for item in ProcessMemory().items(Host(Mode.HOST), Scope(pids=(int(sys.argv[1]), 1))):
    print(item.path)
    with open(os.path.join(sys.argv[2], os.path.basename(item.path)), "wb") as file:
        for chunk in item.read(Report()):
            file.write(chunk)
"""
    shell = 'echo $$; exec 5>"$0"; echo secret >&5; rm "$0"; exec sleep 1000'
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh", "-c", shell]
    with open_to_all() as place, running([*drop, f"{place}/f"]) as target:
        wait_for(lambda: Path(f"/proc/{target.pid}/comm").read_bytes() == b"sleep\n")
        done = subprocess.run(
            [sys.executable, "-c", agent, str(target.pid), place],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert not done.stderr
        lines = done.stdout.splitlines()
        base = f"memory/process/{target.pid}-sleep"
        assert lines[:2] == [f"{base}.core", f"{base}.files.tar"]
        assert "member 7" in lines
        assert lines[-1].startswith("gap denied memory of a process: ")
        core = Core(Path(place, f"{target.pid}-sleep.core").read_bytes())
        assert core.process["registers"] == "all"
        assert core.process["read"] > 100_000


def test_as_many_areas_as_a_process_may_have() -> None:
    code = """
at = area(60_000 * 4096, b"AREA")
for page in range(0, 60_000, 2):
    libc.mprotect(at + page * 4096, 4096, 1)
tell(os.getpid(), at)
"""
    with python(code) as target:
        began = time.monotonic()
        core = core_of(target)
        assert time.monotonic() - began < 30
        assert len(core.areas()) > 60_000
        assert core.at(target.said[0] + 59_999 * PAGE, 4) == b"AREA"


def test_a_program_of_32_bits(tmp_path: Path) -> None:
    """Its memory and its registers are there, in a core of 64 bits, and that is said."""
    code = b"\x90" * 4 + b"\xb8\x1d\x00\x00\x00\xcd\x80\xeb\xf7"  # for ever: pause()
    head = (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x8048054, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    )
    load = struct.pack("<8I", 1, 0, 0x8048000, 0x8048000, 84 + len(code), 84 + len(code), 5, 4096)
    program = tmp_path / "small"
    program.write_bytes(head + load + code)
    program.chmod(0o755)
    with running(["/bin/sh", "-c", 'echo $$; exec "$0"', str(program)]) as target:
        wait_for(lambda: Path(f"/proc/{target.pid}/comm").read_bytes() != b"sh\n")
        time.sleep(0.1)
        if state(target.pid) != "S":
            pytest.skip("needs a kernel that runs programs of 32 bits")
        report = Remembered()
        core = core_of(target, report)
        assert core.at(0x8048054, len(code)) == code
        assert core.process["registers"] == "all, of a 32-bit program"
        (status,) = [data for _, kind, data in core.notes() if kind == 1]
        assert struct.unpack_from("<Q", status, 112 + 16 * 8) == (0x8048054 + 4 + 7,)  # rip: behind int 0x80


# -- a process made of files: what no kernel here can be made to say --------------------------------------------------


def test_what_is_swapped_out_is_neither_read_nor_zeros(tmp_path: Path) -> None:
    made = Made(tmp_path, "PPSSSPAAP")
    report = Remembered()
    core = made.core(report)
    assert [made.page(core, page) for page in range(9)] == [
        b"A" * PAGE, b"B" * PAGE, None, None, None, b"F" * PAGE, bytes(PAGE), bytes(PAGE), b"I" * PAGE,
    ]  # fmt: skip
    assert {"type": "swapped", "start": made.START + 2 * PAGE, "end": made.START + 5 * PAGE} in core.lines
    assert core.process["swapped"] == 3 * PAGE
    assert [flag.kind for flag in report.flags] == [FlagKind.ELSEWHERE, FlagKind.FINDING]
    assert not report.gaps

    core = made.core(Remembered(), fault_in=True)
    assert made.page(core, 3) == b"D" * PAGE
    assert made.page(core, 6) == bytes(PAGE)


def test_what_is_swapped_out_between_plan_and_reading_is_not_brought_back(tmp_path: Path) -> None:
    many = 20 << 8  # pages: 20 MiB
    made = Made(tmp_path, "P" * many)
    report = Remembered()
    core = made.core(report, lambda: made.write_states("P" * (many - 300) + "PS" * 100 + "P" * 100))
    (gap,) = report.gaps
    assert (gap.reason, gap.missing) == (Reason.VANISHED, 100 * PAGE)
    for page in range(many - 300, many - 100):  # none takes its neighbours along
        assert made.page(core, page) == (None if page % 2 else bytes([65 + page % 26]) * PAGE)
    assert made.page(core, many - 1) == bytes([65 + (many - 1) % 26]) * PAGE
    assert made.page(core, many - 301) == bytes([65 + (many - 301) % 26]) * PAGE
    assert core.process["missing"] == 100 * PAGE
    assert core.process["read"] == (many - 100) * PAGE


def test_a_plan_that_fails_is_one_error(tmp_path: Path) -> None:
    made = Made(tmp_path, "PP")
    (made.root / "pagemap").unlink()
    with pytest.raises(AcquirerError, match="process 7"):
        made.core(Remembered())


def test_a_map_that_hangs_its_reader_is_one_error(tmp_path: Path) -> None:
    made = Made(tmp_path, "PP")
    (made.root / "maps").unlink()
    os.mkfifo(made.root / "maps")
    began = time.monotonic()
    with pytest.raises(AcquirerError) as raised:
        made.core(Remembered())
    assert raised.value.reason is Reason.STUCK
    assert time.monotonic() - began < 10


# -- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from tests.rigs.docker import PrivateDocker, why_not

    if reason := why_not():
        pytest.skip(reason)
    with PrivateDocker(tmp_path_factory.mktemp("docker") / "rig") as rig:
        rig.import_base()
        yield rig


PLANT = (
    "cp /bin/busybox /tmp/busybox && exec 5>/tmp/kept && echo evidence >&5 && rm /tmp/kept && "
    "(/tmp/busybox sleep 1000 & sleep 0.5; rm /tmp/busybox; wait)"
)


@pytest.mark.docker
@pytest.mark.root
def test_a_container_from_the_host(docker: object) -> None:
    from tests.rigs.docker import PrivateDocker

    assert isinstance(docker, PrivateDocker)
    name = docker.run("planted", "base:1", "/bin/sh", "-c", PLANT)
    docker.run("other", "base:1", "/bin/sleep", "1000")
    wait_for(lambda: any("/tmp/busybox (deleted)" in link for link in executables(docker.pid_of("planted"))))
    before = {pid: resident(pid) for pid in [docker.pid_of("planted")]}
    scope = Scope(containers=(name[:12],))
    assert ProcessMemory().probe(HERE, scope).matched == {name[:12]}
    named = ProcessMemory(names=lambda _: {name: ("/planted",)})
    assert named.probe(HERE, Scope(containers=("planted",))).matched == {"planted"}

    found = taken(scope)
    assert {pid: resident(pid) for pid in before} == before
    cores = [Core(data) for item, data, _ in found if item.path.endswith(".core")]
    assert {core.process["container"] for core in cores} == {name}
    assert all(core.process["registers"] == "all" for core in cores)
    members = {member.path.rpartition(b"/")[2]: member for _, _, report in found for member in report.members}
    assert members[b"exe"].size == (Path("/proc") / str(docker.pid_of("planted")) / "root/bin/busybox").stat().st_size
    assert members[b"5"].size == len("evidence\n")
    assert not [gap for _, _, report in found for gap in report.gaps]

    frozen = taken(Scope(containers=(name[:12],), freeze=True))
    lines = table(frozen[-1][1])
    windows = [line for line in lines if line["type"] == "freeze"]
    assert len(windows) == len(cores)
    assert all(window["held_ms"] < 5000 for window in windows)
    assert all(Core(data).process["registers"] == "all" for item, data, _ in frozen if item.path.endswith(".core"))
    docker.rm("planted")
    docker.rm("other")


def executables(pid: int) -> list[str]:
    found = []
    for child in [pid, *children(pid), *[grand for one in children(pid) for grand in children(one)]]:
        try:
            found.append(os.readlink(f"/proc/{child}/exe"))
        except OSError:
            continue
    return found


INSIDE = """
import sys
from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.memory.process import ProcessMemory
class Report:
    def gap(self, gap): print("gap", gap.reason, gap.detail)
    def flag(self, flag): print("flag", flag.detail)
    def member(self, member): print("member", member.path.decode(), member.size)
for item in ProcessMemory().items(Host(Mode.INSIDE), Scope()):
    print("item", item.path, sum(len(chunk) for chunk in item.read(Report())))
"""


@pytest.mark.docker
@pytest.mark.root
def test_a_container_from_inside(docker: object) -> None:
    """As in a `kubectl exec` shell: with the rights of the container, and nothing else."""
    from tests.rigs.docker import PrivateDocker

    assert isinstance(docker, PrivateDocker)
    places = {sys.base_prefix, sys.prefix, str(Path(__file__).parents[2]), "/usr"}
    mounts = [option for place in sorted(places) for option in ("--volume", f"{place}:{place}:ro")]
    mounts += ["--volume", "/usr/lib:/lib:ro", "--volume", "/usr/lib64:/lib64:ro"]
    docker.run("inside", "base:1", "/bin/sh", "-c", PLANT, options=mounts)
    wait_for(lambda: any("/tmp/busybox (deleted)" in link for link in executables(docker.pid_of("inside"))))
    house = str(Path(__file__).parents[2])
    said = docker.docker("exec", "--env", f"PYTHONPATH={house}", "inside", sys.executable, "-c", INSIDE).splitlines()
    sizes = {line.split()[1]: int(line.split()[2]) for line in said if line.startswith("item ")}
    assert len([path for path in sizes if path.endswith(".core")]) >= 2
    assert not [line for line in said if line.startswith(("gap", "flag"))]
    members = [line.split() for line in said if line.startswith("member ")]
    assert any(path.endswith("/exe") and int(size) > 500_000 for _, path, size in members)
    assert any(path.endswith("/fd/5") and int(size) == 9 for _, path, size in members)
    docker.rm("inside")


def test_ptrace_numbers_are_the_kernels() -> None:
    """PTRACE_SEIZE is refused for a process that does not exist with ESRCH, and not with EIO or EINVAL."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    assert libc.ptrace(0x4206, 2**22 - 1, 0, 0) == -1
    assert ctypes.get_errno() == 3
