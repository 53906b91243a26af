from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import Gap, Reason
from acquirers.host import Host, Mode
from acquirers.memory import cgroups, owners
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges
from tests.unit.snapshot.helpers import needs_root

TAIL = 1 << 16
ID = "0123456789abcdef" * 4


def words(values: list[int]) -> bytes:
    return array("Q", values).tobytes()


def plain(values: list[int]) -> list[tuple[int, int]]:
    return [(len(list(group)), value) for value, group in itertools.groupby(values)]


runs_of_words = st.lists(st.tuples(st.integers(1, 1300), st.integers(0, 2**64 - 1) | st.integers(0, 3)), max_size=12)


@given(runs_of_words, st.binary(max_size=7))
def test_runs_are_those_of_the_words(runs: list[tuple[int, int]], rest: bytes) -> None:
    values = [value for pages, value in runs for _ in range(pages)]
    assert list(owners.encode(words(values) + rest)) == plain(values)


@given(st.binary(max_size=12000))
def test_any_bytes_are_runs(data: bytes) -> None:
    found = list(owners.encode(data))
    assert b"".join(struct.pack("=Q", value) * pages for pages, value in found) == data[: len(data) // 8 * 8]


def test_a_machine_in_short_and_long_runs_takes_no_time() -> None:
    short = words([number // 3 for number in range(1 << 17)])
    long = words([77] * (1 << 17))
    began = time.process_time()
    for _ in range(8):
        assert sum(1 for _ in owners.encode(short)) == 43691
    busy = time.process_time() - began
    began = time.process_time()
    for _ in range(8):
        assert list(owners.encode(long)) == [(1 << 17, 77)]
    assert time.process_time() - began < busy / 4
    assert busy < 2  # a million words


@given(st.data())
def test_tails_go_to_their_head_and_nothing_else_moves(data: st.DataObject) -> None:
    truth: list[int] = []
    shown: list[int] = []
    flags: list[int] = []
    tails = 0
    for _ in range(data.draw(st.integers(0, 12))):
        owner = data.draw(st.integers(0, 3))
        if data.draw(st.booleans()):  # a huge page, whose tails the kernel gives no owner
            size = data.draw(st.sampled_from([2, 8, 512, 1024]))
            shown += [owner] + [0] * (size - 1)
            flags += [1 << 15] + [TAIL] * (size - 1)
            tails += (size - 1) if owner else 0
        else:
            size = data.draw(st.integers(1, 600))
            shown += [owner] * size
            flags += [0] * size
        truth += [owner] * size
    starts = itertools.accumulate((pages for pages, _ in plain(shown)), initial=100)
    runs = [(first, pages, owner) for first, (pages, owner) in zip(starts, plain(shown), strict=False)]
    asked = words(flags)
    found, counted = owners.with_tails(runs, lambda frame, count: asked[(frame - 100) * 8 : (frame - 100 + count) * 8])
    assert [owner for _, pages, owner in found for _ in range(pages)] == truth
    assert counted == tails
    assert [first for first, _, _ in found] == [
        100 + at for at in itertools.accumulate([pages for _, pages, _ in found], initial=0)
    ][:-1]


def test_flags_that_end_early_or_fail_leave_the_runs_as_they_are() -> None:
    runs = [(0, 1, 5), (1, 9, 0), (10, 1, 6)]

    def fails(frame: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    def ends(frame: int, count: int) -> bytes:
        return b""

    def ends_in_a_word(frame: int, count: int) -> bytes:
        return b"\0\0\1"

    assert owners.with_tails(runs, ends) == (runs, 0)
    assert owners.with_tails(runs, ends_in_a_word) == (runs, 0)
    assert owners.with_tails(runs, fails) == (runs, 0)


class Fixture:
    """A kept tree: control groups as directories, and /proc files made for them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.groups = top / "sys/fs/cgroup"
        (top / "etc").mkdir()
        (top / "proc").mkdir()
        self.groups.mkdir(parents=True)
        self.host = Host(Mode.HOST, root=os.fsencode(top), proc=os.fsencode(top / "proc"))

    def group(self, name: str | bytes) -> int:
        path = os.path.join(os.fsencode(self.groups), os.fsencode(name))
        os.makedirs(path)
        return os.stat(path).st_ino

    def tell(self, values: list[int], flags: list[int] | None = None) -> None:
        (self.top / "proc/kpagecgroup").write_bytes(words(values))
        if flags is not None:
            (self.top / "proc/kpageflags").write_bytes(words(flags))


@pytest.fixture
def kept(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_runs_are_joined_to_groups_and_containers(kept: Fixture) -> None:
    pod = "kubepods.slice/kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice"
    docker, kube = kept.group(f"docker/{ID}"), kept.group(f"{pod}/cri-containerd-{ID}.scope")
    kept.tell([0, docker, docker, docker, 0, 0, kube, 2**60, 2**60, docker])
    found = list(owners.lines(kept.host, Ranges([(PAGE, 3 * PAGE), (5 * PAGE + 7, 10 * PAGE)])))
    assert [line for line in found if line["type"] == "owner-run"] == [
        {"type": "owner-run", "first": 1, "pages": 2, "cgroup": docker},
        {"type": "owner-run", "first": 6, "pages": 1, "cgroup": kube},
        {"type": "owner-run", "first": 7, "pages": 2, "cgroup": 2**60},
        {"type": "owner-run", "first": 9, "pages": 1, "cgroup": docker},
    ]
    by = {line["cgroup"]: line for line in found if line["type"] == "owner"}
    assert by[docker] == {
        "type": "owner", "cgroup": docker, "path": f"/docker/{ID}", "container": ID, "pages": 3,
    }  # fmt: skip
    assert by[kube]["pod"] == "01234567-89ab-cdef-0123-456789abcdef"
    assert by[kube]["container"] == ID
    assert by[2**60] == {"type": "owner", "cgroup": 2**60, "path": None, "container": None, "pages": 2}
    assert by[0]["pages"] == 1
    assert found[-1] == {"type": "owners", "frames": 7, "runs": 4, "tails": 0, "unread": 0}


def test_hidden_tails_are_found_through_the_flags(kept: Fixture) -> None:
    group = kept.group("a")
    kept.tell([group] + [0] * 515, [1 << 15] + [TAIL] * 511 + [0] * 4)
    found = list(owners.lines(kept.host, Ranges([(0, 516 * PAGE)])))
    assert found[0] == {"type": "owner-run", "first": 0, "pages": 512, "cgroup": group}
    assert found[-1]["tails"] == 511


@pytest.mark.parametrize(
    ("name", "container"),
    [
        (f"docker-{ID}.scope\n1:memory:".encode(), None),
        (b"x\n0::/docker", None),
        (f"x\n{ID}".encode(), None),
        (ID.upper().encode(), None),
        (f"{ID}0".encode(), None),
        (ID[1:].encode(), None),
        (b"\xff\xfe\\x41", None),
        (b"\x1b[31m\\n", None),
        (f"a:b:c-{ID}".encode(), ID),
        (f"libpod-conmon-{ID}.scope".encode(), None),
    ],
)
def test_names_are_bytes_that_prove_nothing(kept: Fixture, name: bytes, container: str | None) -> None:
    group = kept.group(name)
    kept.tell([group])
    line = next(line for line in owners.lines(kept.host, Ranges([(0, PAGE)])) if line["type"] == "owner")
    assert line["container"] == container
    text = json.dumps(line)
    assert "\n" not in text
    assert "\x1b" not in text
    try:
        assert line["path"] == "/" + name.decode()
    except UnicodeDecodeError:
        assert "path_b64" in line


@given(st.binary(min_size=1, max_size=300))
def test_any_path_becomes_a_line(path: bytes) -> None:
    line = cgroups.describe(7, b"/" + path, 3)
    assert json.loads(json.dumps(line))["pages"] == 3
    assert line["container"] is None or str(line["container"]).encode() in path


def test_links_and_depth_are_not_followed(kept: Fixture, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (kept.groups / "link").symlink_to(outside)
    (kept.groups / "file").write_bytes(b"")
    kept.group("/".join(["d"] * 100))
    found = cgroups.inodes(kept.host)
    assert os.stat(outside).st_ino not in found
    assert found[os.stat(kept.groups).st_ino] == b"/"
    assert max(path.count(b"/") for path in found.values()) == cgroups.MAX_DEPTH - 1


def test_the_walk_is_bounded(kept: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        kept.group(f"g{number}")
    monkeypatch.setattr(cgroups, "MAX_GROUPS", 20)
    assert len(cgroups.inodes(kept.host)) == 20
    monkeypatch.setattr(cgroups, "MAX_GROUPS", 1000)
    monkeypatch.setattr(cgroups, "MAX_BYTES", 30)
    assert len(cgroups.inodes(kept.host)) < 15


def test_too_many_runs_leave_the_totals(kept: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "MAX_RUNS", 3)
    monkeypatch.setattr(owners, "MAX_OWNERS", 4)
    kept.tell([1, 2, 1, 2, 1, 2, 3, 4, 5, 6])
    found = list(owners.lines(kept.host, Ranges([(0, 10 * PAGE)])))
    assert [line["first"] for line in found if line["type"] == "owner-run"] == [0, 1, 2]
    assert {line["cgroup"]: line["pages"] for line in found if line["type"] == "owner"} == {1: 3, 2: 3, 3: 1, 4: 1}
    assert found[-1] == {
        "type": "owners", "frames": 10, "runs": 10, "tails": 0, "unread": 0,
        "runs_told": 3, "not_told_from": 3, "pages_of_other_owners": 2,
    }  # fmt: skip


def test_slices_are_joined_again_by_who_reads(kept: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "SLICE", 4)
    kept.tell([9] * 10)
    found = list(owners.lines(kept.host, Ranges([(0, 10 * PAGE)])))
    assert [(line["first"], line["pages"]) for line in found if line["type"] == "owner-run"] == [(0, 10)]


def test_what_cannot_be_read_is_a_gap(kept: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: list[Gap] = []
    assert [line["error"] for line in owners.lines(kept.host, Ranges([(0, PAGE)]), gaps.append)] == ["ENOENT"]
    assert not gaps  # a kernel without control groups
    kept.tell([4, 4])
    found = list(owners.lines(kept.host, Ranges([(0, 6 * PAGE)]), gaps.append))
    assert found[-1]["unread"] == 4
    assert [(gap.reason, gap.where, gap.missing) for gap in gaps] == [(Reason.SHORT, b"/proc/kpagecgroup", 32)]
    gaps.clear()
    monkeypatch.setattr(owners, "SECONDS", 0.3)
    monkeypatch.setattr(owners, "SLICE", 1)
    monkeypatch.setattr(owners, "MAX_STUCK", 2)
    monkeypatch.setattr(owners, "read_runs", lambda *_: time.sleep(3600))
    found = list(owners.lines(kept.host, Ranges([(0, 100 * PAGE)]), gaps.append))
    assert found[-1]["unread"] == 100
    assert [gap.reason for gap in gaps] == [Reason.STUCK]


@needs_root
def test_whoever_is_not_root_is_told_so() -> None:
    code = (
        "import os\n"
        "from acquirers.host import Host, Mode\n"
        "from acquirers.memory import owners\n"
        "from acquirers.memory.ranges import Ranges\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "gaps = []\n"
        "print([line['error'] for line in owners.lines(Host(Mode.HOST), Ranges([(0, 4096)]), gaps.append)])\n"
        "print([gap.reason.value for gap in gaps])\n"
    )
    if not os.path.exists("/proc/kpagecgroup"):
        pytest.skip("needs root: and a kernel with /proc/kpagecgroup")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['EACCES']\n['denied']\n"


def test_a_mounted_disk_has_no_owners(kept: Fixture) -> None:
    dead = Host(Mode.DEAD, root=os.fsencode(kept.top))
    assert [line["type"] for line in owners.lines(dead, Ranges([(0, PAGE)]))] == ["owners"]


# -- on a real kernel -------------------------------------------------------------------------------------------------

LOCKED = 16 << 20
HOLDER = f"""
import ctypes, mmap, sys
open(sys.argv[1], "w").write("0")
area = mmap.mmap(-1, {LOCKED})
libc = ctypes.CDLL(None, use_errno=True)
where = ctypes.addressof(ctypes.c_char.from_buffer(area))
if libc.mlock(ctypes.c_void_p(where), ctypes.c_size_t({LOCKED})):
    sys.exit(ctypes.get_errno())
print("ready", flush=True)
sys.stdin.read()
"""


def memory_hierarchy() -> Path | None:
    """Where groups with the controller `memory` are made, of either version."""
    first = Path("/sys/fs/cgroup/memory")
    if (first / "memory.limit_in_bytes").exists():
        return first
    for second in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        control = Path(second) / "cgroup.subtree_control"
        if control.exists() and "memory" in control.read_text().split():
            return Path(second)
    return None


@contextmanager
def held(name: str) -> Iterator[Path]:
    """A process in a group of its own that holds locked memory."""
    top = memory_hierarchy()
    if top is None or not os.path.exists("/proc/kpagecgroup"):
        pytest.skip("needs root: and a kernel with /proc/kpagecgroup, and a memory controller that may be used")
    group = top / name
    group.mkdir()
    try:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(group / "cgroup.procs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            try:
                assert holder.stdout.readline() == b"ready\n"
                yield group
            finally:
                holder.send_signal(signal.SIGKILL)
                holder.wait(10)
    finally:
        deadline = time.monotonic() + 5
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def system_ram() -> Ranges:
    spans = []
    for line in Path("/proc/iomem").read_text().splitlines():
        span, _, name = line.strip().partition(" : ")
        if name == "System RAM":
            start, _, end = span.partition("-")
            spans.append((int(start, 16), int(end, 16) + 1))
    return Ranges(spans)


@needs_root
def test_locked_memory_of_a_process_is_found_under_its_group() -> None:
    name = f"owners-test-{os.getpid()}-{ID}"
    with held(name) as group:
        inode = group.stat().st_ino
        began = time.process_time()
        found = list(owners.lines(Host(Mode.HOST), system_ram()))
        spent = time.process_time() - began
    line = next(line for line in found if line.get("cgroup") == inode and line["type"] == "owner")
    assert line["path"] == f"/{name}"
    assert line["container"] == ID
    pages = int(str(line["pages"]))
    assert LOCKED // PAGE <= pages < LOCKED // PAGE + (16 << 20) // PAGE
    runs = [one for one in found if one["type"] == "owner-run" and one["cgroup"] == inode]
    assert sum(int(str(one["pages"])) for one in runs) == pages
    assert found[-1]["unread"] == 0
    owned = sum(int(str(one["pages"])) for one in found if one["type"] == "owner")
    assert owned == found[-1]["frames"]
    assert spent < 10


@needs_root
def test_a_group_that_is_gone_has_no_directory_any_more() -> None:
    with held(f"owners-gone-{os.getpid()}") as group:
        inode = group.stat().st_ino
        assert cgroups.inodes(Host(Mode.HOST))[inode] == b"/" + os.fsencode(group.name)
    assert inode not in cgroups.inodes(Host(Mode.HOST))
