from __future__ import annotations

import errno
import hashlib
import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory import smear
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges


class Fake:
    """A source whose pages are told; `broken` ones are errors, at `stuck` ones it never returns."""

    direct_map: int | None = None

    def __init__(self, pages: dict[int, bytes], name: str = "fake", *, zero_fills: bool = False) -> None:
        self.pages, self.name, self.zero_fills = pages, name, zero_fills
        self.covers = Ranges((frame * PAGE, (frame + 1) * PAGE) for frame in pages)
        self.stuck: frozenset[int] = frozenset()

    def open(self) -> Fake:
        return self

    def read(self, address: int, into: memoryview) -> None:
        frame = address // PAGE
        if frame in self.stuck:
            time.sleep(3600)
        if frame not in self.pages:
            raise OSError(errno.EFAULT, "Bad address")
        into[:] = self.pages[frame]

    def close(self) -> None:
        pass


def page(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


RAM = Ranges([(PAGE, 10 * PAGE), (20 * PAGE + 1, 50 * PAGE), (1000 * PAGE, 2000 * PAGE + 17)])
WHOLE = [*range(1, 10), *range(21, 50), *range(1000, 2000)]


def test_the_sample_can_be_drawn_again_from_its_seed_as_documented() -> None:
    plan = smear.Plan(RAM, b"seed", 100)
    line = plan.line()
    assert line == {
        "type": "smear-plan", "method": smear.METHOD, "seed": b"seed".hex(), "population": len(WHOLE), "sample": 100,
    }  # fmt: skip
    # The prose at the head of the module, followed by hand.
    drawn: list[int] = []
    number = 0
    while len(drawn) < 100:
        made = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=bytes.fromhex(str(line["seed"])))
        number += 1
        value = int.from_bytes(made.digest(), "little")
        if value < 2**64 // len(WHOLE) * len(WHOLE) and WHOLE[value % len(WHOLE)] not in drawn:
            drawn.append(WHOLE[value % len(WHOLE)])
    assert list(plan.frames) == sorted(drawn)


@given(
    st.lists(st.tuples(st.integers(0, 400 * PAGE), st.integers(0, 30 * PAGE)), max_size=8), st.integers(0, 200)
)  # fmt: skip
def test_a_sample_is_of_whole_frames_of_ram_each_once(spans: list[tuple[int, int]], count: int) -> None:
    ram = Ranges((start, start + size) for start, size in spans)
    plan = smear.Plan(ram, b"x", count)
    assert len(plan.frames) == len(set(plan.frames)) == min(count, plan.population)
    assert all(ram.covers(frame * PAGE, (frame + 1) * PAGE) for frame in plan.frames)
    assert list(plan.frames) == sorted(plan.frames)
    assert plan.population == sum(ram.covers(at * PAGE, (at + 1) * PAGE) for at in range(440))
    assert list(plan.wanted(0, 1 << 52)) == list(plan.frames)
    assert [frame for at in range(0, 440, 16) for frame in plan.wanted(at, at + 16)] == list(plan.frames)


def test_every_frame_is_as_likely_as_any_other() -> None:
    hits = Counter(frame for number in range(2000) for frame in smear.Plan(RAM, b"%d" % number, 104).frames)
    expected = 2000 * 104 / len(WHOLE)  # of each; the spread of one is about sqrt of it
    assert set(hits) == set(WHOLE)
    assert max(abs(hits[frame] - expected) for frame in WHOLE) < 6 * math.sqrt(expected)


def test_plans_without_a_seed_differ() -> None:
    assert smear.Plan(RAM).seed != smear.Plan(RAM).seed


def test_rates_by_class_are_what_changed() -> None:
    frames = list(range(300))
    digests = smear.Digests()
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    digests.update({frame: ("anon", smear.digest(page(frame))) for frame in frames[:200]}, now - 10 * 10**9)
    digests.update({frame: ("pgtable", smear.digest(page(frame))) for frame in frames[200:]}, now - 20 * 10**9)
    after = {frame: page(frame if frame % 4 else frame + 10_000) for frame in frames}
    del after[1], after[201]
    plan = smear.Plan(Ranges([(0, 300 * PAGE)]), b"s", 50)
    result = smear.again([Fake(after)], digests, 60, plan)
    anon, tables = result.classes["anon"], result.classes["pgtable"]
    assert (anon.sampled, anon.changed, anon.unread) == (199, 50, 1)
    assert (tables.sampled, tables.changed, tables.unread) == (99, 25, 1)
    assert anon.seconds == pytest.approx(10, abs=5)
    assert tables.seconds == pytest.approx(20, abs=5)
    assert anon.half_life == pytest.approx(-(anon.seconds or 0) * math.log(2) / math.log(1 - 50 / 199))
    assert result.overall.changed == sum(not frame % 4 for frame in plan.frames)
    assert result.overall.sampled + result.overall.unread == 50
    told = list(smear.lines(result))
    assert [line["type"] for line in told] == ["smear-plan", "smear", "smear", "smear"]
    assert told[1]["class"] == "*"
    assert told[2]["low"] < 50 / 199 < told[2]["high"]  # type: ignore[operator]


def test_zeros_out_of_a_filling_source_are_no_change_where_another_source_knows_better() -> None:
    digests = {1: ("slab", smear.digest(page(1))), 2: ("slab", smear.digest(page(2))), 3: ("slab", smear.digest(b""))}
    kcore = Fake({1: bytes(PAGE), 2: bytes(PAGE), 3: page(3)}, "kcore", zero_fills=True)
    bpf = Fake({1: page(1), 2: page(7), 3: page(3)}, "bpf")
    result = smear.again([kcore, bpf], digests, 60)
    assert (result.classes["slab"].sampled, result.classes["slab"].changed) == (3, 2)
    alone = smear.again([kcore], digests, 60)
    assert alone.classes["slab"].changed == 3
    assert alone.overall.sampled == 0
    assert alone.classes["slab"].seconds is None


def test_a_stuck_read_and_the_end_of_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smear, "_CALL_SECONDS", 0.3)
    monkeypatch.setattr(smear, "_BATCH", 10)
    source = Fake({frame: page(frame) for frame in range(100)})
    source.stuck = frozenset({5})
    digests = {frame: ("anon", smear.digest(page(frame))) for frame in range(100)}
    result = smear.again([source], digests, 60)
    assert (result.classes["anon"].sampled, result.classes["anon"].unread) == (90, 10)
    assert result.problem
    late = smear.again([source], digests, 0)
    assert late.classes["anon"].unread == 100
    assert late.problem == "out of time"
    assert smear.again([], digests, 60).classes["anon"].unread == 100


def test_small_classes_are_read_first_and_large_ones_all_over() -> None:
    digests = smear.Digests()
    digests.update({frame: ("big", bytes(8)) for frame in range(1000)})
    digests.update({frame: ("small", bytes(8)) for frame in range(5000, 5010)})
    order = list(digests.order())
    assert sorted(order) == list(range(1010))
    assert set(order[:10]) == set(range(1000, 1010))
    quarters = Counter(digests.frames[index] // 250 for index in order[10:110])
    assert all(20 <= quarters[quarter] <= 30 for quarter in range(4))


def test_the_store_of_digests_is_bounded() -> None:
    digests = smear.Digests(most=10)
    digests.update({frame: ("a", bytes(8)) for frame in range(25)})
    digests.update({30: ("new", bytes(8))})
    assert (len(digests), digests.left_out) == (10, 16)
    assert sorted(digests.order()) == list(range(10))
    result = smear.again([Fake({})], digests, 60)
    assert list(smear.lines(result))[-1] == {"type": "smear-problem", "detail": "", "left_out": 16}


@given(st.integers(1, 300), st.data())
def test_the_interval_holds_the_rate_and_lies_between_0_and_1(sampled: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, sampled))
    low, high = smear.wilson(changed, sampled)
    assert low is not None
    assert high is not None
    assert 0 <= low <= changed / sampled + 1e-12
    assert changed / sampled - 1e-12 <= high <= 1
    assert low < high


def test_the_interval_is_that_of_the_textbook() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, score method without continuity correction.
    assert smear.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert smear.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert smear.wilson(0, 0) == (None, None)


def test_the_half_life_of_simulated_pages_is_found() -> None:
    rng = random.Random(1)
    rate = smear.Rate("x")
    for _ in range(5000):
        rate.sampled += 1
        rate.timed += 1
        rate.seconds_sum += 30
        rate.changed += rng.random() > 2 ** (-30 / 60)
    assert rate.half_life == pytest.approx(60, rel=0.1)
    assert smear.Rate("x", sampled=100, changed=0, seconds_sum=1, timed=1).half_life is None
    assert smear.Rate("x", sampled=100, changed=100, seconds_sum=1, timed=1).half_life is None
