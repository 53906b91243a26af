"""Where the kernel maps all of RAM, found with a page of our own instead of symbols.

The direct map is linear: RAM at physical P is at `base + P`, on x86-64 (`page_offset_base`, with four and with five
levels of tables) as on arm64 (`PAGE_OFFSET - memstart_addr`, which wraps below the map where RAM does not begin at 0).
The current task_struct comes from the slab allocator, so its address is in the direct map and bounds `base` from both
sides: its physical address must be RAM. Under KASLR too the base lies at a coarse boundary: 1 GiB on x86-64 (a PUD,
arch/x86/mm/kaslr.c), at least a section of 128 MiB on arm64 (`ARM64_MEMSTART_ALIGN`). So it is tried from above, until
a locked page with random content, whose frame /proc/self/pagemap tells, is found where it must be.

A try reads 64 bytes of a page that may be anybody's; they are compared and forgotten.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import secrets
import struct
from typing import TYPE_CHECKING, Final, Self

from acquirers.memory.block import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from acquirers.memory.ranges import Ranges

WORD: Final = 1 << 64
STEPS = {"x86_64": (1 << 30,), "aarch64": (1 << 30, 1 << 27)}
"""Boundaries at which the base can lie, the likelier ones first."""
MAX_TRIES = 1 << 17
SIZE = 64

_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_TAG = 0xFF << 56
_LOOKS = 3


class NotFoundError(Exception):
    """The direct map could not be found: one line for a person."""


class HiddenError(NotFoundError):
    """The kernel does not tell this process the frames of its own pages."""


class Canary:
    """A page of this process, locked, with random content in its first 64 bytes."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.madvise(mmap.MADV_DONTFORK)  # or a write after a fork would move it
        self.content = secrets.token_bytes(SIZE)
        self._page[:SIZE] = self.content
        self._lock(on=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._page[:SIZE] = bytes(SIZE)
        self._lock(on=False)
        self._page.close()

    def physical(self) -> int:
        """Its physical address now: the kernel may move even a locked page. Raises `HiddenError` and `OSError`."""
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(fd, 8, self._address() // PAGE * 8)
        finally:
            os.close(fd)
        if len(raw) != 8:
            raise OSError(errno.EIO, "/proc/self/pagemap ends early")
        entry = struct.unpack("=Q", raw)[0]
        if not entry & _PRESENT or not entry & _FRAME:
            raise HiddenError("/proc/self/pagemap hides the numbers of page frames")
        return int(entry & _FRAME) * PAGE

    def _address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    def _lock(self, *, on: bool) -> None:
        """As far as RLIMIT_MEMLOCK allows; it only makes a move less likely."""
        libc = ctypes.CDLL(None)
        (libc.mlock if on else libc.munlock)(ctypes.c_void_p(self._address()), ctypes.c_size_t(PAGE))


def find(
    read_virtual: Callable[[int, memoryview], None], task: int, ram: Ranges, machine: str, hints: Iterable[int] = ()
) -> int:
    """The virtual address of physical 0, modulo 2**64. `hints` are tried first, and not believed either.

    `read_virtual` raises `OSError` for what is not mapped; `task` is the virtual address of a task_struct. Raises
    `NotFoundError` and `OSError`.
    """
    hints = [hint for hint in hints if hint]
    with Canary() as canary:
        for _ in range(_LOOKS):
            physical = canary.physical()
            for base in (*hints, *candidates(task, ram, machine)):
                if _is_at(read_virtual, (base + physical) % WORD, canary.content):
                    return base % WORD
            if canary.physical() == physical:
                break
    raise NotFoundError("a page of our own was not found where the kernel maps memory")


def candidates(task: int, ram: Ranges, machine: str) -> Iterator[int]:
    """Every base for which `task` is in RAM, at most `MAX_TRIES`, the highest first. Not reduced modulo 2**64."""
    spans = list(ram)
    if not spans:
        return
    task |= _TAG  # arm64 with KASAN tags pointers in their top byte; all others have it set
    left = MAX_TRIES
    for step in STEPS.get(machine, STEPS["x86_64"]):
        for span in spans:
            first = (task - span.start) // step * step
            last = task - span.end
            for base in range(first, last, -step):
                if left == 0:
                    return
                left -= 1
                yield base


def _is_at(read_virtual: Callable[[int, memoryview], None], address: int, content: bytes) -> bool:
    if address < WORD // 2:
        return False
    found = bytearray(SIZE)
    try:
        read_virtual(address, memoryview(found))
    except OSError:
        return False
    return found == content
