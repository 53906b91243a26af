"""`containers.census`: one table of all containers, of every runtime, and what does not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Availability, Flag, FlagKind, Gap, Item, State, Subject
from acquirers.containers.census import processes, runtimes
from acquirers.containers.census.nested import nested
from acquirers.containers.census.table import Row, join
from acquirers.host import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host

NAME = "containers.census"
ITEM = "containers/census.jsonl"
MEDIA_TYPE = "application/x-ndjson"
_MAX_SUBJECTS = 1000
_MAX_FLAGS = 1000
SEEN_BY = {"processes": "its processes", "records": "its record", "disk": "its files on disk"}
"""What each view is called where a person reads it."""
_encode = msgspec.json.Encoder().encode


class Census:
    """Asks processes, records and disks which containers there are. Selects nothing: it is the whole machine's."""

    name = NAME

    def probe(self, host: Host, scope: Scope) -> Availability:  # noqa: ARG002 - the contract of acquirers
        if host.mode is Mode.INSIDE:
            return Availability(State.ABSENT, "inside a container there is nothing to count")
        gaps: list[Gap] = []
        subjects: list[Subject] = []
        count = found = 0
        for row in _rows(host, gaps):  # not kept: there may be 50,000
            count += 1
            found += bool(row.findings)
            if len(subjects) < _MAX_SUBJECTS:
                subjects.append(_subject(row))
        if not count and not gaps:
            return Availability(State.ABSENT, "no container, and none on disk")
        reason = (
            f"for {found} of {count} containers, what runs, what is recorded and what is on disk disagree"
            if found
            else ""
        )
        return Availability(State.AVAILABLE, reason, subjects=tuple(subjects))

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:  # noqa: ARG002
        if host.mode is not Mode.INSIDE:
            yield Item(ITEM, MEDIA_TYPE, lambda report: _read(host, report))


def _rows(host: Host, gaps: list[Gap]) -> Iterator[Row]:
    seen = processes.look(host)
    gaps += seen.gaps
    yield from join(seen, runtimes.known(host, gaps))


def _read(host: Host, report: Report) -> Iterator[Buffer]:
    gaps: list[Gap] = []
    count = findings = inside = 0
    yield _line({"type": "census", "format": 1, "mode": str(host.mode)})
    for row in _rows(host, gaps):
        count += 1
        for finding in row.findings:
            findings += 1
            if findings <= _MAX_FLAGS:
                where = row.known.upper if row.known is not None else b""
                report.flag(Flag(FlagKind.FINDING, f"container {row.id[:12] or '(no id)'}: {finding}", where))
        yield _line(row.line())
        for one in nested(host, row.known) if row.known is not None else ():
            inside += 1
            detail = f"container {row.id[:12]} holds a runtime of its own: {one.runtime}"
            report.flag(Flag(FlagKind.FINDING, detail, one.path))
            yield _line(one.line())
    for gap in gaps:
        report.gap(gap)
    yield _line({"type": "end", "containers": count, "findings": findings, "nested": inside})


def _subject(row: Row) -> Subject:
    known = row.known
    runtime = known.runtime if known is not None else "unknown runtime"
    *most, last = [SEEN_BY[view] for view in row.views] or ["nothing"]
    state = f"{runtime}, known by {', '.join(most)}{' and ' if most else ''}{last}"
    if row.findings:
        state += f": {row.findings[0]}"
    return Subject("container", row.id, known.name.encode() if known is not None else b"", state)


def _line(record: dict[str, object]) -> bytes:
    return _encode(_plain(record)) + b"\n"


def _plain(value: object) -> object:
    """Bytes as text; what is no UTF-8 in them is escaped."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
