from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory import child, footprint
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges
from tests.unit.snapshot.helpers import needs_root

if TYPE_CHECKING:
    import pytest

    from acquirers.memory.source import Reader, Source

SIZE = 1 << 20


def touched() -> tuple[mmap.mmap, set[int]]:
    """A buffer that is present, and its frame numbers, looked up by hand."""
    area = mmap.mmap(-1, SIZE)
    for at in range(0, SIZE, PAGE):
        area[at] = 1
    where = ctypes.addressof(ctypes.c_char.from_buffer(area))
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(where // PAGE * 8)
        entries = struct.unpack(f"={SIZE // PAGE}Q", file.read(SIZE // PAGE * 8))
    assert all(entry >> 63 for entry in entries)
    return area, {entry & ((1 << 55) - 1) for entry in entries}


def numbers(runs: Ranges) -> set[int]:
    return {number for run in runs for number in range(run.start, run.end)}


@needs_root
def test_own_frames_are_listed() -> None:
    area, expected = touched()
    found = numbers(Ranges(footprint.frames([])))
    assert expected <= found
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0]) * 1024 // PAGE
    assert resident * 0.8 < len(found) < resident * 1.2 + 500
    assert len(area) == SIZE


@needs_root
def test_frames_of_other_processes_of_the_agent_are_listed_and_go_with_them() -> None:
    code = (
        f"import mmap, sys; area = mmap.mmap(-1, {16 * SIZE}); area.write(b'x' * {16 * SIZE});"
        "print('ready', flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        alone = Ranges(footprint.frames([]))
        both = Ranges(footprint.frames([worker.pid, os.getpid()]))
        worker.send_signal(signal.SIGKILL)
    assert both.subtract(alone).total >= 16 * SIZE // PAGE
    gone = footprint.processes([worker.pid])[1]
    assert gone.error
    assert not gone.frames


class WithIds:
    name = "bpf"
    covers = Ranges()
    zero_fills = False
    direct_map: int | None = None
    ids: ClassVar[dict[str, list[int]]] = {"programs": [7], "maps": [8, 9]}

    def open(self) -> Reader:
        raise OSError


@needs_root
def test_lines_tell_processes_locked_memory_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "RUNS_PER_LINE", 50)
    area, expected = touched()
    where = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mlock(where, ctypes.c_size_t(SIZE)) == 0
    source: Source = WithIds()
    first, *rest = footprint.lines("begin", [], [source])
    assert libc.munlock(where, ctypes.c_size_t(SIZE)) == 0
    assert (first["type"], first["when"], first["hidden"]) == ("footprint", "begin", 0)
    assert first["ids"] == {"bpf": WithIds.ids}
    processes = cast("list[dict[str, int]]", first["processes"])
    assert [process["pid"] for process in processes] == [os.getpid()]
    assert processes[0]["locked"] >= SIZE
    assert processes[0]["rss"] > SIZE
    assert processes[0]["threads"] >= 1
    assert 0 < processes[0]["exclusive"] <= processes[0]["pages"]
    assert all(line["type"] == "frames" and line["when"] == "begin" for line in rest)
    told = [cast("list[list[int]]", line["runs"]) for line in rest]
    assert max(map(len, told)) <= 50
    runs = [run for part in told for run in part]
    assert runs == sorted(runs)
    assert expected <= {number for start, count in runs for number in range(start, start + count)}
    assert sum(count for _, count in runs) == first["frames"]


def test_hidden_frame_numbers_are_said_to_be_hidden() -> None:
    """What the kernel gives whoever has no CAP_SYS_ADMIN: present, and zero for a number."""
    code = (
        "import ctypes, json, os\n"
        "from acquirers.memory import footprint\n"
        "footprint.read(os.getpid())\n"
        "if os.geteuid() == 0: os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # PR_SET_DUMPABLE: its own files are its own again
        "print(json.dumps(list(footprint.lines('end', []))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    first, *rest = json.loads(done.stdout)
    assert first["frames"] == 0
    assert first["hidden"] > 100
    assert "CAP_SYS_ADMIN" in first["processes"][0]["why_hidden"]
    assert rest == [{"type": "frames", "when": "end", "runs": []}]


def test_mappings_of_the_kernel_are_left_out() -> None:
    data = (
        b"00001000-00003000 r-xp 00000000 fe:00 12 /bin/[vvar] (deleted)\n"
        b"00004000-00005000 rw-p 00000000 00:00 0 [heap]\n"
        b"7ffd4000-7ffd8000 r--p 00000000 00:00 0                  [vvar]\n"
        b"7ffd8000-7ffda000 r--p 00000000 00:00 0                  [vvar_vclock]\n"
        b"7ffda000-7ffdc000 r-xp 00000000 00:00 0                  [vdso]\n"
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n"
        b"nonsense\n5000-4000 r\n"
    )
    unit = PAGE
    assert list(footprint.parse_maps(data)) == [
        (0x1000 // unit, 0x3000 // unit), (0x4000 // unit, 0x5000 // unit), (0x7FFDA000 // unit, 0x7FFDC000 // unit),
    ]  # fmt: skip


@given(st.binary(max_size=400))
def test_any_bytes_are_mappings(data: bytes) -> None:
    assert all(start < end for start, end in footprint.parse_maps(data))


def test_a_huge_mapping_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "MAX_PAGES", 100)
    assert footprint.read(os.getpid()).cut > 0


def test_a_stuck_process_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(work: object, seconds: float) -> bytes:
        raise child.StuckError("no answer")

    monkeypatch.setattr(child, "call", stuck)
    own, other = footprint.processes([1])
    assert not own.error
    assert own.frames or own.hidden
    assert other.error == "no answer"
