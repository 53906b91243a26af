"""`/proc/kpageflags`: what the kernel uses each page frame for. One u64 in native order for each frame, by its number.

Bits: include/uapi/linux/kernel-page-flags.h; from 32 on they are for kernel hacking and not stable, but for RESERVED,
which never moved. Root only. A frame beyond the end of the file has no flags.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from functools import lru_cache
from operator import ne
from typing import TYPE_CHECKING

from acquirers.memory.block import Why

if TYPE_CHECKING:
    from collections.abc import Iterator

LRU, SLAB, BUDDY, MAPPED, ANON, SWAPCACHE = 5, 7, 10, 11, 12, 13
HUGE, HWPOISON, NOPAGE, KSM, OFFLINE, ZERO_PAGE, PGTABLE, RESERVED = 17, 19, 20, 21, 23, 24, 26, 32

_BAD = {1 << HWPOISON: Why.HWPOISON, 1 << OFFLINE: Why.OFFLINE, 1 << NOPAGE: Why.NOPAGE}
BAD = sum(_BAD)
"""What must not be touched."""

_CLASSES = (
    # The first that fits names the page.
    (1 << HWPOISON, "hwpoison"),
    (1 << OFFLINE, "offline"),
    (1 << NOPAGE, "nopage"),
    (1 << BUDDY, "free"),
    (1 << PGTABLE, "page-table"),
    (1 << SLAB, "slab"),
    (1 << HUGE, "hugetlb"),
    (1 << ZERO_PAGE, "zero-page"),
    (1 << KSM | 1 << ANON, "anonymous"),
    (1 << LRU | 1 << MAPPED | 1 << SWAPCACHE, "file"),
    (1 << RESERVED, "reserved"),
)
OTHER = "other"
"""The kernel's own pages that no flag tells of, stacks and vmalloc among them."""


@lru_cache(maxsize=65536)
def page_class(flags: int) -> str:
    """What a page is used for, in one word."""
    return next((name for bits, name in _CLASSES if flags & bits), OTHER)


_GROUP = 64
"""Frames that are looked at together: neighbours are mostly used alike, and bytes are compared faster than words."""
_EACH = 8 * _GROUP


@lru_cache(maxsize=8)
def _everywhere(bits: int) -> int:
    return int.from_bytes(bits.to_bytes(8, sys.byteorder) * _GROUP, sys.byteorder)


class Flags:
    """The flags of consecutive frames from `first` on."""

    __slots__ = ("_counts", "first", "raw", "words")

    def __init__(self, first: int, raw: bytes) -> None:
        self.first, self.raw = first, raw[: len(raw) // 8 * 8]
        self.words = memoryview(self.raw).cast("Q")
        self._counts: Counter[int] | None = None

    def counts(self) -> Counter[int]:
        """Frames by their flags."""
        if self._counts is None:
            alike: Counter[bytes] = Counter()
            mixed = []
            for group in self._groups():
                word = group[:8]
                if group == word * _GROUP:
                    alike[word] += _GROUP
                else:
                    mixed.append(group)
            self._counts = Counter(memoryview(b"".join(mixed)).cast("Q"))
            for word, count in alike.items():
                self._counts[int.from_bytes(word, sys.byteorder)] += count
        return self._counts

    def _groups(self) -> Iterator[bytes]:
        raw = self.raw
        return (raw[at : at + _EACH] for at in range(0, len(raw), _EACH))

    def any(self, bits: int) -> bool:
        """Whether any frame has any of these bits."""
        return any(flags & bits for flags in self.counts())

    def of(self, frame: int) -> int:
        """0 where nothing is known."""
        index = frame - self.first
        return self.words[index] if 0 <= index < len(self.words) else 0

    def bad(self) -> list[tuple[int, int, Why]]:
        """(frame, frames, why) of the runs that must not be touched, ascending."""
        found: list[tuple[int, int, Why]] = []
        for frame in self.having(BAD):
            flags = self.of(frame)
            why = next(reason for bit, reason in _BAD.items() if flags & bit)
            if found and found[-1][0] + found[-1][1] == frame and found[-1][2] is why:
                found[-1] = (found[-1][0], found[-1][1] + 1, why)
            else:
                found.append((frame, 1, why))
        return found

    def having(self, bits: int) -> list[int]:
        """The frames that have any of these bits, ascending."""
        if not self.any(bits):
            return []
        found: list[int] = []
        everywhere = _everywhere(bits)
        for number, group in enumerate(self._groups()):
            if int.from_bytes(group, sys.byteorder) & everywhere:
                first = number * _GROUP
                words = self.words[first : first + _GROUP]
                found += [self.first + index for index, flags in enumerate(words, first) if flags & bits]
        return found

    def classes(self) -> Counter[str]:
        """Pages by class."""
        found: Counter[str] = Counter()
        for flags, count in self.counts().items():
            found[page_class(flags)] += count
        return found

    def differing(self, other: Flags) -> int:
        """How many frames have other flags there."""
        if self.raw == other.raw:
            return 0
        differing = abs(len(self.words) - len(other.words))
        for number, (mine, others) in enumerate(zip(self._groups(), other._groups(), strict=False)):
            if mine != others:
                here = slice(number * _GROUP, (number + 1) * _GROUP)
                differing += sum(map(ne, self.words[here], other.words[here]))
        return differing


class PageFlags:
    """The open file."""

    def __init__(self, path: bytes) -> None:
        """Raises `OSError`."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, first: int, frames: int) -> Flags:
        """Raises `OSError`."""
        parts, at, end = [], first * 8, (first + frames) * 8
        while at < end and (piece := os.pread(self._fd, min(end - at, 1 << 20), at)):
            parts.append(piece)
            at += len(piece)
        return Flags(first, b"".join(parts))

    def close(self) -> None:
        os.close(self._fd)
