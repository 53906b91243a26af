"""/proc/kallsyms: the kernel's symbols, with the addresses of this boot.

Lines `ADDRESS TYPE NAME`, those of modules with a tab and `[MODULE]` behind (kernel/kallsyms.c, `s_show`). To whom the
kernel does not trust its addresses (kptr_restrict, kernel.perf_event_paranoid without CAP_SYSLOG) they are all zeros:
*masked*. A kernel with KASLR has its symbols moved as a whole at each boot; `VMCOREINFO` says how far, and without that
they are no System.map.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from acquirers.host import Host

FILE = b"kallsyms"
MAX_BYTES = 256 << 20
"""Real ones have 5 to 20 MiB."""
MAX_LINE = 4096
"""KSYM_NAME_LEN is 512 at the most, MODULE_NAME_LEN 56."""

X86_LINK = 0xFFFFFFFF81000000
"""__START_KERNEL of x86-64 with the usual CONFIG_PHYSICAL_START (arch/x86/include/asm/page_types.h)."""
X86_WINDOW = 1 << 30
"""KERNEL_IMAGE_SIZE: how far KASLR moves it at the most."""
X86_ALIGN = 1 << 21

_CHUNK = 1 << 16
_WORD = (1 << 64) - 1
_LINE = re.compile(rb"([0-9a-fA-F]{1,16}) (\S) ([^\s\0]{1,1024})(?:[\t ]+\[([^\s\0\]]{1,256})\])?\s*")


class KallsymsError(ValueError):
    """Not what the format says: one line for a person."""


class Symbol(NamedTuple):
    address: int
    """Virtual, of this boot."""
    kind: str
    """As nm(1) has them; capital: global."""
    name: str
    module: str
    """Empty for the kernel's own. Programs of BPF are of the module `bpf`."""


def parse(lines: Iterable[bytes]) -> Iterator[Symbol]:
    """One symbol after another. Raises `KallsymsError` at a line of another form."""
    match = _LINE.fullmatch
    for number, line in enumerate(lines, 1):
        found = match(line)
        if found is None:
            if not line.strip():
                continue
            raise KallsymsError(f"line {number} of kallsyms is no symbol: {line[:60]!r}")
        address, kind, name, module = found.groups()
        yield Symbol(int(address, 16), kind.decode("latin-1"), _text(name), _text(module) if module is not None else "")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their ends. Raises `KallsymsError` if one has none, or the stream."""
    rest, size = b"", 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_BYTES:
            raise KallsymsError(f"kallsyms of more than {MAX_BYTES} bytes")
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise KallsymsError(f"a line of kallsyms of more than {MAX_LINE} bytes")
        yield from whole
    if rest:
        yield rest


def read(host: Host) -> Iterator[bytes]:
    """The file as it is, in chunks. Raises `OSError`."""
    if host.proc is None:
        raise FileNotFoundError(2, "a mounted disk has no running kernel")
    fd = os.open(os.path.join(host.proc, FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        left = MAX_BYTES
        while left > 0 and (chunk := os.read(fd, _CHUNK)):
            yield chunk
            left -= len(chunk)
    finally:
        os.close(fd)


def find(host: Host, names: Iterable[str]) -> dict[str, int]:
    """Addresses of symbols of the kernel itself; the first of each name. Empty where kallsyms is masked.

    Raises `OSError`, `KallsymsError`.
    """
    wanted, found = set(names), dict[str, int]()
    for symbol in parse(lines_of(read(host))):
        if symbol.name in wanted and not symbol.module:
            wanted.discard(symbol.name)
            if symbol.address:
                found[symbol.name] = symbol.address
            if not wanted:
                break
    return found


class Slide(NamedTuple):
    """How far the kernel image was moved at this boot."""

    offset: int | None
    """Bytes; None if it is not known."""
    source: str
    """How it is known, or why not."""


def slide(text: int | None, kernel_offset: int | None, machine: str) -> Slide:
    """`text` is the address of `_text` or `_stext`, `kernel_offset` what VMCOREINFO says (KERNELOFFSET)."""
    if kernel_offset is not None:
        return Slide(kernel_offset, "KERNELOFFSET in VMCOREINFO")
    if not text:
        return Slide(None, "kallsyms does not show _text, and there is no VMCOREINFO")
    if machine != "x86_64":
        return Slide(None, f"there is no VMCOREINFO, and where {machine} kernels are linked to is not fixed")
    moved = text - X86_LINK
    if not 0 <= moved < X86_WINDOW or moved % X86_ALIGN:
        return Slide(None, f"there is no VMCOREINFO, and {text:#x} is no place for an x86-64 kernel")
    return Slide(moved, f"_text at {text:#x}, taken to be linked to {X86_LINK:#x}")


def link_time(address: int, offset: int) -> int:
    """Where a symbol lies without KASLR. What is not in the kernel's half (per-CPU and absolute ones) was not moved."""
    return address - offset & _WORD if address >> 63 else address


def system_map(symbols: Iterable[Symbol], offset: int) -> Iterator[bytes]:
    """The lines of a System.map: the kernel's own symbols, in the order in which kallsyms has them."""
    for symbol in symbols:
        if not symbol.module:
            address = link_time(symbol.address, offset)
            yield b"%016x %s %s\n" % (address, symbol.kind.encode("latin-1"), symbol.name.encode())
