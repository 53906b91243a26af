"""The long lists of containers/storage (containers.json, layers.json, images.json), read one element at a time.

Each is one JSON array that the runtime rewrites as a whole, and that grows with the machine. So it is cut into its
elements while it is read: what is kept is one element, however long the list is and whatever stands in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from acquirers.containers.records import MalformedError, Records

if TYPE_CHECKING:
    from acquirers.files.tree import Tree
    from acquirers.host import Host

MAX_LIST = 32 << 20
"""Bytes of one list that are looked at: some ten thousand containers of Kubernetes, some fifty thousand layers."""
MAX_ELEMENT = 1 << 20
"""Bytes of one element. What is longer is passed over."""
_CHUNK = 1 << 16
_OUTSIDE = re.compile(rb'["\[\]{}]')
_INSIDE = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"


class Oversized:
    """Stands for an element that was passed over."""


class Folder(Records):
    """`Records` whose files can also be read piece by piece."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.path = tree.path

    @classmethod
    def open_at(cls, host: Host, path: bytes) -> Folder:
        return cls(host.tree(path))

    def chunks(self, *parts: bytes, limit: int = MAX_LIST) -> Iterator[bytes]:
        """The content in pieces. Raises `MalformedError` at `limit` bytes, when all up to there was given."""
        fd = self.open_file(*parts)
        try:
            left = limit
            while left and (chunk := os.read(fd, min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
            if not left and os.read(fd, 1):
                raise MalformedError(f"more than {limit} bytes, of which no more are looked at")
        finally:
            os.close(fd)


def elements(chunks: Iterable[bytes], limit: int = MAX_ELEMENT) -> Iterator[bytes | Oversized]:
    """The objects of a JSON array, each as its own bytes. Whether these are JSON is for whoever decodes them.

    Raises `MalformedError` where the text is no array of objects, or ends in the middle of it: what was whole has been
    given by then.
    """
    scanner = _Scanner(limit)
    for chunk in chunks:
        yield from scanner.feed(chunk)
    scanner.close()


class _Scanner:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._depth = 0
        self._string = False
        self._escape = False
        self._begun = False
        self._ended = False
        self._element: bytearray | None = None
        self._too_long = False

    def feed(self, chunk: bytes) -> Iterator[bytes | Oversized]:
        position, start = 0, 0
        if not self._begun:
            head = chunk.lstrip(_BLANK)
            if not head:
                return
            self._begun = True
            if not head.startswith(b"["):
                self._ended = b"null".startswith(head.strip(_BLANK))  # what Go writes for a list that was never made
                if not self._ended:
                    raise MalformedError("no JSON array")
                return
        while position < len(chunk) and not self._ended:
            if self._escape:
                self._escape = False
                position += 1
                continue
            match = (_INSIDE if self._string else _OUTSIDE).search(chunk, position)
            if match is None:
                break
            sign, position = match[0], match.end()
            if sign == b"\\":
                self._escape = True
            elif sign == b'"':
                self._string = not self._string
            elif sign in b"[{":
                if self._depth == 1 and sign == b"{":
                    self._element, self._too_long, start = bytearray(), False, match.start()
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 1 and self._element is not None:
                    self._keep(chunk[start:position])
                    yield Oversized() if self._too_long else bytes(self._element)
                    self._element = None
                self._ended = self._depth <= 0
        if self._element is not None:
            self._keep(chunk[start:])

    def _keep(self, piece: bytes) -> None:
        if self._element is None or self._too_long:
            return
        if len(self._element) + len(piece) > self._limit:
            self._element.clear()
            self._too_long = True
        else:
            self._element += piece

    def close(self) -> None:
        if self._begun and not self._ended:
            raise MalformedError("a JSON array that is cut off")
