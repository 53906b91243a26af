"""VMCOREINFO: what the running kernel writes down about itself for those who will read its memory.

Text of lines `KEY=VALUE` (kernel/vmcore_info.c, before 6.9 kernel/crash_core.c), wrapped into an ELF note that lies in
RAM at the physical address that /sys/kernel/vmcoreinfo names. Volatility 3 finds an image's page tables by it; drgn and
crash refuse a core without it. It comes from the examined machine: read with bounds.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import msgspec

from acquirers.host import Mode
from acquirers.root import read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.host import Host

SYS = b"/sys/kernel/vmcoreinfo"
NAME = b"VMCOREINFO"
MAX_NOTE = 1 << 17
"""Bytes of the note at the most. The kernel's own bound of the text is one page: 64 KiB on some arm64 kernels."""
MAX_LINES = 8192

HEADER_SIZE = 24
"""Bytes before the text: Elf64_Nhdr, and the name padded to a multiple of 4."""

_HEADER = struct.Struct("=III")  # Elf64_Nhdr: namesz, descsz, type; in the byte order of the machine
_WHERE = re.compile(rb"(?:0x)?([0-9a-f]{1,16})\s+([0-9a-f]{1,8})\s*", re.IGNORECASE)
_LINE = re.compile(rb"([A-Z]+)\(([\w.]{1,128})\)=(-?(?:0x)?[0-9a-fA-F]{1,20})")
_SINGLE = re.compile(rb"([A-Z][A-Z_-]{1,31})=([ -~]{0,256})")
_DIGITS = re.compile(r"-?[0-9]{1,20}|0x[0-9a-f]{1,16}", re.IGNORECASE)
_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)


class MalformedError(ValueError):
    """Not what its format says: one line for a person."""


class Vmcoreinfo(msgspec.Struct, frozen=True):
    """The text, and what it says. A key that stands twice counts as it stands first."""

    text: bytes
    values: Mapping[str, str] = msgspec.field(default_factory=dict)
    """OSRELEASE, BUILD-ID, PAGESIZE, CRASHTIME and whatever else stands without brackets, as text."""
    symbols: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Virtual addresses, with the slide of this boot."""
    numbers: Mapping[str, int] = msgspec.field(default_factory=dict)
    offsets: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Bytes; `struct.member`."""
    sizes: Mapping[str, int] = msgspec.field(default_factory=dict)
    lengths: Mapping[str, int] = msgspec.field(default_factory=dict)

    @property
    def release(self) -> str:
        return self.values.get("OSRELEASE", "")

    @property
    def build_id(self) -> str:
        return self.values.get("BUILD-ID", "")

    @property
    def page_size(self) -> int | None:
        return _decimal(self.values.get("PAGESIZE", ""))

    @property
    def crash_time(self) -> int | None:
        """Seconds since the epoch; only in the memory of a kernel that has crashed."""
        return _decimal(self.values.get("CRASHTIME", ""))

    @property
    def kernel_offset(self) -> int | None:
        """How far the kernel's virtual addresses were moved at this boot (KASLR)."""
        found = _HEX.fullmatch(self.values.get("KERNELOFFSET", ""))
        return int(found[1], 16) if found else None


def _decimal(text: str) -> int | None:
    return int(text, 0) if _DIGITS.fullmatch(text) and not re.fullmatch(r"-?0[0-9]+", text) else None


def parse(text: bytes) -> Vmcoreinfo:
    """The text of the note. Lines of no known form are left out; raises `MalformedError` if it is no such text."""
    if len(text) > MAX_NOTE:
        raise MalformedError(f"VMCOREINFO of {len(text)} bytes is longer than any kernel writes")
    text = text.rstrip(b"\0 \n") + b"\n"
    if not text.startswith(b"OSRELEASE="):
        raise MalformedError("VMCOREINFO does not begin with OSRELEASE")
    values: dict[str, str] = {}
    tables: dict[bytes, dict[str, int]] = {key: {} for key in (b"SYMBOL", b"NUMBER", b"OFFSET", b"SIZE", b"LENGTH")}
    for line in text.split(b"\n", MAX_LINES)[:MAX_LINES]:
        if found := _LINE.fullmatch(line):
            kind, name, value = found[1], found[2].decode(), found[3].decode()
            number = _symbol(value) if kind == b"SYMBOL" else _decimal(value)
            if kind in tables and number is not None:
                tables[kind].setdefault(name, number)
        elif found := _SINGLE.fullmatch(line):
            values.setdefault(found[1].decode(), found[2].decode())
    return Vmcoreinfo(
        text, values, tables[b"SYMBOL"], tables[b"NUMBER"], tables[b"OFFSET"], tables[b"SIZE"], tables[b"LENGTH"]
    )


def _symbol(value: str) -> int | None:
    """Addresses are hexadecimal without a prefix."""
    found = _HEX.fullmatch(value)
    return int(found[1], 16) if found else None


def parse_note(note: bytes) -> bytes:
    """The text inside the ELF note that begins at `note[0]`. Raises `MalformedError`."""
    if len(note) < HEADER_SIZE:
        raise MalformedError("the VMCOREINFO note is cut short")
    namesz, descsz, _ = _HEADER.unpack_from(note)
    if namesz != len(NAME) + 1 or note[12 : 12 + namesz] != NAME + b"\0":
        raise MalformedError("what lies there is no VMCOREINFO note")
    if not descsz or descsz > MAX_NOTE or HEADER_SIZE + descsz > len(note):
        raise MalformedError(f"the VMCOREINFO note says that its text has {descsz} bytes")
    return note[HEADER_SIZE : HEADER_SIZE + descsz]


def parse_where(data: bytes) -> tuple[int, int]:
    """What /sys/kernel/vmcoreinfo holds: physical address and size in bytes of the note. Raises `MalformedError`.

    kernel/ksysfs.c prints `%pa %x`: both are hexadecimal, and only the first has a prefix.
    """
    found = _WHERE.fullmatch(data)
    if not found:
        raise MalformedError("/sys/kernel/vmcoreinfo is not an address and a size")
    address, size = int(found[1], 16), int(found[2], 16)
    if not address or not HEADER_SIZE < size <= MAX_NOTE:
        raise MalformedError(f"/sys/kernel/vmcoreinfo names {size} bytes at {address:#x}")
    return address, size


def where(host: Host) -> tuple[int, int]:
    """Where the live kernel's note lies: physical address and size. Raises `OSError` or `MalformedError`.

    `FileNotFoundError` means a kernel that was built without CONFIG_VMCORE_INFO (before 6.9: CONFIG_CRASH_CORE).
    """
    return parse_where(read_sys(host, SYS, 4096))


def read_sys(host: Host, path: bytes, limit: int) -> bytes:
    """A file below /sys of the examined kernel, cut at `limit` bytes. In a pod, its own /sys shows the same kernel."""
    try:
        return read_kernel_file(host.here(path), limit)
    except FileNotFoundError:
        if host.mode is not Mode.LIVE_ROOT:
            raise
        return read_kernel_file(path, limit)
