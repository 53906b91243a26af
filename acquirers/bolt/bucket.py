"""A bucket: the keys of one B+ tree. A value may be a bucket again.

The value of a bucket is {root page u64, sequence u64}; where the root is 0, the page follows inside of the value
("inline", never with buckets in it). What is damaged is noted among the faults of the database, and left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers.bolt.errors import BoltError
from acquirers.bolt.pages import BUCKET, Page, place_of

if TYPE_CHECKING:
    from acquirers.bolt.errors import Faults
    from acquirers.bolt.pages import Element, Pager

MAX_DEPTH = 24
"""Pages above each other in one tree. With two keys on each page that is more than a file can hold."""
MAX_NESTING = 32
"""Buckets inside of each other."""

_ROOT = struct.Struct("<QQ")


class _Node(msgspec.Struct, frozen=True):
    """A page that is yet to be gone through."""

    number: int
    place: int
    index: int = 0


class Bucket:
    """One bucket. Nothing here raises for what the file holds: see `Database.faults`."""

    def __init__(self, pager: Pager, faults: Faults, root: int | Page, place: int, nesting: int, sequence: int) -> None:
        """`root`: the number of its root page, or the page itself if it is inline."""
        self._pager = pager
        self._faults = faults
        self._root = root
        self._place = place
        self._nesting = nesting
        self.sequence = sequence

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None when there is none, when it is a bucket, or when it cannot be read."""
        found = self._find(key)
        if found is None or found[1].flags & BUCKET:
            return None
        page, element = found
        try:
            return page.value(element)
        except BoltError as error:
            self._faults.add(page.number, str(error))
            return None

    def bucket(self, *keys: bytes) -> Bucket | None:
        """The bucket under a key, or through several of them; None when there is none or it cannot be read."""
        current = self
        for key in keys:
            found = current._find(key)
            inner = current._open(*found, key) if found is not None and found[1].flags & BUCKET else None
            if inner is None:
                return None
            current = inner
        return current

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Every key in order, with its value; None for a bucket. What is damaged is left out."""
        for page, element in self._elements():
            try:
                yield page.key(element), None if element.flags & BUCKET else page.value(element)
            except BoltError as error:
                self._faults.add(page.number, str(error))

    def buckets(self) -> Iterator[tuple[bytes, Bucket]]:
        """The buckets in it, in the order of their keys."""
        for page, element in self._elements():
            if not element.flags & BUCKET:
                continue
            try:
                key = page.key(element)
            except BoltError as error:
                self._faults.add(page.number, str(error))
                continue
            bucket = self._open(page, element, key)
            if bucket is not None:
                yield key, bucket

    # -- the tree -----------------------------------------------------------------------------------------------------

    def _elements(self) -> Iterator[tuple[Page, Element]]:
        """The elements of all leaves, those left out that lie over each other."""
        if isinstance(self._root, Page):
            yield from _sound(self._root, self._faults)
            return
        stack = [_Node(self._root, self._place)]
        while stack:
            node = stack.pop()
            page = self._page(node.number, node.place)
            if page is None:
                continue
            if not page.branch:
                yield from _sound(page, self._faults)
                continue
            if len(stack) + 1 >= MAX_DEPTH:
                self._faults.add(page.number, f"more than {MAX_DEPTH} pages above each other")
                continue
            if node.index < page.count:
                stack.append(_Node(node.number, node.place, node.index + 1))
                child = self._child(page, node.index)
                if child is not None:
                    stack.append(child)

    def _find(self, key: bytes) -> tuple[Page, Element] | None:
        """The leaf element of a key: one page on each level."""
        page = self._root if isinstance(self._root, Page) else self._page(self._root, self._place)
        for _ in range(MAX_DEPTH):
            if page is None:
                return None
            try:
                index, exact = _search(page, key)
                if not page.branch:
                    return (page, page.element(index)) if exact else None
            except BoltError as error:
                self._faults.add(page.number, str(error))
                return None
            child = self._child(page, index if exact else max(index - 1, 0)) if page.count else None
            page = self._page(child.number, child.place) if child is not None else None
        return None

    def _child(self, page: Page, index: int) -> _Node | None:
        try:
            element = page.element(index)
        except BoltError as error:
            self._faults.add(page.number, str(error))
            return None
        return _Node(element.child, place_of(page.number, index))

    def _page(self, number: int, place: int) -> Page | None:
        try:
            return self._pager.page(number, place)
        except BoltError as error:
            self._faults.add(number, str(error))
            return None

    def _open(self, page: Page, element: Element, key: bytes) -> Bucket | None:
        try:
            value = page.value(element)
            root, sequence = parse_bucket(value)
            inside = root or Page.inline(value[_ROOT.size :], page.number)
        except BoltError as error:
            self._faults.add(page.number, str(error))
            return None
        if self._nesting >= MAX_NESTING or isinstance(self._root, Page):
            self._faults.add(page.number, "buckets nested too deeply")
            return None
        place = place_of(self._place, key)
        return Bucket(self._pager, self._faults, inside, place, self._nesting + 1, sequence)


def parse_bucket(value: bytes) -> tuple[int, int]:
    """(root page, sequence) of a bucket's value. Raises `BoltError`."""
    if len(value) < _ROOT.size:
        raise BoltError("a bucket that is cut off")
    root, sequence = _ROOT.unpack_from(value)
    return root, sequence


def inline_page(value: bytes, number: int) -> Page | None:
    """The page inside of a bucket's value; None when the bucket has pages of its own. Raises `BoltError`."""
    return None if parse_bucket(value)[0] else Page.inline(value[_ROOT.size :], number)


def _sound(page: Page, faults: Faults) -> Iterator[tuple[Page, Element]]:
    """The elements of a leaf. bbolt lays them one behind the other: what overlaps was made to be read many times."""
    free = page.data_from
    for index in range(page.count):
        try:
            element = page.element(index)
        except BoltError as error:
            faults.add(page.number, str(error))
            continue
        if element.key_at < free:
            faults.add(page.number, f"element {index} lies over another one")
            continue
        free = element.end
        yield page, element


def _search(page: Page, key: bytes) -> tuple[int, bool]:
    """The index of the first key that is not smaller, and whether it is the same."""
    low, high = 0, page.count
    while low < high:
        middle = (low + high) // 2
        if page.key(page.element(middle)) < key:
            low = middle + 1
        else:
            high = middle
    return low, low < page.count and page.key(page.element(low)) == key
