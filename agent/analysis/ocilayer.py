"""One overlay layer as a layer of an OCI image: deletions as `.wh.` files, everything of the overlay's own left out.

OCI image specification 1.0, layer.md. What it cannot say, and what becomes of it:

- A directory that layers below have under another name (redirect) is written with all that it holds, and opaque.
- A file of which a layer has the metadata only (metacopy) is written with its content.
- A name that begins with `.wh.` and is none of these marks would delete something: `.` becomes `%2E`, and it is told.
  A name that looks like what becomes of one gets `%25` for its `%`, so that no two become the same.

The members are in the order of their names, so that the same layers always give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat as stat_module
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from acquirers.base import Kind
from acquirers.files.archive import ArchiveWriter
from acquirers.files.entry import Entry as FileEntry
from acquirers.overlay.markers import OPAQUE, WHITEOUT
from acquirers.overlay.union import Level
from acquirers.syscalls import Stat
from agent.analysis.notes import printable

if TYPE_CHECKING:
    from acquirers.base import Buffer, Flag, Gap, Member
    from acquirers.files.entry import Content
    from acquirers.overlay import Entry, Object, Place, Union
    from acquirers.overlay.union import OnProblem

_ESCAPED = re.compile(rb"%(?:25)*2Ewh\.")
_NO_STAT = Stat(0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, None, 0, 0, None)

Told = Callable[[str], None]


def layer_tar(view: Mergeable, number: int, told: Told) -> Iterator[Buffer]:
    """The chunks of layer number `number` of those that are present. `told` hears what is not as it was.

    Raises `DamagedError`, `SourceError`.
    """
    report = _Report(told)
    writer = ArchiveWriter(report)
    yield from writer.add(_Layer(view, number, told).entries(), prefix=b"")
    yield from writer.close()


class Mergeable(Protocol):
    """Layers that can be merged from any of them on downwards: `agent.analysis.view.View`."""

    def union(self, start: int = 0, *, on_problem: OnProblem = ...) -> Union: ...


class _Empty:
    """The content of an empty file."""

    size = 0
    extents: tuple[tuple[int, int], ...] = ()
    sha256 = hashlib.sha256().digest()
    true_size = 0

    def chunks(self) -> Iterator[memoryview]:
        return iter(())


class _Report:
    def __init__(self, told: Told) -> None:
        self._told = told

    def member(self, member: Member) -> None:
        if member.offset is None:
            self._told(f"left out: {printable(member.path)}: a {member.kind} that an archive cannot hold")

    def gap(self, gap: Gap) -> None:
        self._told(f"{printable(gap.where)}: {gap.detail}")

    def flag(self, flag: Flag) -> None:
        self._told(f"{printable(flag.where)}: {flag.detail}")


class _Layer:
    def __init__(self, view: Mergeable, number: int, told: Told) -> None:
        self._told = told
        self._data: dict[tuple[int, int], Place | None] = {}
        # Only what is below says what a redirect or a file without content stands for.
        self._union = view.union(number, on_problem=lambda path, problem: told(f"{printable(path)}: {problem}"))

    def entries(self) -> Iterator[FileEntry]:
        root = self._union.root()
        if root is None or root.place.layer:
            return  # not a directory: an empty layer
        yield FileEntry(b".", Kind.DIRECTORY, replace(root.stat, nlink=1), root.xattrs)
        below = [(b"", self._union.children(Level(b"/", root.places), history=False, top_only=True), False)]
        while below:
            directory, entries, whole = below[-1]
            entry = next(entries, None)
            if entry is None:
                below.pop()
                continue
            name = self._name(directory, entry)
            if entry.object is None:
                yield self._mark(directory + WHITEOUT + os.path.basename(name), entry.older[0].place.path)
                continue
            thing = entry.object
            with self._content(thing, entry.path) as content:
                if self._fits(thing, content):
                    yield FileEntry(name, thing.kind, self._stat(thing), thing.xattrs, thing.node.target, content)
                else:
                    if thing.kind is not Kind.FILE:
                        self._told(f"left out: {printable(entry.path)}: a {thing.kind} that an archive cannot hold")
                    if not whole:  # what it hides must not come to light again
                        yield self._mark(directory + WHITEOUT + os.path.basename(name), thing.place.path)
            if thing.kind is Kind.DIRECTORY:
                all_of_it = whole or thing.marks.redirect is not None
                if not whole and (all_of_it or thing.marks.opaque):
                    yield FileEntry(name + b"/" + OPAQUE, Kind.FILE, _mark_stat(thing.stat), content=_Empty())
                level = Level(entry.path, thing.places)
                below.append(
                    (name + b"/", self._union.children(level, history=False, top_only=not all_of_it), all_of_it)
                )

    def _stat(self, thing: Object) -> Stat:
        """Names of one file whose content lies below: no longer one file where marks set by hand give them two."""
        stat = thing.stat
        if not thing.marks.metacopy or stat.nlink < 2:
            return stat
        first = self._data.setdefault((stat.dev, stat.ino), thing.data)
        return stat if first == thing.data else replace(stat, nlink=1)

    def _name(self, directory: bytes, entry: Entry) -> bytes:
        name = os.path.basename(entry.path)
        if name.startswith(WHITEOUT) or _ESCAPED.match(name):
            name = (b"%2E" if name.startswith(WHITEOUT) else b"%25") + name[1:]
            if entry.object is not None:
                path = printable(entry.path)
                self._told(f"{path}: to an image this name means a deletion: it is {printable(name)} there")
        return directory + name

    @staticmethod
    def _fits(thing: Object, content: Content | None) -> bool:
        """Whether a tar can hold it. What it cannot hold, or whose content was not acquired, was told."""
        if thing.kind is Kind.FILE:
            return content is not None
        return thing.kind not in {Kind.SOCKET, Kind.UNKNOWN} and (
            thing.kind is not Kind.SYMLINK or bool(thing.node.target)
        )

    def _mark(self, name: bytes, path: bytes) -> FileEntry:
        """A whiteout, with the times that its own has in the layer."""
        node = self._union.layers[0].look(path)
        stat = node.stat if node is not None else _NO_STAT
        return FileEntry(name, Kind.FILE, _mark_stat(stat), content=_Empty())

    @contextlib.contextmanager
    def _content(self, thing: Object, path: bytes) -> Iterator[Content | None]:
        if thing.kind is not Kind.FILE:
            yield None
            return
        with contextlib.ExitStack() as stack:
            content: Content | None = None
            try:
                if thing.data is not None:
                    layer = self._union.layers[thing.data.layer]
                    content = stack.enter_context(layer.content(thing.data.path, _Report(self._told)))
            except FileNotFoundError:
                pass
            if content is None:
                self._told(f"left out: {printable(path)}: its content was not acquired")
            yield content


def _mark_stat(stat: Stat) -> Stat:
    return replace(stat, mode=stat_module.S_IFREG, uid=0, gid=0, size=0, nlink=1, rdev=0)
