"""What a process may do so that its memory is not seen: long paths, another program, thousands of pieces."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Reason
from acquirers.memory.process import elf, examine, maps
from acquirers.memory.process.examine import Examination, Kind
from tests.unit.memory.process.helpers import PAGE, QUICK, Made, Remembered, core_of, python, state


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_lies_between_too_many_lost_pages_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "MAX_SPARE", 0)
    many = 20 << 8
    made = Made(tmp_path, "P" * many)
    report = Remembered()
    core = made.core(report, lambda: made.write_states("P" * (many - 300) + "PS" * 100 + "P" * 100))
    absent = sum(made.page(core, page) is None for page in range(many)) * PAGE
    assert absent > 100 * PAGE
    assert core.process["missing"] == absent == sum(gap.missing or 0 for gap in report.gaps)
    assert core.process["read"] == many * PAGE - absent
    assert {gap.reason for gap in report.gaps} == {Reason.VANISHED, Reason.LIMIT}


def test_thousands_of_runs_are_told_as_they_are_found(tmp_path: Path) -> None:
    """And not kept by the child: an area may have as many of them as pages."""
    made = Made(tmp_path, "PS" * 60_000, content=False)
    directory = os.open(made.root.parents[1], os.O_RDONLY)
    tracemalloc.start()
    try:
        lines = segments = 0
        for part in Examination(directory, 7, fault_in=False).parts():
            lines += bytes(part.data).count(b'"swapped","start"') if part.notes == Kind.LINES else 0
            segments += len(part.data) // 17 if part.notes == Kind.SEGMENTS else 0
            if part.fd >= 0:
                os.close(part.fd)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(directory)
    assert segments == 60_000
    assert lines > 59_000  # a few are cut between two parts
    assert peak < 12 << 20


def test_flags_that_come_too_slowly_cost_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*_: object) -> Iterator[None]:
        while True:
            time.sleep(0.2)
            yield

    monkeypatch.setattr(maps, "learn", slowly)
    monkeypatch.setattr(examine, "SMAPS_SECONDS", QUICK.first + 0.5)
    made = Made(tmp_path, "PAP")
    report = Remembered()
    core = made.core(report)
    assert [made.page(core, page) for page in range(3)] == [b"A" * PAGE, None, b"C" * PAGE]
    assert core.area(made.START)["absent_is"] == "unknown"
    assert not report.gaps


def test_a_line_that_is_no_area_is_a_gap(tmp_path: Path) -> None:
    made = Made(tmp_path, "PP")
    area = (made.root / "maps").read_text()
    (made.root / "maps").write_text(f"{area}{area}nonsense\n")
    report = Remembered()
    assert made.page(made.core(report), 1) == b"B" * PAGE
    assert [gap.reason for gap in report.gaps] == [Reason.MALFORMED]


LONG_PATH = """
where, total = {where!r}, 73 + len({where!r})
os.chdir(where)
while 32768 - total > 200:
    n = min(200, 32768 - total - 12)
    os.mkdir("d" * n); os.chdir("d" * n); total += n + 1
name = b"p" * (32768 - total - 1) + b"00020000-7ffffffff000 r--p 00000000 00:00 0 [vvar]"
fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600); os.ftruncate(fd, 4096)
low = libc.mmap(0x10000, 4096, 1, 0x12, fd, 0)
tell(os.getpid(), low, area(1 << 20, b"SECRET"))
"""


def test_a_path_longer_than_a_line_hides_nothing(tmp_path: Path) -> None:
    try:
        with python(LONG_PATH.format(where=str(tmp_path))) as target:
            if target.said[0] != 0x10000:
                pytest.skip("needs a mapping below all others")
            report = Remembered()
            core = core_of(target, report)
            assert core.at(target.said[1], 1 << 20) == (b"SECRET" * 200_000)[: 1 << 20]
            assert len(core.areas()) == len(Path(f"/proc/{target.pid}/maps").read_bytes().splitlines())
            assert not report.gaps
    finally:
        subprocess.run(["rm", "-rf", "--", *map(str, tmp_path.iterdir())], check=False, timeout=30)


@pytest.mark.parametrize("how", ["killed", "another program"])
def test_a_process_that_is_gone_while_it_is_planned(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of its files and the reading of them: nothing of it may seem to be absent."""
    code = 'at = area(1 << 22, b"CONTENT!")\n'
    code += 'signal.signal(signal.SIGUSR1, lambda *_: os.execv("/bin/sleep", ["sleep", "1000"]))\ntell(os.getpid(), at)'
    with python(code) as target:
        once = tmp_path / "once"

        def act() -> bytes:  # in the child
            if not once.exists():
                once.touch()
                os.kill(target.pid, signal.SIGKILL if how == "killed" else signal.SIGUSR1)
                wait_for(lambda: state(target.pid) in "ZX" or b"sleep" in Path(f"/proc/{target.pid}/comm").read_bytes())
            return b""

        monkeypatch.setattr(examine, "_own_mounts", act)
        report = Remembered()
        core = core_of(target, report)
        if how == "killed":
            assert {gap.reason for gap in report.gaps} == {Reason.VANISHED}
        else:
            assert not report.gaps
            assert FlagKind.CHANGED in {flag.kind for flag in report.flags}
            assert core.process["present"] > 100_000
            assert any(one.get("name", "").endswith("/sleep") for one in core.areas())
            assert core.process["registers"] == "all"


def test_memory_map_that_ends_is_vanished_and_not_absent(tmp_path: Path) -> None:
    made = Made(tmp_path, "PPPP")
    with (made.root / "pagemap").open("r+b") as file:
        file.truncate((made.START // PAGE + 1) * 8)
    report = Remembered()
    core = made.core(report)
    assert [(gap.reason, gap.missing) for gap in report.gaps] == [(Reason.VANISHED, 3 * PAGE)]
    assert core.process["missing"] == 3 * PAGE
    assert [made.page(core, page) for page in range(4)] == [b"A" * PAGE, None, None, None]


SPARSE = """
fd = os.memfd_create("sparse")
os.ftruncate(fd, 64 << 20)
os.pwrite(fd, b"DATA", 8 << 20)
shared = libc.mmap(None, 64 << 20, 3, 1, fd, 0)
private = libc.mmap(None, 64 << 20, 3, 2, fd, 0)
nameless = libc.mmap(None, 64 << 20, 3, 0x21, -1, 0)
tell(os.getpid(), fd, shared, private, nameless)
"""


def test_fault_in_makes_no_pages_of_sparse_shared_memory() -> None:
    with python(SPARSE) as target:
        fd, *starts = target.said
        before = os.stat(f"/proc/{target.pid}/fd/{fd}").st_blocks
        report = Remembered()
        core = core_of(target, report, fault_in=True)
        assert os.stat(f"/proc/{target.pid}/fd/{fd}").st_blocks == before
        assert "Rss" in (found := Path(f"/proc/{target.pid}/smaps_rollup").read_text())
        assert int(found.split("Pss_Shmem:")[1].split()[0]) < 1024  # KiB
        assert not report.gaps
        for start in starts:
            assert core.at(start, PAGE) is None
        if os.geteuid() == 0:
            for start in starts[:2]:
                assert core.at(start + (8 << 20), 8) == b"DATA" + bytes(4)
