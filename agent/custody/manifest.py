"""The manifest: every item and member with digests, metadata, gaps and flags, as JSON Lines.

It is a stream that stays open during the run; nothing is kept per member. Lines by `type`:

- `run`       once, first: job, machine, tool
- `acquirer`  what each acquirer said of itself before anything was read
- `item`      an item begins; `member`, `gap` and `flag` lines that name it follow
- `stored`    the item is an object: digests and sizes of plaintext and ciphertext, counts
- `earlier`   an object that an attempt before left whole, with that attempt's sealed record of it
- `listed`    what else earlier attempts left and signed; `stray` what lay there and nobody signed
- `end`       once, last: totals. A manifest without it was cut

Bytes from the machine stand as text where they are UTF-8; where they are not, `X` is a readable form and `X_b64` holds
the true bytes. Times are nanoseconds since the epoch, modes octal text, digests hex.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from acquirers.base import Flag, Gap, Member

MAX_LINE = 16 << 20
MAX_DEPTH = 12


def put_bytes(record: dict[str, object], key: str, value: bytes) -> None:
    """Sets `key`, and `key_b64` when the bytes are not UTF-8."""
    try:
        record[key] = value.decode("utf-8")
    except UnicodeDecodeError:
        record[key] = value.decode("utf-8", "backslashreplace")
        record[key + "_b64"] = base64.b64encode(value).decode("ascii")


def plain(value: object, depth: int = MAX_DEPTH) -> object:
    """A value of an item's `about`, with every `bytes` inside made JSON. What lies deeper than `depth` is left out."""
    if isinstance(value, bytes):
        return plain({"bytes": value}, depth)
    if isinstance(value, (dict, list, tuple, set, frozenset)) and not depth:
        return "left out: nested too deeply"
    if isinstance(value, dict):
        record: dict[str, object] = {}
        for key, inner in value.items():
            name = key if isinstance(key, str) else str(key)
            if isinstance(inner, bytes):
                put_bytes(record, name, inner)
            else:
                record[name] = plain(inner, depth - 1)
        return record
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner, depth - 1) for inner in value]
    return value


def member_record(item: str, member: Member) -> dict[str, object]:
    stat = member.stat
    record: dict[str, object] = {"type": "member", "item": item}
    put_bytes(record, "path", member.path)
    record |= {
        "kind": member.kind,
        "mode": f"{stat.mode & 0o7777:04o}",
        "uid": stat.uid,
        "gid": stat.gid,
        "size": stat.size,
        "mtime_ns": stat.mtime_ns,
        "atime_ns": stat.atime_ns,
        "ctime_ns": stat.ctime_ns,
        "dev": stat.dev,
        "ino": stat.ino,
        "nlink": stat.nlink,
    }
    if stat.btime_ns is not None:
        record["btime_ns"] = stat.btime_ns
    if stat.rdev:
        record["rdev"] = stat.rdev
    if stat.attributes:
        record["attributes"] = stat.attributes
    if member.sha256 is not None:
        record["sha256"] = member.sha256.hex()
    if member.size is not None:
        record["read"] = member.size
    if member.stored is not None and member.stored != member.size:
        record["stored"] = member.stored
    if member.offset is not None:
        record["offset"] = member.offset
    if member.target is not None:
        put_bytes(record, "target", member.target)
    if member.xattrs:
        record["xattrs"] = [_xattr(name, value) for name, value in member.xattrs.items()]
    return record


def _xattr(name: bytes, value: bytes) -> dict[str, object]:
    record: dict[str, object] = {}
    put_bytes(record, "name", name)
    record["value_b64"] = base64.b64encode(value).decode("ascii")
    return record


def gap_record(item: str, gap: Gap) -> dict[str, object]:
    record: dict[str, object] = {"type": "gap", "item": item, "reason": gap.reason, "detail": gap.detail}
    if gap.where:
        put_bytes(record, "where", gap.where)
    if gap.missing is not None:
        record["missing"] = gap.missing
    return record


def flag_record(item: str, flag: Flag) -> dict[str, object]:
    record: dict[str, object] = {"type": "flag", "item": item, "kind": flag.kind, "detail": flag.detail}
    if flag.where:
        put_bytes(record, "where", flag.where)
    return record


class ManifestWriter:
    """Writes records to `sink`, one line each."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._encode = msgspec.json.Encoder(decimal_format="string").encode
        self.lines = 0

    def add(self, record: Mapping[str, object]) -> None:
        self._sink(self._encode(record) + b"\n")
        self.lines += 1


def lines_of(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The lines of a JSON Lines stream, without their newlines. Raises `DamagedError` for a line without an end."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE:
            raise DamagedError(f"{what}: a line is longer than {MAX_LINE} bytes")
    if rest:
        raise DamagedError(f"{what}: the last line has no end")


def records(chunks: Iterable[bytes], what: str) -> Iterator[dict[str, object]]:
    """The records of a manifest. Raises `DamagedError`."""
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for line in lines_of(chunks, what):
        try:
            yield decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedError(f"{what}: a line is not one that impound wrote") from error
