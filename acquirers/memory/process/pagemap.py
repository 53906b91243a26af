"""Which pages of a process are where: `/proc/<pid>/pagemap`, Documentation/admin-guide/mm/pagemap.rst.

One little-endian u64 per page: bit 63 present, 62 swapped out, 58 a guard region (Linux 6.13; such a page says
swapped out, too). Before Linux 4.3 bits 55 to 60 held the size of a page as a power of two: for no size 58 alone.
Everything that is used stands in the last byte, so that a page costs one byte and a regular expression finds the runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = 8
_PAGES_AT_A_TIME = 1 << 15

PRESENT, SWAPPED, ABSENT, GUARD, VANISHED = b"PSAGV"
_CLASSES = bytes(
    PRESENT if top & 0x80 else GUARD if top & 0x1E == 0x04 else SWAPPED if top & 0x40 else ABSENT for top in range(256)
)
_RUNS = re.compile(rb"P+|S+|A+|G+")


class Run(NamedTuple):
    """Pages in one state: addresses `start` to `end`, `end` not included."""

    state: int
    start: int
    end: int


def classes(entries: bytes) -> bytes:
    """One letter per page."""
    return entries[7::ENTRY].translate(_CLASSES)


def runs_of(entries: bytes, start: int) -> Iterator[Run]:
    """The runs of the entries of pages from address `start` on."""
    for match in _RUNS.finditer(classes(entries)):
        yield Run(match[0][0], start + match.start() * PAGE, start + match.end() * PAGE)


def runs(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[Run | None]:
    """Runs from `start` to `end`, each as long as it is. `read(length, offset)` reads the file, and raises `OSError`.

    Where the file ends early, the memory map is gone, and the rest is `VANISHED`. None comes now and then, as a sign of
    life: one run may be terabytes.
    """
    last: Run | None = None
    at = start
    while at < end:
        wanted = min((end - at) // PAGE, _PAGES_AT_A_TIME)
        entries = read(wanted * ENTRY, at // PAGE * ENTRY)
        entries = entries[: len(entries) - len(entries) % ENTRY]
        found = list(runs_of(entries, at)) if entries else [Run(VANISHED, at, end)]
        for run in found:
            if last is not None and last.state == run.state:
                last = Run(last.state, last.start, run.end)
                continue
            if last is not None:
                yield last
            last = run
        at = found[-1].end
        yield None
    if last is not None:
        yield last
