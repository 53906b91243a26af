"""Leaf pages that no root leads to any more: what was deleted or replaced, until somebody takes the page.

They are pages whose header names their own number, whose elements lie inside of them one behind the other, and which
nothing of the newest transaction reaches. Each is told by itself: what it belonged to is mostly lost, but a bucket
names its root page, and so leads from one carved page to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.bolt.bucket import Bucket, inline_page, parse_bucket
from acquirers.bolt.errors import BoltError
from acquirers.bolt.meta import HEADER
from acquirers.bolt.pages import BUCKET, LEAF, Page, read_page

if TYPE_CHECKING:
    from acquirers.bolt.database import Database
    from acquirers.bolt.pages import Element

_CHUNK = 1 << 20
MAX_PAGES = 1 << 22
"""Pages that are looked at: 16 GiB of 4 KiB."""


class Carved(msgspec.Struct, frozen=True):
    """One key of a page that is no longer in use."""

    page: int
    bucket: bytes
    """Key of the inline bucket that it stands in, or b""."""
    key: bytes
    value: bytes | None
    """None for a bucket, and for a value that cannot be read."""
    root: int = 0
    """Of a bucket: its root page, 0 when it is inline and follows."""
    whole: bool = True
    """No page that the value runs over has been taken since."""


def carve(database: Database) -> Iterator[Carved]:
    """Every key of every orphaned leaf page, in the order of the pages. Raises nothing for what the file holds.

    Goes through the whole tree first, so that it knows what is reached.
    """
    _reach(database)
    source, size = database.source, database.page_size
    try:
        end = min(source.size // size, MAX_PAGES)
    except BoltError:
        return
    step = _CHUNK // size
    for start in range(2, end, step):
        try:
            block = source.read(start * size, min(step, end - start) * size)
        except BoltError:
            continue
        for offset in range(0, len(block) - size + 1, size):
            number = start + offset // size
            stated, flags, count, _ = HEADER.unpack_from(block, offset)
            if stated != number or flags != LEAF or not count or database.reached(number):
                continue
            try:
                page = read_page(source, number, size, end)
            except BoltError:
                continue
            in_use = next((more for more in range(1, page.overflow + 1) if database.reached(number + more)), None)
            yield from _keys(page, page.size if in_use is None else in_use * size)


def _reach(database: Database) -> None:
    """Visits every page of every bucket."""
    stack: list[Iterator[tuple[bytes, Bucket]]] = [database.root.buckets()]
    while stack:
        following = next(stack[-1], None)
        if following is None:
            stack.pop()
        else:
            stack.append(following[1].buckets())


def _keys(page: Page, sound: int) -> Iterator[Carved]:
    """`sound`: bytes of the page that nobody has taken since."""
    free = page.data_from
    for index in range(page.count):
        try:
            element = page.element(index)
            if element.key_at < free:
                return  # not a leaf as bbolt writes it
            free = element.end
            key = page.key(element)
        except BoltError:
            return
        yield from _one(page, element, key, element.end <= sound)


def _one(page: Page, element: Element, key: bytes, whole: bool) -> Iterator[Carved]:
    try:
        value = page.value(element)
        if not element.flags & BUCKET:
            yield Carved(page.number, b"", key, value, 0, whole)
            return
        inner = inline_page(value, page.number)
        yield Carved(page.number, b"", key, None, parse_bucket(value)[0], whole)
    except BoltError:
        yield Carved(page.number, b"", key, None, 0, whole=False)
        return
    if inner is None:
        return
    free = inner.data_from
    for index in range(inner.count):
        try:
            inside = inner.element(index)
            if inside.key_at < free:
                return
            free = inside.end
            yield Carved(page.number, key, inner.key(inside), inner.value(inside), 0, whole)
        except BoltError:
            return
