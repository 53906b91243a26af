r"""The headers of one archive member: pax extended records and the ustar block that they complete.

Sources: POSIX.1-2017, `pax`, "pax Interchange Format" and "ustar Interchange Format"; the GNU tar 1.34 manual, appendix
"Tar Internals", and its xheader.c; libarchive's tar(5) and archive_read_support_format_tar.c; CPython's tarfile.py.
The 512-byte blocks come from `tarfile`; the records are made here, because `tarfile` keeps a time as a float (which
loses nanoseconds) and a value as text.

A member is [x block, records, padding] ustar block [content, padding]. A record is `LENGTH KEYWORD=VALUE\n`, where
LENGTH is decimal and counts itself. What was tried with GNU tar 1.34, bsdtar (libarchive 3.6.2) and CPython 3.11's
tarfile, on which dissect.target stands, and what follows from it:

- **Names that are not UTF-8** stand raw in `path`, `linkpath` and `GNU.sparse.name`, and then `hdrcharset=BINARY` is
  there too: without it bsdtar restores them but warns and exits 1. GNU tar warns that it ignores the keyword, exits 0
  and restores the bytes; tarfile gives surrogate escapes either way. Any other name goes without it.
- **Values of extended attributes** are raw bytes and need no `hdrcharset`; all read them right, also with NUL, newline
  or not UTF-8, also empty (GNU tar and bsdtar restore an empty attribute: `overlay.metacopy` is one). Access lists are
  attributes like any other (`system.posix_acl_access`): GNU tar restores them, bsdtar only their rendering as text.
- **Names of extended attributes** have `%` as `%25` and `=` as `%3D`, as GNU tar writes and reads them; bsdtar and
  tarfile show them as they stand. Nothing else is encoded: GNU tar would not decode it, and raw bytes are read by all.
- **A value or name with `hdrcharset=` in it** can crash older tarfile (before the fix of CVE-2024-6232), which searches
  the whole header for the keyword. The first hit counts, so that a harmless one of our own is put before it.
- **Times** are decimal text of the exact value, negative ones too: `-0.5` is half a second before 1970, as GNU tar and
  tarfile read it. libarchive adds the fraction the wrong way round (-1.25 becomes -0.75) in any notation there is.
- **The stand-in in the ustar block** of a name or link name that has a record is ASCII and never empty: libarchive
  takes an empty link name in the block for the absence of a link and makes an empty file.
- **Records end at 1 MiB**: libarchive gave up the whole archive at a header of more than 1,048,576 bytes and refused a
  record of more than 999,999 (until its pull request 2127, of 2024); Go's archive/tar has the first limit as well. To
  stay below, names are cut and attributes left out, largest first; the manifest has them whole.
- **Size**: from 8 GiB a `size` record. Not for a sparse member: tarfile takes `size` for the expanded length or loses
  the next member, depending on the order of the records. There the ustar field is base-256, which all of them read.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

BLOCK = 512
RECORDS_LIMIT = (1 << 20) - BLOCK
"""Bytes of records before one member."""
NAME_LIMIT = 1 << 18
"""Bytes of a name or link name; two of them leave half of the records to the attributes."""

_RECORD_LIMIT = 999_999
_FIELD_NAME = 100
_FIELD_ID = 8**7 - 1
_FIELD_SIZE = 8**11 - 1
_BILLION = 1_000_000_000
_ZEROS = bytes(BLOCK)


@dataclass(slots=True)
class Header:
    """What is known of a member before its content. Names are those of the archive, not of the machine."""

    name: bytes
    """At most `NAME_LIMIT` bytes; of a directory with a slash at its end."""
    typeflag: bytes
    stat: Stat
    link_name: bytes = b""
    """At most `NAME_LIMIT` bytes."""
    size: int = 0
    """Bytes that follow, without padding: of a sparse member its map and what it stores."""
    real_size: int | None = None
    """Of a sparse member its expanded length."""
    device: tuple[int, int] | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def padding(size: int) -> bytes:
    """The zeros that fill `size` bytes up to a whole block."""
    return _ZEROS[: -size % BLOCK]


def end_of_archive() -> bytes:
    """The two zero blocks that end an archive."""
    return bytes(2 * BLOCK)


def record(keyword: bytes, value: bytes) -> bytes:
    """One extended header record, whose decimal length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    digits = len(str(rest))
    length = rest + digits
    if length >= 10**digits:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def time_text(ns: int) -> bytes:
    """Nanoseconds since the epoch as decimal seconds with nine digits: -500000000 is `-0.500000000`."""
    if ns < 0:
        return b"-%d.%09d" % divmod(-ns, _BILLION)
    return b"%d.%09d" % divmod(ns, _BILLION)


def xattr_keyword(name: bytes) -> bytes:
    """`SCHILY.xattr.` and the name, encoded as by GNU tar's `xattr_encode_keyword`."""
    return b"SCHILY.xattr." + name.replace(b"%", b"%25").replace(b"=", b"%3D")


def cut_name(name: bytes) -> bytes:
    """A name that was too long: the directories that fit, and the SHA-256 of the whole name in place of the rest."""
    directory = name[: NAME_LIMIT - 66].rpartition(b"/")[0]
    slash = b"/" if name.endswith(b"/") else b""
    return directory + b"/" + hashlib.sha256(name).hexdigest().encode() + slash


def encode(header: Header) -> tuple[bytes, list[bytes]]:
    """Everything that stands before a member's content, and the attributes that did not fit into it.

    Never raises for what a machine may say of a file.
    """
    records = b"".join(_records(header))
    left_out: list[bytes] = []
    if header.xattrs:
        attributes, left_out = _attributes(header.xattrs, RECORDS_LIMIT - len(_UTF8) - len(records))
        records += attributes
    if b"hdrcharset=" in records and not records.startswith(_BINARY):
        records = _UTF8 + records
    return b"".join((_extended(len(records)), records, padding(len(records)), _ustar(header))), left_out


_BINARY = record(b"hdrcharset", b"BINARY")
_UTF8 = record(b"hdrcharset", b"ISO-IR 10646 2000 UTF-8")  # what pax assumes anyway
_SPARSE_1_0 = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")


def _records(header: Header) -> list[bytes]:
    """The records of everything but the extended attributes."""
    stat, name, link_name = header.stat, header.name, header.link_name
    records = []
    if not (_is_utf8(name) and _is_utf8(link_name)):
        records.append(_BINARY)
    if header.real_size is not None:
        records.append(_SPARSE_1_0)
        # No `path` beside it: tarfile would take whichever comes last.
        records.append(record(b"GNU.sparse.name", name))
        records.append(record(b"GNU.sparse.realsize", b"%d" % header.real_size))
    else:
        if not _fits(name):
            records.append(record(b"path", name))
        if header.size > _FIELD_SIZE:
            records.append(record(b"size", b"%d" % header.size))
    if not _fits(link_name):
        records.append(record(b"linkpath", link_name))
    if stat.uid > _FIELD_ID:
        records.append(record(b"uid", b"%d" % stat.uid))
    if stat.gid > _FIELD_ID:
        records.append(record(b"gid", b"%d" % stat.gid))
    records.append(record(b"mtime", time_text(stat.mtime_ns)))
    records.append(record(b"atime", time_text(stat.atime_ns)))
    records.append(record(b"ctime", time_text(stat.ctime_ns)))
    if stat.btime_ns is not None:
        records.append(record(b"LIBARCHIVE.creationtime", time_text(stat.btime_ns)))
    return records


def _attributes(xattrs: Mapping[bytes, bytes], room: int) -> tuple[bytes, list[bytes]]:
    """The records of the extended attributes that fit into `room`, and the names of those that do not."""
    encoded = {name: record(xattr_keyword(name), value) for name, value in xattrs.items()}
    left_out: list[bytes] = []
    total = sum(map(len, encoded.values()))
    for name in sorted(encoded, key=lambda name: len(encoded[name]), reverse=True):
        if total <= room and len(encoded[name]) <= _RECORD_LIMIT:
            break
        total -= len(encoded.pop(name))
        left_out.append(name)
    return b"".join(encoded.values()), left_out


def _is_utf8(name: bytes) -> bool:
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fits(name: bytes) -> bool:
    """Whether a name can stand in the ustar block as it is."""
    return len(name) <= _FIELD_NAME and name.isascii()


@lru_cache(maxsize=1024)  # most members of a tree have records of the same few lengths
def _extended(size: int) -> bytes:
    """The block before the records."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")


def _ustar(header: Header) -> bytes:
    """The member's own block. `tarfile` makes it in 20 µs; with `struct` it would be 5."""
    stat, name = header.stat, header.name
    if header.real_size is not None:
        # GNU tar's convention, so that a tool that cannot expand it does not mistake what it extracts for the file.
        directory, slash, base = name.rpartition(b"/")
        name = directory + slash + b"GNUSparseFile.0/" + base
    info = tarfile.TarInfo(_stand_in(name))
    info.type = header.typeflag
    info.mode = stat.mode & 0o7777
    info.uid = min(stat.uid, _FIELD_ID)
    info.gid = min(stat.gid, _FIELD_ID)
    info.mtime = min(max(stat.mtime_ns // _BILLION, 0), _FIELD_SIZE)
    info.size = min(header.size, _FIELD_SIZE)
    if header.link_name:
        info.linkname = _stand_in(header.link_name)
    if header.device is not None:
        info.devmajor, info.devminor = (number & _FIELD_ID for number in header.device)
    block = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")
    if header.real_size is not None and header.size > _FIELD_SIZE:
        return _with_size(block, header.size)
    return block


def _stand_in(name: bytes) -> str:
    """ASCII text for a field of 100 bytes: the name where it fits, else something that only looks like it."""
    text = name.decode("ascii", "replace")  # U+FFFD becomes a question mark in `tobuf`
    if len(text) <= _FIELD_NAME:
        return text
    # A slash at the end says "directory" to some readers, whatever the type.
    return text[: _FIELD_NAME - 1].rstrip("/") + ("/" if name.endswith(b"/") else "")


def _with_size(block: bytes, size: int) -> bytes:
    """The block with its size in base-256 (GNU tar manual, "Basic Tar Format") and the checksum made anew."""
    blank = block[:124] + b"\x80" + size.to_bytes(11, "big") + block[136:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def device_fits(device: tuple[int, int]) -> bool:
    """Whether the device numbers can stand in the ustar block: 21 bits each. Linux has 12 and 20 of its own."""
    return min(device) >= 0 and max(device) <= _FIELD_ID
