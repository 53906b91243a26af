"""A run's memory image as one stream, and what the machine said of it. All of it comes from the examined machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.analysis import lime
from agent.analysis.tarstream import TarStream
from agent.errors import DamagedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.analysis.items import Items

PAGES, SYMBOLS = "memory/pages.jsonl", "memory/symbols.tar"
VMCOREINFO = b"[derived]/vmcoreinfo"
MAX_VMCOREINFO = 1 << 16
_MAX_LINE = 1 << 20


class Head(msgspec.Struct):
    """The first line of `memory/pages.jsonl`, as far as it is needed here."""

    machine: str = ""
    direct_map: str | None = None


class About(msgspec.Struct, frozen=True):
    """What a vmcore needs beside the bytes."""

    machine: str
    """As `uname -m` says."""
    direct_map: int | None
    """Virtual address of physical 0 in the kernel's direct map; None where nobody knows."""
    vmcoreinfo: bytes
    """The text; empty where it was not acquired."""


def image(items: Items) -> Iterator[lime.Piece]:
    """What was read at once and what was read late, as one. Raises `DamagedError`, `SourceError`."""
    if lime.PHYSICAL not in items.names:
        raise SourceError(f"{lime.PHYSICAL} is not in this run: memory.physical was not acquired")
    names = [name for name in (lime.PHYSICAL, lime.LATE) if name in items.names]
    return lime.merge(*(lime.pieces(items.stream(name), name) for name in names))


def about(items: Items) -> About:
    """Raises `DamagedError`, `SourceError`."""
    head = _head(items) if PAGES in items.names else Head()
    text = _vmcoreinfo(items) if SYMBOLS in items.names else b""
    try:
        direct_map = int(head.direct_map, 16) if head.direct_map else None
    except ValueError as error:
        raise DamagedError(f"{PAGES}: its first line names no address of the direct map") from error
    return About(head.machine, direct_map, text)


def _head(items: Items) -> Head:
    data = b""
    for chunk in items.stream(PAGES):
        data += chunk
        if b"\n" in data or len(data) > _MAX_LINE:
            break
    try:
        return msgspec.json.decode(data.partition(b"\n")[0], type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedError(f"{PAGES}: its first line is not what impound writes: {error}") from error


def _vmcoreinfo(items: Items) -> bytes:
    tar = TarStream(items.stream(SYMBOLS))
    for header in tar:
        if header.name == VMCOREINFO:
            data = bytearray()
            for _, piece in tar.content():
                data += piece
                if len(data) > MAX_VMCOREINFO:
                    raise DamagedError(f"{SYMBOLS}: its VMCOREINFO is larger than any kernel's")
            return bytes(data)
    return b""
