"""How large the schema of a SQLite database is, before SQLite makes objects of it: ten times as much, or more.

The schema is the table b-tree at page 1. SQLite file format, 1.5 and 1.6; all numbers are big-endian.
"""

from __future__ import annotations

import struct

_HEADER = 100
_LEAF, _INTERIOR = 13, 5
MAX_PAGES = 1000


class SchemaError(ValueError):
    """Not a schema, or one that is too large."""


def schema_bytes(data: bytes | bytearray, limit: int) -> int:
    """Bytes of all its entries together. Raises `SchemaError` beyond `limit`, and for what is no such tree."""
    size = int.from_bytes(data[16:18], "big")
    size = 65536 if size == 1 else size
    if size < 512 or size & (size - 1):
        raise SchemaError(f"pages of {size} bytes")
    total, todo, seen = 0, [1], {1}
    while todo:
        page = data[(number := todo.pop() - 1) * size : (number + 1) * size]
        start = _HEADER if number == 0 else 0
        if len(page) < start + 12:
            raise SchemaError("a page that is not there")
        kind, _, count, _, _, rightmost = struct.unpack_from(">BHHHBI", page, start)
        if kind not in {_LEAF, _INTERIOR}:
            raise SchemaError(f"a page of the kind {kind}")
        first = start + (8 if kind == _LEAF else 12)
        if first + 2 * count > len(page):
            raise SchemaError("more entries than a page can have")
        cells = struct.unpack_from(f">{count}H", page, first)
        if kind == _LEAF:
            total += sum(_varint(page, cell) for cell in cells)
            if total > limit:
                raise SchemaError(f"its schema has more than {limit} bytes")
            continue
        below = [rightmost, *(int.from_bytes(page[cell : cell + 4], "big") for cell in cells)]
        if not seen.isdisjoint(below) or len(set(below)) < len(below):
            raise SchemaError("a page that stands in two places")
        seen.update(below)
        if len(seen) > MAX_PAGES or 0 in seen:
            raise SchemaError("too many pages of schema")
        todo += below
    return total


def _varint(page: bytes | bytearray, at: int) -> int:
    value = 0
    for byte in page[at : at + 8]:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value
    raise SchemaError("a number that does not end")
