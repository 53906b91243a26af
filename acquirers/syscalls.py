"""The Linux system calls that Python 3.11 has no name for: statx, open_tree, mount_setattr, fstatfs, adjtimex.

Each wrapper takes bytes and descriptors, returns plain records and raises `OSError` with the errno. Numbers are the
same on x86-64 and arm64 (the generic table) for every call since 5.0; `statx` goes through libc's `syscall` too,
because musl and glibc before 2.28 have no wrapper.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import cache

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000
AT_RECURSIVE = 0x8000

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000

OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MS_PRIVATE = 1 << 18

_NR_STATX = {"x86_64": 332, "aarch64": 291}
_NR_OPEN_TREE = 428
_NR_MOUNT_SETATTR = 442


@dataclass(frozen=True, slots=True)
class Stat:
    """One `statx(2)` answer. Times in nanoseconds since the epoch; `attributes` are the `STATX_ATTR_*` bits."""

    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    ino: int
    dev: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int | None
    blocks: int  # of 512 bytes
    attributes: int
    mnt_id: int | None


class _Timestamp(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("pad", ctypes.c_int32))

    @property
    def ns(self) -> int:
        return int(self.sec) * 1_000_000_000 + int(self.nsec)


class _Statx(ctypes.Structure):
    """`struct statx`, include/uapi/linux/stat.h: 256 bytes."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("pad0", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _Timestamp),
        ("btime", _Timestamp),
        ("ctime", _Timestamp),
        ("mtime", _Timestamp),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 13),
    )


class _MountAttr(ctypes.Structure):
    """`struct mount_attr`, include/uapi/linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _Statfs(ctypes.Structure):
    """`struct statfs` on 64-bit machines; what follows the type and size is not read here."""

    _fields_ = (("type", ctypes.c_long), ("bsize", ctypes.c_long), ("rest", ctypes.c_long * 13))


class _Timex(ctypes.Structure):
    """`struct timex` on 64-bit machines (208 bytes); the tail is reserved."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time_sec", ctypes.c_long),
        ("time_usec", ctypes.c_long),
        ("rest", ctypes.c_char * 112),
    )


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def statx(dir_fd: int, name: bytes, *, flags: int = AT_SYMLINK_NOFOLLOW) -> Stat:
    """`statx(2)` of `name` below `dir_fd`, never following a last link, mounting nothing, asking no remote server anew.

    An empty name means the descriptor itself.
    """
    raw = _Statx()
    flags |= AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC | (0 if name else AT_EMPTY_PATH)
    mask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    number = _NR_STATX.get(platform.machine(), 291)
    _check(
        _libc().syscall(
            ctypes.c_long(number),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(name),
            ctypes.c_int(flags),
            ctypes.c_uint(mask),
            ctypes.byref(raw),
        )
    )
    return Stat(
        mode=raw.mode,
        uid=raw.uid,
        gid=raw.gid,
        size=raw.size,
        nlink=raw.nlink,
        ino=raw.ino,
        dev=os.makedev(raw.dev_major, raw.dev_minor),
        rdev=os.makedev(raw.rdev_major, raw.rdev_minor),
        atime_ns=raw.atime.ns,
        mtime_ns=raw.mtime.ns,
        ctime_ns=raw.ctime.ns,
        btime_ns=raw.btime.ns if raw.mask & STATX_BTIME else None,
        blocks=raw.blocks,
        attributes=raw.attributes & raw.attributes_mask,
        mnt_id=raw.mnt_id if raw.mask & STATX_MNT_ID else None,
    )


def open_tree_clone(dir_fd: int, path: bytes, *, recursive: bool) -> int:
    """A descriptor of a detached clone of the mount at `path` (`open_tree(2)`, Linux 5.2, CAP_SYS_ADMIN)."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_NO_AUTOMOUNT
    flags |= (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return _check(
        _libc().syscall(ctypes.c_long(_NR_OPEN_TREE), ctypes.c_int(dir_fd), ctypes.c_char_p(path), ctypes.c_uint(flags))
    )


def make_inert(tree_fd: int, *, recursive: bool) -> None:
    """Makes a detached clone read-only, private, without access times, devices, set-id, execution and links.

    `mount_setattr(2)`, Linux 5.12. NOSYMFOLLOW is 5.14 and is left out where the kernel does not know it.
    """
    base = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOATIME
    for wanted in (base | MOUNT_ATTR_NOSYMFOLLOW, base):
        attr = _MountAttr(attr_set=wanted, attr_clr=MOUNT_ATTR__ATIME, propagation=MS_PRIVATE)
        result = _libc().syscall(
            ctypes.c_long(_NR_MOUNT_SETATTR),
            ctypes.c_int(tree_fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        )
        if result == 0:
            return
    _check(result)


def filesystem_type(fd: int) -> int:
    """The magic number of the filesystem that `fd` lies on (`fstatfs(2)`, `f_type`)."""
    raw = _Statfs()
    _check(_libc().fstatfs(ctypes.c_int(fd), ctypes.byref(raw)))
    return int(raw.type) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ClockState:
    """What `adjtimex(2)` says of the kernel's clock: microseconds, and frequency in parts per million times 65536."""

    state: int  # the return value: 0 TIME_OK … 5 TIME_ERROR (not synchronized)
    status: int  # STA_* bits
    offset: int
    frequency: int
    max_error: int
    estimated_error: int


def adjtimex() -> ClockState:
    """Reads the clock discipline; `modes` is 0, so nothing is set."""
    raw = _Timex()
    state = _check(_libc().adjtimex(ctypes.byref(raw)))
    return ClockState(state, raw.status, raw.offset, raw.freq, raw.maxerror, raw.esterror)
