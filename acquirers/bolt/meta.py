"""The two meta pages, each the root of one transaction. Little-endian; bbolt `internal/common/meta.go`.

A meta page is a page header of 16 bytes (`pages`), then

    magic u32 0xED0CDAED, version u32 2, page size u32, flags u32, root bucket {page u64, sequence u64},
    freelist page u64, high water u64 (pages below it are in use or free), transaction u64, checksum u64

with the 64-bit FNV-1a of the 56 bytes in front of it as checksum. Writers alternate between pages 0 and 1.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from acquirers.bolt.errors import BoltError

if TYPE_CHECKING:
    from acquirers.bolt.source import Source

HEADER = struct.Struct("<QHHI")
"""Of a page: its number, flags, count of elements, further pages that belong to it."""
META_PAGE = 0x04

_META = struct.Struct("<IIIIQQQQQQ")
_MAGIC = 0xED0CDAED
_VERSION = 2
_SIZES = tuple(1 << bits for bits in range(9, 17))
"""Page sizes: that of the machine which made the file; 4, 16 or 64 KiB in practice."""


class Meta(msgspec.Struct, frozen=True):
    """One valid meta page."""

    slot: int
    page_size: int
    root: int
    sequence: int
    freelist: int
    high_water: int
    txid: int


def fnv1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def parse_meta(data: bytes, slot: int) -> Meta:
    """One meta page from its first 80 bytes. Raises `BoltError`."""
    if len(data) < HEADER.size + _META.size:
        raise BoltError(f"meta {slot} is cut off")
    body = data[HEADER.size : HEADER.size + _META.size]
    magic, version, page_size, _, root, sequence, freelist, high_water, txid, checksum = _META.unpack(body)
    if magic != _MAGIC:
        raise BoltError(f"meta {slot} has not the magic number of bbolt")
    if version != _VERSION:
        raise BoltError(f"meta {slot} is of version {version}, not {_VERSION}")
    if fnv1a(body[:-8]) != checksum:
        raise BoltError(f"meta {slot} does not fit its checksum")
    if page_size not in _SIZES:
        raise BoltError(f"meta {slot} names a page size of {page_size}")
    if root < 2:
        raise BoltError(f"meta {slot} names page {root} as root")
    return Meta(slot, page_size, root, sequence, freelist, high_water, txid)


def read_metas(source: Source) -> tuple[list[Meta], list[str]]:
    """The valid ones, the newest first, and what is wrong with the other. Raises `BoltError` when there is none."""
    found: list[Meta] = []
    wrong: list[str] = []
    try:
        found.append(parse_meta(source.read(0, HEADER.size + _META.size), 0))
    except BoltError as error:
        wrong.append(str(error))
    sizes = (found[0].page_size,) if found else _SIZES
    trouble = ""
    for size in sizes:
        try:
            meta = parse_meta(source.read(size, HEADER.size + _META.size), 1)
        except BoltError as error:
            trouble = trouble or str(error)
            continue
        if meta.page_size == size:
            found.append(meta)
            trouble = ""
            break
        trouble = f"meta 1 names a page size of {meta.page_size}, and lies at {size}"
    if trouble:
        wrong.append(trouble)
    if not found:
        raise BoltError("no bbolt database: " + "; ".join(wrong))
    return sorted(found, key=lambda meta: meta.txid, reverse=True), wrong
