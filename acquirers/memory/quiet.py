"""Less noise in the memory that is being imaged: this process neither takes nor gives back pages if it can help it.

A page that was used and given back is free again, and yet not as it was: it is in no list of the agent's frames. And
readers are forks of this process: each object that the garbage collector touches afterwards has its page copied.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# glibc, malloc.h; mallopt(3). Setting one of them switches off that glibc moves both by itself.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_DEFAULT = 128 << 10
_NEVER = 1 << 30
_LARGEST = 32 << 20
"""HEAP_MAX_SIZE / 2: what glibc accepts as a threshold at the most."""


def settle() -> None:
    """Gives back what is garbage, and takes what is left out of the collector's hands. Before readers are forked."""
    gc.collect()
    _libc("malloc_trim", ctypes.c_size_t(0))
    gc.freeze()


@contextmanager
def quiet() -> Iterator[None]:
    """For as long as memory is read, nothing is given back. Other libraries than glibc have no such knobs."""
    settle()
    _mallopt(_NEVER, _LARGEST)
    try:
        yield
    finally:
        _mallopt(_DEFAULT, _DEFAULT)
        gc.unfreeze()
        _libc("malloc_trim", ctypes.c_size_t(0))


@contextmanager
def giving_back() -> Iterator[None]:
    """For work before memory is read: what is large is mapped by itself, and is gone once it is freed.

    glibc would raise its threshold with each such piece, until they all lie scattered in the heap.
    """
    _mallopt(_DEFAULT, _DEFAULT)
    try:
        yield
    finally:
        settle()


def _mallopt(trim: int, mmap: int) -> None:
    _libc("mallopt", ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(trim))
    _libc("mallopt", ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(mmap))


def _libc(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
