"""`impound export tree`: the files of a container as it saw them, and beside them where each is from.

The tar holds the merged tree. With `versions`, what lies hidden stands in it too, below a directory of its own that no
file of the container has the name of: older versions of files, and what was deleted, as `<that>/<layer>/<path>`.

The records, one JSON object each, by `type`:

- `layer`    one layer, from the top down: label, native path, the archive that holds it (`missing`: not acquired)
- `path`     what the container sees there; `layer` supplies the metadata, `data_layer` the content where that is
             another one, `merged` all the layers of a directory
- `deleted`  what it does not see: `by` says which whiteout, opaque directory or file hides it; its versions follow
- `older`    what a path was in a lower layer; or a whiteout there
- `problem`  what could not be followed
- `end`      counts. Without it the file was cut

Names are as in the manifest: text where they are UTF-8, and `X_b64` beside it where they are not.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from acquirers.files.archive import ArchiveWriter
from acquirers.files.entry import Entry as FileEntry
from acquirers.overlay.markers import bookkeeping, origin_of
from agent.custody.manifest import put_bytes

if TYPE_CHECKING:
    from acquirers.base import Buffer, Flag, Gap, Member
    from acquirers.files.entry import Content
    from acquirers.overlay import Entry, Object, Place, Union, Version
    from agent.analysis.view import View

VERSIONS = b".versions"
Sink = Callable[[dict[str, object]], None]
_MAX_NAME = 200


class _Waiting(msgspec.Struct):
    """A record, and whether the archive has yet to say what became of the member."""

    record: dict[str, object]
    member: bytes | None


class _Records(msgspec.Struct):
    """A `Report` that completes records with what the archive tells, and hands them on in their order."""

    sink: Sink
    counts: Counter[str]
    _queue: deque[_Waiting] = msgspec.field(default_factory=deque)
    _by_member: dict[bytes, _Waiting] = msgspec.field(default_factory=dict)

    def add(self, record: dict[str, object], member: bytes | None = None) -> None:
        self.counts[str(record["type"])] += 1
        waiting = _Waiting(record, member)
        self._queue.append(waiting)
        if member is not None:
            earlier = self._by_member.pop(member, None)
            if earlier is not None:
                earlier.member = None  # one name twice: nothing waits for what may never be told
            self._by_member[member] = waiting
        self._hand_on()

    def member(self, member: Member) -> None:
        waiting = self._by_member.pop(member.path, None)
        if waiting is None:
            return
        record = waiting.record
        if member.sha256 is not None:
            record["sha256"] = member.sha256.hex()
        if member.kind is Kind.HARDLINK and member.target is not None:
            put_bytes(record, "same_as", member.target)
        if member.offset is None:
            record["in_tar"] = False
            self.counts["not in the tar"] += 1
        waiting.member = None
        self._hand_on()

    def finish(self) -> None:
        """The archive is whole: whatever it has not told of by now, it does not have."""
        for waiting in self._by_member.values():
            waiting.record["in_tar"] = False
            waiting.member = None
        self._hand_on()

    def gap(self, gap: Gap) -> None:
        self._problem(gap.where, gap.detail)

    def flag(self, flag: Flag) -> None:
        self._problem(flag.where, flag.detail)

    def _problem(self, path: bytes, detail: str) -> None:
        record: dict[str, object] = {"type": "problem", "problem": detail}
        put_bytes(record, "path", path)
        self.add(record)

    def on_problem(self, path: bytes, detail: str) -> None:
        self._problem(path, detail)

    def _hand_on(self) -> None:
        while self._queue and self._queue[0].member is None:
            self.sink(self._queue.popleft().record)


def tree(view: View, sink: Sink, *, versions: bool = False) -> Iterator[Buffer]:
    """The chunks of the tar; `sink` is given one record after the other. Raises `DamagedError`, `SourceError`."""
    counts: Counter[str] = Counter()
    records = _Records(sink, counts)
    maker = _Tree(view, records, versions=versions)
    for number, layer in enumerate(view.layers):
        record: dict[str, object] = {"type": "layer", "number": number, "label": layer.label}
        put_bytes(record, "path", layer.path)
        records.add(record | ({"item": layer.item} if layer.item else {"missing": True}))
    writer = ArchiveWriter(records)
    yield from writer.add(maker.entries(), prefix=b".")
    yield from writer.close()
    records.finish()
    sink({"type": "end", **{key: counts[key] for key in ("path", "deleted", "older", "problem")}})


class _Tree:
    def __init__(self, view: View, records: _Records, *, versions: bool) -> None:
        self._view = view
        self._union = view.union(on_problem=records.on_problem)
        self._records = records
        self._versions = _unused_name(self._union) if versions else b""

    def entries(self) -> Iterator[FileEntry]:
        for entry in self._union.walk():
            if entry.object is not None:
                yield from self._seen(entry.path, entry.object)
            else:
                self._deleted(entry)
            for version in entry.older:
                yield from self._older(entry.path, version)

    def _seen(self, path: bytes, thing: Object) -> Iterator[FileEntry]:
        record: dict[str, object] = {"type": "path"}
        put_bytes(record, "path", path)
        record |= self._about(path, thing)
        self._records.add(record, path)
        with _content(self._union, thing, record) as content:
            yield FileEntry(path, thing.kind, thing.stat, thing.xattrs, thing.node.target, content)

    def _deleted(self, entry: Entry) -> None:
        record: dict[str, object] = {"type": "deleted"}
        put_bytes(record, "path", entry.path)
        if entry.hidden_by is not None:
            record["by"] = self._where(entry.hidden_by)
        self._records.add(record)

    def _older(self, path: bytes, version: Version) -> Iterator[FileEntry]:
        record: dict[str, object] = {"type": "older"}
        put_bytes(record, "path", path)
        thing = version.object
        if thing is None:
            self._records.add(record | {"layer": self._label(version.place), "kind": "whiteout"})
            return
        record |= self._about(path, thing)
        with _content(self._union, thing, record) as content:
            if self._versions:
                name = b"/".join((b"", self._versions, self._label(thing.place).encode(), path.lstrip(b"/")))
                put_bytes(record, "member", b"." + name)
                self._records.add(record, name)
                yield FileEntry(name, thing.kind, thing.stat, thing.xattrs, thing.node.target, content)
                return
            if content is not None:
                for _ in content.chunks():
                    pass
                if content.sha256 is not None:
                    record["sha256"] = content.sha256.hex()
            self._records.add(record)

    def _about(self, path: bytes, thing: Object) -> dict[str, object]:
        stat = thing.stat
        record: dict[str, object] = {"layer": self._label(thing.place)}
        if thing.data is not None and thing.data.layer != thing.place.layer:
            record["data_layer"] = self._label(thing.data)
        if len(thing.places) > 1:
            record["merged"] = [self._label(place) for place in thing.places]
        elsewhere = [
            self._where(place)
            for place in dict.fromkeys((*thing.places, *([thing.data] if thing.data is not None else [])))
            if place.path != path.lstrip(b"/")
        ]
        if elsewhere:
            record["from"] = elsewhere
        record |= {
            "kind": thing.kind, "mode": f"{stat.mode & 0o7777:04o}", "uid": stat.uid, "gid": stat.gid,
            "size": stat.size, "mtime_ns": stat.mtime_ns, "atime_ns": stat.atime_ns, "ctime_ns": stat.ctime_ns,
        }  # fmt: skip
        if stat.btime_ns is not None:
            record["btime_ns"] = stat.btime_ns
        if stat.rdev:
            record["rdev"] = stat.rdev
        if thing.node.target is not None:
            put_bytes(record, "target", thing.node.target)
        record |= self._marks(thing)
        if thing.problems:
            record["problems"] = list(thing.problems)
        return record

    def _marks(self, thing: Object) -> dict[str, object]:
        found: dict[str, object] = {}
        if thing.marks.opaque:
            found["opaque"] = True
        own = bookkeeping(thing.node.xattrs, self._view.dialect)
        if own:
            found["overlay"] = {name.decode("ascii", "backslashreplace"): value.hex() for name, value in own.items()}
        origin = origin_of(thing.node.xattrs, self._view.dialect)
        if origin is not None and origin.inode is not None:
            found["copied_up_from_inode"] = origin.inode
        return found

    def _label(self, place: Place) -> str:
        return self._union.layers[place.layer].label

    def _where(self, place: Place) -> dict[str, object]:
        record: dict[str, object] = {"layer": self._label(place)}
        put_bytes(record, "path", b"/" + place.path)
        return record


@contextlib.contextmanager
def _content(union: Union, thing: Object, record: dict[str, object]) -> Iterator[Content | None]:
    """The content of a regular file, from the layer that has it. None, and a word in the record, where none has."""
    if thing.kind is not Kind.FILE or thing.data is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            content = stack.enter_context(union.layers[thing.data.layer].content(thing.data.path, _Silent()))
        except FileNotFoundError as error:
            record["missing"] = error.strerror
            yield None
            return
        if content.size != thing.stat.size:
            record["content_size"] = content.size
        yield content


class _Silent:
    """What an archive lacks was told when it was made."""

    def member(self, member: Member) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def flag(self, flag: Flag) -> None: ...


def _unused_name(union: Union) -> bytes:
    """A name for the directory with the versions that nothing in the container's root has."""
    names = {name for layer in union.layers for name in layer.names(b"")}
    found, number = VERSIONS, 1
    while found in names:
        number += 1
        found = VERSIONS + b"-%d" % number
    return found
