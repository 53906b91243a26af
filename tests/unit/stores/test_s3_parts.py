"""Sizes of parts: within what S3 takes, and enough of them for anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stores.s3.parts import MAX_PARTS, MIB, SMALLEST, Schedule, schedule

GIB = 1 << 30


def sizes(parts: Schedule) -> list[int]:
    return [parts.size(number) for number in range(1, MAX_PARTS + 1)]


def test_a_stream_of_unknown_size_fits_520_gib_into_9900_parts_that_grow_to_64_mib() -> None:
    parts = schedule(None, 64 * MIB)
    assert parts.capacity >= 520 * GIB
    assert sizes(parts) == sorted(sizes(parts))
    assert (sizes(parts)[0], sizes(parts)[-1]) == (8 * MIB, 64 * MIB)
    assert parts.size(MAX_PARTS + 1) == 0
    assert sum(sizes(parts)) == parts.capacity


def test_less_memory_makes_smaller_parts_and_a_smaller_object() -> None:
    parts = schedule(None, 18 * MIB + 5)
    assert max(sizes(parts)) == parts.largest == 18 * MIB
    assert parts.capacity == 400 * 8 * MIB + 400 * 16 * MIB + 9_100 * 18 * MIB


@pytest.mark.parametrize("estimate", [0, 1, 5 * MIB])
def test_a_small_stream_has_parts_of_5_mib(estimate: int) -> None:
    assert set(sizes(schedule(estimate, 64 * MIB))) == {5 * MIB}


@pytest.mark.parametrize(
    ("estimate", "size"), [(5 * MIB + 1, 8), (70 * GIB, 8), (80 * GIB, 10), (512 * GIB, 58), (1024 * GIB, 116)]
)
def test_an_estimate_decides(estimate: int, size: int) -> None:
    parts = schedule(estimate, 5 * GIB)
    assert set(sizes(parts)) == {size * MIB}
    assert parts.capacity >= estimate * 1.05


@given(st.none() | st.integers(0, 1 << 50), st.integers(SMALLEST, 5 * GIB))
def test_every_schedule_is_one_that_s3_takes(estimate: int | None, most: int) -> None:
    parts = schedule(estimate, most)
    found = [size for _, size in parts.steps]
    assert all(SMALLEST <= size <= min(most, 5 * GIB) and size % MIB == 0 for size in found)
    assert sum(count for count, _ in parts.steps) == MAX_PARTS


def test_parts_smaller_than_s3_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller"):
        schedule(None, 5 * MIB - 1)
