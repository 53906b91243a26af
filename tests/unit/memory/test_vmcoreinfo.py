"""VMCOREINFO: the text, its note, and where it lies; and the page tables that it describes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.host import Host, Mode
from acquirers.memory import paging, vmcoreinfo
from acquirers.memory.ranges import Ranges

# Lines of a real kernel, 6.18 on x86-64; the page that the kernel keeps them in ends in zeros.
X86 = b"""\
OSRELEASE=6.18.44-fc-v669
BUILD-ID=4a5a9b0affb66c437abcd455d2738af879985fa9
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff83215da0
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)=ffffffff83048000
SYMBOL(_stext)=ffffffff81000000
NUMBER(VMALLOC_START)=0xffffc90000000000
LENGTH(mem_section)=2048
SIZE(page)=64
OFFSET(pglist_data.node_zones)=0
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=1c000000
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(sme_mask)=0
"""


def note(text: bytes) -> bytes:
    return struct.pack("<III12s", 11, len(text), 0, b"VMCOREINFO") + text + bytes(-len(text) % 4)


def test_reads_every_kind_of_line() -> None:
    info = vmcoreinfo.parse(X86 + b"CRASHTIME=1700000000\n" + bytes(700))
    assert (info.release, info.build_id) == ("6.18.44-fc-v669", "4a5a9b0affb66c437abcd455d2738af879985fa9")
    assert (info.page_size, info.kernel_offset, info.crash_time) == (4096, 0x1C000000, 1700000000)
    assert info.symbols["swapper_pg_dir"] == 0xFFFFFFFF83048000
    assert info.numbers["VMALLOC_START"] == 0xFFFFC90000000000
    assert info.numbers["PAGE_BUDDY_MAPCOUNT_VALUE"] == -268435456
    assert info.offsets == {"uts_namespace.name": 0, "pglist_data.node_zones": 0}
    assert (info.sizes, info.lengths) == ({"page": 64}, {"mem_section": 2048})


def test_what_has_no_known_form_is_left_out_and_the_first_of_two_counts() -> None:
    info = vmcoreinfo.parse(
        b"OSRELEASE=1\nOSRELEASE=2\nSYMBOL(a)=zz\nSYMBOL(b)=12\nSYMBOL(b)=13\nNUMBER(c)=0x\nNUMBER(d)=010\n"
        b"WHAT(e)=1\nSIZE(\x1b[31m)=1\nSIZE(f)=99999999999999999999999\nKERNELOFFSET=-1\n\xff\xfe\n"
    )
    assert (info.release, dict(info.symbols), dict(info.numbers)) == ("1", {"b": 0x12}, {})
    assert (dict(info.sizes), info.kernel_offset, info.page_size) == ({}, None, None)


@pytest.mark.parametrize("text", [b"", b"\0" * 64, b"PAGESIZE=4096\n", b"OSRELEASE=" + b"x" * vmcoreinfo.MAX_NOTE])
def test_what_is_no_such_text_is_refused(text: bytes) -> None:
    with pytest.raises(vmcoreinfo.MalformedError):
        vmcoreinfo.parse(text)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    for parse in (vmcoreinfo.parse, vmcoreinfo.parse_note, vmcoreinfo.parse_where):
        try:
            parse(data)
        except vmcoreinfo.MalformedError:
            pass
    vmcoreinfo.parse(b"OSRELEASE=" + data)
    try:
        vmcoreinfo.parse_note(struct.pack("<III12s", 11, len(data) + 1, 0, b"VMCOREINFO") + data)
    except vmcoreinfo.MalformedError:
        pass


def test_the_note_gives_the_text_and_says_when_it_is_none() -> None:
    assert vmcoreinfo.parse_note(note(X86) + bytes(900)) == X86
    for wrong in (note(X86)[:-8], b"\0" * 4096, struct.pack("<III12s", 11, 1 << 31, 0, b"VMCOREINFO") + X86):
        with pytest.raises(vmcoreinfo.MalformedError):
            vmcoreinfo.parse_note(wrong)


def test_the_size_in_sys_is_hexadecimal_without_a_prefix() -> None:
    assert vmcoreinfo.parse_where(b"0x0000000100c66000 1024\n") == (0x100C66000, 0x1024)
    for wrong in (b"", b"0x0 1024\n", b"0x1000 0\n", b"0x1000 ffffffff\n", b"0x1000\n", b"-1 10\n"):
        with pytest.raises(vmcoreinfo.MalformedError):
            vmcoreinfo.parse_where(wrong)


def test_where_it_lies_comes_from_the_examined_machine(tmp_path: Path) -> None:
    place = tmp_path / "sys/kernel"
    place.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    host = Host(Mode.HOST, root=os.fsencode(tmp_path), proc=os.fsencode(tmp_path / "proc"))
    with pytest.raises(FileNotFoundError):
        vmcoreinfo.where(host)
    (place / "vmcoreinfo").write_bytes(b"0x0000000100c66000 1024\n")
    assert vmcoreinfo.where(host) == (0x100C66000, 0x1024)


# -- page tables ------------------------------------------------------------------------------------------------------

RAM = Ranges([(0x1000, 0x9F000), (0x100000, 0x8000_0000)])
INFO = vmcoreinfo.parse(X86)


class Tables:
    """Entries by their physical address."""

    def __init__(self) -> None:
        self.entries: dict[int, int] = {}

    def __call__(self, address: int) -> int:
        return self.entries.get(address, 0)

    def map(self, shape: paging.Paging, address: int, tables: list[int], last: int) -> None:
        """Tables at these addresses, the root first, lead to the last entry."""
        for level, table in enumerate(tables):
            flags = 3 if shape.machine == paging.ARM64 else 0x63
            value = tables[level + 1] | flags if level + 1 < len(tables) else last
            self.entries[table + 8 * shape.index(level, address)] = value


def five() -> paging.Paging:
    return paging.paging(paging.X86, vmcoreinfo.Vmcoreinfo(b"", numbers={"pgtable_l5_enabled": 1}), 4096)


def test_four_and_five_levels_lead_through_large_and_small_pages() -> None:
    address = 0xFFFFFFFF_8252AB00
    four, tables = paging.paging(paging.X86, INFO, 4096), Tables()
    tables.map(four, address, [0x200000, 0x201000, 0x202000], 0x8000_0000_0240_01A1)  # NX, 2 MiB
    found = paging.walk(four, 0x200000, address, tables, RAM)
    assert (found.physical, [step.level for step in found.steps]) == (0x252AB00, [0, 1, 2])
    assert [step.address for step in found.steps] == [0x200FF8, 0x201FF0, 0x202090]

    assert five().levels == 5
    tables = Tables()
    tables.map(five(), address, [0x200000, 0x201000, 0x202000, 0x203000, 0x204000], 0x252A063)
    assert paging.walk(five(), 0x200000, address, tables, RAM).physical == 0x252AB00
    with pytest.raises(paging.WalkError):  # the same tables, taken for four levels
        paging.walk(four, 0x200000, address, tables, RAM)


def test_tables_that_lead_out_of_ram_or_nowhere_end_the_walk() -> None:
    four, address, tables = paging.paging(paging.X86, INFO, 4096), 0xFFFF8880_12345678, Tables()
    with pytest.raises(paging.WalkError, match="no entry"):
        paging.walk(four, 0x200000, address, tables, RAM)
    tables.map(four, address, [0x200000, 0xF_0000_0000], 0x63)
    with pytest.raises(paging.WalkError, match="not in RAM"):
        paging.walk(four, 0x200000, address, tables, RAM)
    tables.map(four, address, [0x200000, 0x201000], 0xF_C000_00E3)  # 1 GiB far away
    with pytest.raises(paging.WalkError, match="not in RAM"):
        paging.walk(four, 0x200000, address, tables, RAM)
    tables.map(four, address, [0x200000], 0x200063)  # the root leads to itself, again and again
    tables.entries |= {0x200000 + 8 * index: 0x200063 for index in range(512)}
    assert paging.walk(four, 0x200000, address, tables, RAM).physical == 0x200678


def test_the_bit_that_marks_encrypted_memory_is_no_part_of_an_address() -> None:
    info = vmcoreinfo.parse(X86.replace(b"sme_mask)=0", b"sme_mask)=2251799813685248"))  # bit 51
    shape, tables, address = paging.paging(paging.X86, info, 4096), Tables(), 0xFFFFFFFF_81000000
    tables.map(shape, address, [0x200000, 0x201000, 0x202000], 0x0008_0000_0100_01E3)
    tables.entries = {place: entry | 1 << 51 for place, entry in tables.entries.items()}
    assert paging.walk(shape, 0x200000, address, tables, RAM).physical == 0x1000000


@pytest.mark.parametrize(
    ("page", "built", "slots", "levels", "top_bits"),
    [
        (4096, 48, 16, 4, 9),
        (4096, 39, 25, 3, 9),
        (4096, 52, 12, 5, 4),
        (4096, 52, 16, 4, 9),  # built for 52 bits, on a processor with 48: one level less
        (16384, 47, 17, 3, 11),
        (16384, 52, 17, 3, 11),
        (65536, 48, 16, 3, 6),
        (65536, 52, 16, 3, 10),  # the same, where the number of levels stays: the large first table stays, too
        (65536, 52, 12, 3, 10),
    ],
)
def test_the_shape_of_arm64_tables(page: int, built: int, slots: int, levels: int, top_bits: int) -> None:
    info = vmcoreinfo.Vmcoreinfo(b"", numbers={"VA_BITS": built, "TCR_EL1_T1SZ": slots})
    shape = paging.paging(paging.ARM64, info, page)
    assert (shape.levels, shape.top_bits) == (levels, top_bits)
    address, tables = 0xFFFF_FFFF_C123_4567, Tables()
    places = [0x40_0000 + 0x10_0000 * level for level in range(levels)]
    tables.map(shape, address, places, (0x100_0000 // page * page) | 3)
    found = paging.walk(shape, places[0], address, tables, RAM)
    assert found.physical == 0x100_0000 + address % page
    large = levels - 2  # a block in the last table but one
    tables.map(shape, address, places[: large + 1], 1)
    assert paging.walk(shape, places[0], address, tables, Ranges([(0, 1 << 40)])).physical == address % (
        1 << shape.shift(large)
    )


def test_arm64_without_the_size_of_its_addresses_is_not_walked() -> None:
    with pytest.raises(paging.WalkError):
        paging.paging(paging.ARM64, vmcoreinfo.Vmcoreinfo(b""), 4096)
    with pytest.raises(paging.WalkError):
        paging.paging("riscv64", INFO, 4096)


def test_addresses_of_the_image_and_of_the_direct_map() -> None:
    image = Ranges([(0x100_0000, 0x300_0000)])
    shift, _ = paging.image_shift(paging.X86, INFO, {}, image)
    layout = paging.Layout(paging.X86, RAM, image, shift, 0xFFFF_8880_0000_0000)
    assert layout.physical(0xFFFFFFFF_81000000) == 0x100_0000
    assert layout.physical(0xFFFF8880_01000000) == 0x100_0000
    assert layout.image_address(0x100_0000) == 0xFFFFFFFF_81000000
    for nowhere in (0, 0x1000, 0xFFFF8890_00000000, 0xFFFFC900_00000000, 0xFFFFFFFF_FFFFFFFF, 0xDEAD000000000122):
        assert layout.physical(nowhere, 8) is None
    moved, how = paging.image_shift(paging.X86, None, {"_text": 0xFFFFFFFF_9E000000}, image)
    assert (moved, how) == (0xFFFFFFFF_9E000000 - 0x100_0000, "the start of the kernel's code in /proc/iomem")
    assert paging.image_shift(paging.X86, None, {}, image)[0] is None


def test_arm64_tells_image_and_direct_map_apart_by_where_they_lead() -> None:
    image = Ranges([(0x4020_0000, 0x4200_0000)])
    ram = Ranges([(0x4000_0000, 0x8000_0000)])
    info = vmcoreinfo.Vmcoreinfo(b"", numbers={"kimage_voffset": 0xFFFF_7FFF_C800_0000})
    shift, _ = paging.image_shift(paging.ARM64, info, {}, image)
    layout = paging.Layout(paging.ARM64, ram, image, shift, 0xFFFF_0000_0000_0000 - 0x4000_0000)
    assert layout.physical(0xFFFF_8000_0820_0000) == 0x4020_0000
    assert layout.physical(0xFFFF_0000_0100_0000) == 0x4100_0000
    assert layout.physical(0xFFFF_8000_0000_0000) is None


def test_a_first_table_that_leads_out_of_ram_is_counted() -> None:
    shape = paging.paging(paging.X86, INFO, 4096)
    entries = [0x63] * 256 + [0] * 253 + [0x200063, 0x201063, 0xF_0000_0063]
    assert paging.census(shape, struct.pack("<512Q", *entries), RAM) == (3, 1)
