"""Whole lines of partial records, in the order of the file and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from agent.analysis.logs.records import Damage, Record

MAX_LINE = 4 << 20
"""Bytes of one line. What is longer comes in parts, each but the last of which `goes_on`."""
MAX_RECORDS = 1 << 18
"""Of one line: records may be empty."""
MAX_STREAMS = 8
"""Lines of several streams that are open at once: real containers have two."""


class Entry(msgspec.Struct):
    """One line of a container."""

    offset: int
    """Of its first record."""
    time_ns: int | None
    stream: str
    line: bytes
    records: int = 1
    """How many it was joined of."""
    attrs: Mapping[str, str] | None = None
    unfinished: bool = False
    """Its end was not found."""
    goes_on: bool = False
    """It is too long for one line of a timeline: the next line of the stream continues it."""
    at_end: bool = False
    """It is unfinished because the file ends: the next one may have the rest."""
    at_start: bool = False
    """Nothing of its stream stands before it in the file, and it may be the rest of a line of the file before."""
    group: str = ""


class _Open:
    """A line whose end has not come."""

    def __init__(self, record: Record, *, at_start: bool) -> None:
        self.parts = [record.line]
        self.size = len(record.line)
        self.first = record
        self.records = 1
        self.at_start = at_start

    def add(self, record: Record) -> None:
        self.parts.append(record.line)
        self.size += len(record.line)
        self.records += 1

    def entry(self, *, unfinished: bool = False, goes_on: bool = False, at_end: bool = False) -> Entry:
        first = self.first
        return Entry(
            first.offset, first.time_ns, first.stream, b"".join(self.parts), self.records, first.attrs, unfinished,
            goes_on, at_end, self.at_start, first.group,
        )  # fmt: skip


def join(found: Iterable[Record | Damage]) -> Iterator[Entry | Damage]:
    """Lines at the place of their last record. Damage ends every line that is open there: its rest may be lost."""
    streams: dict[str, _Open] = {}
    seen: set[str] = set()
    damaged: Damage | None = None
    for one in found:
        if isinstance(one, Damage):
            for left in streams.values():
                yield left.entry(unfinished=True)
            streams.clear()
            if damaged is not None and damaged.end == one.offset:
                if one.end == one.offset:  # no bytes of its own: what became of the rest of the file
                    damaged.why = f"{damaged.why}; {one.why}"
                damaged.end = one.end
                continue
            if damaged is not None:
                yield damaged
            damaged = one
            continue
        if damaged is not None:
            yield damaged
            damaged = None
        line = streams.get(one.stream)
        if line is not None and (one.begins or one.group != line.first.group):
            yield streams.pop(one.stream).entry(unfinished=True)
            line = None
        if line is None:
            at_start = one.stream not in seen and one.begins is not True
            if len(seen) < 64:
                seen.add(one.stream)
            if not one.more:
                yield Entry(
                    one.offset, one.time_ns, one.stream, one.line, 1, one.attrs, at_start=at_start, group=one.group
                )
                continue
            if len(streams) >= MAX_STREAMS:
                yield streams.pop(next(iter(streams))).entry(unfinished=True)
            line = streams[one.stream] = _Open(one, at_start=at_start)
        else:
            line.add(one)
        if not one.more:
            yield streams.pop(one.stream).entry()
        elif line.size > MAX_LINE or line.records >= MAX_RECORDS:
            yield streams.pop(one.stream).entry(goes_on=True)
    if damaged is not None:
        yield damaged
    for left in streams.values():
        yield left.entry(unfinished=True, at_end=True)


def joined(first: Entry, rest: Entry) -> Entry:
    """A line whose beginning stands at the end of one file and whose rest at the start of the next."""
    return Entry(
        first.offset, first.time_ns, first.stream, first.line + rest.line, first.records + rest.records, first.attrs,
        rest.unfinished, rest.goes_on, rest.at_end, first.at_start, first.group,
    )  # fmt: skip
