"""A source that is read again and again: small objects, which never change, are fetched once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.stores.base import Blob, Listed, Source

MAX_KEPT = 64 << 20
"""Bytes that are remembered; what comes beyond is fetched each time."""
MAX_SMALL = 1 << 20


class _Kept:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


class Remembered:
    """Around another source, which stays the caller's. What was put over an object later is not seen."""

    def __init__(self, source: Source) -> None:
        self.location = source.location
        self._source = source
        self._kept: dict[str, bytes] = {}
        self._room = MAX_KEPT
        self.fresh = False
        """Whether anything was fetched since this was last set to false."""

    def names(self) -> Iterator[Listed]:
        return self._source.names()

    def prefetch(self, names: Iterable[str]) -> None:
        self._source.prefetch(name for name in names if name not in self._kept)

    def open(self, name: str) -> Blob:
        if name in self._kept:
            return _Kept(self._kept[name])
        self.fresh = True
        blob = self._source.open(name)
        if blob.size > min(MAX_SMALL, self._room):
            return blob
        try:
            data = blob.read_at(0, blob.size)
        finally:
            blob.close()
        if len(data) == blob.size:
            self._kept[name] = data
            self._room -= len(data)
        return _Kept(data)
