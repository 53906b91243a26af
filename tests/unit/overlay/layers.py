"""Layers made of words, for tests of the union that need no kernel."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acquirers.overlay import Node
from acquirers.syscalls import Stat

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.files.entry import Content

TRUSTED = b"trusted.overlay."


def node(
    mode: int, *, size: int = 0, rdev: int = 0, xattrs: Mapping[bytes, bytes] | None = None, target: bytes | None = None
) -> Node:
    return Node(Stat(mode, 0, 0, size, 1, 1, 1, rdev, 0, 0, 0, None, 0, 0, None), xattrs or {}, target)


def file(size: int = 1, **marks: bytes) -> Node:
    return node(stat.S_IFREG | 0o644, size=size, xattrs={TRUSTED + key.encode(): value for key, value in marks.items()})


def directory(**marks: bytes) -> Node:
    return node(stat.S_IFDIR | 0o755, xattrs={TRUSTED + key.encode(): value for key, value in marks.items()})


def whiteout() -> Node:
    return node(stat.S_IFCHR)


@dataclass
class WordLayer:
    """Path -> node. Directories above are there by themselves."""

    label: str
    nodes: dict[bytes, Node] = field(default_factory=dict)
    asked: int = 0
    broken: dict[bytes, OSError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = dict(self.nodes)
        for path in list(self.nodes):
            above = path
            while b"/" in above:
                above = above.rpartition(b"/")[0]
                self.nodes.setdefault(above, directory())
        self.nodes.setdefault(b"", directory())

    def look(self, path: bytes) -> Node | None:
        self.asked += 1
        if path in self.broken:
            raise self.broken[path]
        return self.nodes.get(path)

    def names(self, path: bytes) -> Iterator[bytes]:
        if path in self.broken:
            raise self.broken[path]
        start = path + b"/" if path else b""
        for other in self.nodes:
            name = other[len(start) :]
            if other.startswith(start) and name and b"/" not in name:
                yield name

    def content(self, path: bytes, report: Report) -> contextlib.AbstractContextManager[Content]:
        raise NotImplementedError


def layers(*contents: dict[str, Node]) -> list[WordLayer]:
    """The topmost first."""
    return [
        WordLayer(f"layer{number}", {path.encode(): one for path, one in content.items()})
        for number, content in enumerate(contents)
    ]
