"""Where objects go (`Store`) and where they are read from again (`Source`).

An object appears under its name only when it is whole, and nothing is ever overwritten. Names are relative paths of
`[A-Za-z0-9._-]` components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Buffer


class Upload(Protocol):
    """One object on its way. Methods raise `StoreError`."""

    def write(self, data: Buffer) -> None: ...

    def commit(self) -> None:
        """Makes the object appear, whole and durable. Raises `ObjectExistsError` where the name is taken."""

    def abort(self) -> None:
        """Forgets the object. Never raises."""


class Store(Protocol):
    """The place of one run."""

    location: str
    """For a person: where the run lies."""

    def begin(self, name: str) -> Upload: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """One object, or whatever else lies in a source."""

    name: str
    size: int
    regular: bool = True
    """False: not an object but a link, a device, an unreadable name."""


class Blob(Protocol):
    """The bytes of one stored object, read at any offset."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer only at the end. Raises `SourceError`."""

    def close(self) -> None: ...


class Source(Protocol):
    """A stored run, read. Methods raise `SourceError`."""

    location: str

    def names(self) -> Iterator[Listed]: ...

    def open(self, name: str) -> Blob: ...
