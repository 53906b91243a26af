"""bbolt files made from nested dictionaries: branch pages, inline buckets, overflow pages, any page size.

A writer of its own, because there is none for Python, and because a test wants what bbolt would never write.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from acquirers.bolt.meta import fnv1a

Tree = Mapping[bytes, "bytes | Tree"]
"""A bucket: values, and buckets again."""

BRANCH, LEAF, META, FREELIST = 1, 2, 4, 0x10


def page_header(number: int, flags: int, count: int, overflow: int = 0) -> bytes:
    return struct.pack("<QHHI", number, flags, count, overflow)


def leaf(elements: list[tuple[int, bytes, bytes]]) -> bytes:
    """Elements (flags, key, value) and what they name, without the page's header."""
    heads, data = [], b""
    for index, (flags, key, value) in enumerate(elements):
        position = 16 * (len(elements) - index) + len(data)
        heads.append(struct.pack("<IIII", flags, position, len(key), len(value)))
        data += key + value
    return b"".join(heads) + data


def branch(elements: list[tuple[bytes, int]]) -> bytes:
    """Elements (key, child page) and the keys, without the page's header."""
    heads, data = [], b""
    for index, (key, child) in enumerate(elements):
        heads.append(struct.pack("<IIQ", 16 * (len(elements) - index) + len(data), len(key), child))
        data += key
    return b"".join(heads) + data


def bucket_header(root: int, sequence: int = 0) -> bytes:
    return struct.pack("<QQ", root, sequence)


def meta_page(number: int, page_size: int, root: int, high_water: int, txid: int, freelist: int = 1 << 63) -> bytes:
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, page_size, 0, root, 0, freelist, high_water, txid)
    page = page_header(number, META, 0) + body + struct.pack("<Q", fnv1a(body))
    return page.ljust(page_size, b"\0")


@dataclass
class BoltMaker:
    """Writes one file. `fanout` limits the elements of a page, so that few keys make a deep tree."""

    page_size: int = 4096
    fanout: int = 1 << 15
    inline: bool = True
    pages: dict[int, bytes] = field(default_factory=dict)
    """Number -> the page with its overflow pages."""
    free: int = 3
    """The next page that is not in use; 2 is the freelist."""

    def add(self, flags: int, count: int, body: bytes) -> int:
        """A page of its own for that body; its number."""
        size = 16 + len(body)
        overflow = (size - 1) // self.page_size
        number = self.free
        data = page_header(number, flags, count, overflow) + body
        self.pages[number] = data.ljust((overflow + 1) * self.page_size, b"\0")
        self.free += overflow + 1
        return number

    def bucket(self, tree: Tree) -> int:
        """All pages of a bucket; the number of its root."""
        elements: list[tuple[int, bytes, bytes]] = []
        for key, value in sorted(tree.items()):
            if isinstance(value, bytes):
                elements.append((0, key, value))
            else:
                elements.append((1, key, self._inside(value)))
        level = [(group[0][1], self.add(LEAF, len(group), leaf(group))) for group in self._groups(elements)]
        if not level:
            return self.add(LEAF, 0, b"")
        while len(level) > 1:
            step = max(2, min(self.fanout, (self.page_size - 16) // (16 + max(len(key) for key, _ in level))))
            groups = [level[start : start + step] for start in range(0, len(level), step)]
            level = [(group[0][0], self.add(BRANCH, len(group), branch(group))) for group in groups]
        return level[0][1]

    def _groups(self, elements: list[tuple[int, bytes, bytes]]) -> list[list[tuple[int, bytes, bytes]]]:
        groups: list[list[tuple[int, bytes, bytes]]] = []
        room = 0
        for element in elements:
            size = 16 + len(element[1]) + len(element[2])
            if not groups or size > room or len(groups[-1]) >= self.fanout:
                groups.append([])
                room = self.page_size - 16
            groups[-1].append(element)
            room -= size
        return groups

    def _inside(self, tree: Tree) -> bytes:
        elements = [(0, key, value) for key, value in sorted(tree.items()) if isinstance(value, bytes)]
        body = leaf(elements)
        if self.inline and len(elements) == len(tree) and 16 + len(body) <= self.page_size // 4:
            return bucket_header(0) + page_header(0, LEAF, len(elements)) + body
        return bucket_header(self.bucket(tree), 7)

    def file(self, root: int, *, txid: int = 8, previous: int | None = None) -> bytes:
        """The file whose newest transaction has that root, and whose one before has the root `previous`."""
        size = self.page_size
        metas = {
            txid % 2: meta_page(txid % 2, size, root, self.free, txid),
            (txid - 1) % 2: meta_page((txid - 1) % 2, size, previous or root, self.free, txid - 1),
        }
        data = bytearray(self.free * size)
        data[: 2 * size] = metas[0] + metas[1]
        data[2 * size : 2 * size + 16] = page_header(2, FREELIST, 0)
        for number, page in self.pages.items():
            data[number * size : number * size + len(page)] = page
        return bytes(data)


def make(tree: Tree, *, page_size: int = 4096, fanout: int = 1 << 15, inline: bool = True) -> bytes:
    """A file with one transaction, which holds `tree`."""
    maker = BoltMaker(page_size, fanout, inline)
    return maker.file(maker.bucket(tree))


def nested(items: list[tuple[tuple[bytes, ...], bytes, bytes | None]]) -> dict[bytes, object]:
    """What `Database.walk` gave, as nested dictionaries again."""
    root: dict[bytes, object] = {}
    for path, key, value in items:
        place: dict[bytes, object] = root
        for part in path:
            inner = place[part]
            assert isinstance(inner, dict)
            place = inner
        place[key] = {} if value is None else value
    return root
