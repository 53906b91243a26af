"""What a process has mapped: `/proc/<pid>/maps` and `smaps`, proc_pid_maps(5), proc_pid_smaps(5). Parsers only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_KNOWN = 20_000
"""Areas whose flags are kept: `smaps` writes 25 lines for each, and walks its page tables."""

_AREA = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps-]) ([0-9a-f]{1,16}) ([0-9a-f]{2,8}:[0-9a-f]{2,8}) (\d{1,20})"
    rb" *(.*)$",
    re.DOTALL,
)
_FACT = re.compile(rb"^(Rss|Swap):\s+(\d{1,18}) kB$")

# Pages of the kernel in the process: reading them gives EIO or is of no use. [vdso] is code like any other.
_KERNELS = frozenset({b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"})
# fs/proc/task_mmu.c, show_smap_vma_flags: memory of devices, and pages without a struct page. Reading them acts on a
# device (`generic_access_phys`).
_DEVICE = frozenset({b"io", b"pf"})
# Registered with userfaultfd (missing, write-protect, minor): what an absent page holds is for its handler to say.
_USERFAULT = frozenset({b"um", b"uw", b"ui"})
_MEMORY_DEVICES = (b"/dev/shm/", b"/dev/zero", b"/dev/hugepages/")
# Memory of PCI devices as sysfs and proc show it, wherever these are mounted.
_DEVICE_FILES = re.compile(rb"^/(?:sys|proc)/|/resource\d+(?:_wc)?$|/bus/pci/[0-9a-f:]+/[0-9a-f]{2}\.\d$")


class Area(NamedTuple):
    """One mapping: addresses `start` to `end`, `end` not included."""

    start: int
    end: int
    perms: bytes
    """`rwxp`: readable, writable, executable, private (or `s`, shared)."""
    offset: int
    device: bytes
    inode: int
    name: bytes
    """As the kernel writes it: a newline in it is `\\012`, and a file without a name ends in ` (deleted)`."""

    @property
    def file(self) -> bool:
        return self.inode != 0 or self.name.startswith(b"/")

    @property
    def segment_flags(self) -> int:
        """`p_flags` of an ELF segment: readable 4, writable 2, executable 1."""
        return sum(bit for bit, letter in zip((4, 2, 1), self.perms, strict=False) if letter != 0x2D)


class Known(NamedTuple):
    """What `smaps` says of an area beyond `maps`."""

    end: int
    flags: frozenset[bytes]
    resident: int
    """Bytes that are present or swapped out. Pages of the shared page of zeros are not counted."""


def parse_area(line: bytes) -> Area | None:
    """One line of `maps`, without its newline; None for what the kernel would not write."""
    match = _AREA.match(line)
    if match is None:
        return None
    start, end = int(match[1], 16), int(match[2], 16)
    if start >= end:
        return None
    return Area(start, end, match[3], int(match[4], 16), match[5], int(match[6]), match[7])


def areas(lines: Iterable[bytes]) -> Iterator[Area | None]:
    """Ascending and disjoint, whatever changed while the file was read. None for a line that is no area, or no new one.

    Of one that overlaps those before it comes what is new: the kernel goes on behind the last address that it told.
    """
    at = 0
    for text in lines:
        area = parse_area(text.rstrip(b"\n"))
        if area is None or area.end <= at:
            yield None
            continue
        if area.start < at:
            area = area._replace(start=at, offset=area.offset + at - area.start if area.file else area.offset)
        at = area.end
        yield area


def known(lines: Iterable[bytes], most: int = MAX_KNOWN) -> dict[int, Known]:
    """By start address, of the first `most` areas of `smaps`."""
    found: dict[int, Known] = {}
    for _ in learn(lines, found, most):
        pass
    return found


def learn(lines: Iterable[bytes], found: dict[int, Known], most: int = MAX_KNOWN) -> Iterator[None]:
    """`known` into `found`, with a sign of life after each area: for each the kernel walks its page tables."""
    sets: dict[bytes, frozenset[bytes]] = {}
    area: Area | None = None
    resident = 0
    for text in lines:
        if fact := _FACT.match(text):
            resident += int(fact[2]) << 10
        elif text.startswith(b"VmFlags:"):
            if area is not None:
                found[area.start] = Known(area.end, sets.setdefault(text, frozenset(text.split()[1:])), resident)
                yield
            area, resident = None, 0
            if len(found) >= most:
                break
        elif text[:1] in b"0123456789abcdef" and text[:1]:
            area, resident = parse_area(text.rstrip(b"\n")), 0


def why_never(area: Area, more: Known | None) -> str:
    """Why an area is not to be read at all; empty when it may be."""
    if area.name in _KERNELS:
        return "kernel"
    if more is not None:
        return "device" if more.flags & _DEVICE else ""
    if area.name.startswith(b"/dev/") and not area.name.startswith(_MEMORY_DEVICES):
        return "device"
    return "device" if _DEVICE_FILES.search(area.name) or area.name.startswith(b"anon_inode:") else ""


def zero_where_absent(area: Area, more: Known | None) -> bool:
    """Whether a page that was never touched holds zeros: private memory of no file, and nobody else fills it."""
    anonymous = area.inode == 0 and (
        not area.name or area.name.startswith((b"[anon:", b"[stack")) or area.name == b"[heap]"
    )
    return anonymous and area.perms[3:4] == b"p" and more is not None and not more.flags & (_USERFAULT | _DEVICE)
