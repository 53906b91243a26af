"""What can be wrong with a bbolt file.

BoltError         it cannot be read as a database at all
Fault             a part of it is not what the format says: noted, and everything else is still read
"""

from __future__ import annotations

import msgspec

_MAX_FAULTS = 100


class BoltError(ValueError):
    """Not a bbolt database, or a page of it that cannot be read: one line for a person."""


class Fault(msgspec.Struct, frozen=True):
    """A page that is damaged, or was overwritten while it was read."""

    page: int
    detail: str

    def __str__(self) -> str:
        return f"page {self.page}: {self.detail}"


class Faults:
    """The first faults of a database, each once, and how many there are."""

    def __init__(self) -> None:
        self._first: dict[Fault, None] = {}
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def first(self) -> tuple[Fault, ...]:
        """At most a hundred."""
        return tuple(self._first)

    def add(self, page: int, detail: str) -> None:
        fault = Fault(page, detail)
        if fault in self._first:
            return
        self.count += 1
        if len(self._first) < _MAX_FAULTS:
            self._first[fault] = None
