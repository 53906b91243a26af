r"""The headers of one archive member: pax extended records and the ustar block that they complete.

Sources: POSIX.1-2017, `pax`, "pax Interchange Format" and "ustar Interchange Format"; the GNU tar 1.34 manual, appendix
"Tar Internals", and its xheader.c; libarchive's tar(5) and archive_read_support_format_tar.c; CPython's tarfile.py.
Blocks and records are made here: `tarfile` keeps a time as a float (which loses nanoseconds) and a value as text, and
takes longer for a block than reading a small file does. A test holds the blocks against those that it makes.

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
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

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
_NO_NAME, _NO_DEVICE = bytes(_FIELD_NAME), bytes(16)

# A ustar block with spaces in place of its checksum: name, mode, uid, gid, size, mtime, typeflag, link name, devices.
_BLANK = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\0" + b"00" + bytes(64) + b"%b" + bytes(167)
_QUESTION_MARKS = bytes(range(128)) + b"?" * 128

_TEN_DIGITS, _MORE = 10**18, 10**19
_USUAL_TIMES = b"30 mtime=%d.%09d\n30 atime=%d.%09d\n30 ctime=%d.%09d\n48 LIBARCHIVE.creationtime=%d.%09d\n"


class Header(msgspec.Struct):
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
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)


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
    records = _usual_records(header) or b"".join(_records(header))
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


def _usual_records(header: Header) -> bytes:
    """What `_records` gives, in less time, of a file or directory that nothing is unusual about: most of a tree.

    Empty where there is more to say.
    """
    stat, name = header.stat, header.name
    if header.link_name or header.real_size is not None or header.size > _FIELD_SIZE or not name.isascii():
        return b""
    if stat.uid > _FIELD_ID or stat.gid > _FIELD_ID:
        return b""
    return record(b"path", name) + _times(stat) if len(name) > _FIELD_NAME else _times(stat)


def _records(header: Header) -> list[bytes]:
    """The records of everything but the extended attributes."""
    stat, name, link_name = header.stat, header.name, header.link_name
    records: list[bytes] = []
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
    records.append(_times(stat))
    return records


def _times(stat: Stat) -> bytes:
    """The records of the times. Those from 2001 to 2286 have ten digits before the point, and records of one length."""
    mtime, atime, ctime, btime = stat.mtime_ns, stat.atime_ns, stat.ctime_ns, stat.btime_ns
    if (
        btime is not None
        and _TEN_DIGITS <= mtime < _MORE
        and _TEN_DIGITS <= atime < _MORE
        and _TEN_DIGITS <= ctime < _MORE
        and _TEN_DIGITS <= btime < _MORE
    ):
        return _USUAL_TIMES % (
            *divmod(mtime, _BILLION), *divmod(atime, _BILLION), *divmod(ctime, _BILLION), *divmod(btime, _BILLION)
        )  # fmt: skip
    records = [
        record(b"mtime", time_text(mtime)),
        record(b"atime", time_text(atime)),
        record(b"ctime", time_text(ctime)),
    ]
    if btime is not None:
        records.append(record(b"LIBARCHIVE.creationtime", time_text(btime)))
    return b"".join(records)


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
    blank = _BLANK % (
        b"././@PaxHeader".ljust(_FIELD_NAME, b"\0"),
        0o644,
        0,
        0,
        size,
        0,
        b"x",
        _NO_NAME,
        _NO_DEVICE,
    )
    return blank[:148] + b"%06o\0 " % _sum(blank) + blank[156:]


def _ustar(header: Header) -> bytes:
    """The member's own block. `tarfile` would take 15 us for it, more than all else that is done for a small file."""
    stat, name = header.stat, header.name
    if header.real_size is not None:
        # GNU tar's convention, so that a tool that cannot expand it does not mistake what it extracts for the file.
        directory, slash, base = name.rpartition(b"/")
        name = directory + slash + b"GNUSparseFile.0/" + base
    blank = _BLANK % (
        _stand_in(name).ljust(_FIELD_NAME, b"\0"),
        stat.mode & 0o7777,
        min(stat.uid, _FIELD_ID),
        min(stat.gid, _FIELD_ID),
        min(header.size, _FIELD_SIZE),
        min(max(stat.mtime_ns // _BILLION, 0), _FIELD_SIZE),
        header.typeflag,
        _stand_in(header.link_name).ljust(_FIELD_NAME, b"\0") if header.link_name else _NO_NAME,
        b"%07o\0%07o\0" % tuple(number & _FIELD_ID for number in header.device) if header.device else _NO_DEVICE,
    )
    if header.real_size is not None and header.size > _FIELD_SIZE:
        return _with_size(blank, header.size)
    return blank[:148] + b"%06o\0 " % _sum(blank) + blank[156:]


def _sum(block: bytes) -> int:
    """The sum of the bytes of a block without its checksum: one part of Adler-32 is that, plus 1, modulo 65521.

    Python's own sum would take 3 us. A block has at most 290 bytes that are not zero, and of these only the twelve of a
    size can be above 127.
    """
    return (zlib.adler32(block) & 0xFFFF) - 1


def _stand_in(name: bytes) -> bytes:
    """ASCII for a field of 100 bytes: the name where it fits, else something that only looks like it."""
    if not name.isascii():
        name = name.translate(_QUESTION_MARKS)
    if len(name) <= _FIELD_NAME:
        return name
    # A slash at the end says "directory" to some readers, whatever the type.
    return name[: _FIELD_NAME - 1].rstrip(b"/") + (b"/" if name.endswith(b"/") else b"")


def _with_size(blank: bytes, size: int) -> bytes:
    """The block with its size in base-256 (GNU tar manual, "Basic Tar Format") and the checksum of that."""
    blank = blank[:124] + b"\x80" + size.to_bytes(11, "big") + blank[136:]
    return blank[:148] + b"%06o\0 " % _sum(blank) + blank[156:]


def device_fits(device: tuple[int, int]) -> bool:
    """Whether the device numbers can stand in the ustar block: 21 bits each. Linux has 12 and 20 of its own."""
    return min(device) >= 0 and max(device) <= _FIELD_ID
