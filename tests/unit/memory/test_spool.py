"""Lines come back as they were given, as far as there was room, and nobody needs more memory for them than was said."""

from __future__ import annotations

import json
import os
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory.spool import Spool

records = st.lists(
    st.dictionaries(st.text(max_size=8), st.integers(0, 1 << 63) | st.text(max_size=40) | st.lists(st.integers(0, 9))),
    max_size=40,
)


def taken(spool: Spool) -> list[object]:
    data = b"".join(spool.take())
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


@given(records)
def test_lines_come_back_in_their_order(given: list[dict[str, object]]) -> None:
    spool = Spool()
    for one in given:
        spool.add(one)
    assert taken(spool) == given
    assert spool.dropped == 0


def test_chunks_are_small_however_well_the_lines_were_packed() -> None:
    spool = Spool()
    for _ in range(3000):
        spool.add({"type": "frames", "runs": [[0, 0]] * 200})
    sizes = [len(chunk) for chunk in spool.take()]
    assert sum(sizes) > 3 << 20
    assert max(sizes) <= 256 << 10


def test_a_full_spool_keeps_what_it_has_and_counts_what_it_drops() -> None:
    spool = Spool(limit=64 << 10)
    for number in range(2000):
        spool.add({"number": number, "noise": os.urandom(200).hex()})
    found = taken(spool)
    assert 0 < len(found) < 2000
    assert [one["number"] for one in found if isinstance(one, dict)] == list(range(len(found)))
    assert spool.dropped == 2000 - len(found)


def test_it_needs_no_more_memory_than_its_limit() -> None:
    limit = 1 << 20
    line = {"noise": os.urandom(1000).hex()}
    tracemalloc.start()
    spool = Spool(limit)
    before = tracemalloc.get_traced_memory()[0]
    while not spool.dropped:
        spool.add(line | {"more": os.urandom(1000).hex()})
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert limit / 2 < kept < limit * 1.5


def test_a_block_s_line_takes_so_little_that_terabytes_fit() -> None:
    """What `MAX_BYTES` says: 60 bytes each."""
    spool = Spool()
    for number in range(20_000):
        spool.add(
            {
                "type": "block", "in": "physical", "start": number << 24, "end": (number + 1) << 24,
                "ns": 10**15 + number * 5_123_457, "ms": 4.2 + number % 977 / 1000,
                "wall": 17 * 10**17 + number * 5_123_471,
                "source": {"kcore": 16 << 20}, "classes": {"free": number % 4096, "anonymous": 4096 - number % 4096},
                "changed": number % 7, "zeros": number % 11,
            }
        )  # fmt: skip
    assert spool._size < 20_000 * 80
