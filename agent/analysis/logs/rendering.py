"""A line of a timeline: JSON that says what it is, and that a terminal only shows."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from agent.analysis.logs.records import format_time

if TYPE_CHECKING:
    from agent.analysis.logs.joining import Entry
    from agent.analysis.logs.records import Damage

# What acts on a terminal, or hides what stands there, and what JSON leaves as it is: C1, bidirectional and invisible
# characters, other separators of lines, tags, what is for private use of a font.
_UNSAFE = re.compile(
    "[\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    "\u205f-\u206f\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U000e0000-\U0010ffff]"
)


class _Line(msgspec.Struct, omit_defaults=True):
    time: str | None
    stream: str
    line: str
    partial_joined: int
    source: str
    offset: int
    container: str
    raw: str | None = None
    unfinished: bool = False
    goes_on: bool = False
    attrs: Mapping[str, str] | None = None


class _Damaged(msgspec.Struct, omit_defaults=True):
    damaged: str
    time: str | None
    """Of the last record before it."""
    source: str
    offset: int
    end: int
    container: str


_encode = msgspec.json.Encoder().encode


def entry_line(entry: Entry, source: str, container: str) -> bytes:
    """One line of a container. `line` is its text; where it is not UTF-8, `raw` has its bytes in base64."""
    raw = None
    try:
        text = entry.line.decode()
    except UnicodeDecodeError:
        text = entry.line.decode("utf-8", "backslashreplace")
        raw = b64encode(entry.line).decode()
    time = None if entry.time_ns is None else format_time(entry.time_ns)
    line = _Line(
        time, entry.stream, text, entry.records, source, entry.offset, container, raw, entry.unfinished,
        entry.goes_on, entry.attrs,
    )  # fmt: skip
    return shown(_encode(line)) + b"\n"


def damage_line(damage: Damage, after_ns: int | None, source: str, container: str) -> bytes:
    """A range of a file that holds no record. The time is that of the record before it."""
    time = None if after_ns is None else format_time(after_ns)
    return shown(_encode(_Damaged(damage.why, time, source, damage.offset, damage.end, container))) + b"\n"


def shown(line: bytes) -> bytes:
    """JSON with everything escaped that is more than shown: the value stays the same."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(_escape, line.decode()).encode()


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
