"""LiME images: what is read is what was written, however the stream is cut, and what is not LiME is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.analysis import lime
from agent.analysis.vmcore import EHDR, PHDR, vmcoreinfo_note, write_vmcore
from agent.errors import DamagedError


def record(start: int, data: bytes) -> bytes:
    return struct.pack("<IIQQQ", 0x4C694D45, 1, start, start + len(data) - 1, 0) + data


@st.composite
def images(draw: st.DrawFn) -> dict[int, bytes]:
    """Disjoint runs of memory by their address."""
    found, at = {}, draw(st.integers(0, 1 << 40))
    for data in draw(st.lists(st.binary(min_size=1, max_size=300), max_size=8)):
        found[at] = data
        at += len(data) + draw(st.integers(0, 5000))
    return found


def stream(image: dict[int, bytes]) -> bytes:
    return b"".join(record(start, data) for start, data in sorted(image.items()))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def flat(pieces: list[lime.Piece]) -> dict[int, int]:
    return {piece.address + index: byte for piece in pieces for index, byte in enumerate(piece.data)}


@given(image=images(), size=st.integers(1, 400))
def test_what_is_read_is_what_is_there(image: dict[int, bytes], size: int) -> None:
    found = [lime.Piece(at, memoryview(bytes(data))) for at, data in lime.pieces(cut(stream(image), size))]
    assert flat(found) == {start + index: byte for start, data in image.items() for index, byte in enumerate(data)}


@given(image=images(), chosen=st.sets(st.integers(0, 7)), size=st.integers(1, 400))
def test_two_images_are_joined_into_one_that_volatility_reads(
    image: dict[int, bytes], chosen: set[int], size: int
) -> None:
    one = {start: data for number, (start, data) in enumerate(sorted(image.items())) if number in chosen}
    other = {start: data for start, data in image.items() if start not in one}
    both = lime.merge(lime.pieces(cut(stream(one), size)), lime.pieces(cut(stream(other), size)))
    written = b"".join(lime.write(both))
    again = list(lime.pieces([written]))
    assert flat(again) == {start + index: byte for start, data in image.items() for index, byte in enumerate(data)}


def test_records_are_bounded_and_contiguous_ones_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lime, "RECORD", 250)
    data = bytes(range(250)) * 4
    image = [lime.Piece(4096 + at, memoryview(data[at : at + 100])) for at in range(0, 1000, 100)]
    heads, written = [], b"".join(lime.write(image))
    while written:
        _, _, first, last, _ = lime.HEADER.unpack(written[:32])
        heads.append((first - 4096, last - 4096))
        written = written[32 + last - first + 1 :]
    assert heads == [(0, 199), (200, 399), (400, 599), (600, 799), (800, 999)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (record(0, b"abc") + b"x", "in the middle of a record"),
        (record(0, b"abc")[:-1], "in the middle of a record"),
        (record(0, b"abc")[:20], "in the middle of a record"),
        (record(100, b"abc") + record(102, b"d"), "must ascend"),
        (struct.pack("<IIQQQ", 0x4C694D45, 1, 5, 4, 0), "must ascend"),
        (struct.pack("<IIQQQ", 0x4C694D45, 1, 5, 1 << 60, 0), "must ascend"),
        (struct.pack("<IIQQQ", 0x4C694D45, 2, 5, 6, 0) + b"ab", "no LiME image"),
        (b"\0" * 64, "no LiME image"),
    ],
)
def test_what_is_not_lime_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(DamagedError, match=says):
        list(lime.pieces([data]))


def test_two_images_that_overlap_are_refused() -> None:
    with pytest.raises(DamagedError, match="two records hold address 0x2"):
        list(lime.merge(lime.pieces([record(0, b"abc")]), lime.pieces([record(2, b"d")])))


@settings(max_examples=30)
@given(image=images(), direct_map=st.sampled_from([None, 0xFFFF888000000000, 0xFF11000000000000]))
def test_the_vmcore_holds_the_same_bytes(image: dict[int, bytes], direct_map: int | None) -> None:
    out = io.BytesIO()
    notes = vmcoreinfo_note(b"OSRELEASE=6.1.0\n")
    size, loads = write_vmcore(out, lime.pieces([stream(image)]), machine="x86_64", notes=notes, direct_map=direct_map)
    data = out.getvalue()
    header = EHDR.unpack(data[:64])
    assert header[0][:7] == b"\x7fELF\x02\x01\x01"
    assert header[1:3] == (4, 62)
    assert header[10] == loads + 1
    found = {}
    for number in range(header[10]):
        kind, _, offset, virtual, physical, filesz, memsz, _ = PHDR.unpack_from(data, 64 + 56 * number)
        assert filesz == memsz
        if kind == 4:
            assert data[offset : offset + filesz] == notes
            continue
        assert offset % 4096 == physical % 4096
        assert virtual == ((direct_map + physical) % (1 << 64) if direct_map is not None else (1 << 64) - 1)
        found.update({physical + index: byte for index, byte in enumerate(data[offset : offset + filesz])})
    assert found == {start + index: byte for start, data in image.items() for index, byte in enumerate(data)}
    assert size == len(data) or not image


def test_the_vmcore_is_sparse_in_front(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    with path.open("wb") as out:
        write_vmcore(out, lime.pieces([record(0, b"a" * 4096)]), machine="aarch64", notes=b"", direct_map=None)
    assert path.stat().st_blocks * 512 < 100_000
