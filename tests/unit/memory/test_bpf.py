"""The eBPF source on the running kernel. It reads pages of this test, the note VMCOREINFO, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquirers.host import Host, Mode
from acquirers.memory import bpf, iomem, vmcoreinfo
from acquirers.memory.block import PAGE
from acquirers.memory.directmap import Canary
from acquirers.memory.ranges import Ranges

HOST = Host(Mode.HOST)


@pytest.fixture(scope="module")
def source() -> bpf.Bpf:
    if os.geteuid():
        pytest.skip("needs root")
    try:
        return bpf.probe(iomem.parse(iomem.read(HOST)), platform.machine())
    except bpf.UnavailableError as error:
        pytest.skip(f"needs BPF: {error}")


@pytest.fixture
def reader(source: bpf.Bpf) -> Iterator[bpf.BpfReader]:
    with contextlib.closing(source.open()) as opened:
        yield opened


def read(reader: bpf.BpfReader, address: int, size: int) -> bytes:
    into = bytearray(size)
    reader.read(address, memoryview(into))
    return bytes(into)


def test_a_page_of_our_own_is_at_its_physical_address(reader: bpf.BpfReader) -> None:
    with Canary() as canary:
        at = canary.physical()
        assert read(reader, at, 64) == canary.content
        assert read(reader, at + 5, 13) == canary.content[5:18]
        assert read(reader, at, PAGE) == canary.content + bytes(PAGE - 64)
        assert read(reader, at, 0) == b""


def test_the_note_vmcoreinfo_is_where_the_kernel_says(reader: bpf.BpfReader) -> None:
    try:
        address, size = vmcoreinfo.where(HOST)
    except FileNotFoundError:
        pytest.skip("needs VMCOREINFO")
    text = vmcoreinfo.parse_note(read(reader, address, size))
    assert b"OSRELEASE=" + os.uname().release.encode() + b"\n" in text


def contiguous(area: mmap.mmap, where: int) -> tuple[int, int, int]:
    """The longest run of pages that lie one behind the other in RAM: offset in the area, physical address, bytes."""
    count = len(area) // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(where // PAGE * 8)
        frames = [one & (1 << 55) - 1 for one in struct.unpack(f"={count}Q", file.read(count * 8))]
    best, start = (0, 0, 0), 0
    for index in range(1, count + 1):
        if index == count or frames[index] != frames[index - 1] + 1:
            best = max(best, (index - start, start, frames[start]))
            start = index
    return best[1] * PAGE, best[2] * PAGE, best[0] * PAGE


def test_reads_longer_than_the_map_are_split(source: bpf.Bpf, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a map of three pages: no test can rely on megabytes of memory of its own in one piece."""
    import ctypes

    monkeypatch.setattr(bpf, "SIZE", 3 * PAGE)
    area = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        area.madvise(mmap.MADV_HUGEPAGE)
    area[:] = secrets.token_bytes(1 << 20) * 16
    at, physical, size = contiguous(area, ctypes.addressof(ctypes.c_char.from_buffer(area)))
    size = min(size, 100 * PAGE)
    assert size > 3 * PAGE
    with contextlib.closing(source.open()) as reader:
        for first, last in ((0, size), (0, 3 * PAGE), (1, 3 * PAGE + 1), (777, 7 * PAGE + 13), (PAGE - 1, size - 1)):
            end = min(last, size)
            assert read(reader, physical + first, end - first) == area[at + first : at + end]
    area.close()


def test_two_readers_do_not_share_a_buffer(source: bpf.Bpf) -> None:
    opened = contextlib.closing(source.open()), contextlib.closing(source.open())
    with Canary() as one, Canary() as other, opened[0] as first, opened[1] as second:
        for _ in range(3):
            assert read(first, one.physical(), 64) == one.content
            assert read(second, other.physical(), 64) == other.content


def test_what_is_not_mapped_is_an_error_and_the_reader_goes_on(reader: bpf.BpfReader) -> None:
    """The first is above all mappings; the second is, with tables of four levels, not even an address: ERANGE."""
    for address, codes in (
        ((1 << 64) - (1 << 20), {errno.EFAULT}),
        (0xFF00_0000_0000_0000, {errno.EFAULT, errno.ERANGE}),
    ):
        with pytest.raises(OSError) as caught:
            reader.read_virtual(address, memoryview(bytearray(4096)))
        assert caught.value.errno in codes
    with Canary() as canary:
        assert read(reader, canary.physical(), 64) == canary.content


@pytest.mark.parametrize(("address", "size"), [(0, 8), (0x7FFF_0000_0000, 8), ((1 << 64) - 8, 16), (1 << 64, 1)])
def test_addresses_of_programs_are_refused(reader: bpf.BpfReader, address: int, size: int) -> None:
    with pytest.raises(OSError, match="no address of the kernel") as caught:
        reader.read_virtual(address, memoryview(bytearray(size)))
    assert caught.value.errno == errno.EINVAL


def test_what_is_no_ram_is_refused(source: bpf.Bpf, reader: bpf.BpfReader) -> None:
    last = list(source.covers)[-1]
    for address, size in ((last.end - 1, 2), (last.end, 1), (1 << 51, 8)):
        with pytest.raises(OSError, match="not System RAM") as caught:
            read(reader, address, size)
        assert caught.value.errno == errno.EINVAL


def test_virtual_and_physical_addresses_lead_to_the_same(source: bpf.Bpf, reader: bpf.BpfReader) -> None:
    assert source.direct_map is not None
    with Canary() as canary:
        into = bytearray(64)
        reader.read_virtual(source.direct_map + canary.physical(), memoryview(into))
        assert into == canary.content


def test_what_is_loaded_is_listed_and_gone_afterwards(source: bpf.Bpf) -> None:
    with contextlib.closing(source.open()), contextlib.closing(source.open()):
        ids = source.ids
        assert len(ids["programs"]) == 2
        assert len(ids["maps"]) >= 2
        assert set(bpf.probe(source.covers, platform.machine()).ids["programs"]).isdisjoint(ids["programs"])
    until = time.monotonic() + 10
    while source.ids != {"programs": [], "maps": []} and time.monotonic() < until:
        time.sleep(0.05)  # the kernel frees maps a moment later
    assert source.ids == {"programs": [], "maps": []}


def test_readers_leave_no_descriptor(source: bpf.Bpf) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        reader = source.open()
        reader.close()
        reader.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_step_that_fails_is_named_and_leaves_nothing(source: bpf.Bpf, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(bpf, "_PROBE_READ_KERNEL", 99_999)  # a helper that no kernel has
    with pytest.raises(bpf.UnavailableError, match="load") as caught:
        bpf.BpfReader(Ranges(), None, b"impound_test")
    assert (caught.value.step, caught.value.errno) == ("load", errno.EINVAL)
    with pytest.raises(OSError, match="eBPF: load"):
        source.open()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_sysctl_is_changed(source: bpf.Bpf) -> None:
    names = ("kptr_restrict", "unprivileged_bpf_disabled", "perf_event_paranoid")
    files = [Path("/proc/sys/kernel", name) for name in names]
    before = [file.read_text() for file in files if file.exists()]
    with contextlib.closing(source.open()):
        assert [file.read_text() for file in files if file.exists()] == before


def test_it_works_in_a_process_that_was_forked(source: bpf.Bpf) -> None:
    """As the readers do: the source is made by the parent, opened by the child."""
    with Canary() as canary:
        at, content = canary.physical(), canary.content
        pid = os.fork()
        if pid == 0:
            try:
                with contextlib.closing(source.open()) as reader:
                    os._exit(0 if read(reader, at, 64) == content else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0


def test_an_unknown_architecture_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(bpf.UnavailableError) as caught:
        bpf.current_task(b"impound_test")
    assert caught.value.errno == errno.ENOSYS


def test_programs_are_what_the_verifier_was_shown() -> None:
    """Golden: eleven instructions, as include/uapi/linux/bpf.h encodes them."""
    assert struct.pack("=BBhi", 0x18, 0x21, 0, 7).hex() == bpf._map_value(1, 7)[:8].hex()
    assert bpf._copier(7).hex(" ", 8).split() == [
        "bf16000000000000", "7967000000000000", "7968080000000000", "b7000000eaffffff", "2508050000002000",
        "1821000007000000", "0000000000000000", "bf82000000000000", "bf73000000000000", "8500000071000000",
        "9500000000000000",
    ]  # fmt: skip


@pytest.mark.root
def test_without_privilege_it_says_so_and_loads_nothing() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    code = (
        "from acquirers.memory import bpf\n"
        "try:\n    bpf.current_task(b'impound_test')\n"
        "except bpf.UnavailableError as error:\n    print(error.step, error.errno)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    assert done.stdout.split()[0] in {"map", "load"}, done.stderr
    assert done.stdout.split()[1] in {str(errno.EPERM), str(errno.EACCES)}
