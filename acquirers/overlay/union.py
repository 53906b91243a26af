"""The layers of a container as one tree: what it sees, where each of it is from, what was there before, what is gone.

One directory is looked at after the other, so that memory does not grow with the tree. A directory with more names than
`MAX_NAMES` is listed several times, for a part of the names each time.

Every path has a history. At its front stands what the container sees, if anything. Behind it, from the newest to the
oldest, stand the versions in lower layers that this hides, and the whiteouts between them. Each version is what the
path was while its layer was the topmost one. What is below a directory that is hidden (by a whiteout, an opaque mark, a
file of the same name) is followed as deeply as it goes: these are the victims of the deletion.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from acquirers.overlay.layer import Place
from acquirers.overlay.lookup import Found, Hit, Lookup
from acquirers.overlay.markers import NO_NAMES, WHITEOUT, Dialect, marks_of, seen_as, visible

if TYPE_CHECKING:
    from acquirers.overlay.layer import Layer, Node
    from acquirers.overlay.markers import Marks
    from acquirers.syscalls import Stat

MAX_NAMES = 200_000
"""Names of one directory that are in memory at a time."""
MAX_DEPTH = 4096
MAX_REDIRECTED = 5_000_000
"""Names below redirects: layers that redirect to each other make many of few."""

OnProblem = Callable[[bytes, str], None]
"""A path as the container sees it, and what of it could not be followed."""


class Object(msgspec.Struct, frozen=True):
    """What a path is."""

    place: Place
    """Where its metadata is from."""
    node: Node
    stat: Stat
    """As the container sees it."""
    xattrs: Mapping[bytes, bytes]
    """As the container sees them: `node` has those of the layer."""
    data: Place | None
    """Where the content of a regular file is from; None where no layer has it."""
    places: tuple[Place, ...]
    """Of a directory all that are merged, the topmost first; of anything else `place` alone."""
    redirected: bool
    """Layers below have it, or what is below it, under another name."""
    marks: Marks
    """Those at `place`."""
    problems: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return Kind.of_mode(self.stat.mode)


class Version(msgspec.Struct, frozen=True):
    """What a path was, or that it was deleted."""

    place: Place
    object: Object | None
    """None: a whiteout lies there."""


class Entry(msgspec.Struct, frozen=True):
    """One path."""

    path: bytes
    """Absolute, as the container sees it."""
    object: Object | None
    """None: the container does not see it."""
    older: tuple[Version, ...] = ()
    """Hidden versions and whiteouts, newest first."""
    hidden_by: Place | None = None
    """Of what the container does not see: the whiteout, the opaque directory or the file that hides it."""


class Level(msgspec.Struct, frozen=True):
    """A directory, or what was one: what is merged in it now, and the directories that were there before."""

    path: bytes
    now: tuple[Place, ...]
    past: tuple[tuple[Place, ...], ...] = ()
    hidden_by: Place | None = None
    redirected: bool = False


class Union:
    """`layers` from the topmost down; `data` are data-only layers. Nothing of them is written or followed.

    `on_problem` hears of directories that could not be read or entered; what concerns one name stands with it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        data: Sequence[Layer] = (),
        dialect: Dialect | None = None,
        on_problem: OnProblem = lambda _path, _problem: None,
    ) -> None:
        self.layers = (*layers, *data)
        self.dialect = dialect or Dialect()
        self._merged = len(layers)
        self._lookup = Lookup(layers, data, self.dialect)
        self._on_problem = on_problem

    # -- one path -----------------------------------------------------------------------------------------------------

    def root(self) -> Object | None:
        """The root directory: its metadata is that of the topmost layer which has one. Nothing can hide it."""
        hits = []
        for number, layer in enumerate(self.layers[: self._merged]):
            try:
                node = layer.look(b"")
            except OSError as error:
                self._on_problem(b"/", f"layer {layer.label}: {error.strerror or error}")
                continue
            if node is not None and node.kind is Kind.DIRECTORY:
                hits.append(Hit(Place(number, b""), node, marks_of(node.stat, node.xattrs, self.dialect)))
        return self._object(Found(hits)) if hits else None

    def children(self, level: Level, *, history: bool = True, top_only: bool = False) -> Iterator[Entry]:
        """What is in a directory, by name. Without `history`, only what the container sees.

        `top_only`: names that the topmost of the merged directories has, its whiteouts too (as entries without object).
        """
        stacks = [level.now[:1] if top_only else level.now, *(level.past if history else ())]
        for names in self._names(level.path, stacks):
            for name in sorted(names):
                having = -1 if top_only else names[name]  # the others were not asked for their names
                entry = self._child(level, name, having, history=history, whiteouts=history or top_only)
                if entry is not None:
                    yield entry

    def _child(self, level: Level, name: bytes, having: int, *, history: bool, whiteouts: bool) -> Entry | None:
        path = level.path.rstrip(b"/") + b"/" + name
        current: Object | None = None
        hidden_by = level.hidden_by
        older: list[Version] = []
        for number, places in enumerate((level.now, *level.past) if history else (level.now,)):
            start = 0
            while start < len(places) and having >> start:
                found = self._lookup.find(places, start, name, having)
                if found.hits:
                    made = self._object(found)
                    if number == 0 and start == 0:
                        current = made
                    else:
                        older.append(Version(made.place, made))
                if found.whiteout is not None:
                    if number == 0 and not current and hidden_by is None:
                        hidden_by = found.whiteout
                    older.append(Version(found.whiteout, None))
                elif found.problems and not found.hits:
                    self._on_problem(path, "; ".join(found.problems))
                start = max(found.following, start + 1)
                if not history:
                    break
            having >>= len(places)
        if current is not None:
            return Entry(path, current, tuple(older))
        if not older or not whiteouts:
            return None
        return Entry(path, None, tuple(older), hidden_by)

    def _object(self, found: Found) -> Object:
        top = found.hits[0]
        problems = tuple(found.problems)
        return Object(
            place=top.place,
            node=top.node,
            stat=seen_as(top.node.stat, top.node.xattrs, self.dialect),
            xattrs=visible(top.node.xattrs, self.dialect),
            data=found.data.place if found.data is not None else None,
            places=tuple(hit.place for hit in found.hits),
            redirected=any(hit.marks.redirect is not None for hit in found.hits),
            marks=top.marks,
            problems=problems,
        )

    # -- all of them --------------------------------------------------------------------------------------------------

    def walk(self, *, history: bool = True) -> Iterator[Entry]:
        """Every path, a directory before what is in it. Deleted ones with `history` only."""
        root = self.root()
        if root is None:
            return
        yield Entry(b"/", root)
        below = [self.children(Level(b"/", root.places), history=history)]
        redirected = [False]
        left = MAX_REDIRECTED
        while below:
            entry = next(below[-1], None)
            if entry is None:
                below.pop()
                redirected.pop()
                continue
            yield entry
            left -= redirected[-1]
            level = next_level(entry, history=history)
            if level is None:
                continue
            if len(below) >= MAX_DEPTH:
                self._on_problem(entry.path, f"more than {MAX_DEPTH} directories deep: not entered")
            elif left < 0 and (redirected[-1] or level.redirected):
                self._on_problem(entry.path, f"more than {MAX_REDIRECTED} names below redirects: not entered")
            else:
                below.append(self.children(level, history=history))
                redirected.append(redirected[-1] or level.redirected)

    # -- listings -----------------------------------------------------------------------------------------------------

    def _names(self, path: bytes, stacks: Sequence[Sequence[Place]]) -> Iterator[dict[bytes, int]]:
        """Name -> a bit for each place of all stacks, one after the other, that has it."""
        places = [place for stack in stacks for place in stack]
        names: dict[bytes, int] = {}
        count = 0
        for number, place in enumerate(places):
            for name in self._listing(path, place, told=True):
                count += 1
                if len(names) < MAX_NAMES:
                    names[name] = names.get(name, 0) | 1 << number
        if len(names) < MAX_NAMES:
            yield names
            return
        del names
        parts = count // MAX_NAMES + 1
        for part in range(parts):
            some: dict[bytes, int] = {}
            for number, place in enumerate(places):
                for name in self._listing(path, place, told=False):
                    if zlib.crc32(name) % parts == part:
                        some[name] = some.get(name, 0) | 1 << number
            yield some

    def _listing(self, path: bytes, place: Place, *, told: bool) -> Iterator[bytes]:
        layer = self.layers[place.layer]
        try:
            for name in layer.names(place.path):
                if not self.dialect.fuse or not name.startswith(WHITEOUT):
                    yield name
                elif name not in NO_NAMES:
                    yield name.removeprefix(WHITEOUT)
        except OSError as error:
            if told:
                self._on_problem(path, f"layer {layer.label}: cannot be listed: {error.strerror or error}")


def next_level(entry: Entry, *, history: bool = True) -> Level | None:
    """What is to be listed below an entry; None where nothing can be."""
    current = entry.object
    now: tuple[Place, ...] = ()
    if current is not None and current.kind is Kind.DIRECTORY:
        now = current.places
    past = tuple(
        one.object.places for one in entry.older if one.object is not None and one.object.kind is Kind.DIRECTORY
    )
    if not now and not (past and history):
        return None
    hidden_by = entry.hidden_by
    if current is not None:
        # Whatever of the past is missing now is so because of what lies here.
        hidden_by = current.places[-1] if past else None
    redirected = (current is not None and current.redirected) or any(
        one.object is not None and one.object.redirected for one in entry.older
    )
    return Level(entry.path, now, past if history else (), hidden_by, redirected)
