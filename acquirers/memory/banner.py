"""`linux_banner`: the line by which Volatility 3 knows which symbols belong to an image."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.memory.paging import Layout
    from acquirers.memory.ranges import Ranges

MAX_BANNER = 1024
"""Bytes; init/version-timestamp.c puts together a few hundred."""
MAX_SEARCH = 256 << 20
"""Bytes of the kernel image that are searched at the most; real ones have 10 to 60 MiB."""

_START = b"Linux version "
_LINE = re.compile(rb"Linux version [^\0\n]{1,1000}\n")
_CHUNK = 1 << 20


def at(read: Callable[[int, int], bytes], layout: Layout, address: int) -> tuple[int, bytes] | None:
    """Physical address and bytes, line feed included, of the banner at a virtual address (its symbol), if it is one."""
    physical = layout.of_image(address, len(_START))
    if physical is None:
        return None
    size = min([MAX_BANNER, *(span.end - physical for span in layout.ram if physical in range(*span))])
    line = _LINE.match(read(physical, size))
    return (physical, line[0]) if line else None


def search(read: Callable[[int, int], bytes], image: Ranges, expected: bytes) -> tuple[int, bytes] | None:
    """The banner in the kernel image: physical address and bytes. `expected` is /proc/version.

    What equals `expected` wins; else the first line of its form that names a release, which may be a copy of another.
    """
    first = None
    for physical, line in _candidates(read, image):
        if line == expected:
            return physical, line
        if first is None and b"%" not in line and b"(" in line:  # `linux_proc_banner` is a format: "%s version %s"
            first = (physical, line)
    return first


def _candidates(read: Callable[[int, int], bytes], image: Ranges) -> Iterator[tuple[int, bytes]]:
    left = MAX_SEARCH
    for start, end in image:
        at = start
        while at < end and left > 0:
            size = min(_CHUNK, end - at)
            left -= size
            try:
                data = read(at, min(size + MAX_BANNER, end - at))
            except OSError:  # a page that cannot be read: the banner may lie in the next
                at += size
                continue
            for found in _LINE.finditer(data):
                if found.start() < size:
                    yield at + found.start(), found[0]
            at += size
