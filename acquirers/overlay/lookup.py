"""One name looked up through the layers, as the kernel does it.

This follows `ovl_lookup`, `ovl_lookup_layer`, `ovl_lookup_single` and `ovl_check_redirect` (Linux 6.18,
fs/overlayfs/namei.c) step by step, because what a redirect in the middle of a redirected path means follows from
nothing else. Where the kernel fails with an error, the lookup goes on with what it has and says so: a container was
not stopped by it from having been there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from acquirers.base import Kind
from acquirers.overlay.layer import Place
from acquirers.overlay.markers import OPAQUE, WHITEOUT, Dialect, Marks, is_component, marks_of

if TYPE_CHECKING:
    from acquirers.overlay.layer import Layer, Node

MAX_NAME = 1 << 16
"""Bytes of the path that redirects of several layers add up to."""


class Hit(NamedTuple):
    """What one layer has."""

    place: Place
    node: Node
    marks: Marks


class Found(msgspec.Struct):
    """What a name is, from some layer on downwards."""

    hits: list[Hit] = msgspec.field(default_factory=list)
    """Of a directory all that are merged; of a file the one with its metadata. Empty: nothing is there."""
    data: Hit | None = None
    """Which layer has the content of a regular file."""
    whiteout: Place | None = None
    """What ended the search, if that was a whiteout of this very name."""
    following: int = 0
    """Where in the list of directories an older version of the name may begin."""
    problems: list[str] = msgspec.field(default_factory=list)


class _Search(msgspec.Struct):
    """`struct ovl_lookup_data`."""

    name: bytes
    is_dir: bool = False
    stop: bool = False
    last: bool = False
    metacopy: bool = False
    absolute: bool = False
    """The last redirect that was looked for is an absolute one."""
    redirected: bool = False
    whiteout: Place | None = None
    problems: list[str] = msgspec.field(default_factory=list)


class Lookup:
    """`layers` from the topmost down; `data` are data-only layers, which nothing but absolute redirects reaches."""

    def __init__(self, layers: Sequence[Layer], data: Sequence[Layer], dialect: Dialect) -> None:
        self._layers = layers
        self._data = data
        self._dialect = dialect
        self._roots = tuple(Place(number, b"") for number in range(len(layers)))

    def find(self, places: Sequence[Place], start: int, name: bytes, having: int) -> Found:
        """What `name` is in the directories `places` from number `start` on.

        `having` has a bit set for each of `places` in whose listing the name stood: no other is asked for it.
        """
        search, found = _Search(name), Found(following=-1)
        now, number = places, start
        while number < len(now) and not search.stop:
            place = now[number]
            if not search.redirected and not having >> number & 1:
                number += 1
                continue
            if search.is_dir or not self._data:
                search.last = place.layer == len(self._layers) - 1
            before = search.redirected
            hit = self._in_layer(place, search)
            if not before and found.following < 0:
                found.following = _following(number, hit, search)
            if hit is None:
                if search.whiteout is not None and not before and (search.is_dir or not found.hits):
                    found.whiteout = search.whiteout
                number += 1
                continue
            if hit.node.kind is not Kind.FILE or not search.metacopy:
                found.data = hit if hit.node.kind is Kind.FILE else None
                if not found.hits or search.is_dir:
                    found.hits.append(hit)
            elif not found.hits:
                found.hits.append(hit)
            if search.redirected and search.name.startswith(b"/"):
                # From the root of the overlay, in the layers below this one.
                now, number = self._roots, place.layer
            number += 1
        if found.following < 0:
            found.following = len(places)
        if found.hits and search.metacopy:
            found.data = self._data_only(search)
            if found.data is None:
                search.problems.append("only its metadata is there: no layer below has the data")
        found.problems = search.problems
        return found

    def _in_layer(self, place: Place, search: _Search) -> Hit | None:
        """`ovl_lookup_layer`."""
        if not search.name.startswith(b"/"):
            return self._single(place, search.name, 0, b"", search)
        left, base = len(search.name) - 1, Place(place.layer, b"")
        while True:
            start = len(search.name) - left
            end = search.name.find(b"/", start)
            end = len(search.name) if end < 0 else end
            name, rest = search.name[start:end], search.name[end:]
            hit = self._single(base, name, start, rest, search)
            if hit is None or not rest:
                return hit
            base = hit.place
            left -= len(name) + 1

    def _single(self, base: Place, name: bytes, before: int, rest: bytes, search: _Search) -> Hit | None:
        """`ovl_lookup_single`. `before` and `rest` are what stands around `name` in a redirected path."""
        if not is_component(name):
            return None  # longer than a name can be: no layer has it
        place = base.below(name)
        node = self._look(base, name, search)
        if node is None:
            return None
        marks = marks_of(node.stat, node.xattrs, self._dialect)
        if marks.whiteout:
            search.stop = True
            if not rest:
                search.whiteout = place
            return None
        kind = node.kind
        if kind is not Kind.DIRECTORY:
            if search.is_dir or rest or (search.metacopy and kind is not Kind.FILE):
                search.stop = True
                return None
            search.metacopy = marks.metacopy
            search.stop = not marks.metacopy
            if search.stop or search.last:
                return Hit(place, node, marks)
        else:
            if search.metacopy and not rest:
                search.stop = True
                return None
            if not rest:
                search.is_dir = True
            if search.last:
                return Hit(place, node, marks)
            if marks.opaque or self._is_opaque(place):
                search.stop = True
                return Hit(place, node, replace(marks, opaque=True))
        self._redirect(marks, before, rest, search)
        return Hit(place, node, marks)

    def _redirect(self, marks: Marks, before: int, rest: bytes, search: _Search) -> None:
        """`ovl_check_redirect`."""
        search.absolute = False
        if marks.problem:
            search.problems.append(f"{marks.problem}: not followed")
            search.stop = True
            return
        if marks.redirect is None:
            return
        search.absolute = marks.redirect.startswith(b"/")
        name = (b"" if search.absolute else search.name[:before]) + marks.redirect + rest
        if len(name) > MAX_NAME:
            search.problems.append(f"redirects to a path of more than {MAX_NAME} bytes: not followed")
            search.stop = True
            return
        if search.absolute:
            search.stop = False  # one of the directories above may have been opaque
        search.redirected = True
        search.name = name

    def _look(self, base: Place, name: bytes, search: _Search) -> Node | None:
        layer = self._layers[base.layer]
        try:
            if self._dialect.fuse:
                hidden = layer.look(base.below(WHITEOUT + name).path)
                if hidden is not None:
                    search.stop, search.whiteout = True, base.below(WHITEOUT + name)
                    return None
            node = layer.look(base.below(name).path)
        except OSError as error:
            search.problems.append(f"layer {layer.label}: {error.strerror or error}")
            return None
        if node is not None and node.problem:
            search.problems.append(f"layer {layer.label}: {node.problem}")
        return node

    def _is_opaque(self, place: Place) -> bool:
        """fuse-overlayfs may have said so with a file."""
        if not self._dialect.fuse:
            return False
        try:
            return self._layers[place.layer].look(place.below(OPAQUE).path) is not None
        except OSError:
            return False  # told when the directory is listed

    def _data_only(self, search: _Search) -> Hit | None:
        """The content that an absolute redirect names in a data-only layer (`ovl_lookup_data_layers`)."""
        if not search.absolute:
            return None
        path = search.name.removeprefix(b"/")
        for number, layer in enumerate(self._data, len(self._layers)):
            try:
                node = layer.look(path)
            except OSError as error:
                search.problems.append(f"layer {layer.label}: {error.strerror or error}")
                continue
            if node is not None and node.kind is Kind.FILE:
                return Hit(Place(number, path), node, Marks())
        return None


def _following(number: int, hit: Hit | None, search: _Search) -> int:
    """Where an older version may begin, if this was the last that counts in the list of directories; else -1."""
    if hit is None:
        if search.whiteout is not None:
            return number + 1
        return number if search.stop else -1  # a file below a directory
    if hit.node.kind is not Kind.DIRECTORY or search.stop or search.redirected:
        return number + 1
    return -1
