"""Files as /proc/kcore would be: any segments, any notes, headers that can be broken."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
NO_PADDR = (1 << 64) - 1
X86, ARM64 = 62, 183
VMCOREINFO = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"
NOTES = ((b"CORE", 1, bytes(336)), (b"VMCOREINFO", 0, VMCOREINFO))


@dataclass(frozen=True, slots=True)
class Load:
    """A PT_LOAD: what lies at `vaddr`."""

    vaddr: int
    paddr: int
    data: bytes


def note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = name + b"\0"
    size = len(padded)
    return b"".join((
        struct.pack("<III", size, len(data), kind),
        padded.ljust(-(-size // 4) * 4, b"\0"),
        data.ljust(-(-len(data) // 4) * 4, b"\0"),
    ))  # fmt: skip


def build(
    loads: Sequence[Load],
    notes: Sequence[tuple[bytes, int, bytes]] = NOTES,
    *,
    machine: int = X86,
    extended: bool = False,
) -> bytes:
    """Headers, notes, and the data of each segment at the next page. `extended`: the number stands in a section."""
    told = b"".join(note(*one) for one in notes)
    count = len(loads) + 1
    table = 64 + (64 if extended else 0)
    end = table + 56 * count
    place = -(-(end + len(told)) // PAGE) * PAGE
    headers = [struct.pack("<IIQQQQQQ", 4, 0, end, 0, 0, len(told), len(told), 4)]
    data = []
    for one in loads:
        size = len(one.data)
        headers.append(struct.pack("<IIQQQQQQ", 1, 7, place, one.vaddr, one.paddr, size, size, PAGE))
        padded = one.data.ljust(-(-size // PAGE) * PAGE, b"\0")
        place += len(padded)
        data.append(padded)
    number, sections = (0xFFFF, 64) if extended else (count, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, machine, 1, 0, table, sections, 0, 64, 56, number, 64, 0, 0)
    if extended:
        head += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    body = b"".join((head, *headers, told))
    body = body.ljust(-(-len(body) // PAGE) * PAGE, b"\0") + b"".join(data)
    return body.ljust(4 * PAGE, b"\0")


def write(path: Path, loads: Sequence[Load], *, machine: int = X86) -> Path:
    """In place: who has the file open sees the new one."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(build(loads, machine=machine))
    return path
