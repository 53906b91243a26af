"""The same frames through two sources: what one of them is made to hide, the other may still show.

Of each frame: first source, second source, first source again. Where the second agrees with neither, the page either
changes, or the sources disagree. If the first gave the same twice, both are asked twice more; if it stays the same and
the second never agrees, that is a finding: a read path that lies, or an error of a source. Only digests are kept.

A source that fills with zeros what it cannot read is no liar: such pages are counted apart, and listed, too, because
zeros are also the easiest thing to hide behind.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import child
from acquirers.memory.block import PAGE
from acquirers.memory.smear import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from acquirers.memory.source import Reader, Source

MAX_FRAMES = 1024
MAX_LISTED = 64
SECONDS = 5.0
"""For `_BATCH` frames: a hundred times what they need."""
_BATCH = 128
_MAX_FAILED = 2
_ELSEWHERE = 8 << 20
"""Bytes that are taken first, so that buffers come to lie elsewhere."""

EQUAL, CHANGING, DIFFERING, FILLED, ERROR_FIRST, ERROR_SECOND = range(6)

_RECORD = struct.Struct("=B8s8s")
_ZEROS = digest(bytes(PAGE))


class Difference(msgspec.Struct, frozen=True):
    """A frame of which two sources tell something else, again and again."""

    frame: int
    first: bytes
    """Digest (`smear.digest`) of what the first source gives."""
    second: bytes
    filled: bool
    """One of the two gives zeros, and is a source that fills with zeros."""


class Result(msgspec.Struct):
    first: str
    """Names of the sources."""
    second: str
    asked: int = 0
    equal: int = 0
    changing: int = 0
    differing: int = 0
    """Although what the first source gives is stable: a finding."""
    filled: int = 0
    """Differing, but one side is zeros from a source that fills with zeros."""
    errors_first: int = 0
    errors_second: int = 0
    unchecked: int = 0
    """Not asked for: a read was stuck, or a source could not be opened."""
    problem: str = ""
    listed: list[Difference] = msgspec.field(default_factory=list)
    """At most `MAX_LISTED` of each kind."""

    @property
    def finding(self) -> str:
        """One line for a person where the sources disagree; else empty."""
        if not self.differing:
            return ""
        frames = [found.frame for found in self.listed if not found.filled]
        return (
            f"{self.differing} of {self.asked} pages read differently through {self.first} and {self.second} although "
            f"they do not change, first at {frames[0] * PAGE:#x}"
        )

    def note(self, frame: int, outcome: int, first: bytes, second: bytes) -> None:
        self.equal += outcome == EQUAL
        self.changing += outcome == CHANGING
        self.differing += outcome == DIFFERING
        self.filled += outcome == FILLED
        self.errors_first += outcome == ERROR_FIRST
        self.errors_second += outcome == ERROR_SECOND
        if outcome in {DIFFERING, FILLED}:
            filled = outcome == FILLED
            if sum(found.filled == filled for found in self.listed) < MAX_LISTED:
                self.listed.append(Difference(frame, first, second, filled))


def check(first: Source, second: Source, frames: Sequence[int]) -> Result:
    """Asks both for these frame numbers, of which the first `MAX_FRAMES` count. Raises nothing for what fails."""
    frames = list(frames[:MAX_FRAMES])
    result = Result(first.name, second.name, asked=len(frames))
    failed = 0
    for start in range(0, len(frames), _BATCH):
        batch = frames[start : start + _BATCH]
        if failed >= _MAX_FAILED:
            result.unchecked += len(batch)
            continue
        try:
            records = _compare_batch(first, second, batch)
        except (child.StuckError, child.ChildError) as error:
            failed += 1
            result.unchecked += len(batch)
            result.problem = str(error)
            continue
        for frame, record in zip(batch, _confirmed(first, second, batch, list(records)), strict=True):
            result.note(frame, *record)
    return result


def _confirmed(
    first: Source, second: Source, frames: Sequence[int], records: list[tuple[int, bytes, bytes]]
) -> list[tuple[int, bytes, bytes]]:
    """The same, where those that differ do so for another process as well.

    Reading has pages of its own, a buffer in the kernel among them: through each source such a page is another one,
    every time. Another process, which has taken pages before, has other buffers.
    """
    differing = [index for index, record in enumerate(records) if record[0] == DIFFERING]
    if not differing:
        return records
    try:
        again = list(_compare_batch(first, second, [frames[index] for index in differing], elsewhere=True))
    except (child.StuckError, child.ChildError):
        return records
    for index, record in zip(differing, again, strict=True):
        if record[0] in {EQUAL, CHANGING}:
            records[index] = (CHANGING, b"", b"")
    return records


def _compare_batch(
    first: Source, second: Source, frames: Sequence[int], *, elsewhere: bool = False
) -> Iterator[tuple[int, bytes, bytes]]:
    def work() -> bytes:
        held = bytearray(b"\1" * _ELSEWHERE) if elsewhere else bytearray()
        try:
            return _compare(first, second, frames)
        finally:
            held.clear()

    records: bytes = child.call(work, SECONDS)
    if len(records) != len(frames) * _RECORD.size:
        raise child.ChildError("the reading process told of other pages than it was asked for")
    return _RECORD.iter_unpack(records)


def _compare(first: Source, second: Source, frames: Sequence[int]) -> bytes:
    """One record for each frame. In the child; raises `OSError` where a source cannot be opened."""
    one, other = _digests(first.open()), _digests(second.open())
    fills = (first.zero_fills, second.zero_fills)
    return b"".join(_RECORD.pack(*_compare_one(one, other, frame, fills)) for frame in frames)


def _digests(reader: Reader) -> Callable[[int], bytes]:
    """Digest of a frame; empty where it cannot be read."""
    page = memoryview(bytearray(PAGE))

    def read(frame: int) -> bytes:
        try:
            reader.read(frame * PAGE, page)
        except OSError:
            return b""
        return digest(page)

    return read


def _compare_one(
    one: Callable[[int], bytes], other: Callable[[int], bytes], frame: int, fills: tuple[bool, bool]
) -> tuple[int, bytes, bytes]:
    ours = [one(frame)]
    theirs = [other(frame)]
    ours.append(one(frame))
    if all(ours) and all(theirs) and theirs[0] not in ours and ours[0] == ours[1]:
        for _ in range(2):
            ours.append(one(frame))
            theirs.append(other(frame))
    if not all(ours):
        return ERROR_FIRST, b"", b""
    if not all(theirs):
        return ERROR_SECOND, b"", b""
    if theirs[0] in ours[:2]:
        return EQUAL, b"", b""
    if len(set(ours)) > 1 or set(ours) & set(theirs):
        return CHANGING, b"", b""
    filled = (fills[0] and ours[0] == _ZEROS) or (fills[1] and set(theirs) == {_ZEROS})
    return (FILLED if filled else DIFFERING), ours[0], theirs[-1]


def lines(result: Result) -> Iterator[dict[str, object]]:
    """What `pages.jsonl` says of it: one line of counts, then the frames that differ."""
    yield {
        "type": "crosscheck",
        "first": result.first,
        "second": result.second,
        "asked": result.asked,
        "equal": result.equal,
        "changing": result.changing,
        "differing": result.differing,
        "zero_filled": result.filled,
        "errors_first": result.errors_first,
        "errors_second": result.errors_second,
        "unchecked": result.unchecked,
        "problem": result.problem,
    }
    for found in result.listed:
        yield {
            "type": "crosscheck-zero-filled" if found.filled else "crosscheck-finding",
            "frame": found.frame,
            "first": found.first.hex(),
            "second": found.second.hex(),
        }
