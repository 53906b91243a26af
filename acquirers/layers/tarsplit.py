"""`tar-split.json.gz`: a tar without the content of its files (github.com/vbatts/tar-split, storage/{entry,packer}.go).

Lines of JSON, gzipped, numbered from 0 on in `position`. Type 2 is a piece of the tar as it was: headers, padding, the
end. Type 1 stands for the content of one file: its name in the tar, its size in bytes, and eight bytes of CRC-64 (ISO,
big-endian), null where the file is empty. Each member of the tar, whatever its kind, has one of these after its header.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator

import msgspec

MAX_LINE = 8 << 20
"""Bytes of one line. Headers of one member are below 1 MiB in real tars."""
MAX_NAME = 1 << 16
_CHUNK = 1 << 16
_SEGMENT, _FILE = 2, 1


class TarSplitError(ValueError):
    """Not what the format says."""


class Segment(msgspec.Struct, frozen=True):
    """Bytes of the tar."""

    data: bytes


class Content(msgspec.Struct, frozen=True):
    """Where the content of a file stood."""

    name: bytes
    """As the tar had it."""
    size: int
    crc: int | None = None


class _Line(msgspec.Struct):
    type: int
    position: int
    name: str = ""
    name_raw: bytes | None = None
    size: int = 0
    payload: bytes | None = None


_decode = msgspec.json.Decoder(_Line).decode


def read(packed: Iterable[bytes]) -> Iterator[Segment | Content]:
    """The entries in their order, from the bytes of the file, gzipped or not. Raises `TarSplitError`."""
    for number, text in enumerate(_lines(_unpacked(packed))):
        try:
            line = _decode(text)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise TarSplitError(f"line {number + 1}: {str(error)[:200]}") from error
        if line.position != number:
            raise TarSplitError(f"line {number + 1} says that it is number {line.position}")
        if line.type == _SEGMENT:
            yield Segment(line.payload or b"")
        elif line.type == _FILE:
            yield _content(line, number)
        else:
            raise TarSplitError(f"line {number + 1} is of the type {line.type}")


def _content(line: _Line, number: int) -> Content:
    name = line.name_raw or os.fsencode(line.name) if line.name_raw or _encodable(line.name) else b""
    if not name or len(name) > MAX_NAME or not 0 <= line.size < 1 << 63:
        raise TarSplitError(f"line {number + 1} names no file, or an impossible size")
    if line.payload is not None and len(line.payload) != 8:
        raise TarSplitError(f"line {number + 1} has a checksum of {len(line.payload)} bytes")
    return Content(name, line.size, int.from_bytes(line.payload, "big") if line.payload is not None else None)


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE:
            raise TarSplitError(f"a line of more than {MAX_LINE} bytes")
    if rest.strip():
        yield rest


def _unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What is gzipped is unpacked in bounded pieces, one member after the other."""
    unpacker = None
    first = True
    for chunk in chunks:
        data = bytes(chunk)
        if first and data:
            first = False
            unpacker = zlib.decompressobj(31) if data[:2] == b"\x1f\x8b" else None
        if unpacker is None:
            yield data
            continue
        try:
            while data:
                yield unpacker.decompress(data, _CHUNK)
                data = unpacker.unconsumed_tail
                if unpacker.eof:
                    data = unpacker.unused_data
                    unpacker = zlib.decompressobj(31)
        except zlib.error as error:
            raise TarSplitError(f"not gzip: {error}") from error
    if unpacker is not None:
        try:
            yield unpacker.flush()
        except zlib.error as error:
            raise TarSplitError(f"not gzip: {error}") from error
