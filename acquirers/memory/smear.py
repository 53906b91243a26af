"""How much of memory changed while it was read: a random sample and all page tables, read again at the end.

An image that takes minutes shows no single instant. Here some of its frames are read a second time, and compared by
the digest that the readers made of them (BLAKE2b of 8 bytes). The rate of change by page class, with the time between
the two reads, says how far the rest of the image can be trusted to fit together.

The sample is drawn without bias from all whole frames of RAM, and anybody can draw it again from its seed: number `i`
(from 0) gives the little-endian u64 of BLAKE2b(key=seed, digest_size=8) over the little-endian u64 `i`; draws at or
above the largest multiple of the number of frames are left out, the others, modulo the number of frames, index the
frames in ascending order; draws that were there before are left out, until there are enough.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import child
from acquirers.memory.block import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.memory.ranges import Ranges
    from acquirers.memory.source import Reader, Source

SAMPLE = 4096
MAX_FRAMES = (1 << 20) + (1 << 16)
SEED_BYTES = 16
DIGEST_BYTES = 8
METHOD = "blake2b-key-seed-counter-mod"

_BATCH = 4096
_CALL_SECONDS = 10.0
_MAX_FAILED = 4
"""Batches that may be stuck or fail before the rest is left."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of a whole spread most evenly (Knuth, TAOCP 3, 6.4)
_Z95 = 1.959963984540054
_FEW = 5
"""Changed and unchanged pages that a half-life needs at least, each."""

EQUAL, CHANGED, UNREAD = 0, 1, 2


def digest(page: bytes | bytearray | memoryview) -> bytes:
    """What stands for the content of a page that is to be read again."""
    return hashlib.blake2b(page, digest_size=DIGEST_BYTES).digest()


class Plan:
    """Which frames are read again, whatever is in them."""

    def __init__(self, ram: Ranges, seed: bytes = b"", sample: int = SAMPLE) -> None:
        """`seed` is of at most 64 bytes; a random one is made if there is none."""
        self.seed = seed or os.urandom(SEED_BYTES)
        spans = [(start // PAGE, end // PAGE) for start, end in ram.rounded_in(PAGE)]
        sizes = list(accumulate((end - start for start, end in spans), initial=0))
        self.population = sizes[-1]
        drawn = _draw(self.seed, self.population, min(sample, self.population))
        self.frames = array("Q")
        """Ascending frame numbers."""
        index = 0
        for number in drawn:
            while number >= sizes[index + 1]:
                index += 1
            self.frames.append(spans[index][0] + number - sizes[index])

    def wanted(self, start: int, end: int) -> Sequence[int]:
        """The frames of the sample from frame number `start` to `end` (not included), ascending."""
        return self.frames[bisect_left(self.frames, start) : bisect_left(self.frames, end)]

    def __contains__(self, frame: int) -> bool:
        index = bisect_left(self.frames, frame)
        return index < len(self.frames) and self.frames[index] == frame

    def line(self) -> dict[str, object]:
        return {
            "type": "smear-plan",
            "method": METHOD,
            "seed": self.seed.hex(),
            "population": self.population,
            "sample": len(self.frames),
        }


def _draw(seed: bytes, population: int, count: int) -> list[int]:
    """`count` different numbers below `population`, ascending: see the head of this module."""
    if count >= population:
        return list(range(population))
    limit = (1 << 64) // population * population
    found: set[int] = set()
    number = 0
    while len(found) < count:
        made = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=seed).digest()
        value = int.from_bytes(made, "little")
        number += 1
        if value < limit:
            found.add(value % population)
    return sorted(found)


class Digests:
    """What the first read gave, 25 bytes for each page: frame number, class, digest, time.

    A dictionary of a million page tables would take 200 MiB.
    """

    def __init__(self, most: int = MAX_FRAMES) -> None:
        self._most = most
        self.frames = array("Q")
        self.digests = array("Q")
        self.kinds = array("B")
        self.times = array("Q")
        """CLOCK_MONOTONIC_RAW in nanoseconds; 0 where it is not known."""
        self.classes: list[str] = []
        self._index: dict[str, int] = {}
        self.left_out = 0
        """Pages beyond the limit."""

    def __len__(self) -> int:
        return len(self.frames)

    def update(self, found: Mapping[int, tuple[str, bytes]], at_ns: int = 0) -> None:
        """Frame number -> (page class, digest of 8 bytes), as `Block.digests` has it; `at_ns`: when it was read."""
        for frame, (name, made) in found.items():
            kind = self._index.setdefault(name, len(self._index))
            if len(self.frames) >= self._most or kind > 255:
                self.left_out += 1
                continue
            if kind == len(self.classes):
                self.classes.append(name)
            self.frames.append(frame)
            self.digests.append(int.from_bytes(made, "little"))
            self.kinds.append(kind)
            self.times.append(at_ns)

    def order(self) -> Iterator[int]:
        """Indexes in the order in which to read again: small classes first, each spread over all of memory.

        So that what is left out when time runs out is no particular part of memory.
        """
        members = [array("I") for _ in self.classes]
        for index, kind in enumerate(self.kinds):
            members[kind].append(index)
        for indexes in sorted(members, key=len):
            size = len(indexes)
            step = max(1, round(size * _GOLDEN))
            while math.gcd(step, size) != 1:
                step += 1
            yield from (indexes[number * step % size] for number in range(size))


class Rate(msgspec.Struct):
    """What became of the pages of one class."""

    name: str
    sampled: int = 0
    """Read twice."""
    changed: int = 0
    unread: int = 0
    """Not read a second time: an error, or no time."""
    seconds_sum: float = 0.0
    timed: int = 0

    @property
    def rate(self) -> float | None:
        return self.changed / self.sampled if self.sampled else None

    @property
    def seconds(self) -> float | None:
        """Mean time from the first to the second read."""
        return self.seconds_sum / self.timed if self.timed else None

    @property
    def half_life(self) -> float | None:
        """Seconds until half of them have changed, if all of a class change alike and at random; None where too few.

        From `1 - rate = 2 ** (-seconds / half_life)`.
        """
        seconds = self.seconds
        if not seconds or self.changed < _FEW or self.sampled - self.changed < _FEW:
            return None
        return -seconds * math.log(2) / math.log1p(-self.changed / self.sampled)

    def line(self) -> dict[str, object]:
        low, high = wilson(self.changed, self.sampled)
        return {
            "type": "smear",
            "class": self.name,
            "sampled": self.sampled,
            "changed": self.changed,
            "unread": self.unread,
            "rate": _rounded(self.rate),
            "low": _rounded(low),
            "high": _rounded(high),
            "seconds": _rounded(self.seconds),
            "half_life": _rounded(self.half_life),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def wilson(changed: int, sampled: int) -> tuple[float | None, float | None]:
    """The 95 % interval of a rate (Wilson 1927); it holds for few pages and for rates near 0 and 1, too."""
    if not sampled:
        return None, None
    rate, square = changed / sampled, _Z95**2
    middle = rate + square / (2 * sampled)
    spread = _Z95 * math.sqrt(rate * (1 - rate) / sampled + square / (4 * sampled**2))
    below = 1 + square / sampled
    return max(0.0, (middle - spread) / below), min(1.0, (middle + spread) / below)


class Result(msgspec.Struct):
    classes: dict[str, Rate] = msgspec.field(default_factory=dict)
    overall: Rate = msgspec.field(default_factory=lambda: Rate("*"))
    """The random sample, of whatever class: an estimate for all of the image."""
    plan: Plan | None = None
    left_out: int = 0
    problem: str = ""
    """Why some were not read again: what happened last."""

    def note(self, name: str, outcome: int, seconds: float | None, *, drawn: bool) -> None:
        rates = [self.classes.setdefault(name, Rate(name))]
        if drawn:
            rates.append(self.overall)
        for rate in rates:
            if outcome == UNREAD:
                rate.unread += 1
                continue
            rate.sampled += 1
            rate.changed += outcome == CHANGED
            if seconds is not None:
                rate.seconds_sum += seconds
                rate.timed += 1


def again(
    sources: Sequence[Source],
    digests: Digests | Mapping[int, tuple[str, bytes]],
    seconds: float,
    plan: Plan | None = None,
) -> Result:
    """Reads all these pages again, for at most about `seconds`. What is not read in time is counted as unread.

    Without a plan nothing is said of the image as a whole. Raises nothing for a page or a source that fails.
    """
    if not isinstance(digests, Digests):
        plain, digests = digests, Digests()
        digests.update(plain)
    result = Result(plan=plan, left_out=digests.left_out)
    deadline = time.monotonic() + seconds
    order = digests.order()
    failed = 0
    while batch := list(islice(order, _BATCH)):
        outcomes = bytes([UNREAD]) * len(batch)
        left = deadline - time.monotonic()
        if left > 0 and failed < _MAX_FAILED and sources:
            try:
                outcomes = _read_batch(sources, digests, batch, min(left + 1, _CALL_SECONDS))
            except (child.StuckError, child.ChildError) as error:
                failed += 1
                result.problem = str(error)
        elif not result.problem:
            result.problem = "out of time" if sources else "no source"
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        for index, outcome in zip(batch, outcomes, strict=True):
            frame, first = digests.frames[index], digests.times[index]
            between = (now - first) / 1e9 if first else None
            name = digests.classes[digests.kinds[index]]
            result.note(name, outcome, between, drawn=plan is not None and frame in plan)
    return result


def _read_batch(sources: Sequence[Source], digests: Digests, batch: Sequence[int], seconds: float) -> bytes:
    wanted = [(digests.frames[index], digests.digests[index].to_bytes(8, "little")) for index in batch]
    outcomes: bytes = child.call(lambda: _compare(sources, wanted), seconds)
    if len(outcomes) != len(wanted):
        raise child.ChildError("the reading process told of other pages than it was asked for")
    return outcomes


def _compare(sources: Sequence[Source], wanted: Sequence[tuple[int, bytes]]) -> bytes:
    """One outcome for each page. In the child."""
    readers: list[tuple[Source, Reader]] = []
    for source in sources:
        try:
            readers.append((source, source.open()))
        except OSError:
            continue
    page = memoryview(bytearray(PAGE))
    return bytes(_outcome(readers, frame, first, page) for frame, first in wanted)


_ZEROS = digest(bytes(PAGE))


def _outcome(readers: Sequence[tuple[Source, Reader]], frame: int, first: bytes, page: memoryview) -> int:
    """Zeros that differ, out of a source that fills with zeros, are no answer while another source can be asked."""
    outcome = UNREAD
    for source, reader in readers:
        try:
            reader.read(frame * PAGE, page)
        except OSError:
            continue
        made = digest(page)
        if made == first:
            return EQUAL
        outcome = CHANGED
        if not (source.zero_fills and made == _ZEROS):
            break
    return outcome


def lines(result: Result) -> Iterator[dict[str, object]]:
    """What `pages.jsonl` says of it: the plan, the whole, then each class."""
    if result.plan is not None:
        yield result.plan.line()
        yield result.overall.line()
    for name in sorted(result.classes):
        yield result.classes[name].line()
    if result.problem or result.left_out:
        yield {"type": "smear-problem", "detail": result.problem, "left_out": result.left_out}
