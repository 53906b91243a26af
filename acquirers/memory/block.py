"""What the readers give: a block of physical memory, what is missing in it, and what was noticed while it was read."""

from __future__ import annotations

import enum
import os
from collections import Counter

import msgspec

PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK = 16 << 20
"""Bytes of a block at the most; blocks begin and end at multiples of it, or where RAM does."""


class Why(enum.StrEnum):
    """Why bytes of System RAM are not in the image."""

    HWPOISON = "hwpoison"  # the page has an uncorrectable error: never touched
    OFFLINE = "offline"  # ballooned, or its section is offline: never touched
    NOPAGE = "nopage"  # the kernel has no page there: never touched
    ERROR = "error"  # the kernel returned an error for this page
    STUCK = "stuck"  # a read did not return before its deadline
    UNMAPPED = "unmapped"  # the kernel has unmapped it from itself (secretmem, a page allocator's debugging)
    GUARD = "guard"  # a guard page of KFENCE: it has no content by design
    NOT_COVERED = "not-covered"  # no source gives it
    STOPPED = "stopped"  # the run ended before


NO_LOSS = frozenset({Why.OFFLINE, Why.NOPAGE, Why.GUARD})
"""Holes that hold nothing anybody could have read: flags. All others are gaps."""


class Hole(msgspec.Struct, frozen=True):
    """Bytes that are missing: physical addresses `start` to `end`, `end` not included."""

    start: int
    end: int
    why: Why
    detail: str = ""
    """E.g. the name of an errno and the source that gave it."""


class Block(msgspec.Struct):
    """Physical addresses `start` to `end` (not included), as they were read."""

    start: int
    end: int
    data: memoryview
    """`end - start` bytes, `data[0]` is at `start`; what lies in a hole means nothing. Valid until the next block."""
    holes: tuple[Hole, ...] = ()
    """Ascending, disjoint, inside the block."""
    sources: Counter[str] = msgspec.field(default_factory=Counter)
    """Bytes by the name of the source that gave them."""
    began_ns: int = 0
    """CLOCK_MONOTONIC_RAW when reading began."""
    ended_ns: int = 0
    wall_ns: int = 0
    """CLOCK_REALTIME when reading began."""
    classes: Counter[str] = msgspec.field(default_factory=Counter)
    """Pages by class (`pageflags`), before the read; empty where /proc/kpageflags cannot be read."""
    changed: int = 0
    """Pages whose flags differ after the read."""
    zeros: int = 0
    """Pages that read as zeros from a source that fills with zeros, and that no other source confirmed."""
    digests: dict[int, tuple[str, bytes]] = msgspec.field(default_factory=dict)
    """Frame number -> (page class, digest of 8 bytes) of the pages that are to be read again: see `smear`."""
    again: bool = False
    """It was slow or failed in part and is to be read again at the end: then it is a block of `late.lime`."""

    def pieces(self) -> list[tuple[int, int]]:
        """What is there: ascending (start, end) without the holes."""
        found, at = [], self.start
        for hole in self.holes:
            if hole.start > at:
                found.append((at, hole.start))
            at = max(at, hole.end)
        if at < self.end:
            found.append((at, self.end))
        return found
