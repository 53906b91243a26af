"""Where objects go (`Store`) and where they are read from again (`Source`).

An object appears under its name only when it is whole, and nothing is ever overwritten. Names are relative paths of
`[A-Za-z0-9._-]` components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from acquirers.base import Buffer


class Part(msgspec.Struct, frozen=True):
    """One part of an object that was stored in parts: its size in bytes, and the SHA-256 of them (32 bytes)."""

    size: int
    sha256: bytes


class Moment(msgspec.Struct, frozen=True):
    """The clock of the store beside that of the machine."""

    date: str
    """What the store said, as it said it (RFC 9110 `Date`: whole seconds)."""
    wall_ns: int
    """The machine's wall clock in the middle of the exchange."""
    round_trip_ns: int
    """How long the exchange took: the bound of what the comparison can tell."""


class Upload(Protocol):
    """One object on its way. Methods raise `StoreError`.

    `write` may be called by any thread, by one at a time.
    """

    def write(self, data: Buffer) -> None: ...

    def commit(self) -> Sequence[Part]:
        """Makes the object appear, whole and durable, or leaves it whole for the controller to complete.

        Gives the parts it consists of; none where the store has no parts. Raises `ObjectExistsError` where the name is
        taken.
        """

    def abort(self) -> None:
        """Forgets the object. Never raises."""


class Store(Protocol):
    """The place of one run."""

    location: str
    """For a person: where the run lies."""

    authority: str
    """By whose right objects appear: local, session, broker or ambient."""

    def begin(self, name: str, *, estimate: int | None = None) -> Upload:
        """`estimate`: bytes that are expected, where that is known. It decides sizes of parts and nothing else."""

    def moment(self) -> Moment | None:
        """The store's clock, where it has one of its own. Never raises."""

    def close(self) -> None: ...


class Listed(msgspec.Struct, frozen=True):
    """One object, or whatever else lies in a source."""

    name: str
    size: int
    regular: bool = True
    """False: not an object but a link, a device, an unreadable name."""
    problem: str = ""
    """What the store itself tells against it: a second version, a mark that it was deleted."""


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

    def prefetch(self, names: Iterable[str]) -> None:
        """A hint: these will be opened next, in this order, and read from end to end. Never raises."""

    def open(self, name: str) -> Blob: ...
