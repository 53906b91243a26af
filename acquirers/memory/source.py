"""What can read physical memory, and how it is asked: the contract between `kcore`, `bpf`, `crash` and the readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from acquirers.memory.ranges import Ranges


class Reader(Protocol):
    """One open way to physical memory. Not for two threads or processes at once: each opens its own."""

    def read(self, address: int, into: memoryview) -> None:
        """Fills all of `into` (bytes, writable) with what lies at physical `address`. Raises `OSError`.

        After an error nothing that was written into `into` counts. Any length and any alignment is legal; a source that
        cannot give part of a page raises `OSError(EINVAL)`.
        """

    def close(self) -> None: ...


class Source(Protocol):
    """A way to physical memory that was probed and works."""

    name: str
    """`kcore`, `bpf`, `crash`."""
    covers: Ranges
    """Physical addresses that it can give, as far as it says."""
    zero_fills: bool
    """Gives zeros instead of an error for pages that it cannot read (kcore does)."""
    direct_map: int | None
    """Virtual address at which the kernel maps physical 0, so that RAM at P is at `direct_map + P`; None if unknown."""

    def open(self) -> Reader:
        """For the process that calls it. Raises `OSError`."""


class Candidate(msgspec.Struct, frozen=True):
    """What probing found out about one source: used, usable, or why not."""

    name: str
    source: Source | None
    reason: str = ""
    """Why it cannot be used, or what limits it: one line for a person."""
    remedy: str = ""


class Survey(msgspec.Struct, frozen=True):
    """What is RAM on this machine, and what reads it. Made without reading evidence."""

    ram: Ranges
    """System RAM, byte by byte as /proc/iomem says."""
    iomem: bytes
    """That file, verbatim."""
    candidates: tuple[Candidate, ...]
    """Every source that this version knows, in order of preference."""
    reason: str = ""
    """Why physical memory cannot be taken; empty if it can."""
    remedy: str = ""
    findings: tuple[str, ...] = ()
    """What does not fit together, one line each."""
    covered: frozenset[bytes] = frozenset()
    """Names of files of /proc that something was mounted over: none of them is read."""

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(one.source for one in self.candidates if one.source is not None)
