"""Cores of what no honest process looks like: more threads than stand still at once, maps that nobody would write."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.base import Reason
from acquirers.memory.process.chosen import Process
from acquirers.memory.process.core import Core as Writer
from acquirers.memory.process.elf import EM_X86_64
from acquirers.memory.process.threads import BATCH
from tests.unit.memory.process.helpers import PAGE, QUICK, Core, Remembered, core_of, python, state

PAGES = 256


def test_more_threads_than_stand_still_at_once() -> None:
    code = f"""
threading.stack_size(65536)
[threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range({BATCH + 50})]
tell(os.getpid())
"""
    with python(code) as target:
        began = time.monotonic()
        core = core_of(target)
        assert time.monotonic() - began < 20
        statuses = [data for owner, kind, data in core.notes() if (owner, kind) == (b"CORE", 1)]
        pids = [struct.unpack_from("<i", data, 32)[0] for data in statuses]
        assert pids[0] == target.pid
        assert sorted(pids) == sorted(int(name) for name in os.listdir(f"/proc/{target.pid}/task"))
        assert core.process["threads"] == BATCH + 51
        assert state(target.pid) == "S"


addresses = st.one_of(st.integers(0, PAGES), st.sampled_from([(1 << 47) // PAGE, ((1 << 64) - PAGE) // PAGE]))
names = st.sampled_from(
    ["", "[heap]", "[vvar]", "/dev/uio0", "/tmp/x (deleted)", "/a\\012b", "[anon:\x1b[31m]", "x" * 5000]
)
areas = st.tuples(addresses, addresses, st.sampled_from(["rw-p", "---p", "r-xs", "rwxs"]), names)


def write(root: Path, lines: list[str]) -> None:
    (root / "maps").write_text("".join(lines))
    (root / "smaps").write_text("".join(f"{line}Rss: 8 kB\nSwap: 0 kB\nVmFlags: rd wr\n" for line in lines[::-1]))


@settings(max_examples=20, deadline=None)
@given(st.lists(areas, max_size=12))
def test_whatever_is_mapped_the_core_is_one(found: list[tuple[int, int, str, str]]) -> None:
    """Overlapping, backwards, beyond what a process has, of names that are none: what it says of a page is true."""
    lines = [
        f"{start * PAGE:08x}-{end * PAGE:08x} {perms} 00000000 00:00 {7 if name.startswith('/') else 0} {name}\n"
        for start, end, perms, name in found
    ]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "task/7"
        root.mkdir(parents=True)
        write(root, lines)
        content = b"".join(bytes([65 + page % 26]) * PAGE for page in range(PAGES))
        (root / "mem").write_bytes(content)
        (root / "pagemap").write_bytes(struct.pack("<Q", 1 << 63) * PAGES)
        handle = os.open(directory, os.O_RDONLY)
        try:
            process = Process(7, comm=b"made", living=7)
            report = Remembered()
            writer = Writer(process, handle, EM_X86_64, fault_in=False, trace=False, patience=QUICK)
            core = Core(b"".join(bytes(chunk) for chunk in writer.read(report)))
        finally:
            os.close(handle)
    spans = sorted((one[3], one[3] + one[6]) for one in core.loads)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    for page in range(PAGES):
        assert core.at(page * PAGE, PAGE) in {None, content[page * PAGE :][:PAGE]}
    assert core.lines[-1] == {"type": "end"}
    assert {gap.reason for gap in report.gaps} <= {
        Reason.VANISHED,
        Reason.IO_ERROR,
        Reason.MALFORMED,
        Reason.UNSUPPORTED,
    }


def test_an_address_beyond_all_processes_is_a_gap_and_no_fault(tmp_path: Path) -> None:
    """One that no file offset can express, of which the page map says nothing."""
    root = tmp_path / "task/7"
    root.mkdir(parents=True)
    start = (1 << 63) + PAGE
    write(root, [f"{start:x}-{start + PAGE:x} rw-s 00000000 00:00 0 \n"])
    (root / "mem").write_bytes(bytes(PAGE))
    (root / "pagemap").write_bytes(b"")
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        writer = Writer(Process(7, living=7), handle, EM_X86_64, fault_in=True, trace=False, patience=QUICK)
        report = Remembered()
        core = Core(b"".join(bytes(chunk) for chunk in writer.read(report)))
    finally:
        os.close(handle)
    assert core.at(start, PAGE) is None
    assert [(gap.reason, gap.missing) for gap in report.gaps] == [(Reason.VANISHED, PAGE), (Reason.VANISHED, None)]
