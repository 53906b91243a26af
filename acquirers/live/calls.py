"""System calls for looking into another mount namespace, and for opening what lies below a directory.

`setns(2)`: Python 3.12 has `os.setns`, 3.11 has not. Everything here raises `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache

from acquirers import syscalls

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
_NR_MOUNT_SETATTR = 442
_READ_ONLY = (
    syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
)
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_STEPS = 1 << 12


@cache
def libc() -> ctypes.CDLL:
    """Looked up once, before a child is forked: it may load nothing once it sees another root."""
    found = ctypes.CDLL(None, use_errno=True)
    found.setns.restype = ctypes.c_int
    found.syscall.restype = ctypes.c_long
    return found


def setns(fd: int, kind: int) -> None:
    """Joins the namespace behind `fd`. The process must have no other thread (`CLONE_FS`)."""
    if libc().setns(ctypes.c_int(fd), ctypes.c_int(kind)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_read_only(tree: int) -> bool:
    """Makes a recursive detached clone as inert as the kernel allows; whether access times stand still, too.

    Mounts that were copied into a namespace of less privilege have their kind of access times locked
    (`MNT_LOCK_ATIME`, mount_namespaces(7)), whoever asks: a clone of those is read-only and no more.
    """
    try:
        syscalls.make_inert(tree, recursive=True)
    except PermissionError:
        _set_attributes(tree, _READ_ONLY | syscalls.MOUNT_ATTR_NOSYMFOLLOW)
        return False
    return True


def _set_attributes(tree: int, attributes: int) -> None:
    raw = struct.pack("=QQQQ", attributes, 0, syscalls.MS_PRIVATE, 0)  # `struct mount_attr`
    result = libc().syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_uint(syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE),
        ctypes.c_char_p(raw),
        ctypes.c_size_t(len(raw)),
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_below(root: int, path: bytes) -> int:
    """An `O_PATH` descriptor of what the absolute `path` names below the open directory `root`.

    One component at a time, each from the directory before it and none of them followed: neither a link nor a magic
    link of /proc nor `..` leads out, on any kernel. (`openat2(2)` with `RESOLVE_IN_ROOT` would follow links inside of
    the root, which a mount point never needs; it is Linux 5.6.) A link on the way gives ENOTDIR.
    """
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts or len(parts) > _MAX_STEPS:
        raise OSError(errno.EINVAL, "no path of a mount point")
    here = os.dup(root)
    for part in parts:
        try:
            below = os.open(part, _STEP, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here
