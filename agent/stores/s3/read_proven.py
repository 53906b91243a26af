"""An object of which a range is read and still proved: by the parts that hold it, each with its signed SHA-256.

The digest of an object proves all of it or nothing. Parts were digested one by one while they were stored, and those
digests are signed, too (in progress records and receipts). So a range costs the parts that it lies in, and of a sealed
object also its first and its last.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.stores.base import Blob, Part

KEPT = 3
"""Parts that are kept once they were proved: where a range begins and ends, and the end of the object."""


class ProvenBlob:
    """Gives out nothing but bytes of parts that are as they were signed.

    memory = (KEPT + 1) parts, and a copy of what is read
    """

    def __init__(self, blob: Blob, parts: Sequence[Part], name: str) -> None:
        """Raises `DamagedError` where the object has another size than its parts."""
        self._blob, self._parts, self._name = blob, parts, name
        self._starts = [0, *accumulate(part.size for part in parts)]
        self._kept: dict[int, bytes] = {}
        """The last one that was used stands last."""
        if self._starts[-1] != blob.size or any(part.size <= 0 for part in parts):
            raise DamagedError(f"{name}: has {blob.size} bytes, and its parts as they were signed {self._starts[-1]}")

    @property
    def size(self) -> int:
        return self._blob.size

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer only at the end. Raises `DamagedError`, `SourceError`."""
        end = min(offset + length, self.size)
        found = []
        while 0 <= offset < end:
            number = bisect_right(self._starts, offset) - 1
            start = self._starts[number]
            found.append(self._part(number)[offset - start : end - start])
            offset += len(found[-1])
        return found[0] if len(found) == 1 else b"".join(found)

    def close(self) -> None:
        self._kept.clear()
        self._blob.close()

    def _part(self, number: int) -> bytes:
        data = self._kept.pop(number, None)
        if data is None:
            data = self._blob.read_at(self._starts[number], self._parts[number].size)
            if hashlib.sha256(data).digest() != self._parts[number].sha256:
                raise DamagedError(f"{self._name}: changed: part {number + 1} is not the one that was signed")
        self._kept[number] = data
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return data
