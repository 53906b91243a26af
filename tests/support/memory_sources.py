"""Physical memory that a test made: known at every byte, with pages that fail, hang, or come as zeros."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from acquirers.host import Host, Mode
from acquirers.memory.block import PAGE
from acquirers.memory.source import Candidate, Source, Survey

if TYPE_CHECKING:
    from acquirers.base import Flag, Gap
    from acquirers.memory.ranges import Ranges

MIB = 1 << 20


@lru_cache(maxsize=1 << 16)
def page(frame: int) -> bytes:
    """What lies in a frame: every third one is zeros."""
    if frame % 3 == 0:
        return bytes(PAGE)
    return hashlib.sha256(b"%d" % frame).digest() * (PAGE // 32)


def memory(start: int, end: int) -> bytes:
    data = b"".join(page(frame) for frame in range(start // PAGE, -(-end // PAGE)))
    return data[start % PAGE : start % PAGE + end - start]


class Fake:
    """A source. `fails`: frames that give EFAULT; `hangs`: those whose read never returns; `zeros`: come as zeros."""

    direct_map: int | None = None

    def __init__(
        self,
        name: str,
        covers: Ranges,
        *,
        zero_fills: bool = False,
        fails: Iterable[int] = (),
        hangs: Iterable[int] = (),
        zeros: Iterable[int] = (),
        touched: Path | None = None,
    ) -> None:
        self.name, self.covers, self.zero_fills = name, covers, zero_fills
        self.fails, self.hangs, self.zeros = frozenset(fails), frozenset(hangs), frozenset(zeros)
        self.touched = touched

    def open(self) -> FakeReader:
        return FakeReader(self)


class FakeReader:
    def __init__(self, source: Fake) -> None:
        self._source = source

    def read(self, address: int, into: memoryview) -> None:
        source, end = self._source, address + len(into)
        if not source.covers.covers(address, end):
            raise OSError(22, "not covered")
        frames = range(address // PAGE, -(-end // PAGE))
        if source.touched is not None:
            with source.touched.open("ab") as file:
                file.write(b"".join(struct.pack("<Q", frame) for frame in frames))
        if source.hangs.intersection(frames):
            os.read(os.pipe()[0], 1)
        if source.fails.intersection(frames):
            raise OSError(14, "Bad address")
        data = bytearray(memory(address, end))
        for frame in source.zeros.intersection(frames):
            first, last = max(frame * PAGE, address), min((frame + 1) * PAGE, end)
            data[first - address : last - address] = bytes(last - first)
        into[:] = data

    def close(self) -> None: ...


def survey(ram: Ranges, *found: Source, iomem: bytes = b"") -> Callable[[Host], Survey]:
    return lambda _host: Survey(ram, iomem, tuple(Candidate(one.name, one) for one in found))


def iomem_of(ram: Ranges) -> bytes:
    return b"".join(b"%08x-%08x : System RAM\n" % (start, end - 1) for start, end in ram)


class Machine:
    """A fixture host with a /proc that has only what memory needs."""

    def __init__(self, root: Path, ram: Ranges) -> None:
        self.root, self.ram = root, ram
        self.proc = root / "proc"
        for directory in (self.proc, root / "etc", root / "sys"):
            directory.mkdir(parents=True, exist_ok=True)
        self.plug(ram)
        self.flags: dict[int, int] = {}
        self.write_flags()
        self.host = Host(Mode.HOST, os.fsencode(root), os.fsencode(self.proc))

    def plug(self, ram: Ranges) -> None:
        (self.proc / "iomem").write_bytes(iomem_of(ram))

    def write_flags(self) -> None:
        frames = max(end for _, end in self.ram) // PAGE + 1
        words = [self.flags.get(frame, 0) for frame in range(frames)]
        (self.proc / "kpageflags").write_bytes(struct.pack(f"={len(words)}Q", *words))


class Told:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []

    def member(self, member: object) -> None: ...

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)


def records(data: bytes) -> list[tuple[int, bytes]]:
    """(address, bytes) of a LiME image; fails where it is none."""
    found, at, last = [], 0, 0
    while at < len(data):
        magic, version, start, end, reserved = struct.unpack_from("<IIQQQ", data, at)
        assert (magic, version, reserved) == (0x4C694D45, 1, 0)
        assert last <= start <= end
        found.append((start, data[at + 32 : at + 32 + end - start + 1]))
        at += 32 + end - start + 1
        last = end + 1
    assert at == len(data)
    return found
