"""The small encodings inside containerd's databases: varints, Go's binary times, protobuf's `Any`.

Sources: Go `encoding/binary` (Uvarint, Varint), `time.Time.MarshalBinary`; protobuf `google/protobuf/any.proto`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

_TO_UNIX = 62135596800
"""Seconds from 0001-01-01, where Go begins to count, to 1970-01-01."""
_UTC = -1
_MAX_VARINT = 10


def uvarint(data: bytes | None) -> int | None:
    """An unsigned varint, little-endian in groups of 7 bits; None when it is none."""
    if data is None:
        return None
    value = 0
    for position, byte in enumerate(data[:_MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value if value < 1 << 64 else None
    return None


def varint(data: bytes | None) -> int | None:
    """A signed varint, in zigzag; None when it is none."""
    value = uvarint(data)
    return None if value is None else (value >> 1) ^ -(value & 1)


def go_time(data: bytes | None) -> str:
    """A time as RFC 3339 with nanoseconds; "" when there is none or it is malformed.

    Version u8 (1 or 2), seconds since year 1 i64, nanoseconds i32, offset in minutes i16 (-1: UTC), in version 2 and
    seconds of the offset i8; big-endian.
    """
    if not data or len(data) != {1: 15, 2: 16}.get(data[0]):
        return ""
    seconds = int.from_bytes(data[1:9], "big", signed=True) - _TO_UNIX
    nanoseconds = int.from_bytes(data[9:13], "big", signed=True)
    minutes = int.from_bytes(data[13:15], "big", signed=True)
    if not 0 <= nanoseconds < 1_000_000_000:
        return ""
    try:
        zone = UTC if minutes == _UTC else timezone(timedelta(minutes=minutes))
        moment = (datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)).astimezone(zone)
    except (ValueError, OverflowError):
        return ""
    text = moment.replace(tzinfo=None).isoformat(timespec="seconds")
    offset = "Z" if zone is UTC else moment.isoformat(timespec="seconds")[len(text) :]
    return f"{text}.{nanoseconds:09d}{offset}"


def any_of(data: bytes | None) -> tuple[str, bytes]:
    """(type URL, value) of a protobuf `Any`: field 1 and field 2, both of lengths. Empty where it is malformed."""
    kind, value = b"", b""
    at = 0
    while data and at < len(data):
        tag = data[at]
        at += 1
        length, at = _length(data, at)
        if tag & 7 != 2 or length < 0 or at + length > len(data):
            break
        if tag >> 3 == 1:
            kind = data[at : at + length]
        elif tag >> 3 == 2:
            value = data[at : at + length]
        at += length
    return kind[:512].decode("utf-8", "replace"), value


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends; -1 when it is none."""
    value = uvarint(data[at : at + _MAX_VARINT])
    if value is None:
        return -1, at
    end = at
    while data[end] >= 0x80:
        end += 1
    return value, end + 1
