"""What one member of a layer's tar says of its file: GNU, ustar or pax headers, from whatever made the image.

`tarfile` reads them. It is given the headers of a single member, bounded, and whatever it makes of hostile ones is one
error.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Mapping

import msgspec

from acquirers.base import Kind

MAX_HEADERS = 1 << 20
"""Bytes of the headers of one member: `tarfile` makes thirty times as much of them. Real ones have some KiB, and the
attributes of a file at most 64 KiB of values."""
BLOCK = 512

_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHAR_DEVICE,
    tarfile.BLKTYPE: Kind.BLOCK_DEVICE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}
_XATTR = "SCHILY.xattr."
_SPARSE = "GNU.sparse."
_TIME = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_END = bytes(2 * BLOCK)


class HeaderError(ValueError):
    """Not the headers of a member."""


class Header(msgspec.Struct, frozen=True):
    """One member. Times in nanoseconds since the epoch."""

    name: bytes
    kind: Kind
    target: bytes = b""
    mode: int = 0
    """Without the type."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    whole_seconds: bool = True
    """The header has no finer time."""
    size: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    length: int = 0
    """Bytes of its headers: its content stands behind them."""


def parse(data: bytes) -> Header:
    """The headers of one member: everything between the content of the last one and its own. Raises `HeaderError`."""
    if len(data) > MAX_HEADERS:
        raise HeaderError(f"headers of {len(data)} bytes")
    try:
        with tarfile.open(fileobj=io.BytesIO(data + _END), mode="r:", errors="surrogateescape") as archive:
            found = archive.next()
    except Exception as error:
        # Whatever a hostile header makes tarfile do, it is no header.
        raise HeaderError(f"{type(error).__name__}: {str(error)[:200]}") from error
    if found is None:
        raise HeaderError("no header")
    if found.sparse is not None or any(key.startswith(_SPARSE) for key in found.pax_headers):
        raise HeaderError("a sparse member, which no layer of an image has")
    return _header(found)


def _header(found: tarfile.TarInfo) -> Header:
    kind = _KINDS.get(found.type)
    if kind is None:
        raise HeaderError(f"a member of the type {found.type!r}")
    mtime = found.pax_headers.get("mtime", "")
    mtime_ns, whole = _time(mtime) if mtime else (int(found.mtime) * 1_000_000_000, True)
    return Header(
        name=os.fsencode(found.name),
        kind=kind,
        target=os.fsencode(found.linkname) if kind in {Kind.SYMLINK, Kind.HARDLINK} else b"",
        mode=found.mode & 0o7777,
        uid=found.uid,
        gid=found.gid,
        mtime_ns=mtime_ns,
        whole_seconds=whole,
        size=found.size if kind is Kind.FILE else 0,
        device=(found.devmajor, found.devminor),
        xattrs={
            os.fsencode(key[len(_XATTR) :]): os.fsencode(value)
            for key, value in found.pax_headers.items()
            if key.startswith(_XATTR)
        },
        length=found.offset_data,
    )


def _time(text: str) -> tuple[int, bool]:
    match = _TIME.fullmatch(text)
    if match is None:
        raise HeaderError("a time that is no number")
    sign, seconds, fraction = match.groups(default="")
    whole = not fraction.strip("0")
    nanoseconds = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    return (-nanoseconds if sign else nanoseconds), whole
