"""One transaction of a database, and how to read it while somebody writes.

bbolt never changes a page that the newest transaction can reach: it writes other pages, and then the older meta page
(copy on write). So what was read is consistent if the newest transaction is the same before and after; if it is not,
the next one may have taken the pages. A small file is copied into memory first, which takes a moment only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from acquirers.bolt.bucket import MAX_NESTING, Bucket
from acquirers.bolt.errors import BoltError, Fault, Faults
from acquirers.bolt.meta import Meta, read_metas
from acquirers.bolt.pages import Pager, place_of
from acquirers.bolt.source import BytesSource

if TYPE_CHECKING:
    from acquirers.bolt.source import Source

SMALL = 8 << 20
"""Bytes up to which a file is copied into memory as a whole."""
TRIES = 5

T = TypeVar("T")


class Database:
    """What one transaction left. Raises nothing for what the file holds; see `faults`."""

    def __init__(self, source: Source, meta: Meta, others: tuple[Meta, ...] = (), notes: tuple[str, ...] = ()) -> None:
        self._source = source
        self._others = others
        self.meta = meta
        self.notes = notes
        """What is wrong with the meta pages, and whether it changed while it was read."""
        self._pager = Pager(source, meta)
        self._faults = Faults()

    @property
    def root(self) -> Bucket:
        """The bucket that holds all others."""
        return Bucket(self._pager, self._faults, self.meta.root, place_of(b"root"), 0, self.meta.sequence)

    @property
    def txid(self) -> int:
        return self.meta.txid

    @property
    def page_size(self) -> int:
        return self.meta.page_size

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The first hundred, of what was read up to now."""
        return self._faults.first

    @property
    def fault_count(self) -> int:
        return self._faults.count

    @property
    def source(self) -> Source:
        return self._source

    def reached(self, page: int) -> bool:
        """Whether anything that was read led to that page, or it is a meta page."""
        return page in self._pager.claims

    def previous(self) -> Database | None:
        """The transaction before, as far as its pages were not taken since; None when its meta page is not valid."""
        return Database(self._source, self._others[0]) if self._others else None

    def walk(self) -> Iterator[tuple[tuple[bytes, ...], bytes, bytes | None]]:
        """Everything: (keys of the buckets above, key, value or None for a bucket), a bucket before what is in it."""
        stack: list[tuple[tuple[bytes, ...], Iterator[tuple[bytes, Bucket]]]] = []
        yield from (((), key, value) for key, value in self.root.items())
        stack.append(((), self.root.buckets()))
        while stack:
            path, buckets = stack[-1]
            following = next(buckets, None)
            if following is None or len(stack) > MAX_NESTING:
                stack.pop()
                continue
            key, bucket = following
            inside = (*path, key)
            yield from ((inside, inner, value) for inner, value in bucket.items())
            stack.append((inside, bucket.buckets()))


def open_database(source: Source) -> Database:
    """The newest transaction. A small file is copied, and copied again while it changes. Raises `BoltError`."""
    if source.size > SMALL:
        metas, wrong = read_metas(source)
        return Database(source, metas[0], tuple(metas[1:]), tuple(wrong))
    for last in (False,) * (TRIES - 1) + (True,):
        copy = BytesSource(source.read(0, SMALL))
        try:
            metas, wrong = read_metas(copy)
            changed = _newest(source) != metas[0].txid
        except BoltError:
            if last:
                raise
            continue
        if not changed or last:
            notes = (*wrong, *(["it changed while it was read"] if changed else []))
            return Database(copy, metas[0], tuple(metas[1:]), notes)
    raise AssertionError


def _newest(source: Source) -> int:
    return read_metas(source)[0][0].txid


class Reading(msgspec.Struct, Generic[T], frozen=True):
    """What was made of a database, and how sound it is."""

    value: T
    database: Database
    changed: bool
    """It changed while it was read, each time: pages may be of different transactions."""

    @property
    def complaints(self) -> list[str]:
        """One line for each thing that a person should know."""
        told = [*self.database.notes, *map(str, self.database.faults)]
        more = self.database.fault_count - len(self.database.faults)
        if more:
            told.append(f"{more} further pages or elements that are not what they should be")
        if self.changed and not self.database.notes:
            told.append("it changed while it was read, however often that was tried")
        return told


def read(source: Source, take: Callable[[Database], T], *, tries: int = TRIES) -> Reading[T]:
    """Calls `take` until what it read is one transaction, at most `tries` times. Raises `BoltError`."""
    for last in (False,) * (tries - 1) + (True,):
        database = open_database(source)
        value = take(database)
        if database.source is not source:
            return Reading(value, database, changed="it changed while it was read" in database.notes)
        changed = _newest(source) != database.txid
        if not changed or last:
            return Reading(value, database, changed)
    raise AssertionError
