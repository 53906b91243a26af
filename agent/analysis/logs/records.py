"""What a decoder gives: records as they stand in the file, and ranges of it that are no records."""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

import msgspec

MAX_RECORD = 4 << 20
"""Bytes of one record beyond which it is none: Docker's have 1 MB at the most, CRI's 16 KiB and a head."""

Pieces = Iterable[tuple[int, "memoryview | bytes"]]
"""(offset in the file, bytes there), ascending; what is left out between them is a hole."""


class Record(msgspec.Struct):
    """One record of a log file."""

    offset: int
    end: int
    time_ns: int | None
    """Nanoseconds since the epoch; None where it has none that can be read."""
    stream: str
    line: bytes
    """Without the newline that ends a line."""
    more: bool = False
    """The line goes on in a further record of the stream."""
    group: str = ""
    """The same for all records of one line, where the format has it."""
    begins: bool | None = None
    """Whether a line begins with it; None where the format does not tell."""
    attrs: Mapping[str, str] | None = None


class Damage(msgspec.Struct):
    """Bytes `offset` to `end` (not included) of a file, which no record was made of."""

    offset: int
    end: int
    why: str


Decoder = Callable[[Pieces], Iterator[Record | Damage]]

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d{0,9})?(?:Z|z|([+-])(\d\d):(\d\d))", re.ASCII
)
_FIRST, _LAST = -62135596800, 253402300799
"""Seconds of the years 1 to 9999."""


def parse_time(text: str) -> int | None:
    """RFC 3339 with up to nanoseconds, as nanoseconds since the epoch; None for what is no such time."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    seconds = _seconds(text[:16])
    second = int(match[6])
    if seconds is None or second > 60:
        return None
    if match[8]:
        shift = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += -shift if match[8] == "+" else shift
    return (seconds + second) * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))


@lru_cache(maxsize=4096)
def _seconds(minute: str) -> int | None:
    """Of `2026-01-02T03:04`: records of one minute are many."""
    year, month, day = int(minute[:4]), int(minute[5:7]), int(minute[8:10])
    hour, minutes = int(minute[11:13]), int(minute[14:16])
    if not (year and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minutes < 60):
        return None
    return timegm((year, month, day, hour, minutes, 0))


def format_time(time_ns: int) -> str | None:
    """RFC 3339 in UTC with nine digits; None beyond the years that it can write."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    if not _FIRST <= seconds <= _LAST:
        return None
    minute, second = divmod(seconds, 60)
    return f"{_minute(minute)}:{second:02d}.{nanoseconds:09d}Z"


@lru_cache(maxsize=4096)
def _minute(minutes: int) -> str:
    days, rest = divmod(minutes, 1440)
    year, month, day = _civil(days)
    return f"{year:04d}-{month:02d}-{day:02d}T{rest // 60:02d}:{rest % 60:02d}"


def _civil(days: int) -> tuple[int, int, int]:
    """Days since the epoch as a date of the Gregorian calendar (`gmtime` has not all years everywhere)."""
    from datetime import date

    found = date.fromordinal(days + 719163)
    return found.year, found.month, found.day
