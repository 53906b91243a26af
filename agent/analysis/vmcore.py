"""`impound export elf`: the image as an ELF vmcore, which drgn and crash open. The same bytes, other headers.

Elf64_Ehdr 64 bytes, program headers of 56 bytes from 64 on, notes, then the memory from a page boundary on. PT_LOAD:
p_paddr is the physical address, p_vaddr where the kernel maps it (its direct map), p_filesz = p_memsz. The note
VMCOREINFO (namesz 11, type 0) tells drgn that it is a kernel's. Little endian (elf.h; drgn, libdrgn/program.c).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.analysis.lime import Piece

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")
MACHINES = {"x86_64": 62, "aarch64": 183}
MAX_SEGMENTS = 0xFFFE
"""PN_XNUM is 0xFFFF."""
_PT_LOAD, _PT_NOTE, _ET_CORE, _RWX = 1, 4, 4, 7
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_NO_ADDRESS = (1 << 64) - 1
_ALIGN = 4096
MAX_NOTES = 1 << 20


def vmcoreinfo_note(text: bytes) -> bytes:
    """The note that holds this text of VMCOREINFO."""
    name = b"VMCOREINFO\0"
    return NOTE.pack(len(name), len(text), 0) + _padded(name) + _padded(text)


def write_vmcore(
    out: BinaryIO, image: Iterable[Piece], *, machine: str, notes: bytes, direct_map: int | None
) -> tuple[int, int]:
    """Writes the vmcore into a new seekable file. Gives its size, and the number of segments.

    Room for every possible segment is left in front, as a hole, since they are only known when all was read. Raises
    `DamagedError` where there are more than ELF can name, and what `image` raises.
    """
    if len(notes) > MAX_NOTES:
        raise DamagedError("the notes are too large to be a kernel's")
    begin = _aligned(EHDR.size + (MAX_SEGMENTS + 1) * PHDR.size + len(notes))
    loads: list[list[int]] = []  # address, offset, size
    out.seek(begin)
    at = begin
    for piece in image:
        if loads and loads[-1][0] + loads[-1][2] == piece.address:
            loads[-1][2] += len(piece.data)
        else:
            # The offset must be congruent to the address: what maps the file expects that.
            at = _aligned(at) + piece.address % _ALIGN
            out.seek(at)
            loads.append([piece.address, at, len(piece.data)])
            if len(loads) > MAX_SEGMENTS:
                raise DamagedError(f"the image has more than {MAX_SEGMENTS} separate pieces")
        out.write(piece.data)
        at += len(piece.data)
    note_at = EHDR.size + (len(loads) + 1) * PHDR.size
    out.seek(0)
    out.write(EHDR.pack(_IDENT, _ET_CORE, MACHINES[machine], 1, 0, 64, 0, 0, 64, 56, len(loads) + 1, 0, 0, 0))
    out.write(PHDR.pack(_PT_NOTE, 0, note_at, 0, 0, len(notes), len(notes), 4))
    for address, offset, size in loads:
        virtual = (direct_map + address) % (1 << 64) if direct_map is not None else _NO_ADDRESS
        out.write(PHDR.pack(_PT_LOAD, _RWX, offset, virtual, address, size, size, 0))
    out.write(notes)
    return at, len(loads)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
