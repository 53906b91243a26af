"""The guest does what it is told, says how it ended, and is gone afterwards."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs import guest_truth
from tests.rigs.guest import Guest, Machine
from tests.rigs.guest_scenes import needs_guest
from tests.rigs.s3_process import RigError

pytestmark = [needs_guest(), pytest.mark.timeout(300)]

MARK = struct.pack("<Q", 0x6D69736368696566) * 512
PIN = """
import ctypes, mmap, os, struct, sys, time
page = mmap.mmap(-1, 4096)
page[:] = sys.stdin.buffer.read(4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CDLL(None).mlock(ctypes.c_void_p(address), 4096)
with open("/proc/self/pagemap", "rb") as pagemap:
    pagemap.seek(address // 4096 * 8)
    print(struct.unpack("<Q", pagemap.read(8))[0] & ((1 << 55) - 1), flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(Machine(hole=True), tmp_path_factory.mktemp("guest")) as guest:
        yield guest


def test_a_program_and_how_it_ended(guest: Guest) -> None:
    done = guest.run(["sh", "-c", 'cat; echo "$WHO" >&2; exit 7'], stdin=b"\x00\xff in", env={"WHO": "someone"})
    assert (done.code, done.out, done.err) == (7, b"\x00\xff in", b"someone\n")


def test_a_program_that_takes_too_long_is_ended(guest: Guest) -> None:
    with pytest.raises(RigError, match="did not end in 1 s"):
        guest.run(["sleep", "1000"], seconds=1)
    assert b"sleep" not in guest.run(["ps", "-eo", "comm="]).out


def test_what_does_not_exist_is_an_error(guest: Guest) -> None:
    with pytest.raises(RigError, match="FileNotFoundError"):
        guest.run(["/nowhere"])
    assert guest.run(["true"]).code == 0


def test_files_go_in_and_come_out(guest: Guest, tmp_path: Path) -> None:
    guest.write("/evidence/in", b"\x01\x02", mode=0o600)
    guest.run(["sh", "-c", "mkdir -p /evidence/d/e; cp /evidence/in /evidence/d/e/copy"], check=True)
    guest.copy_out("d", tmp_path)
    assert (tmp_path / "d/e/copy").read_bytes() == guest.read("/evidence/in") == b"\x01\x02"
    with pytest.raises(RigError, match="has no nothing"):
        guest.copy_out("nothing", tmp_path)


def test_the_kernel_has_what_memory_needs(guest: Guest) -> None:
    assert guest.run(["head", "-c", "4", "/proc/kcore"]).out == b"\x7fELF"
    ram = guest_truth.system_ram(guest.read("/proc/iomem").decode())
    assert len(ram) == 3
    assert ram[-1][0] == 4 << 30


def test_a_paused_guest_shows_what_a_process_wrote(guest: Guest, tmp_path: Path) -> None:
    guest.write("/tmp/pin.py", PIN.encode())
    guest.write("/tmp/mark", MARK)
    pid = guest.start(["sh", "-c", "exec python3 -S /tmp/pin.py </tmp/mark"], output="/tmp/pin.out")
    try:
        for _ in range(100):
            if said := guest.read("/tmp/pin.out"):
                break
            guest.run(["sleep", "0.1"])
        with guest.paused():
            guest.pmemsave(int(said) * 4096, 4096, tmp_path / "page")
    finally:
        guest.kill(pid)
    assert (tmp_path / "page").read_bytes() == MARK


@pytest.mark.parametrize("paging", [4, 5])
def test_depth_of_paging_and_nothing_is_left(paging: int, tmp_path: Path) -> None:
    with Guest(Machine(memory=256, paging=5 if paging == 5 else 4), tmp_path / "guest") as guest:
        assert guest._program is not None
        qemu = guest._program.pid
        assert (b" la57 " in guest.read("/proc/cpuinfo").replace(b"\n", b" ")) == (paging == 5)
    with pytest.raises(ProcessLookupError):
        os.kill(qemu, 0)
    with pytest.raises(RigError, match="does not run"):
        guest.run(["true"])
