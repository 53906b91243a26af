"""Whether an acquired image is the memory that the guest had: held against what QEMU saved before and after."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rigs.guest_truth import PAGE, Truth, digest

_HEADER = struct.Struct("<IIQQQ")
_MAGIC = 0x4C694D45
States = Mapping[int, set[bytes]]
_TOGGLED = 64
"""Bytes of a page that may differ although it was the same before and after: a lock that was held, a counter that came
back. What a reader does wrong changes more: zeros, or another page's bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """Addresses `start` to `end`, `end` not included, at `offset` of the file."""

    start: int
    end: int
    offset: int


def records(image: Path) -> list[Record]:
    """Those of a LiME image. The rig's own reading. Raises `ValueError` where it is none, or has a trailer."""
    found: list[Record] = []
    size = image.stat().st_size
    with image.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            magic, version, first, last, _ = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or version != 1 or last < first or (found and first < found[-1].end):
                raise ValueError(f"no LiME record at {at:#x} of {image.name}")
            found.append(Record(first, last + 1, at + _HEADER.size))
            at += _HEADER.size + last + 1 - first
    if at != size:
        raise ValueError(f"{image.name} ends in the middle of a record")
    return found


@dataclass(slots=True)
class Pages:
    """What `memory/pages.jsonl` says."""

    own: set[int] = field(default_factory=set)
    """Frame numbers of the agent."""
    holes: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, why) of what no image holds, in bytes."""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]


def read_pages(path: Path) -> Pages:
    """Raises `ValueError` where the stream is not whole."""
    pages = Pages()
    with path.open("rb") as lines:
        for text in lines:
            line = json.loads(text)
            if line["type"] == "frames":
                for first, count in line["runs"]:
                    pages.own.update(range(first, first + count))
            elif line["type"] == "hole":
                pages.holes.append((line["start"], line["end"], line["why"]))
            if line["type"] not in {"owner-run", "frames"}:
                pages.lines.append(line)
    if not pages.lines or pages.lines[-1]["type"] != "end":
        raise ValueError(f"{path.name} has no end")
    return pages


@dataclass(slots=True)
class Verdict:
    """Pages, where nothing else is said; the last page of a range may be a part of one."""

    total: int = 0
    missing: int = 0
    """Bytes of System RAM that neither a record nor a hole accounts for."""
    in_holes: int = 0
    """Bytes."""
    beyond: int = 0
    """Bytes of records that are no System RAM."""
    own: int = 0
    cached: int = 0
    judged: int = 0
    """Neither the agent's own nor the page cache of its destination."""
    same: int = 0
    """Of those: as in the guest after the acquisition."""
    before: int = 0
    """Of those that changed since: as in the guest before the acquisition."""
    meanwhile: int = 0
    """Of the rest: as in the guest at one of the moments in between."""
    changed: int = 0
    """Of the rest: not the same before and after."""
    came_back: int = 0
    """Of the rest: the same before and after, and seen to be different meanwhile."""
    toggled: list[int] = field(default_factory=list)
    """Addresses of pages that a few bytes of a lock or a counter make differ."""
    wrong: list[tuple[int, int]] = field(default_factory=list)
    """(address, differing bytes) of pages that were the same whenever one looked, and are not so in the image."""

    @property
    def share(self) -> float:
        """Of the judged pages: as the paused guest had them, before, after, or at one of the moments in between."""
        return (self.same + self.before + self.meanwhile) / self.judged if self.judged else 0.0

    @property
    def share_after(self) -> float:
        """Of the judged pages: as the guest had them when all was over."""
        return self.same / self.judged if self.judged else 0.0

    @property
    def own_bytes(self) -> int:
        return (self.own + self.cached) * PAGE

    def __str__(self) -> str:
        return (
            f"{self.total} pages, {self.missing} bytes missing, {self.in_holes} in holes, {self.beyond} beyond RAM; "
            f"{self.own} own, {self.cached} cached ({self.own_bytes >> 20} MiB); {self.judged} judged, "
            f"{self.share:.4%} as it was at some moment, {self.share_after:.4%} as it was afterwards, "
            f"{self.before} as before, {self.meanwhile} as meanwhile, "
            f"{self.changed} changed, {self.came_back} came back, "
            f"{len(self.toggled)} toggled, {len(self.wrong)} wrong "
            f"{[(hex(address), count) for address, count in self.wrong[:16]]}"
        )


def judge(
    image: Path,
    pages: Pages,
    cached: Iterable[int],
    before: Truth,
    after: Truth,
    meanwhile: States | None = None,
    stored: frozenset[bytes] = frozenset(),
) -> Verdict:
    """Page by page over System RAM, as it was both before and after: the same ranges.

    `cached`: frame numbers of the destination's page cache when all was over. `stored`: digests of every page of what
    was stored (`pages_of`), by which one knows its page cache while it was written. `meanwhile`: see
    `guest_truth.Meanwhile`.
    """
    verdict = Verdict()
    found = records(image)
    holes = [(start, end) for start, end, _ in pages.holes]
    cache, states = set(cached), meanwhile or {}
    verdict.beyond = sum(record.end - record.start for record in found)
    with image.open("rb") as file:
        for (start, end, old), (_, _, new) in zip(before.pieces, after.pieces, strict=True):
            verdict.beyond -= _overlap([(one.start, one.end) for one in found], start, end)
            in_holes = _overlap(holes, start, end)
            there = _overlap([(one.start, one.end) for one in found], start, end)
            verdict.in_holes += in_holes
            verdict.missing += end - start - there - in_holes
            with old.open("rb") as first, new.open("rb") as second:
                for at, data in _held(file, found, start, end):
                    first.seek(at - start)
                    second.seek(at - start)
                    verdict.total += 1
                    if at // PAGE in pages.own:
                        verdict.own += 1
                    elif at // PAGE in cache:
                        verdict.cached += 1
                    else:
                        _compare(verdict, at, data, first.read(len(data)), second.read(len(data)), states, stored)
    return verdict


def pages_of(directory: Path) -> frozenset[bytes]:
    """Digests of the pages of all files below it, as they lie in the page cache."""
    found = set()
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while page := file.read(PAGE):
                    found.add(digest(page.ljust(PAGE, b"\0")))
    return frozenset(found)


def _compare(
    verdict: Verdict, at: int, data: bytes, old: bytes, new: bytes, meanwhile: States, stored: frozenset[bytes]
) -> None:
    if data not in (old, new) and digest(data) in stored:
        verdict.cached += 1
        return
    verdict.judged += 1
    if data == new:
        verdict.same += 1
        return
    if data == old:
        verdict.before += 1
        return
    if digest(data) in meanwhile.get(at, ()):
        verdict.meanwhile += 1
        return
    if old != new:
        verdict.changed += 1
        return
    if at in meanwhile:
        verdict.came_back += 1
        return
    count = sum(one != two for one, two in zip(data, new, strict=True))
    if count <= _TOGGLED:
        verdict.toggled.append(at)
    else:
        verdict.wrong.append((at, count))


def _overlap(spans: Iterable[tuple[int, int]], start: int, end: int) -> int:
    return sum(max(0, min(end, last) - max(start, first)) for first, last in spans)


def _held(file: Any, found: list[Record], start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """What the image holds of `start` to `end`: (address, bytes), never across a page's border."""
    for record in found:
        at, stop = max(start, record.start), min(end, record.end)
        file.seek(record.offset + max(0, at - record.start))
        while at < stop:
            size = min(stop, at // PAGE * PAGE + PAGE) - at
            yield at, file.read(size)
            at += size
