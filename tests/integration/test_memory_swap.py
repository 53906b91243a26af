"""`memory.swap` on areas that the kernel really swaps to: what it moved out of memory is in the item, byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Scope, State
from acquirers.memory import swap
from acquirers.memory.physical import Physical
from acquirers.memory.ranges import Ranges
from tests.support.memory_sources import Fake, survey
from tests.support.runs import impound, keygen
from tests.unit.memory.process.helpers import HERE, Target, core_of, pagemap, python

pytestmark = pytest.mark.root

SIZE = 32 << 20
CONTROL = Path("/sys/class/zram-control")
MARK = b"MOVED OUT OF MEMORY "


def run(*command: str) -> str:
    """What a program says; the test is skipped where the kernel refuses it what it needs."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"needs a loop device that can be swapped to: {' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


@dataclass
class Area:
    """A swap area of this machine, for the length of a test."""

    path: str
    kind: str

    def raw(self) -> bytes:
        """All of it, past the page cache."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            buffer = mmap.mmap(-1, SIZE)
            assert os.preadv(fd, [buffer], 0) == SIZE
            return bytes(buffer)
        finally:
            os.close(fd)

    def used(self) -> int:
        (mine,) = [one for one in swap.areas(HERE) if one.path == self.path.encode()]
        return mine.used


def file(stack: contextlib.ExitStack, tmp_path: Path) -> Area:
    place = tmp_path / "swap file"
    place.touch(0o600)
    place.write_bytes(os.urandom(SIZE))
    return Area(str(place), "file")


def loop(stack: contextlib.ExitStack, tmp_path: Path) -> Area:
    image = file(stack, tmp_path).path
    device = run("losetup", "--find", "--show", image)
    stack.callback(subprocess.run, ["losetup", "--detach", device], check=True, timeout=30)
    return Area(device, "partition")


def zram(stack: contextlib.ExitStack, tmp_path: Path) -> Area:
    if not (CONTROL / "hot_add").exists():
        pytest.skip("needs a loop device, or zram, that can be swapped to")
    number = (CONTROL / "hot_add").read_text().strip()
    stack.callback(lambda: (CONTROL / "hot_remove").write_text(number))
    stack.callback(lambda: Path(f"/sys/block/zram{number}/reset").write_text("1"))
    Path(f"/sys/block/zram{number}/disksize").write_text(str(SIZE))
    return Area(f"/dev/zram{number}", "partition")


@pytest.fixture(params=[loop, file, zram], ids=["loop device", "file", "zram"])
def area(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Area]:
    if os.geteuid():
        pytest.skip("needs root")
    make: Callable[[contextlib.ExitStack, Path], Area] = request.param
    with contextlib.ExitStack() as stack:
        made = make(stack, tmp_path)
        run("mkswap", made.path)
        run("swapon", "--priority", "32000", made.path)
        stack.callback(subprocess.run, ["swapoff", made.path], check=True, timeout=60)
        yield made


@pytest.fixture
def moved(area: Area) -> Iterator[Target]:
    """A process of which 4 MiB are swapped out: MADV_PAGEOUT."""
    code = f"""
at = area(4 << 20, {MARK!r})
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise(at, 4 << 20, 21)
tell(os.getpid(), at)
"""
    with python(code) as target:
        until = time.monotonic() + 10
        while area.used() < 4 << 20:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield target


def acquired(tmp_path: Path, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """The result, the manifest, and where it was opened."""
    tmp_path.mkdir(exist_ok=True)
    key, recipient = keygen(tmp_path)
    to, out = tmp_path / "ev", tmp_path / "opened"
    code, result, said = impound("acquire", "--case", "C-1", "--to", to, "-r", recipient, *more)
    assert code in {0, 1}, said
    assert impound("open", to, "-i", key, "-o", out)[0] == 0
    return result, [json.loads(one) for one in (out / "attempt-1/manifest.jsonl").read_text().splitlines()], out


def test_the_item_is_the_area(area: Area, moved: Target, tmp_path: Path) -> None:
    for number in range(5):
        before = area.raw()
        result, manifest, out = acquired(tmp_path / str(number), "--only", "memory.swap")
        if area.raw() == before:
            break  # while it was read nothing was written to it: all of the machine may swap to it
    (item,) = out.glob("memory/swap/*.raw")
    found = item.read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(before).digest()
    assert found[4086:4096] == b"SWAPSPACE2"
    assert found.count((MARK * 300)[:4096]) >= 1
    assert found.count(MARK) > 150_000
    (record,) = [one for one in manifest if one["type"] == "item"]
    about = record["about"]
    assert (about["kind"], about["size"]) == (area.kind, SIZE - 4096)
    assert about["used"] >= 4 << 20
    assert result["exit"] == 0
    assert not [one for one in manifest if one["type"] == "gap"]


def test_what_was_moved_out_is_told_of_its_process_and_not_brought_back(area: Area, moved: Target) -> None:
    core = core_of(moved)
    start = moved.said[0]
    assert core.process["swapped"] >= 4 << 20
    assert core.at(start, 4096) is None  # neither read nor zeros
    assert {"type": "swapped", "start": start, "end": start + (4 << 20)} in core.lines
    assert {entry & 0xC0 for entry in pagemap(moved.pid, start, 4 << 20)} == {0x40}
    assert area.used() >= 4 << 20
    core = core_of(moved, fault_in=True)
    assert core.at(start, 4 << 20) == (MARK * 300_000)[: 4 << 20]


def test_it_is_listed_with_its_size_and_not_taken_unasked(area: Area, tmp_path: Path) -> None:
    """The manifest has it in what it says of the image of physical memory; only its name makes it an item."""
    ram = Ranges([(0, 1 << 20)])
    items = Physical(survey(ram, Fake("kcore", ram))).items(HERE, Scope())
    first = next(items)
    del items
    listed = [one for one in first.about["swap"] if one["path"] == area.path.encode()]  # type: ignore[attr-defined]
    assert [(one["kind"], one["size"]) for one in listed] == [(area.kind, SIZE - 4096)]
    with python("tell(os.getpid())") as target:
        skip = ("--skip", "memory.physical", "--skip", "memory.symbols")
        _, manifest, out = acquired(tmp_path, "--only", "memory", *skip, "--pid", str(target.pid))
    assert list(out.glob("memory/process/*.core"))
    assert not list(out.glob("memory/swap/*"))
    assert not [one for one in manifest if one["type"] == "item" and "swap" in one["item"]]


def test_the_plan_lists_every_area(area: Area) -> None:
    found = swap.Swap().probe(HERE, Scope())
    assert found.state is State.AVAILABLE
    (subject,) = [one for one in found.subjects if one.name == area.path.encode()]
    assert (subject.id, subject.estimate) == (area.kind, SIZE - 4096)
