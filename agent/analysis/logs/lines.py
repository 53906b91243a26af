"""A file as lines with their offsets, in bounded memory, holes and all."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.analysis.logs.records import MAX_RECORD, Damage, Pieces

HOLE = "a hole in the file"
TOO_LONG = "no line ends for longer than any record is"


class Line(msgspec.Struct):
    """One line without its newline."""

    offset: int
    data: bytes
    ended: bool = True
    """A newline follows. Without one it is the last of the file, or a hole follows."""


def lines(pieces: Pieces, limit: int = MAX_RECORD) -> Iterator[Line | Damage]:
    """All lines in order. One of more than `limit` bytes is damage up to its newline."""
    tail: list[bytes] = []
    tail_at = tail_size = position = 0
    skipping = False  # the line that began at `tail_at` is too long
    for offset, piece in pieces:
        if offset != position:
            if skipping:
                yield Damage(tail_at, position, TOO_LONG)
            elif tail_size:
                yield Line(tail_at, b"".join(tail), ended=False)
            yield Damage(position, offset, HOLE)
            tail, tail_size, tail_at, skipping = [], 0, offset, False
        data = bytes(piece)
        position = offset + len(data)
        first, newline, rest = data.partition(b"\n")
        if not skipping:
            tail.append(first)
            tail_size += len(first)
            if tail_size > limit:
                skipping, tail = True, []
        if not newline:
            continue
        if skipping:
            yield Damage(tail_at, offset + len(first) + 1, TOO_LONG)
        else:
            yield Line(tail_at, b"".join(tail))
        at = offset + len(first) + 1
        *whole, last = rest.split(b"\n")
        for one in whole:
            if len(one) > limit:
                yield Damage(at, at + len(one) + 1, TOO_LONG)
            else:
                yield Line(at, one)
            at += len(one) + 1
        tail, tail_at, tail_size, skipping = [last], at, len(last), len(last) > limit
        if skipping:
            tail = []
    if skipping:
        yield Damage(tail_at, position, TOO_LONG)
    elif tail_size:
        yield Line(tail_at, b"".join(tail), ended=False)
