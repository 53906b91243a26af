"""/proc/iomem: which physical addresses are RAM, and where in it the kernel lies.

One line per resource, `%x-%x : name`, the end included, two spaces deeper for each level (kernel/resource.c, `r_show`).
RAM stands at any depth: what was plugged in is below its device, as `System RAM (kmem)` or `System RAM (virtio_mem)`.
What is nested below RAM is a part of it: the kernel, a crash kernel, reservations. Who has no CAP_SYS_ADMIN in the
initial user namespace sees the names, and zeros for all addresses.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

from acquirers.memory.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host

MAX_BYTES = 4 << 20
MAX_ADDRESS = 1 << 52
"""Neither x86-64 nor arm64 has more physical address bits: what lies above is cut off."""

_LINE = re.compile(rb"( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)")
_RAM = re.compile(rb"System RAM(?: \([^()]*\))?")
_IMAGE = {b"Kernel code", b"Kernel rodata", b"Kernel data", b"Kernel bss"}


class Resource(NamedTuple):
    """One line. `end` is not included; `name` is whatever a driver or the firmware called it."""

    depth: int
    start: int
    end: int
    name: bytes


def read(host: Host) -> bytes:
    """The file, verbatim. Raises `OSError`, EFBIG if it is larger than any that a kernel writes."""
    data = host.read_proc(b"iomem", MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"/proc/iomem is larger than {MAX_BYTES >> 20} MiB")
    return data


def resources(data: bytes) -> Iterator[Resource]:
    """Every line that is one, in the order of the file; others are passed over."""
    for line in data[:MAX_BYTES].split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end = int(match[2], 16), int(match[3], 16) + 1
        if start < end:
            yield Resource(len(match[1]) // 2, start, end, match[4])


def hidden(data: bytes) -> bool:
    """Whether the kernel shows zeros instead of addresses."""
    found = False
    for one in resources(data):
        if (one.start, one.end) != (0, 1):
            return False
        found = True
    return found


def parse(data: bytes) -> Ranges:
    """System RAM, byte by byte; empty if the addresses are hidden."""
    return Ranges() if hidden(data) else Ranges(_clip(one) for one in _ram(data))


def kernel_image(data: bytes) -> Ranges:
    """Where the running kernel's code, read-only data, data and bss lie. Kernel code is the first of them."""
    if hidden(data):
        return Ranges()
    return Ranges(_clip(one) for one in resources(data) if one.name in _IMAGE)


def _ram(data: bytes) -> Iterator[Resource]:
    below: int | None = None
    for one in resources(data):
        if below is not None and one.depth > below:
            continue
        below = None
        if _RAM.fullmatch(one.name):
            below = one.depth
            yield one


def _clip(one: Resource) -> tuple[int, int]:
    return one.start, min(one.end, MAX_ADDRESS)
