"""Linux system calls that Python 3.11 has no name for: statx, getdents64, open_tree, mount_setattr, fstatfs, adjtimex.

Each wrapper takes bytes and descriptors, returns plain records and raises `OSError` with the errno. Numbers are the
same on x86-64 and arm64 (the generic table) for every call since 5.0; `statx` and `getdents64` go through libc's
`syscall` too, because musl and glibc before 2.28 and 2.30 have no wrapper.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from functools import cache

import msgspec

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
_NR_GETDENTS64 = {"x86_64": 217, "aarch64": 61}
_NR_OPEN_TREE = 428
_NR_MOUNT_SETATTR = 442


class Stat(msgspec.Struct, frozen=True):
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


# `struct statx`, include/uapi/linux/stat.h, 256 bytes, as far as mnt_id: mask, attributes, nlink, uid, gid, mode, ino,
# size, blocks, attributes_mask, four times (seconds, nanoseconds): atime btime ctime mtime, major and minor of rdev and
# dev, mnt_id. Unpacked by hand because a ctypes.Structure costs 6 us more, and a walk asks for every file.
_STATX = struct.Struct("=I4xQIIIH2xQQQQ" + "qI4x" * 4 + "IIIIQ")
_STATX_SIZE = 256

# `struct linux_dirent64`, include/linux/dirent.h: d_ino, d_off, d_reclen, d_type; then d_name, ended by a zero.
_DIRENT = struct.Struct("=QqHB")


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


@cache
def _statx_call() -> Callable[..., int]:
    """`syscall(2)` with the argument types of statx: half the time of converting them at every call."""
    types = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
    return ctypes.CFUNCTYPE(ctypes.c_long, *types, use_errno=True)(("syscall", _libc()))


_STATX_NUMBER = _NR_STATX.get(platform.machine(), 291)


def statx(dir_fd: int, name: bytes, *, flags: int = AT_SYMLINK_NOFOLLOW) -> Stat:
    """`statx(2)` of `name` below `dir_fd`, never following a last link, mounting nothing, asking no remote server anew.

    An empty name means the descriptor itself; it is open, so its filesystem is asked as stat(2) would (a FUSE root that
    was never asked has zeros for times). Where there is no such call (before Linux 4.11) or the seccomp filter of a
    container does not know it (EPERM: Docker before 18.04, moby#36417), `stat(2)` answers what it can.
    """
    raw = ctypes.create_string_buffer(_STATX_SIZE)
    how = flags | AT_NO_AUTOMOUNT | (AT_STATX_DONT_SYNC if name else AT_EMPTY_PATH)
    mask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    if _statx_call()(_STATX_NUMBER, dir_fd, name, how, mask, raw) < 0:
        number = ctypes.get_errno()
        if number in {errno.ENOSYS, errno.EPERM}:
            return _plain_stat(dir_fd, name, follow=not flags & AT_SYMLINK_NOFOLLOW)
        raise OSError(number, os.strerror(number))
    (
        mask, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
        atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
        rdev_major, rdev_minor, dev_major, dev_minor, mnt_id,
    ) = _STATX.unpack_from(raw)  # fmt: skip
    return Stat(
        mode,
        uid,
        gid,
        size,
        nlink,
        ino,
        os.makedev(dev_major, dev_minor),
        os.makedev(rdev_major, rdev_minor),
        atime * 1_000_000_000 + atime_ns,
        mtime * 1_000_000_000 + mtime_ns,
        ctime * 1_000_000_000 + ctime_ns,
        btime * 1_000_000_000 + btime_ns if mask & STATX_BTIME else None,
        blocks,
        attributes & attributes_mask,
        mnt_id if mask & STATX_MNT_ID else None,
    )


def _plain_stat(dir_fd: int, name: bytes, *, follow: bool) -> Stat:
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=follow) if name else os.fstat(dir_fd)
    return Stat(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        nlink=found.st_nlink,
        ino=found.st_ino,
        dev=found.st_dev,
        rdev=found.st_rdev,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        btime_ns=None,
        blocks=found.st_blocks,
        attributes=0,
        mnt_id=None,
    )


def getdents(fd: int, size: int = 1 << 15) -> list[tuple[bytes, int, int]]:
    """The next names of an open directory: (name, `DT_*` type, cookie), without "." and ".."; empty at the end.

    `getdents64(2)`. Seeking the descriptor to the cookie of a name goes on behind that name. `os.scandir` has neither
    names as bytes for a descriptor nor a place to go back to.
    """
    raw = ctypes.create_string_buffer(size)
    call = _libc().syscall
    number = ctypes.c_long(_NR_GETDENTS64.get(platform.machine(), 61))
    found: list[tuple[bytes, int, int]] = []
    while not found:
        length = _check(call(number, ctypes.c_int(fd), raw, ctypes.c_size_t(size)))
        if length == 0:
            break
        found = parse_dirents(raw.raw[:length])
    return found


def parse_dirents(data: bytes) -> list[tuple[bytes, int, int]]:
    """The records of one `getdents64` answer, without "." and ".."."""
    found = []
    start, end = 0, len(data)
    while start + _DIRENT.size < end:
        _, cookie, length, kind = _DIRENT.unpack_from(data, start)
        if length <= _DIRENT.size:
            break
        name = data[start + _DIRENT.size : start + length].split(b"\0", 1)[0]
        if name not in {b".", b".."}:
            found.append((name, kind, cookie))
        start += length
    return found


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


class ClockState(msgspec.Struct, frozen=True):
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
