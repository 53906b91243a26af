"""What sealing reads from and writes to: pushed into a sink, read back from a source of known size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent.errors import DamagedError

Buffer = bytes | bytearray | memoryview
"""Bytes handed over for the time of one call: the giver may reuse them afterwards, the taker keeps none of them."""

Sink = Callable[[memoryview], object]
"""Takes sealed bytes in order. The view is read-only and released when the sink returns: what it keeps, it copies."""


class RandomAccess(Protocol):
    """A sealed object that can be read anywhere: a file, an S3 object, bytes in memory.

    `read_at` returns exactly `length` bytes where `offset + length <= size`. What it cannot read it raises as its own
    error (`StoreError`); fewer bytes than asked for are taken as a damaged object.
    """

    @property
    def size(self) -> int:
        """Bytes in the object."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """The `length` bytes that begin at `offset`."""
        ...


class BytesSource:
    """`RandomAccess` over bytes in memory."""

    __slots__ = ("_data",)

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B").toreadonly()

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        """The `length` bytes that begin at `offset`, fewer only at the end."""
        return bytes(self._data[offset : offset + length])


def read_exactly(source: RandomAccess, offset: int, length: int) -> bytes:
    """Read `length` bytes at `offset`. Raises `DamagedError` where the source holds fewer than it says."""
    data = source.read_at(offset, length)
    if len(data) != length:
        raise DamagedError(f"the sealed object gave {len(data)} bytes at offset {offset} where {length} should be")
    return data
