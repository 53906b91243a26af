"""Pages, checked before they are believed, and kept while there is room.

A page is `page_size` bytes at number * `page_size`, and `overflow` further ones that hold what did not fit: a header
(number u64, flags u16, count u16, overflow u32), then one element of 16 bytes per key, then keys and values in the
order of the elements. Offsets in an element count from the element itself. Little-endian; bbolt
`internal/common/page.go`.

    leaf      flags u32 (1: the value is a bucket), offset u32, key size u32, value size u32; the value follows the key
    branch    offset u32, key size u32, child page u64

In a sound file every page hangs in exactly one place of the tree. So a page is claimed by the place it is first reached
from; from anywhere else it is refused. That rules out cycles, and bounds a walk by the size of the file.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from acquirers.bolt.errors import BoltError
from acquirers.bolt.meta import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable

    from acquirers.bolt.meta import Meta
    from acquirers.bolt.source import Source

BRANCH = 0x01
LEAF = 0x02
BUCKET = 0x01
MAX_KEY = 32768
"""Bytes of a key; bbolt `MaxKeySize`."""
MAX_VALUE = 16 << 20
"""Bytes of a value that is read. The largest known ones (OCI specifications) have some hundred KiB."""

_ELEMENT = 16
_LEAF = struct.Struct("<IIII")
_BRANCH = struct.Struct("<IIQ")
_MIN_HEAD = 1 << 16
_MAX_CACHED = 4 << 20
"""Bytes of pages that are kept."""
_MAX_CLAIMED = 2 << 20
"""Pages that may be reached: 8 GiB of 4 KiB pages."""
_BLOCK = 512
_SEED = int.from_bytes(os.urandom(8), "little")


class Element(msgspec.Struct, frozen=True):
    """One element: where its key lies in the page, and its value or child."""

    flags: int
    key_at: int
    key_size: int
    value_size: int
    """0 on a branch page."""
    child: int = 0

    @property
    def end(self) -> int:
        return self.key_at + self.key_size + self.value_size


class Page:
    """One page with its overflow pages, or the page inside of an inline bucket. Methods raise `BoltError`."""

    def __init__(
        self, number: int, head: bytes, size: int, rest: Callable[[int, int], bytes] | None = None, overflow: int = 0
    ) -> None:
        """`head`: the beginning, elements included. `rest(offset, length)` reads what lies beyond it."""
        _, self.flags, self.count, _ = HEADER.unpack_from(head)
        self.number = number
        self.size = size
        self.overflow = overflow
        self.head = head
        self._rest = rest
        self.data_from = HEADER.size + _ELEMENT * self.count
        if self.data_from > len(head):
            raise BoltError(f"{self.count} elements do not fit into the page")

    @classmethod
    def inline(cls, data: bytes, number: int) -> Page:
        """The page inside of a bucket's value, which lies in page `number`."""
        if len(data) < HEADER.size:
            raise BoltError("an inline bucket is cut off")
        page = cls(number, data, len(data))
        if page.flags != LEAF:
            raise BoltError(f"an inline bucket of type {page.flags:#x}")
        return page

    @property
    def branch(self) -> bool:
        return bool(self.flags == BRANCH)

    def element(self, index: int) -> Element:
        at = HEADER.size + _ELEMENT * index
        if self.branch:
            position, key_size, child = _BRANCH.unpack_from(self.head, at)
            element = Element(0, at + position, key_size, 0, child)
        else:
            flags, position, key_size, value_size = _LEAF.unpack_from(self.head, at)
            element = Element(flags, at + position, key_size, value_size)
        if element.key_at < self.data_from or element.end > self.size:
            raise BoltError(f"element {index} lies outside of the page")
        if key_size > MAX_KEY:
            raise BoltError(f"element {index} has a key of {key_size} bytes")
        if element.flags & ~BUCKET:
            raise BoltError(f"element {index} is of an unknown type {element.flags:#x}")
        return element

    def key(self, element: Element) -> bytes:
        return self._bytes(element.key_at, element.key_size)

    def value(self, element: Element) -> bytes:
        if element.value_size > MAX_VALUE:
            raise BoltError(f"a value of {element.value_size} bytes, of which at most {MAX_VALUE} are read")
        return self._bytes(element.key_at + element.key_size, element.value_size)

    def _bytes(self, at: int, size: int) -> bytes:
        end = at + size
        if end <= len(self.head):
            return self.head[at:end]
        if self._rest is None:
            raise BoltError("an element lies outside of the page")
        data = self.head[at:] + self._rest(max(at, len(self.head)), end - max(at, len(self.head)))
        if len(data) != size:
            raise BoltError("the file ends inside of a value")
        return data


class Claims:
    """From which place in the tree each page was reached first. 8 bytes per page, in blocks that are made as needed."""

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}

    def __contains__(self, page: int) -> bool:
        block = self._blocks.get(page // _BLOCK)
        return block is not None and block[page % _BLOCK] != 0

    def take(self, page: int, count: int, place: int) -> int:
        """Claims `count` pages for a place, as far as nobody else has them. Returns how many it has."""
        for taken in range(count):
            number, index = divmod(page + taken, _BLOCK)
            block = self._blocks.get(number)
            if block is None:
                if len(self._blocks) >= _MAX_CLAIMED // _BLOCK:
                    return taken
                block = self._blocks[number] = array("Q", bytes(8 * _BLOCK))
            if block[index] == 0:
                block[index] = place
            elif block[index] != place:
                return taken
        return count


def place_of(*position: int | bytes) -> int:
    """A number for a place in the tree, which nobody can choose."""
    return hash((_SEED, position)) & 0xFFFFFFFFFFFFFFFF or 1


class Pager:
    """The pages of one transaction."""

    def __init__(self, source: Source, meta: Meta) -> None:
        self.page_size = meta.page_size
        self._source = source
        self._end = min(meta.high_water, source.size // meta.page_size)
        self._cached: OrderedDict[int, tuple[Page, int]] = OrderedDict()
        self._room = _MAX_CACHED
        self.claims = Claims()
        self.claims.take(0, 2, place_of(b"meta"))

    def page(self, number: int, place: int) -> Page:
        """The page that hangs in that place. Raises `BoltError`."""
        cached = self._cached.get(number)
        if cached is not None and cached[1] == place:
            self._cached.move_to_end(number)
            return cached[0]
        if not 2 <= number < self._end:
            raise BoltError(f"it is none of the pages 2 to {self._end - 1}")
        if not self.claims.take(number, 1, place):
            raise BoltError("it hangs in two places of the tree, or there are too many pages")
        page = read_page(self._source, number, self.page_size, self._end)
        have = self.claims.take(number, 1 + page.overflow, place)
        page.size = min(page.size, have * self.page_size)
        self._keep(page, place)
        return page

    def _keep(self, page: Page, place: int) -> None:
        self._room -= len(page.head)
        self._cached[page.number] = page, place
        while self._room < 0 and len(self._cached) > 1:
            _, (old, _) = self._cached.popitem(last=False)
            self._room += len(old.head)


def read_page(source: Source, number: int, page_size: int, end: int) -> Page:
    """One branch or leaf page; `end` is the number of pages that there are. Raises `BoltError`."""
    start = number * page_size
    head = source.read(start, page_size)
    if len(head) < page_size:
        raise BoltError("the file ends inside of it")
    stated, flags, count, overflow = HEADER.unpack_from(head)
    if stated != number:
        raise BoltError(f"it says that it is page {stated}")
    if flags not in {BRANCH, LEAF}:
        raise BoltError(f"neither a branch nor a leaf, but of type {flags:#x}")
    overflow = min(overflow, end - number - 1)
    size = (1 + overflow) * page_size
    needed = HEADER.size + _ELEMENT * count
    if needed > size:
        raise BoltError(f"{count} elements do not fit into {size} bytes")
    wanted = max(needed, min(size, _MIN_HEAD))
    if len(head) < wanted:
        head += source.read(start + len(head), wanted - len(head))

    def rest(offset: int, length: int) -> bytes:
        return source.read(start + offset, length)

    return Page(number, head, size, rest, overflow)
