"""Sets of addresses: half-open, sorted, disjoint. Nothing here knows what the addresses mean."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Span(NamedTuple):
    """Addresses `start` to `end`, `end` not included."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Ranges:
    """An immutable set of addresses. Spans that touch are one; empty ones are none."""

    __slots__ = ("_ends", "_spans", "_starts")

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[list[int]] = []
        for start, end in sorted(spans):
            if start >= end:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self._spans = tuple(Span(start, end) for start, end in merged)
        self._starts = [span.start for span in self._spans]
        self._ends = [span.end for span in self._spans]

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._spans == other._spans

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        return f"Ranges({', '.join(f'{start:#x}-{end:#x}' for start, end in self._spans)})"

    @property
    def total(self) -> int:
        """How many addresses, which are bytes."""
        return sum(span.size for span in self._spans)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.covers(address, address + 1)

    def covers(self, start: int, end: int) -> bool:
        """Whether all of `start` to `end` is in the set. Nothing is always in it."""
        if start >= end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def clip(self, start: int, end: int) -> Ranges:
        """What of the set lies between `start` and `end`."""
        found = []
        for index in range(bisect_right(self._ends, start), len(self._spans)):
            span = self._spans[index]
            if span.start >= end:
                break
            found.append((max(span.start, start), min(span.end, end)))
        return Ranges(found)

    def union(self, other: Ranges) -> Ranges:
        return Ranges((*self._spans, *other._spans))

    def intersect(self, other: Ranges) -> Ranges:
        few, many = (self, other) if len(self) <= len(other) else (other, self)
        return Ranges(piece for span in few for piece in many.clip(*span))

    def subtract(self, other: Ranges) -> Ranges:
        left = []
        for start, end in self._spans:
            at = start
            for hole in other.clip(start, end):
                left.append((at, hole.start))
                at = hole.end
            left.append((at, end))
        return Ranges(left)

    def rounded_in(self, unit: int) -> Ranges:
        """Only whole units: a span's start is rounded up, its end down."""
        return Ranges((-(-start // unit) * unit, end // unit * unit) for start, end in self._spans)

    def rounded_out(self, unit: int) -> Ranges:
        """The units that the set touches."""
        return Ranges((start // unit * unit, -(-end // unit) * unit) for start, end in self._spans)
