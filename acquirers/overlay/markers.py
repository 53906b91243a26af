"""The marks that overlayfs and fuse-overlayfs leave in layers, and what a container sees of them.

Sources: Linux 6.18, fs/overlayfs: `overlayfs.h` (names of attributes, `struct ovl_fb`), `util.c`
(`ovl_get_redirect_xattr`, `ovl_get_dir_xattr_val`, `ovl_path_check_xwhiteout_xattr`), `xattrs.c` (what is private and
what is escaped), Documentation/filesystems/overlayfs.rst; fuse-overlayfs 1.10, main.c and utils.c (`.wh.` names,
`override_stat`); containers/storage, pkg/idtools (`user.containers.override_stat`).

Everything here takes what lies in a layer and returns records; nothing raises but `parse_redirect` and its like, with
`ValueError` for what no kernel would take.
"""

from __future__ import annotations

import os
import re
import stat as stat_module
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

MAX_REDIRECT = 4096
"""Bytes of a redirect that is followed. The kernel writes 256 at most, and reads what an attribute can hold."""

WHITEOUT = b".wh."
"""What names of whiteouts begin with where they are files: in OCI layers, and of fuse-overlayfs without mknod."""
OPAQUE = b".wh..wh..opq"
NO_NAMES = frozenset({OPAQUE, b".wh..opq"})
"""Of names that begin with `.wh.` those that hide no name: fuse-overlayfs leaves the second beside the first."""

_TRUSTED = b"trusted.overlay."
_USER = b"user.overlay."
_FUSE = b"user.fuseoverlayfs."
FUSE_MARK = _FUSE
OVERLAY_MARKS = (_TRUSTED, _USER)
_OVERRIDES = (b"security.fuseoverlayfs.override_stat", b"user.fuseoverlayfs.override_stat",
              b"user.containers.override_stat")  # fmt: skip
_ESCAPED = b"overlay."

_OVERRIDE = re.compile(
    rb"(\d{1,10}):(\d{1,10}):([0-7]{1,7})(?::(file|dir|symlink|pipe|socket|block|char)(?:-(\d{1,10})-(\d{1,10}))?)?"
)
_TYPES = {
    b"file": stat_module.S_IFREG,
    b"dir": stat_module.S_IFDIR,
    b"symlink": stat_module.S_IFLNK,
    b"pipe": stat_module.S_IFIFO,
    b"socket": stat_module.S_IFSOCK,
    b"block": stat_module.S_IFBLK,
    b"char": stat_module.S_IFCHR,
}
_HANDLE = struct.Struct("<BBBBB16s")
_HANDLE_MAGIC = 0xFB
_INODE_GENERATION = struct.Struct("<II")
_NAME_MAX = 255


class Dialect(msgspec.Struct, frozen=True):
    """Whose marks the layers of a container bear."""

    userxattr: bool = False
    """Mounted with `userxattr` (rootless): `user.overlay.*` count, `trusted.overlay.*` are attributes like others."""
    fuse: bool = False
    """By fuse-overlayfs: all attributes count, and names that begin with `.wh.` are whiteouts."""

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        if self.fuse:
            return (_TRUSTED, _USER, _FUSE)
        return (_USER,) if self.userxattr else (_TRUSTED,)


class Marks(msgspec.Struct, frozen=True):
    """What is marked at one name of one layer."""

    whiteout: bool = False
    """Hides the name in all layers below: a character device 0/0, or an empty file with the attribute `whiteout`.

    The kernel heeds the attribute wherever it is looked for; in listings only below a directory whose `opaque` is `x`.
    Elsewhere it shows a name that cannot be opened.
    """
    opaque: bool = False
    """Of a directory: nothing below it counts (`opaque` is `y`)."""
    metacopy: bool = False
    """Of a regular file: only its metadata, the data is in a layer below."""
    redirect: bytes | None = None
    """Under which name the layers below have it: one component, or a path from the root of the overlay."""
    problem: str = ""
    """A mark that no kernel would take."""


PLAIN = Marks()


class Origin(msgspec.Struct, frozen=True):
    """`overlay.origin`: from which file of a lower layer something was copied up, whatever it was called then."""

    filesystem: bytes
    """UUID of the filesystem, often zeros."""
    kind: int
    """Type of the file handle (include/linux/exportfs.h)."""
    handle: bytes
    inode: int | None = None
    """Of a handle of type 1 (FILEID_INO32_GEN: ext4 and others)."""
    generation: int | None = None


class Override(msgspec.Struct, frozen=True):
    """`override_stat`: what a file is to be for the container, where whoever unpacked it could not make it so."""

    uid: int
    gid: int
    mode: int
    """Permission bits, with the type where it is told."""
    device: tuple[int, int] = (0, 0)


def marks_of(stat: Stat, xattrs: Mapping[bytes, bytes], dialect: Dialect) -> Marks:
    """The marks at one name. Names that begin with `.wh.` are not looked at here: see `Union`."""
    type_ = stat_module.S_IFMT(stat.mode)
    if type_ == stat_module.S_IFCHR:
        return Marks(whiteout=True) if stat.rdev == 0 else PLAIN
    if not xattrs:
        return PLAIN
    if type_ == stat_module.S_IFREG:
        if stat.size == 0 and _get(xattrs, b"whiteout", dialect) is not None:
            return Marks(whiteout=True)
        if _get(xattrs, b"metacopy", dialect) is None:
            return PLAIN  # a redirect of a file that has its own data leads nowhere
        redirect, problem = _redirect(xattrs, dialect)
        return Marks(metacopy=True, redirect=redirect, problem=problem)
    if type_ != stat_module.S_IFDIR:
        return PLAIN
    opaque = _get(xattrs, b"opaque", dialect)
    redirect, problem = _redirect(xattrs, dialect)
    if opaque is None and redirect is None and not problem:
        return PLAIN
    return Marks(opaque=opaque == b"y", redirect=redirect, problem=problem)


def _get(xattrs: Mapping[bytes, bytes], name: bytes, dialect: Dialect) -> bytes | None:
    for prefix in dialect.prefixes:
        value = xattrs.get(prefix + name)
        if value is not None:
            return value
    return None


def _redirect(xattrs: Mapping[bytes, bytes], dialect: Dialect) -> tuple[bytes | None, str]:
    value = _get(xattrs, b"redirect", dialect)
    if value is None:
        return None, ""
    try:
        return parse_redirect(value), ""
    except ValueError as error:
        return None, str(error)


def parse_redirect(value: bytes) -> bytes:
    """A redirect that stays inside the layers. Raises `ValueError` for what the kernel refuses, and for too long ones.

    The kernel takes no empty components (`ovl_get_redirect_xattr`), nor `.` and `..` (`lookup_one`).
    """
    if len(value) > MAX_REDIRECT:
        raise ValueError(f"a redirect of {len(value)} bytes, of at most {MAX_REDIRECT}")
    path = value.partition(b"\0")[0]
    parts = path.removeprefix(b"/").split(b"/")
    if len(parts) > 1 and not path.startswith(b"/"):
        raise ValueError("a redirect that is neither a name nor an absolute path")
    if any(part in {b"", b".", b".."} for part in parts):
        raise ValueError("a redirect with an empty component, '.' or '..'")
    return path


def parse_origin(value: bytes) -> Origin:
    """`struct ovl_fb`: version, magic, length, flags, type, UUID, then the handle itself. Raises `ValueError`."""
    if len(value) < _HANDLE.size:
        raise ValueError(f"an origin of {len(value)} bytes")
    version, magic, length, _, kind, uuid = _HANDLE.unpack_from(value)
    if version != 0 or magic != _HANDLE_MAGIC or length != len(value):
        raise ValueError("an origin of an unknown form")
    handle = value[_HANDLE.size :]
    if kind == 1 and len(handle) == _INODE_GENERATION.size:
        inode, generation = _INODE_GENERATION.unpack(handle)
        return Origin(uuid, kind, handle, inode, generation)
    return Origin(uuid, kind, handle)


def parse_override(value: bytes) -> Override:
    """`UID:GID:MODE` in octal, with the type of the file after it in newer ones. Raises `ValueError`."""
    match = _OVERRIDE.fullmatch(value)
    if match is None:
        raise ValueError("an override of owner and mode that is none")
    uid, gid, mode, type_, major, minor = match.groups()
    device = (int(major or 0), int(minor or 0))
    if max(int(uid), int(gid), *device) >= 1 << 31:
        raise ValueError("an override with an owner or device that no system has")
    return Override(int(uid), int(gid), int(mode, 8) & 0o7777 | _TYPES.get(type_, 0), device)


def origin_of(xattrs: Mapping[bytes, bytes], dialect: Dialect) -> Origin | None:
    """Where it was copied up from, where that can be read."""
    value = _get(xattrs, b"origin", dialect)
    if not value:
        return None
    try:
        return parse_origin(value)
    except ValueError:
        return None  # fuse-overlayfs keeps a path there; the attribute itself is in the layer


def seen_as(stat: Stat, xattrs: Mapping[bytes, bytes], dialect: Dialect) -> Stat:
    """What the container sees of owner and mode: another one where fuse-overlayfs is told to say so."""
    if not dialect.fuse:
        return stat
    for name in _OVERRIDES:
        value = xattrs.get(name)
        if value is not None:
            try:
                told = parse_override(value)
            except ValueError:
                return stat
            type_ = stat_module.S_IFMT(told.mode)
            # Only what a regular file stands for may be told: a directory stays one, whoever says otherwise.
            if not type_ or not stat_module.S_ISREG(stat.mode) or type_ == stat_module.S_IFDIR:
                type_ = stat_module.S_IFMT(stat.mode)
            device = os.makedev(*told.device) if stat_module.S_ISCHR(type_) or stat_module.S_ISBLK(type_) else stat.rdev
            return replace(stat, uid=told.uid, gid=told.gid, mode=type_ | told.mode & 0o7777, rdev=device)
    return stat


def visible(xattrs: Mapping[bytes, bytes], dialect: Dialect) -> Mapping[bytes, bytes]:
    """The attributes that the container sees: without the overlay's own, and those of a nested one with their names.

    `trusted.overlay.overlay.opaque` is the mark of an overlay inside the container, which sees it as
    `trusted.overlay.opaque` (`ovl_is_escaped_xattr`, Linux 6.7).
    """
    if not any(_is_own(name, dialect) for name in xattrs):
        return xattrs
    found = {}
    for name, value in xattrs.items():
        if not _is_own(name, dialect):
            found[name] = value
            continue
        prefix = next((one for one in dialect.prefixes if name.startswith(one + _ESCAPED)), None)
        if prefix is not None and not dialect.fuse:
            found[prefix + name[len(prefix) + len(_ESCAPED) :]] = value
    return found


def _is_own(name: bytes, dialect: Dialect) -> bool:
    return name.startswith(dialect.prefixes) or (dialect.fuse and name in _OVERRIDES)


def bookkeeping(xattrs: Mapping[bytes, bytes], dialect: Dialect) -> dict[bytes, bytes]:
    """The overlay's own attributes: `opaque`, `origin`, `impure`, `uuid`, `nlink`, `upper`, `protattr` and the like."""
    return {
        name: value
        for name, value in xattrs.items()
        if _is_own(name, dialect) and not (name.startswith(tuple(one + _ESCAPED for one in dialect.prefixes)))
    }


def is_component(name: bytes) -> bool:
    """Whether a name can be that of a file."""
    return 0 < len(name) <= _NAME_MAX and name not in {b".", b".."} and b"/" not in name and b"\0" not in name
