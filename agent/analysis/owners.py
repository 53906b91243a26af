"""Owners as a container knows them: with `userns-remap` its files have other ones on the machine.

Docker gives the container's ids 0, 1, … the machine's `shift`, `shift + 1`, …; the data root is named after it.
Whatever has an id below that is nobody's in there: the kernel shows 65534 (`overflowuid`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from acquirers.base import Report
    from acquirers.files.entry import Content
    from acquirers.overlay import Layer
    from acquirers.overlay.layer import Node

_NOBODY = 65534


class Remapped:
    """`acquirers.overlay.Layer`: another one, with the container's owners."""

    def __init__(self, layer: Layer, shift: tuple[int, int]) -> None:
        self._layer = layer
        self._uid, self._gid = shift

    @property
    def label(self) -> str:
        return self._layer.label

    def look(self, path: bytes) -> Node | None:
        node = self._layer.look(path)
        if node is None:
            return None
        stat = node.stat
        uid, gid = _inside(stat.uid, self._uid), _inside(stat.gid, self._gid)
        return replace(node, stat=replace(stat, uid=uid, gid=gid))

    def names(self, path: bytes) -> Iterator[bytes]:
        return self._layer.names(path)

    def content(self, path: bytes, report: Report) -> AbstractContextManager[Content]:
        return self._layer.content(path, report)


def _inside(owner: int, shift: int) -> int:
    return owner - shift if owner >= shift else _NOBODY
