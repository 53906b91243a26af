"""The headers of a pax archive, read strictly: what `acquirers.files.pax` writes, and what GNU tar writes with
`--format=posix --sparse --xattrs`.

An archive comes from a machine that may be hostile, and it is read again by other tools. So nothing is guessed: what
these two do not write, and what readers are known to understand differently, is refused. Everything here takes bytes
and returns records; `tarstream` does the reading. All functions raise `DamagedError` and nothing else.

Sources: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Extended Header"; the GNU tar 1.34 manual, "Basic Tar
Format", "Storing Sparse Files" (PAX format 1.0), and its xheader.c (`xattr_decode_keyword`) and list.c.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping

import msgspec

from acquirers.base import Kind
from agent.errors import DamagedError

BLOCK = 512
END = bytes(BLOCK)
"""Two of these end an archive."""
EXTENDED = b"x"
"""The type of a block that is followed by the records of the next member."""

MAX_RECORDS = 8 << 20
"""Bytes of records before one member. impound writes less than 1 MiB; GNU tar has no limit."""
MAX_RECORD_COUNT = 1 << 14
"""Records before one member: a kernel lists at most 64 KiB of attribute names, which is fewer than 10,000 of them."""
MAX_EXTENTS = 1 << 20
"""Extents of one sparse member: 16 MiB of memory."""
MAX_SIZE = (1 << 63) - 1

_KINDS = {
    b"0": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR_DEVICE,
    b"4": Kind.BLOCK_DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_XATTR = b"SCHILY.xattr."
_ESCAPED = re.compile(rb"%(25|3D)")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_BILLION = 1_000_000_000


class Header(msgspec.Struct, frozen=True):
    """One member, before its content. Names are as they stand in the archive; times are nanoseconds since the epoch."""

    kind: Kind
    name: bytes
    link_name: bytes = b""
    mode: int = 0
    """Permission, set-ID and sticky bits, without the type."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int | None = None
    size: int = 0
    """Bytes that follow in the archive, without padding. Zero of all but regular files."""
    real_size: int | None = None
    """Of a sparse member its expanded length: what follows begins with a map."""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)


class SparseMap(msgspec.Struct, frozen=True):
    """What is stored of a file with holes, in ascending order."""

    extents: array[int]
    """Offset and length by turns."""
    length: int
    """Bytes that the map itself takes, with its padding."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.extents[::2], self.extents[1::2], strict=True)

    @property
    def aligned(self) -> bool:
        """Whether every extent but the last is whole blocks.

        If not, GNU tar 1.34 reads other content than bsdtar and tarfile, and says nothing: it writes and expects
        each extent padded to a block (sparse.c), where the others take them one directly after the other.
        """
        lengths = [length for length in self.extents[1::2] if length]
        return all(length % BLOCK == 0 for length in lengths[:-1])


def type_of(block: bytes) -> bytes:
    """The type of a header block whose magic and checksum are right."""
    if block[257:265] != b"ustar\x0000":
        raise DamagedError("not a header of a pax archive")
    if _number(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise DamagedError("a header with a wrong checksum")
    return block[156:157]


def records_size(block: bytes) -> int:
    """Bytes of records that follow a block of the type `EXTENDED`, without padding."""
    size = _number(block[124:136], "size")
    if size > MAX_RECORDS:
        raise DamagedError(f"{size} bytes of extended header records before one member, of at most {MAX_RECORDS}")
    return size


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Extended header records, `LENGTH KEYWORD=VALUE` and a newline each. The last one of a keyword counts (POSIX)."""
    records: dict[bytes, bytes] = {}
    position = count = 0
    while position < len(data):
        space = data.find(b" ", position, position + 9)
        digits = data[position : max(space, position)]
        end = position + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space + 1, end)
        if end > len(data) or equals <= space + 1 or data[end - 1 : end] != b"\n":
            raise DamagedError("a damaged extended header record")
        records[data[space + 1 : equals]] = data[equals + 1 : end - 1]
        position = end
        count += 1
        if count > MAX_RECORD_COUNT:
            raise DamagedError(f"more than {MAX_RECORD_COUNT} extended header records before one member")
    return records


def parse_member(block: bytes, records: Mapping[bytes, bytes]) -> Header:
    """A member from its own block and the records before it, which take precedence. `type_of` was asked already."""
    kind = _KINDS.get(block[156:157])
    if kind is None:
        raise DamagedError(f"a member of the type {block[156:157]!r}, which impound does not write")
    prefix, name = _text(block[345:500]), _text(block[:100])
    size = _decimal(records, b"size", _number(block[124:136], "size"))
    if size and kind is not Kind.FILE:
        raise DamagedError(f"a {kind} with {size} bytes of content")
    real_size = _real_size(kind, records)
    path = records.get(b"path") or (prefix + b"/" + name if prefix else name)
    atime = records.get(b"atime")
    return Header(
        kind=kind,
        name=records[b"GNU.sparse.name"] if real_size is not None else path,
        link_name=records.get(b"linkpath") or _text(block[157:257]),
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_decimal(records, b"uid", _number(block[108:116], "user")),
        gid=_decimal(records, b"gid", _number(block[116:124], "group")),
        mtime_ns=parse_time(records.get(b"mtime") or b"%d" % _number(block[136:148], "time")),
        atime_ns=parse_time(atime) if atime else None,
        size=size,
        real_size=real_size,
        device=(_number(block[329:337], "device"), _number(block[337:345], "device")),
        xattrs={
            _ESCAPED.sub(_unescape, keyword[len(_XATTR) :]): value
            for keyword, value in records.items()
            if keyword.startswith(_XATTR)
        },
    )


def parse_time(text: bytes) -> int:
    """Decimal seconds as nanoseconds; what is finer is cut off. `-0.5` is half a second before 1970."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise DamagedError("a time that is not a decimal number")
    sign, seconds, fraction = match.groups(default=b"")
    ns = int(seconds) * _BILLION + int(fraction[:9].ljust(9, b"0"))
    return -ns if sign else ns


def parse_sparse_map(blocks: Iterator[bytes], header: Header) -> SparseMap:
    """The map before the content of a sparse member; takes as many blocks as it needs.

    Decimal numbers, one to a line: how many extents, then offset and length of each; zeros up to a whole block.
    """
    numbers: array[int] = array("q")
    text = b""
    length, wanted = 0, 1
    while len(numbers) < wanted:
        length += BLOCK
        if length > header.size:
            raise DamagedError("the map of a sparse member is longer than the member")
        *lines, text = (text + next(blocks)).split(b"\n")
        for line in lines:
            if not line.isdigit() or len(line) > 19 or (number := int(line)) > MAX_SIZE:
                raise DamagedError("the map of a sparse member has a line that is no number")
            if not numbers:
                if number > MAX_EXTENTS:
                    raise DamagedError(f"a sparse member of {number} extents, of at most {MAX_EXTENTS}")
                wanted += 2 * number
            numbers.append(number)
        if len(text) > BLOCK:
            raise DamagedError("the map of a sparse member has a line that is no number")
    if len(numbers) > wanted or text.strip(b"\0"):
        raise DamagedError("the map of a sparse member goes on after its end")
    found = SparseMap(numbers[1:], length)
    _check_extents(found, header)
    return found


def _check_extents(found: SparseMap, header: Header) -> None:
    end = stored = 0
    for offset, length in found:
        if offset < end:
            raise DamagedError("the extents of a sparse member overlap")
        end = offset + length
        stored += length
    if end > (header.real_size or 0):
        raise DamagedError(f"the extents of a sparse member end at {end}, the file at {header.real_size}")
    if found.length + stored != header.size:
        raise DamagedError(f"a sparse member of {header.size} bytes, whose map says {found.length + stored}")


def _real_size(kind: Kind, records: Mapping[bytes, bytes]) -> int | None:
    """The expanded length of a member in the sparse format 1.0; None for one that is not sparse."""
    if not any(keyword.startswith(b"GNU.sparse.") for keyword in records):
        return None
    major_minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if major_minor != (b"1", b"0") or kind is not Kind.FILE or not records.get(b"GNU.sparse.name"):
        raise DamagedError("a sparse member that is not in the format 1.0")
    size = _decimal(records, b"GNU.sparse.realsize", -1)
    if size < 0:
        raise DamagedError("a sparse member without its size")
    return size


def _decimal(records: Mapping[bytes, bytes], keyword: bytes, otherwise: int) -> int:
    text = records.get(keyword)
    if not text:
        return otherwise
    if not text.isdigit() or len(text) > 19 or (number := int(text)) > MAX_SIZE:
        raise DamagedError(f"an extended header record '{keyword.decode()}' that is no number")
    return number


def _number(field_: bytes, what: str) -> int:
    """A numeric field: octal digits, or base-256 with the top bit set, as GNU tar has it."""
    if field_[0] == 0x80:
        number = int.from_bytes(field_[1:], "big")
    else:
        digits = field_.rstrip(b"\0 ").lstrip(b" ")
        if digits.strip(b"01234567"):
            raise DamagedError(f"a header whose {what} is no number")
        number = int(digits, 8) if digits else 0
    if number > MAX_SIZE:
        raise DamagedError(f"a header whose {what} is too large")
    return number


def _text(field_: bytes) -> bytes:
    return field_.partition(b"\0")[0]


def _unescape(match: re.Match[bytes]) -> bytes:
    return b"%" if match[1] == b"25" else b"="
