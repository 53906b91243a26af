"""Extended attributes of every namespace: xattr(7).

Those of an open file are read through its descriptor. What must not be opened (links, devices, FIFOs, sockets) or could
not be is named through `/proc/self/fd/<directory>/<name>`, which resolves to the open directory whatever has become of
its path; the last component is not followed. (`getxattrat(2)` would need no /proc; it is Linux 6.13.)

The kernel bounds a value and a list of names to 64 KiB each (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), not their sum.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

MAX_TOTAL = 1 << 20
"""Bytes of names and values that are taken of one file."""

_NONE = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class Attributes(msgspec.Struct, frozen=True):
    """What was read, and what was not."""

    values: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    error: OSError | None = None
    """The first that kept an attribute, or all of them, from being read."""
    lost: int = 0
    """Attributes that were listed and not read."""


EMPTY = Attributes()


def read(file: int | bytes) -> Attributes:
    """All attributes of an open descriptor, or of a path whose last component is not followed."""
    # os.listxattr knows a descriptor only without follow_symlinks.
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        return EMPTY if error.errno in _NONE else Attributes(error=error)
    if not names:
        return EMPTY
    values: dict[bytes, bytes] = {}
    first: OSError | None = None
    lost = total = 0
    for listed in names:
        name = os.fsencode(listed)
        if total > MAX_TOTAL:
            lost += 1
            continue
        try:
            value = os.getxattr(file, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NONE:  # removed since it was listed, or not for this user to see
                first = first or error
                lost += 1
            continue
        total += len(name) + len(value)
        if total > MAX_TOTAL:
            first = first or OSError(errno.E2BIG, f"more than {MAX_TOTAL} bytes")
            lost += 1
            continue
        values[name] = value
    return Attributes(values, first, lost)


def by_name(dir_fd: int, name: bytes) -> Attributes:
    """All attributes of what `name` is in an open directory, without opening or following it. Needs `/proc`."""
    return read(b"/proc/self/fd/%d/%s" % (dir_fd, name))


def proc_serves(fd: int) -> bool:
    """Whether `/proc/self/fd` leads to this process's own descriptors."""
    try:
        named = os.stat(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return os.path.samestat(named, os.fstat(fd))
