"""Docker's `json-file`: one JSON object to a line, {"log", "stream", "time", "attrs"}.

moby `daemon/logger/jsonfilelog`. A line of the container longer than 16 KiB is several records, of which only the last
one's `log` ends with a newline. Bytes that were not UTF-8 are U+FFFD in it already: Docker does not keep them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from agent.analysis.logs.lines import Line, lines
from agent.analysis.logs.records import Damage, Pieces, Record, parse_time

_MARK = b'{"log":'
_END = re.compile(rb'"\}')
_TRIES = 16
"""Places at which a record that something is glued to is looked for the end of."""
_MALFORMED = "not a record of json-file"
_CUT = "the file ends inside of a record"


class _Log(msgspec.Struct):
    log: str
    stream: str = ""
    time: str = ""
    attrs: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Log).decode


def decode(pieces: Pieces) -> Iterator[Record | Damage]:
    """Every record, and what is none. A record is lost only with its own line, or where its own bytes are damaged."""
    for line in lines(pieces):
        if isinstance(line, Damage):
            yield line
            continue
        if not line.data.strip():
            if line.data.strip(b" \t\r"):
                yield Damage(line.offset, _end(line), _MALFORMED)
            continue
        record = _record(line.data, line.offset, _end(line))
        if record is not None:
            yield record
        else:
            yield from _salvage(line)


def _end(line: Line) -> int:
    return line.offset + len(line.data) + line.ended


def _record(data: bytes, offset: int, end: int) -> Record | None:
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    text = found.log.encode("utf-8", "surrogatepass")
    more = not text.endswith(b"\n")
    return Record(
        offset, end, parse_time(found.time), found.stream[:64], text if more else text[:-1], more, attrs=found.attrs
    )


def _salvage(line: Line) -> Iterator[Record | Damage]:
    """A line that is no record may hold some: what stood between them was damaged, or zeros of a crash stand before."""
    data, position = line.data, 0
    starts = [match.start() for match in re.finditer(re.escape(_MARK), data)]
    for start, stop in pairwise([*starts, len(data)]):
        found = _glued(data[start:stop], line.offset + start)
        if found is None:
            continue
        if start > position:
            yield Damage(line.offset + position, line.offset + start, _MALFORMED)
        yield found
        position = found.end - line.offset
    if position < len(data):
        yield Damage(line.offset + position, _end(line), _MALFORMED if line.ended else _CUT)


def _glued(data: bytes, offset: int) -> Record | None:
    """The record that the bytes begin with, whatever follows it."""
    for tries, match in enumerate(_END.finditer(data)):
        if tries >= _TRIES:
            break
        if (found := _record(data[: match.end()], offset, offset + match.end())) is not None:
            return found
    last = data.rfind(b"}") + 1
    return _record(data[:last], offset, offset + last) if last else None
