"""The judge of memory images finds what is wrong in one: otherwise its praise means nothing."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.rigs.guest_judge import Pages, judge, read_pages, records
from tests.rigs.guest_truth import PAGE, Truth, changed, digest, system_ram

RAM = ((0x1000, 0x1000 + 3 * PAGE + 0xC00), (0x100000, 0x100000 + 64 * PAGE))
IOMEM = """\
00000000-00000fff : Reserved
00001000-00004bff : System RAM
000a0000-000bffff : PCI Bus 0000:00
00100000-0013ffff : System RAM
  00100000-00100fff : Kernel code
140000000-143ffffff : CXL Window 0
  140000000-143ffffff : dax0.0
    140000000-143ffffff : System RAM (kmem)
"""


def fill(start: int, end: int, salt: int = 0) -> bytearray:
    return bytearray(b"".join(struct.pack("<II", address, salt) for address in range(start, end, 8)))


def truth(directory: Path, contents: dict[int, bytearray]) -> Truth:
    directory.mkdir()
    pieces = []
    for start, data in contents.items():
        path = directory / f"{start:x}"
        path.write_bytes(data)
        pieces.append((start, start + len(data), path))
    return Truth(tuple(pieces))


def memory() -> dict[int, bytearray]:
    return {start: fill(start, end) for start, end in RAM}


def image_of(path: Path, contents: dict[int, bytearray]) -> Path:
    with path.open("wb") as image:
        for start, data in contents.items():
            image.write(struct.pack("<IIQQQ", 0x4C694D45, 1, start, start + len(data) - 1, 0) + data)
    return path


def test_a_perfect_image(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    after.to_lime(tmp_path / "image")
    verdict = judge(tmp_path / "image", Pages(own={0x100, 0x101}), {0x103}, before, after)
    assert (verdict.total, verdict.judged, verdict.own, verdict.cached) == (68, 65, 2, 1)
    assert (verdict.missing, verdict.beyond, verdict.in_holes, verdict.wrong) == (0, 0, 0, [])
    assert verdict.share == 1.0
    assert verdict.own_bytes == 3 * PAGE


def test_a_page_of_zeros_is_wrong(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    taken = memory()
    taken[0x100000][5 * PAGE : 6 * PAGE] = bytes(PAGE)
    verdict = judge(image_of(tmp_path / "image", taken), Pages(), (), before, after)
    assert [address for address, _ in verdict.wrong] == [0x100000 + 5 * PAGE]
    assert verdict.same == 67


def test_the_lost_last_byte_of_a_range_is_missing(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    taken = memory()
    del taken[0x1000][-1]
    verdict = judge(image_of(tmp_path / "image", taken), Pages(), (), before, after)
    assert (verdict.missing, verdict.wrong) == (1, [])


def test_a_hole_accounts_for_what_is_not_there(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    taken = memory()
    del taken[0x100000][-PAGE:]
    pages = Pages(holes=[(0x13F000, 0x140000, "error")])
    verdict = judge(image_of(tmp_path / "image", taken), pages, (), before, after)
    assert (verdict.missing, verdict.in_holes, verdict.judged) == (0, PAGE, 67)


def test_what_is_no_ram_is_beyond(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    taken = memory()
    taken[0x100000] += bytes(PAGE)
    assert judge(image_of(tmp_path / "image", taken), Pages(), (), before, after).beyond == PAGE


def test_a_page_that_changed_meanwhile_is_not_wrong_and_not_the_same(tmp_path: Path) -> None:
    later = memory()
    later[0x100000][: 2 * PAGE] = fill(0x100000, 0x100000 + 2 * PAGE, salt=1)
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", later)
    taken = memory()
    taken[0x100000][:PAGE] = later[0x100000][:PAGE]
    verdict = judge(image_of(tmp_path / "image", taken), Pages(), (), before, after)
    assert (verdict.same, verdict.before, verdict.changed, verdict.wrong) == (67, 1, 0, [])
    taken[0x100000][PAGE : 2 * PAGE] = bytes(PAGE)
    verdict = judge(image_of(tmp_path / "image", taken), Pages(), (), before, after)
    assert (verdict.same, verdict.before, verdict.changed, verdict.wrong) == (67, 0, 1, [])


def test_a_lock_that_was_held_is_told_apart(tmp_path: Path) -> None:
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    taken = memory()
    taken[0x100000][8:16] = b"\xff" * 8
    verdict = judge(image_of(tmp_path / "image", taken), Pages(), (), before, after)
    assert (verdict.toggled, verdict.wrong, verdict.same) == ([0x100000], [], 67)


def test_what_was_seen_to_change_and_came_back_is_not_wrong(tmp_path: Path) -> None:
    between = memory()
    between[0x100000][PAGE : 2 * PAGE] = bytes(PAGE)
    before, after = truth(tmp_path / "before", memory()), truth(tmp_path / "after", memory())
    (seen,) = changed(before, truth(tmp_path / "between", between))
    assert seen == (0x100000 + PAGE, bytes(PAGE))
    image = image_of(tmp_path / "image", between)
    verdict = judge(image, Pages(), (), before, after, {seen[0]: {digest(seen[1])}})
    assert (verdict.meanwhile, verdict.came_back, verdict.wrong, verdict.same) == (1, 0, [], 67)
    verdict = judge(image, Pages(), (), before, after, {seen[0]: {digest(b"something else")}})
    assert (verdict.meanwhile, verdict.came_back, verdict.wrong, verdict.same) == (0, 1, [], 67)


def test_an_image_with_a_trailer_is_none(tmp_path: Path) -> None:
    image = image_of(tmp_path / "image", memory())
    image.write_bytes(image.read_bytes() + bytes(32))
    with pytest.raises(ValueError, match="no LiME record"):
        records(image)


def test_an_image_cut_short_is_none(tmp_path: Path) -> None:
    image = image_of(tmp_path / "image", memory())
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(ValueError, match="middle of a record"):
        records(image)


def test_system_ram_at_any_depth() -> None:
    assert system_ram(IOMEM) == [(0x1000, 0x4C00), (0x100000, 0x140000), (0x140000000, 0x144000000)]


def test_a_page_list_without_end_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    path.write_text('{"type":"frames","when":"begin","runs":[[5,2],[9,1]]}\n')
    with pytest.raises(ValueError, match="has no end"):
        read_pages(path)
    path.write_text(path.read_text() + '{"type":"hole","start":0,"end":4096,"why":"error"}\n{"type":"end"}\n')
    pages = read_pages(path)
    assert (pages.own, pages.holes) == ({5, 6, 9}, [(0, 4096, "error")])
