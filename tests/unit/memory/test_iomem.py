"""/proc/iomem: every byte of RAM, wherever it stands, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.host import Host, Mode
from acquirers.memory import iomem
from acquirers.memory.ranges import Ranges

# An EC2 instance with persistent memory and virtio-mem plugged in: RAM below what is none.
PLUGGED = b"""\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-bffe9fff : System RAM
  01000000-0220bb07 : Kernel code
  02400000-02e09fff : Kernel rodata
  03000000-0327c13f : Kernel data
  03b34000-03c57fff : Kernel bss
  2b000000-32ffffff : Crash kernel
bffea000-bfffffff : Reserved
100000000-23fffffff : System RAM
240000000-33fffffff : Persistent Memory
  240000000-33fffffff : namespace0.0
    240000000-33fffffff : dax0.0
      248000000-33fffffff : System RAM (kmem)
4000000000-7fffffffff : PCI Bus 0000:00
8000000000-807fffffff : virtio0
  8000000000-8007ffffff : System RAM (virtio_mem)
  8010000000-8017ffffff : System RAM (virtio_mem)
"""
# VMware Fusion with EFI setup data: ranges that end and begin within pages.
ODD = b"""\
00001000-0009ebff : System RAM
00100000-7d3c0017 : System RAM
7d3c0018-7d3d7c57 : System RAM
7d3d7c58-7fedefff : System RAM
7fedf000-7fefefff : ACPI Tables
"""
HIDDEN = b"00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n00000000-00000000 : PCI Bus 0000:00\n"


def test_ram_is_found_at_any_depth_and_its_ends_are_included() -> None:
    assert iomem.parse(PLUGGED) == Ranges([
        (0x1000, 0x9FC00),
        (0x10_0000, 0xBFFE_A000),
        (0x1_0000_0000, 0x2_4000_0000),
        (0x2_4800_0000, 0x3_4000_0000),
        (0x80_0000_0000, 0x80_0800_0000),
        (0x80_1000_0000, 0x80_1800_0000),
    ])  # fmt: skip


def test_the_kernel_lies_inside_ram() -> None:
    image = iomem.kernel_image(PLUGGED)
    assert next(iter(image)) == (0x100_0000, 0x220_BB08)
    assert len(image) == 4
    assert image.subtract(iomem.parse(PLUGGED)).total == 0


def test_ranges_that_touch_within_a_page_are_one_and_no_byte_is_lost() -> None:
    assert iomem.parse(ODD) == Ranges([(0x1000, 0x9EC00), (0x10_0000, 0x7FED_F000)])


def test_zeros_for_all_addresses_are_no_ram_of_one_byte() -> None:
    assert iomem.hidden(HIDDEN)
    assert iomem.parse(HIDDEN) == iomem.kernel_image(HIDDEN) == Ranges()
    assert not iomem.hidden(PLUGGED)
    assert not iomem.hidden(b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1000-1fff : System RAM (boot) x", []),
        (b"1000-1fff : System RAMP", []),
        (b"1000-1fff : system ram", []),
        (b"2000-1fff : System RAM", []),
        (b"2000-1000 : System RAM", []),
        (b"1000-1fff: System RAM", []),
        (b"-1000-1fff : System RAM", []),
        (b"11111111111111111-22222222222222222 : System RAM", []),
        (b"1000-ffffffffffffffff : System RAM", [(0x1000, 1 << 52)]),
        (b"ffffffffffff0000-ffffffffffffffff : System RAM", []),
        (b"3000-3fff : System RAM\n1000-2fff : System RAM\n2000-27ff : System RAM", [(0x1000, 0x4000)]),
        (b"1000-1fff : System RAM\n  1000-8fff : System RAM\n2000-2fff : x", [(0x1000, 0x2000)]),
        (b"1000-1fff : x\n    1000-17ff : System RAM\n  1800-1bff : System RAM", [(0x1000, 0x1C00)]),
        (b"\0\xff\n1000-1fff : System RAM\n\x1b[2J", [(0x1000, 0x2000)]),
    ],
)
def test_what_no_kernel_writes_is_passed_over(text: bytes, expected: list[tuple[int, int]]) -> None:
    assert iomem.parse(text) == Ranges(expected)


SPANS = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 34)), max_size=30)


@given(SPANS, st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_every_byte_of_ram_is_found_in_any_order(spans: list[tuple[int, int]], depths: list[int]) -> None:
    lines, expected, inside = [], [], 9
    for (start, size), depth in zip(spans, depths, strict=False):
        lines.append(b"%s%x-%x : System RAM" % (b"  " * depth, start, start + size - 1))
        if depth <= inside:
            expected.append((start, start + size))
            inside = depth
        lines.append(b"%s0-ffffffff : PCI Bus" % (b"  " * min(depth, inside)))
        inside = 9 if depth <= inside else inside
    found = iomem.parse(b"\n".join(lines))
    assert found.subtract(Ranges((start, start + size) for start, size in spans)).total == 0
    assert Ranges(expected).subtract(found).total == 0


def test_a_file_that_no_kernel_writes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/iomem").write_bytes(b"1000-1fff : System RAM\n" * 200_000)
    with pytest.raises(OSError, match="larger than 4 MiB"):
        iomem.read(Host(Mode.HOST, os.fsencode(tmp_path), os.fsencode(tmp_path / "proc")))


def test_this_machine_has_as_much_as_it_says() -> None:
    data = iomem.read(Host(Mode.HOST))
    if iomem.hidden(data):
        pytest.skip("needs root: /proc/iomem hides its addresses")
    total = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    assert 0 <= iomem.parse(data).total - total < total // 4 + (256 << 20)
