"""What the walker hands to the archive: one file of the examined machine, with its content still to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from acquirers.base import Kind
    from acquirers.syscalls import Stat


class Content(Protocol):
    """The content of one regular file, read once, in order."""

    @property
    def size(self) -> int:
        """Bytes that the file declared when it was opened: the length that an archive states."""

    @property
    def extents(self) -> Sequence[tuple[int, int]]:
        """(offset, length) of what is stored, ascending, not touching, inside `size`. Holes lie between them."""

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the extents, in order, exactly their sum, at most `MAX_CHUNK` at a time.

        Zeros stand where the file ended early or could not be read; the walker has then reported a gap. Never raises
        for what belongs to the file. A chunk is valid until the next one is asked for.
        """

    @property
    def sha256(self) -> bytes | None:
        """After the last chunk: the digest of what the file held, holes as zeros, `true_size` bytes of it."""

    @property
    def true_size(self) -> int:
        """After the last chunk: how much of `size` was really there."""


class Entry(msgspec.Struct):
    """One file. `path` is native and absolute, also when the machine is a mounted disk. Nobody changes it."""

    path: bytes
    kind: Kind
    stat: Stat
    """From the open descriptor where there is one (files, directories), else from the name."""
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    target: bytes | None = None
    """The text of a symbolic link."""
    content: Content | None = None
    """Of a regular file that could be opened. Valid until the next entry is asked for; must be read before that."""
