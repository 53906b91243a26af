"""A range is proved by the signed digests of the parts that hold it, and nothing else is read."""

from __future__ import annotations

import hashlib
import random

import pytest

from agent.errors import DamagedError
from agent.stores.base import Part
from agent.stores.s3.read_proven import KEPT, ProvenBlob


class Bytes:
    """Some bytes, and what was read of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.closed = False

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed = True


def parts_of(data: bytes, *sizes: int) -> list[Part]:
    found, start = [], 0
    for size in sizes:
        found.append(Part(size, hashlib.sha256(data[start : start + size]).digest()))
        start += size
    return found


DATA = random.Random(3).randbytes(1000)
SIZES = (300, 300, 300, 100)


def test_every_range_is_what_is_there() -> None:
    blob = ProvenBlob(Bytes(DATA), parts_of(DATA, *SIZES), "a")
    chance = random.Random(4)
    for _ in range(500):
        offset, length = chance.randrange(1100), chance.choice([0, 1, 10, 299, 300, 301, 2000])
        assert blob.read_at(offset, length) == DATA[offset : offset + length]
    assert blob.size == 1000


def test_only_the_parts_that_hold_a_range_are_read_and_once() -> None:
    source = Bytes(DATA)
    blob = ProvenBlob(source, parts_of(DATA, *SIZES), "a")
    for offset in (0, 990, 310, 400, 5, 950):
        assert blob.read_at(offset, 10) == DATA[offset : offset + 10]
    assert source.asked == [(0, 300), (900, 100), (300, 300)]
    blob.close()
    assert source.closed


def test_no_more_than_a_few_parts_are_kept() -> None:
    source = Bytes(DATA)
    blob = ProvenBlob(source, parts_of(DATA, *[100] * 10), "a")
    for number in range(10):
        blob.read_at(number * 100, 1)
        assert len(blob._kept) <= KEPT


@pytest.mark.parametrize("flipped", [0, 299, 300, 899, 900, 999])
def test_a_changed_part_is_not_given_out_and_the_others_are(flipped: int) -> None:
    data = DATA[:flipped] + bytes([DATA[flipped] ^ 1]) + DATA[flipped + 1 :]
    blob = ProvenBlob(Bytes(data), parts_of(DATA, *SIZES), "a")
    for number, start in enumerate((0, 300, 600, 900)):
        if start <= flipped < start + SIZES[number]:
            with pytest.raises(DamagedError, match=f"a: changed: part {number + 1} "):
                blob.read_at(start + 50, 1)
        else:
            assert blob.read_at(start, 10) == DATA[start : start + 10]


@pytest.mark.parametrize("sizes", [(), (999,), (1001,), (500, 501), (1000, 0), (1001, -1)])
def test_parts_that_are_not_those_of_the_object_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(DamagedError):
        ProvenBlob(Bytes(DATA), [Part(size, b"") for size in sizes], "a")


def test_swapped_parts_of_one_size_are_found() -> None:
    swapped = DATA[300:600] + DATA[:300] + DATA[600:]
    blob = ProvenBlob(Bytes(swapped), parts_of(DATA, *SIZES), "a")
    with pytest.raises(DamagedError):
        blob.read_at(0, 10)
