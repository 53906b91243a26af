"""What a layer is to the union: names, and what lies under each, however it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from acquirers.base import Kind

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.files.entry import Content
    from acquirers.syscalls import Stat


class Node(msgspec.Struct, frozen=True):
    """One name of one layer as it lies there, marks of the overlay included."""

    stat: Stat
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    target: bytes | None = None
    """The text of a symbolic link."""
    problem: str = ""
    """What of it could not be read."""

    @property
    def kind(self) -> Kind:
        return Kind.of_mode(self.stat.mode)


class Place(NamedTuple):
    """Where something lies: the number of a layer, the topmost first, and the path in it, without a leading slash."""

    layer: int
    path: bytes

    def below(self, name: bytes) -> Place:
        return Place(self.layer, self.path + b"/" + name if self.path else name)


class Layer(Protocol):
    """One layer. Paths are relative to its root, which is `b""`; no component is ever followed.

    All raise `OSError` for what cannot be read; that something is not there is no error.
    """

    @property
    def label(self) -> str:
        """What a person calls it."""

    def look(self, path: bytes) -> Node | None:
        """What lies there. None: nothing, or a component before the last is no directory."""

    def names(self, path: bytes) -> Iterator[bytes]:
        """The names in a directory, each once, in any order; none in what is no directory."""

    def content(self, path: bytes, report: Report) -> AbstractContextManager[Content]:
        """The content of a regular file. What cannot be read of it is told to `report`."""
