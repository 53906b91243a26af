"""/proc/kcore: what each of its segments is, and where in the file an address lies."""

from __future__ import annotations

import errno
import os
import secrets
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory import iomem, kcore
from acquirers.memory.kcorelayout import Segment, layout
from acquirers.memory.ranges import Ranges
from tests.support.fake_kcore import ARM64, NO_PADDR, NOTES, VMCOREINFO, X86, Load, build, write

PAGE = 4096
LOW, HIGH = secrets.token_bytes(30 * PAGE), secrets.token_bytes(64 * PAGE)
VMALLOC, TEXT = secrets.token_bytes(3 * PAGE), secrets.token_bytes(8 * PAGE)
FOUR, FIVE, LINEAR = 0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0xFFFF_0000_0000_0000
TEXT_AT = 0x10_4000


def x86(base: int) -> list[Load]:
    """As the kernel orders them. The text is in RAM, too, but other bytes here: which segment was read can be told."""
    return [
        Load(0xFFFF_C900_0000_0000, NO_PADDR, VMALLOC),
        Load(0xFFFF_FFFF_8100_0000, TEXT_AT, TEXT),
        Load(base + 0x1000, 0x1000, LOW),
        Load(base + 0x10_0000, 0x10_0000, HIGH),
        Load(0xFFFF_EA00_0000_0000, (1 << 32) - 1, VMALLOC),
    ]


def opened(path: Path, ram: Ranges = kcore.NO_RAM) -> tuple[kcore.Kcore, kcore.KcoreReader]:
    source = kcore.Kcore(os.fsencode(path), ram)
    return source, source.open()


def read(reader: kcore.KcoreReader, address: int, size: int) -> bytes:
    into = bytearray(size)
    reader.read(address, memoryview(into))
    return bytes(into)


@pytest.mark.parametrize("base", [FOUR, FIVE, FOUR + (0x123 << 30)])
def test_ram_is_read_by_physical_address(tmp_path: Path, base: int) -> None:
    source, reader = opened(write(tmp_path / "kcore", x86(base)))
    assert source.direct_map == base
    assert source.header.machine == "x86_64"
    assert source.ram == source.covers == Ranges([(0x1000, 0x1F000), (0x10_0000, 0x14_0000)])
    assert read(reader, 0x1000, len(LOW)) == LOW
    assert read(reader, 0x10_0000, len(HIGH)) == HIGH
    assert read(reader, 0x10_0FFF, 4098) == HIGH[0xFFF : 0xFFF + 4098]
    assert read(reader, 0x1F000, 0) == b""
    reader.close()
    reader.close()


def test_the_text_is_read_where_ram_has_it(tmp_path: Path) -> None:
    _, reader = opened(write(tmp_path / "kcore", x86(FOUR)))
    assert read(reader, TEXT_AT, PAGE) == HIGH[0x4000:0x5000] != TEXT[:PAGE]
    reader.close()


def test_the_text_is_read_for_itself_where_no_ram_has_it(tmp_path: Path) -> None:
    source, reader = opened(write(tmp_path / "kcore", [Load(0xFFFF_FFFF_8100_0000, 0x20_0000, TEXT), *x86(FOUR)[2:]]))
    assert 0x20_0000 in source.covers
    assert 0x20_0000 not in source.ram
    assert read(reader, 0x20_0000, len(TEXT)) == TEXT
    reader.close()


@pytest.mark.parametrize(
    ("address", "size"),
    [(0, 1), (0xFFF, 2), (0x1F000 - 1, 2), (0x1F000, 1), (0xF_FFFF, 4096), (1 << 64, 1), (1 << 40, 8)],
)
def test_what_is_in_no_segment_is_an_error(tmp_path: Path, address: int, size: int) -> None:
    _, reader = opened(write(tmp_path / "kcore", x86(FOUR)))
    with pytest.raises(OSError, match="in no segment") as caught:
        read(reader, address, size)
    assert caught.value.errno == errno.EINVAL
    reader.close()


def test_parts_of_pages_are_not_covered(tmp_path: Path) -> None:
    odd = Load(FOUR + 0x10_0C00, 0x10_0C00, HIGH[0xC00:0x5800])
    source, reader = opened(write(tmp_path / "kcore", [odd]))
    assert source.covers == Ranges([(0x10_1000, 0x10_5000)])
    assert read(reader, 0x10_1000, 0x4000) == HIGH[0x1000:0x5000]
    for address in (0x10_0FFF, 0x10_5000):
        with pytest.raises(OSError, match="in no segment"):
            read(reader, address, 1)
    reader.close()


def test_virtual_addresses_reach_what_has_no_physical_one(tmp_path: Path) -> None:
    _, reader = opened(write(tmp_path / "kcore", x86(FOUR)))
    for address, expected in (
        (0xFFFF_C900_0000_0010, VMALLOC[16:]),
        (0xFFFF_FFFF_8100_0000, TEXT),
        (FOUR + 0x1000, LOW),
    ):
        into = bytearray(len(expected))
        reader.read_virtual(address, memoryview(into))
        assert into == expected
    with pytest.raises(OSError, match="in no segment"):
        reader.read_virtual(0xFFFF_C900_0000_2FFF, memoryview(bytearray(2)))
    reader.close()


def test_arm64_memory_that_begins_high_has_a_base_below_its_map(tmp_path: Path) -> None:
    ram, image = 0x40_0000_0000, 0xFFFF_8000_0808_0000
    loads = [
        Load(image, ram + 0x1000, TEXT),
        Load(LINEAR, ram, HIGH),
        Load(LINEAR + 0x8000_0000, ram + 0x8000_0000, LOW),
    ]
    source, reader = opened(write(tmp_path / "kcore", loads, machine=ARM64))
    assert source.header.machine == "aarch64"
    assert source.direct_map == LINEAR - ram
    assert read(reader, ram + 0x1000, PAGE) == HIGH[PAGE : 2 * PAGE]
    assert read(reader, ram + 0x8000_0000, len(LOW)) == LOW
    reader.close()
    low = [Load(0x2000_0000, 0xFFFF_0000_0000, HIGH)]  # less than its physical address: the difference wraps
    found = kcore.Kcore(os.fsencode(write(tmp_path / "wrapped", low, machine=ARM64)))
    assert found.direct_map == (0x2000_0000 - 0xFFFF_0000_0000) % (1 << 64)


# -- before 4.11 ------------------------------------------------------------------------------------------------------


def old(loads: list[Load]) -> list[Load]:
    return [Load(one.vaddr, 0, one.data) for one in loads]


def test_without_physical_addresses_iomem_tells_which_segments_are_ram(tmp_path: Path) -> None:
    path = write(tmp_path / "kcore", old(x86(FOUR)))
    source, reader = opened(path, Ranges([(0x1000, 0x1F3FF), (0x10_0000, 0x14_0000)]))
    assert source.direct_map == FOUR
    assert source.covers == Ranges([(0x1000, 0x1F000), (0x10_0000, 0x14_0000)])
    assert read(reader, 0x1000, len(LOW)) == LOW
    assert read(reader, TEXT_AT, PAGE) == HIGH[0x4000:0x5000]
    reader.close()


def test_without_physical_addresses_ram_may_begin_elsewhere_than_the_first_segment(tmp_path: Path) -> None:
    """Other kernel regions lie lower, and the first range of RAM has no segment: the lowest one would mislead."""
    loads = [Load(FOUR - (1 << 40), 0, VMALLOC), Load(FOUR + 0x10_0000, 0, HIGH)]
    source = kcore.Kcore(
        os.fsencode(write(tmp_path / "kcore", loads)), Ranges([(0x1000, 0x8000), (0x10_0000, 0x14_0000)])
    )
    assert source.direct_map == FOUR
    assert source.covers == Ranges([(0x10_0000, 0x14_0000)])


@pytest.mark.parametrize(
    "ram", [Ranges(), Ranges([(0x1000, 0x9000)]), Ranges([(0x1000, 0x4000), (0x10_0000, 0x20_0000)])]
)
def test_without_physical_addresses_and_without_a_match_nothing_is_guessed(tmp_path: Path, ram: Ranges) -> None:
    source = kcore.Kcore(os.fsencode(write(tmp_path / "kcore", old(x86(FOUR)))), ram)
    assert source.direct_map is None
    assert not source.covers


# -- real kernels -----------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).resolve().parents[2] / "golden/kcore"
REAL = ["four", "five", "hole", "arm64"]


@pytest.mark.parametrize("name", REAL)
def test_a_real_kernel_maps_all_whole_pages_of_its_ram(name: str) -> None:
    ram = iomem.parse((GOLDEN / f"{name}.iomem").read_bytes())
    source = kcore.Kcore(os.fsencode(GOLDEN / f"{name}.head"))
    assert source.ram == source.covers == ram.rounded_in(PAGE)
    assert source.direct_map is not None
    assert source.direct_map % (1 << 30) == 0
    assert source.header.machine == ("aarch64" if name == "arm64" else "x86_64")
    assert source.header.vmcoreinfo.startswith(b"OSRELEASE=6.1.0-")
    assert source.header.verbatim == (GOLDEN / f"{name}.head").read_bytes()
    assert [one.kind for one in source.header.notes if one.name == b"CORE"] == [1, 3, 4]


@pytest.mark.parametrize("name", REAL)
def test_a_real_kernel_before_physical_addresses_were_told_is_matched_all_the_same(name: str) -> None:
    """Its vmalloc of 32 TiB, vmemmap, modules and text are no RAM, wherever they would fit."""
    ram = iomem.parse((GOLDEN / f"{name}.iomem").read_bytes())
    header = kcore.Kcore(os.fsencode(GOLDEN / f"{name}.head")).header
    told = layout(header.segments, header.machine, Ranges())
    untold = layout([one._replace(paddr=0) for one in header.segments], header.machine, ram)
    assert (untold.direct_map, untold.ram) == (told.direct_map, told.ram)
    for span in ram.rounded_in(PAGE):
        assert untold.physical.places(span.start, span.size) == told.physical.places(span.start, span.size)


# -- memory that is plugged in ----------------------------------------------------------------------------------------


def test_headers_that_grow_while_it_is_open_move_no_byte(tmp_path: Path) -> None:
    """With more segments the data begins at another page: read at the old place, it would be other memory."""
    path = write(tmp_path / "kcore", x86(FOUR))
    _, reader = opened(path)
    assert read(reader, 0x1000, PAGE) == LOW[:PAGE]
    more = [Load(FOUR + (1 << 32) + 0x10000 * i, (1 << 32) + 0x10000 * i, bytes([i]) * PAGE) for i in range(80)]
    write(path, [*x86(FOUR), *more])
    assert read(reader, 0x1000, len(LOW)) == LOW
    assert read(reader, 0x10_0000, len(HIGH)) == HIGH
    assert read(reader, (1 << 32) + 0x70000, PAGE) == bytes([7]) * PAGE
    write(path, x86(FOUR))
    assert read(reader, 0x1000, len(LOW)) == LOW
    with pytest.raises(OSError, match="in no segment"):
        read(reader, (1 << 32) + 0x70000, PAGE)
    reader.close()


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "kcore", x86(FOUR))
    _, reader = opened(path)
    os.truncate(path, path.stat().st_size - 8 * PAGE)
    with pytest.raises(OSError, match="ends early"):
        read(reader, 0x10_0000, len(HIGH))
    reader.close()


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_notes_and_verbatim_bytes(extended: bool) -> None:
    data = build(x86(FOUR), extended=extended)
    header = kcore.parse_header(data)
    assert header.vmcoreinfo == VMCOREINFO
    assert [(one.name, one.kind, one.data) for one in header.notes] == list(NOTES)
    assert data.startswith(header.verbatim)
    assert header.verbatim.rstrip(b"\0").endswith(VMCOREINFO)
    assert kcore.parse_header(header.verbatim) == header
    assert len(header.segments) == 5


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "masked"),
        (b"x" * 0x2000, "masked"),
        (b"x" * 0x4000, "no ELF file"),
        (b"\x7fELF\x01\x01" + bytes(0x4000), "64 bits"),
        (b"\x7fELF\x02\x02" + bytes(0x4000), "little-endian"),
        (b"\x7fELF\x02\x01" + bytes(0x4000), "no ELF core"),
    ],
)
def test_what_is_no_kcore_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "kcore").write_bytes(content)
    with pytest.raises(kcore.MalformedError, match=what):
        kcore.Kcore(os.fsencode(tmp_path / "kcore"))


def test_a_device_or_a_pipe_in_its_place_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (b"/dev/null", os.fsencode(tmp_path / "pipe")):
        with pytest.raises(kcore.MalformedError, match="masked"):
            kcore.open_checked(path)


def test_headers_that_are_cut_off_or_too_large_are_refused() -> None:
    data = build(x86(FOUR))
    with pytest.raises(kcore.MalformedError, match="cut off"):
        kcore.parse_header(data[:300])
    far = data[:32] + (1 << 40).to_bytes(8, "little") + data[40:]
    with pytest.raises(kcore.MalformedError, match="at its beginning"):
        kcore.parse_header(far)


def test_notes_with_sizes_that_lie_end_the_list() -> None:
    data = bytearray(build(x86(FOUR)))
    at = data.index(b"VMCOREINFO") - 12
    for name, size in ((0xFFFFFFFF, 4), (11, 0xFFFFFFFF), (0, 1 << 20)):
        data[at : at + 8] = name.to_bytes(4, "little") + size.to_bytes(4, "little")
        assert [one.name for one in kcore.parse_header(bytes(data)).notes] == [b"CORE"]


ADDRESS = st.integers(0, 1 << 44) | st.integers((1 << 64) - (1 << 40), (1 << 64) - 1)
SEGMENTS = st.lists(
    st.builds(
        Segment, ADDRESS, st.none() | st.integers(0, 1 << 54), st.integers(0, 1 << 60), st.integers(1, 1 << 40)
    ),
    max_size=20,
)  # fmt: skip


@given(SEGMENTS, ADDRESS, st.integers(0, 1 << 22))
def test_whatever_segments_say_an_address_leads_into_one_of_them(
    segments: list[Segment], address: int, size: int
) -> None:
    found = layout(segments, "x86_64", Ranges())
    assert found.physical.ranges().rounded_in(PAGE) == found.physical.ranges()
    near = [one.paddr or one.vaddr for one in segments]
    for place in (address, *near):
        for where, start in ((found.virtual, "vaddr"), (found.physical, "paddr")):
            try:
                places = where.places(place, size)
            except OSError:
                continue
            assert sum(length for _, length in places) == size
            at = place
            for offset, length in places:
                assert any(
                    (begin := getattr(one, start)) is not None
                    and begin <= at
                    and at + length <= begin + one.size
                    and offset == one.offset + at - begin
                    for one in segments
                )
                at += length


@given(SEGMENTS)
def test_the_direct_map_is_that_of_most_ram(segments: list[Segment]) -> None:
    found = layout(segments, "aarch64", Ranges())
    known = [one for one in segments if one.paddr is not None]
    if len(segments) > 1 and len(known) == len(segments) and not any(one.paddr for one in known):
        return
    assert (found.direct_map is None) == (not known)
    spans = list(found.ram)
    assert all(a.end <= b.start for a, b in pairwise(spans))


def test_an_x86_kernel_image_is_never_the_direct_map() -> None:
    image = Segment(0xFFFF_FFFF_8100_0000, 0x100_0000, 0, 64 << 20)
    ram = Segment(FOUR + 0x10_0000, 0x10_0000, 1 << 30, 32 << 20)
    assert layout([image, ram], "x86_64", Ranges()).direct_map == FOUR
    assert X86 != ARM64
