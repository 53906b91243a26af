"""Docker's `local` driver and the cache of dual logging: length, protobuf, length.

moby `daemon/logger/local`: both lengths are u32, big-endian, the same, and without the eight bytes that they take. The
message is `LogEntry` of `api/types/plugins/logdriver/entry.proto`: 1 source, 2 time_nano, 3 line, 4 partial, 5 partial
metadata {1 last, 2 id, 3 ordinal}, 6 attributes {1 key, 2 value}.

After damage the next record is looked for byte by byte. The length at its end makes up for a damaged one at the
beginning. A container can print what looks like a record: inside of a damaged one, and nowhere else, it may be taken
for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.analysis.logs.lines import HOLE
from agent.analysis.logs.records import Damage, Pieces, Record

MAX_MESSAGE = 1 << 20
"""Bytes of a message: dockerd itself reads none beyond 1 MB."""

_MAX_ATTRS = 256
_MAX_UNKNOWN = 16
_MAX_LOOKS = 2000
"""Damaged records of one file that are looked for by the length at their end: each may cost a look at 1 MiB."""
_MALFORMED = "not a record of the local driver"
_CUT = "the file ends inside of a record"
# A length that may be one, and the tag of one of the fields that a message can begin with.
_CANDIDATE = re.compile(rb"(?=\x00[\x00-\x10][\x00-\xff]{2}[\x0a\x10\x1a])")
_STREAMS = frozenset({"stdout", "stderr"})


class _BadMessageError(ValueError):
    pass


def decode(pieces: Pieces) -> Iterator[Record | Damage]:
    """Every record, and what is none."""
    frames, position = _Frames(), 0
    for offset, piece in pieces:
        if offset != position:
            yield from frames.end()
            yield Damage(position, offset, HOLE)
            frames.begin(offset)
        position = offset + len(piece)
        yield from frames.feed(piece)
    yield from frames.end()


class _Frames:
    """The stretches of a file that have no holes, one after the other."""

    def __init__(self) -> None:
        self._base = 0
        """Offset of the first byte of the buffer."""
        self._buffer = bytearray()
        self._at = 0
        """What lies before was decoded, or looked at."""
        self._lost: int | None = None
        """Offset in the file at which the damage begins."""
        self._look = False
        """The length at the end of the damaged record was not looked for yet."""
        self._looks = _MAX_LOOKS
        self._cut = False
        """What is lost may be a record that the file ends inside of."""

    def begin(self, offset: int) -> None:
        self._base, self._at = offset, 0
        self._buffer.clear()

    def feed(self, piece: memoryview | bytes) -> Iterator[Record | Damage]:
        self._buffer += piece
        yield from self._go(final=False)

    def end(self) -> Iterator[Record | Damage]:
        yield from self._go(final=True)
        if self._lost is not None:
            yield Damage(self._lost, self._base + len(self._buffer), _CUT if self._cut else _MALFORMED)
            self._lost = None

    def _go(self, *, final: bool) -> Iterator[Record | Damage]:
        while self._at < len(self._buffer) or self._lost is not None:
            if self._lost is not None:
                found = self._resync(self._lost, final=final)
                if found is None:
                    break
                yield from found
                continue
            size = self._size_at(self._at)
            if size is None:
                if not final:
                    break
                self._lose(cut=True)
            elif size < 0:
                self._lose(cut=False)
            else:
                offset, start = self._base + self._at, self._at + 4
                try:
                    yield _message(self._buffer, start, start + size, offset)
                except _BadMessageError:
                    yield Damage(offset, offset + size + 8, _MALFORMED)
                self._at += size + 8
        self._trim()

    def _lose(self, *, cut: bool) -> None:
        self._lost = self._base + self._at
        self._cut = cut
        self._look = self._looks > 0
        self._looks -= 1

    def _size_at(self, at: int) -> int | None:
        """Bytes of the message of the record at `at`; -1 when there is none, None when more must be read to tell."""
        head = self._buffer[at : at + 4]
        if len(head) < 4:
            return None
        size = int.from_bytes(head, "big")
        if not 0 < size <= MAX_MESSAGE:
            return -1
        foot = self._buffer[at + 4 + size : at + 8 + size]
        if len(foot) < 4:
            return None
        return size if foot == head else -1

    def _resync(self, lost: int, *, final: bool) -> list[Record | Damage] | None:
        """Goes on behind the damage, and tells of it. None when more must be read, or nothing is left."""
        if self._look:
            begin = lost - self._base
            if not final and len(self._buffer) - begin < MAX_MESSAGE + 16:
                return None
            self._look = False
            self._at = begin + 1
            whole = self._by_its_end(begin, final=final)
            if whole is not None:
                return whole
        while (match := _CANDIDATE.search(self._buffer, self._at)) is not None:
            at = match.start()
            size = self._size_at(at)
            if size is None and not final:
                self._at = at
                return None
            if size is not None and size >= 0 and self._is_record(at, size):
                self._at = at
                self._lost = None
                return [Damage(lost, self._base + at, _MALFORMED)]
            self._at = at + 1
        self._at = max(self._at, len(self._buffer) - 4 if not final else len(self._buffer))
        return None

    def _by_its_end(self, begin: int, *, final: bool) -> list[Record | Damage] | None:
        """The record at `begin` if only the length at its beginning is damaged."""
        limit = min(begin + 8 + MAX_MESSAGE, len(self._buffer))
        ends = [
            match.start() for match in _CANDIDATE.finditer(self._buffer, begin + 8, min(limit + 5, len(self._buffer)))
        ]
        if final and limit == len(self._buffer):
            ends.append(limit)
        for end in ends:
            size = end - begin - 8
            if size > 0 and int.from_bytes(self._buffer[end - 4 : end], "big") == size:
                try:
                    record = _message(self._buffer, begin + 4, end - 4, self._base + begin)
                except _BadMessageError:
                    continue
                self._at, self._lost = end, None
                record.offset += 4
                return [Damage(self._base + begin, self._base + begin + 4, "the length of a record"), record]
        return None

    def _is_record(self, at: int, size: int) -> bool:
        try:
            found = _message(self._buffer, at + 4, at + 4 + size, 0)
        except _BadMessageError:
            return False
        return found.stream in _STREAMS and found.time_ns is not None

    def _trim(self) -> None:
        """Lets go of what is done with. While a damaged record is looked for by its end, it is kept from its start."""
        keep = self._at
        if self._lost is not None and self._look:
            keep = min(keep, self._lost - self._base)
        if keep > 0:
            del self._buffer[:keep]
            self._base += keep
            self._at -= keep


def _message(data: bytearray, start: int, end: int, offset: int) -> Record:
    """Raises `_BadMessageError`."""
    stream, line, time_ns = "", b"", None
    partial = last = False
    group, ordinal, unknown = "", 0, 0
    attrs: dict[str, str] = {}
    for number, value in _fields(data, start, end):
        if number == 1 and isinstance(value, tuple):
            stream = _text(data, value, 64)
        elif number == 2 and isinstance(value, int):
            time_ns = value - (1 << 64) if value >> 63 else value
        elif number == 3 and isinstance(value, tuple):
            line = bytes(data[value[0] : value[1]])
        elif number == 4 and isinstance(value, int):
            partial = bool(value)
        elif number == 5 and isinstance(value, tuple):
            for inner, what in _fields(data, *value):
                if inner == 1 and isinstance(what, int):
                    last = bool(what)
                elif inner == 2 and isinstance(what, tuple):
                    group = _text(data, what, 256)
                elif inner == 3 and isinstance(what, int):
                    ordinal = what & 0x7FFFFFFF
        elif number == 6 and isinstance(value, tuple) and len(attrs) < _MAX_ATTRS:
            pair = {inner: _text(data, what, 65536) for inner, what in _fields(data, *value) if isinstance(what, tuple)}
            attrs[pair.get(1, "")] = pair.get(2, "")
        else:
            unknown += 1
            if unknown > _MAX_UNKNOWN:
                raise _BadMessageError
    return Record(
        offset,
        offset + end - start + 8,
        time_ns,
        stream,
        line,
        partial and not last,
        group if partial else "",
        not partial or ordinal <= 1,
        attrs or None,
    )


def _text(data: bytearray, where: tuple[int, int], limit: int) -> str:
    if where[1] - where[0] > limit:
        raise _BadMessageError
    try:
        return data[where[0] : where[1]].decode()
    except UnicodeDecodeError as error:
        raise _BadMessageError from error


def _fields(data: bytearray, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Fields of a message: a number, or where the bytes are. (protobuf.dev, "Encoding".) Raises `_BadMessageError`."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if tag >> 3 == 0:
            raise _BadMessageError
        if kind == 0:
            value, at = _varint(data, at, end)
            yield tag >> 3, value
        elif kind == 2:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise _BadMessageError
            yield tag >> 3, (at, at + size)
            at += size
        elif kind in {1, 5}:
            at += 8 if kind == 1 else 4
            if at > end:
                raise _BadMessageError
            yield tag >> 3, 0
        else:
            raise _BadMessageError


def _varint(data: bytearray, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            break
    raise _BadMessageError
