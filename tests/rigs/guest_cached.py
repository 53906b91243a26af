"""Runs in a guest: which page frames hold the page cache of the files below argv[1] and of the device argv[2].

Prints one frame number per line. Reads nothing in: only pages that mincore(2) calls resident are touched.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Iterator

_PAGE = mmap.PAGESIZE
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
_MADV_RANDOM = 1


def frames(path: str, pagemap: int) -> Iterator[int]:
    """The frames of one file or block device."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        if size == 0:
            return
        with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            pages = -(-size // _PAGE)
            resident = (ctypes.c_ubyte * pages)()
            # ACCESS_READ gives no writable buffer to take the address of: the mapping's own name says where it is.
            address = _address_of(path, size)
            view.madvise(_MADV_RANDOM)
            if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident):
                raise OSError(ctypes.get_errno(), "mincore", path)
            for page in range(pages):
                if resident[page] & 1:
                    view[page * _PAGE]
                    (word,) = struct.unpack("=Q", os.pread(pagemap, 8, (address // _PAGE + page) * 8))
                    if word & _PRESENT:
                        yield word & _FRAME
    finally:
        os.close(fd)


def _address_of(path: str, size: int) -> int:
    real = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            words = line.rstrip("\n").split(None, 5)
            start, end = (int(word, 16) for word in words[0].split("-"))
            if len(words) == 6 and words[5] == real and end - start >= size:
                return start
    raise LookupError(path)


def main(directory: str, device: str) -> None:
    """All of them."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    found: set[int] = set()
    for parent, _, names in os.walk(directory):
        for name in names:
            found.update(frames(os.path.join(parent, name), pagemap))
    found.update(frames(device, pagemap))
    sys.stdout.write("".join(f"{frame}\n" for frame in sorted(found)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
