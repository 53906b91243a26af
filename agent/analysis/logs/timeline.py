"""`impound export logs`: one timeline for each container of a run, as JSON lines sorted by time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from acquirers.facts import reduce_name
from acquirers.near import did_you_mean
from agent.analysis.logs import belonging, cri, ecs, jsonfile, local
from agent.analysis.logs.belonging import CONTAINER_ITEM, KUBERNETES, Owner, owner_of, owner_of_held
from agent.analysis.logs.inflate import Inflated
from agent.analysis.logs.joining import MAX_LINE, Entry, join, joined
from agent.analysis.logs.names import Format, LogFile, classify
from agent.analysis.logs.records import Damage, Decoder, Pieces, Record
from agent.analysis.logs.rendering import damage_line, entry_line
from agent.analysis.logs.spool import Row, Spool, Writer, in_batches
from agent.analysis.opening import write_below
from agent.analysis.tarstream import TarStream
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.analysis.items import Items
    from agent.analysis.tarheader import Header

UNLINKED = "logs/deleted.tar"
INDEX = b"deleted/index.jsonl"
"""The first member of `UNLINKED`: which member was called what."""

MAX_CONTAINERS = 100_000
MAX_FILES = 1_000_000
MAX_HELD = 8
"""Lines that wait for the rest of them in the next file."""
_NAMED = 20
_PLAIN, _EDGE = 0, 1
_DECODERS: dict[Format, Decoder] = {
    Format.JSON_FILE: jsonfile.decode,
    Format.LOCAL: local.decode,
    Format.CRI: cri.decode_either,
}

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Entry).decode


class Counts(msgspec.Struct):
    """What became of the logs."""

    files: int = 0
    lines: int = 0
    damaged: int = 0
    """Ranges of files that hold no record."""
    damaged_bytes: int = 0
    unfinished: int = 0
    """Lines whose end was not found."""

    def add(self, other: Counts) -> None:
        for name in ("files", "lines", "damaged", "damaged_bytes", "unfinished"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _File(msgspec.Struct):
    rank: tuple[int, int, str]
    source: str


class _Container(msgspec.Struct):
    """All files of one container that were met."""

    name: str
    label: str
    """What its timeline is called, without the suffix."""
    files: list[_File] = msgspec.field(default_factory=list)
    runs: list[str] = msgspec.field(default_factory=list)
    counts: Counts = msgspec.field(default_factory=Counts)


class Summary(msgspec.Struct):
    """What was written."""

    timelines: dict[str, Counts] = msgspec.field(default_factory=dict)
    """Name of the file -> what is in it."""
    counts: Counts = msgspec.field(default_factory=Counts)
    bytes: int = 0
    notes: list[str] = msgspec.field(default_factory=list)


def chosen(names: Iterable[str], selectors: Sequence[str]) -> list[str]:
    """The items in which logs of the containers that are asked for may lie."""
    found = []
    for name in names:
        if name in {KUBERNETES, UNLINKED}:
            found.append(name)
        elif name.startswith("containers/") and name.endswith(".tar") and "/layers/" not in name:
            match = CONTAINER_ITEM.fullmatch(name)
            # With Kubernetes the selector may be a pod, which the name of the item does not tell.
            if not (selectors and match is not None and match[1] == "docker") or any(
                _means(selector, match[2], (match[3],)) for selector in selectors
            ):
                found.append(name)
    return found


def export(items: Items, output: int, selectors: Sequence[str] = ()) -> Summary:
    """Writes a timeline for each container into the empty directory `output`.

    Raises `UsageError` when a container that was asked for is in none of the archives, `StoreError`, and what the items
    raise: then nothing is left that was written before.
    """
    summary = Summary()
    try:
        _export(items, output, selectors, summary)
    except BaseException:
        for name in os.listdir(output):
            os.unlink(name, dir_fd=output)
        raise
    return summary


def _export(items: Items, output: int, selectors: Sequence[str], summary: Summary) -> None:
    with Spool(output) as spool:
        work = _Work(spool, selectors, summary, belonging.known_of(items))
        for name in chosen(items.names, selectors):
            work.item(name, TarStream(items.stream(name)))
        missing = [selector for selector in selectors if selector not in work.matched]
        if missing:
            raise UsageError(_unmatched(missing[0], items.names, work.known))
        work.write(output)
    if ecs.ITEM in items.names and not selectors:
        _ecs_agent(TarStream(items.stream(ecs.ITEM)), output, summary)


def _ecs_agent(archive: TarStream, output: int, summary: Summary) -> None:
    """What the ECS agent knows of tasks and containers, beside the timelines."""
    for header in archive:
        if header.kind is not Kind.FILE or header.name != ecs.MEMBER:
            continue
        if (header.real_size or header.size) > ecs.MAX_DATABASE:
            summary.notes.append("the database of the ECS agent is larger than any real one: not decoded")
            continue
        data = bytearray(header.real_size or header.size)
        for offset, piece in archive.content():
            data[offset : offset + len(piece)] = piece
        summary.bytes += write_below(output, ecs.OUTPUT, in_batches(ecs.agent_records(bytes(data))))
        summary.notes.append(f"{ecs.OUTPUT}: tasks and containers of the ECS agent")


class _Work:
    def __init__(
        self, spool: Spool, selectors: Sequence[str], summary: Summary, places: Mapping[str, belonging.Known]
    ) -> None:
        self._spool = spool
        self._places = places
        self._strangers = 0
        self._selectors = selectors
        self._summary = summary
        self._containers: dict[bytes, _Container] = {}
        self._labels = {ecs.OUTPUT}
        self._files = 0
        self.matched: set[str] = set()
        self.known: set[str] = set()
        """Containers whose logs were met, as many as a message has room for."""

    def item(self, name: str, archive: TarStream) -> None:
        """All logs in one archive."""
        index: dict[bytes, belonging.Held] = {}
        for header in archive:
            if header.kind is not Kind.FILE:
                continue
            if name != UNLINKED:
                log = classify(header.name)
                if log is not None:
                    self._file(owner_of(log, header.name, name, self._places.get(name)), header, archive, log)
            elif header.name == INDEX:
                index = belonging.index_of(archive)
            elif (held := index.get(header.name)) is not None:
                log = classify(held.path, unlinked=True)
                if log is not None:
                    owner = owner_of_held(log, held, self._places, self._containers.keys())
                    self._file(owner, header, archive, log)

    def _file(self, owner: Owner, header: Header, archive: TarStream, log: LogFile) -> None:
        if len(self.known) < 1000:
            self.known.add(owner.told)
        if self._selectors:
            found = {selector for selector in self._selectors if _means(selector, owner.identity, owner.names)}
            if not found:
                return
            self.matched |= found
        container = self._container(owner)
        if container is None:
            return
        source = header.name.decode("utf-8", "backslashreplace")
        number = len(container.files)
        container.files.append(_File(log.rank, source))
        container.counts.files += 1
        self._files += 1
        writer = Writer(self._spool, number)
        try:
            _decode(_content(archive, header), log, writer, container, source)
            writer.finish()
        finally:
            writer.abandon()
        container.runs += writer.runs

    def _container(self, owner: Owner) -> _Container | None:
        container = self._containers.get(owner.key)
        if self._files >= MAX_FILES or (container is None and len(self._containers) >= MAX_CONTAINERS):
            note = f"more than {MAX_CONTAINERS} containers or {MAX_FILES} files: what follows is not decoded"
            if note not in self._summary.notes:
                self._summary.notes.append(note)
            return None
        if container is None:
            container = self._containers[owner.key] = _Container(owner.container, owner.label)
            if owner.foreign:
                self._strangers += 1
        return container

    def write(self, output: int) -> None:
        summary = self._summary
        for container in self._containers.values():
            name = self._name(container.label)
            lines = _across(container, self._merged(container))
            summary.bytes += write_below(output, name, in_batches(lines))
            summary.timelines[name] = container.counts
            summary.counts.add(container.counts)
        if self._strangers:
            summary.notes.append(
                f"{self._strangers} timelines (inside-…, held-by-…) are of files that only bear the name of a log: "
                "whoever had that container or process may have written them"
            )

    def _merged(self, container: _Container) -> Iterator[Row]:
        order = _order(container.files)
        return self._spool.merge(container.runs, order.__getitem__)

    def _name(self, label: str) -> str:
        base = reduce_name(label, 200)
        name, count = f"{base}.jsonl", 1
        while name.lower() in self._labels:
            count += 1
            name = f"{base}-{count}.jsonl"
        self._labels.add(name.lower())
        return name


def _unmatched(selector: str, names: Iterable[str], met: Iterable[str]) -> str:
    """Why there is no timeline of a container that was asked for."""
    taken = [match for name in names if (match := CONTAINER_ITEM.fullmatch(name)) is not None]
    if any(_means(selector, match[2], (match[3],)) for match in taken):
        return f"container {selector!r} is in this run, and no log of it is: it wrote none, or its driver keeps none"
    known = sorted({match[3] for match in taken} | {_short(name) for name in met})
    said = f"there are no logs of a container {selector!r}{did_you_mean(selector, known)}: no container matches that"
    if not known:
        return f"{said}, and none is in this run"
    listed = ", ".join(known[:_NAMED]) + (f" and {len(known) - _NAMED} more" if len(known) > _NAMED else "")
    return f"{said}; there are {listed}"


def _short(name: str) -> str:
    return name[:12] if re.fullmatch(r"[0-9a-f]{64}", name) else name


def _means(selector: str, identity: str, names: Sequence[str]) -> bool:
    """As `--container` of an acquisition; of `identity` there may be the first digits only."""
    if selector.removeprefix("/") in names or reduce_name(selector.removeprefix("/")) in names:
        return True
    digits = selector.lower()
    if not identity or re.fullmatch(r"[0-9a-f]{4,64}", digits) is None:
        return False
    return identity.startswith(digits[: len(identity)])


def _order(files: Sequence[_File]) -> list[int]:
    """Where each file stands among those of its container, the oldest first."""
    ranked = sorted(range(len(files)), key=lambda number: (files[number].rank, number))
    order = [0] * len(files)
    for place, number in enumerate(ranked):
        order[number] = place
    return order


def _content(archive: TarStream, header: Header) -> Iterator[tuple[int, memoryview | bytes]]:
    """The pieces of a file; an empty one at its end tells of a hole there."""
    yield from archive.content()
    if header.real_size is not None:
        yield header.real_size, b""


def _decode(pieces: Pieces, log: LogFile, writer: Writer, container: _Container, source: str) -> None:
    """One file into rows."""
    last: int | None = None
    counts = container.counts
    for one in join(_records(pieces, log)):
        if isinstance(one, Damage):
            counts.damaged += 1
            counts.damaged_bytes += one.end - one.offset
            writer.add(last or 0, _PLAIN, damage_line(one, last, source, container.name))
            continue
        last = one.time_ns if one.time_ns is not None else last
        if one.at_end or one.at_start:
            writer.add(last or 0, _EDGE, _pack(one))
        else:
            counts.lines += 1
            counts.unfinished += one.unfinished
            writer.add(last or 0, _PLAIN, entry_line(one, source, container.name))


def _records(pieces: Pieces, log: LogFile) -> Iterator[Record | Damage]:
    decoder = _DECODERS[log.format]
    if not log.compressed:
        yield from decoder(pieces)
        return
    inflated = Inflated(pieces)
    yield from decoder(inflated)
    if inflated.damage is not None:
        yield inflated.damage


def _across(container: _Container, rows: Iterable[Row]) -> Iterator[bytes]:
    """The lines of a timeline: what one file leaves unfinished is joined with what the next begins with."""
    files, counts = container.files, container.counts
    order = _order(files)
    held: dict[str, _Held] = {}

    def told(entry: Entry, source: int) -> bytes:
        counts.lines += 1
        counts.unfinished += entry.unfinished
        return entry_line(entry, files[source].source, container.name)

    for row in rows:
        if row.mark == _PLAIN:
            yield row.data
            continue
        entry, source = _unpack(row.data), row.source
        before = held.get(entry.stream)
        if before is not None and order[row.source] > order[before.last]:
            del held[entry.stream]
            if before.continues(entry, files, row.source):
                entry, source = joined(before.entry, entry), before.first
            else:
                yield told(before.entry, before.first)
        if entry.at_end and order[row.source] < len(files) - 1 and entry.stream not in held and len(held) < MAX_HELD:
            held[entry.stream] = _Held(entry, source, row.source)
        else:
            yield told(entry, source)
    for one in held.values():
        yield told(one.entry, one.first)


class _Held(msgspec.Struct, frozen=True):
    """A line that its file does not end."""

    entry: Entry
    first: int
    """The file that it begins in."""
    last: int

    def continues(self, rest: Entry, files: Sequence[_File], source: int) -> bool:
        """Whether `rest`, of a younger file, is the rest of it."""
        same_log = files[source].rank[0] == files[self.last].rank[0]
        fits = len(self.entry.line) + len(rest.line) <= 2 * MAX_LINE
        return rest.at_start and same_log and fits and rest.group == self.entry.group
