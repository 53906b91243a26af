"""What a symbol file is made of, out of `memory/symbols.tar`. All of it comes from the examined machine.

Members are read into memory up to a limit each; those that are not wanted are skipped. The archive's own reader checks
that it is whole.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from acquirers.memory import kallsyms, vmcoreinfo
from agent.analysis.isf_table import DECLARED
from agent.analysis.tarstream import TarStream
from agent.errors import DamagedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.memory.kallsyms import Symbol
    from acquirers.memory.vmcoreinfo import Vmcoreinfo
    from agent.analysis.tarstream import ByteStream

ITEM = "memory/symbols.tar"
MAX_BTF = 64 << 20
MAX_MODULES = 2000
MAX_MODULES_BYTES = 256 << 20
MAX_BANNER = 4096
LEAST = 1000
"""Symbols of a System.map that is one: Debian's says only where the real one is."""

_BTF = re.compile(rb"\[root\]/sys/kernel/btf/([^/]{1,255})")
_MAP = re.compile(rb"\[root\]/(?:boot|usr/lib/modules|lib/modules)/(?:[^/]{1,255}/)?System\.map[^/]{0,255}")
_KALLSYMS = b"[root]/proc/kallsyms"
_VERSION = b"[root]/proc/version"
_VMCOREINFO = b"[derived]/vmcoreinfo"


class Kernel(msgspec.Struct):
    """One kernel's description of itself, as it was acquired."""

    banner: bytes = b""
    """/proc/version, which is `linux_banner`: with its line feed."""
    btf: bytes = b""
    modules: dict[str, bytes] = msgspec.field(default_factory=dict)
    """Split BTF by name of the module."""
    information: Vmcoreinfo | None = None
    kallsyms: list[bytes] = msgspec.field(default_factory=list)
    """Compressed."""
    system_map: list[bytes] = msgspec.field(default_factory=list)
    """Compressed; that of the distribution."""
    left_out: int = 0
    """Modules beyond the limits."""

    def lines(self) -> Iterator[bytes]:
        return kallsyms.lines_of(_unpacked(self.kallsyms))


def read(stream: ByteStream) -> Kernel:
    """What the archive has. Raises `DamagedError`, `SourceError`."""
    tar, found = TarStream(stream), Kernel()
    room = MAX_MODULES_BYTES
    for header in tar:
        if header.kind is not Kind.FILE:
            continue
        name = header.name
        if name == _VERSION:
            found.banner = _bytes(tar, MAX_BANNER)
        elif name == _VMCOREINFO:
            found.information = _information(_bytes(tar, vmcoreinfo.MAX_NOTE))
        elif name == _KALLSYMS:
            found.kallsyms = _packed(tar)
        elif _MAP.fullmatch(name) and not found.system_map:
            found.system_map = _packed(tar)
        elif match := _BTF.fullmatch(name):
            if match[1] == b"vmlinux":
                found.btf = _bytes(tar, MAX_BTF)
            elif len(found.modules) < MAX_MODULES and header.size <= min(room, MAX_BTF):
                room -= header.size
                found.modules[match[1].decode("utf-8", "backslashreplace")] = _bytes(tar, MAX_BTF)
            else:
                found.left_out += 1
    return found


def addresses(kernel: Kernel) -> tuple[dict[str, int], str]:
    """Link-time addresses of the kernel's own symbols, and where they are from. Raises `SourceError`, `DamagedError`.

    A name that stands more than once: what is global counts before what is local, then what comes first.
    """
    try:
        if kernel.kallsyms:
            return _from_kallsyms(kernel)
        if kernel.system_map:
            found = _best(kallsyms.parse(kallsyms.lines_of(_unpacked(kernel.system_map))), 0)
            if len(found) >= LEAST:
                return _with_vmcoreinfo(found, kernel), "the System.map of the distribution"
    except kallsyms.KallsymsError as error:
        raise DamagedError(f"the kernel's symbols cannot be read: {error}") from error
    raise SourceError(
        "the run has no symbols with addresses: /proc/kallsyms was masked or is not in this kernel, and there is no "
        "System.map of it in /boot"
    )


def _from_kallsyms(kernel: Kernel) -> tuple[dict[str, int], str]:
    text = None
    for symbol in kallsyms.parse(kernel.lines()):
        if symbol.name in {"_text", "_stext"} and not symbol.module:
            text = symbol.address
            break
    offset = kernel.information.kernel_offset if kernel.information is not None else None
    # Only of x86-64 it is known where a kernel is linked to, and no other has its code there.
    inside = text is not None and 0 <= text - kallsyms.X86_LINK < kallsyms.X86_WINDOW
    slide = kallsyms.slide(text, offset, "x86_64" if inside else "another")
    if slide.offset is None:
        raise SourceError(f"KASLR cannot be taken out of the addresses: {slide.source}")
    found = _best(kallsyms.parse(kernel.lines()), slide.offset)
    return _with_vmcoreinfo(found, kernel), f"/proc/kallsyms, moved back by {slide.offset:#x} ({slide.source})"


def _best(symbols: Iterator[Symbol], offset: int) -> dict[str, int]:
    found: dict[str, tuple[int, int]] = {}
    for symbol in symbols:
        if symbol.module:
            continue
        # Of a function and a variable of one name, the one that plugins start from.
        rank = 2 * symbol.kind.isupper() + (symbol.name in DECLARED and symbol.kind not in "tTwW")
        known = found.get(symbol.name)
        if known is None or rank > known[0]:
            found[symbol.name] = (rank, kallsyms.link_time(symbol.address, offset))
    return {name: address for name, (_, address) in found.items()}


def _with_vmcoreinfo(found: dict[str, int], kernel: Kernel) -> dict[str, int]:
    """Those that kallsyms leaves out (its own tables)."""
    information = kernel.information
    if information is not None and information.kernel_offset is not None:
        for name, address in information.symbols.items():
            found.setdefault(name, kallsyms.link_time(address, information.kernel_offset))
    return found


def _information(text: bytes) -> Vmcoreinfo | None:
    try:
        return vmcoreinfo.parse(text)
    except vmcoreinfo.MalformedError as error:
        raise DamagedError(f"{_VMCOREINFO.decode()}: {error}") from error


def _bytes(tar: TarStream, limit: int) -> bytes:
    data = bytearray()
    for _, piece in tar.content():
        data += piece
        if len(data) > limit:
            raise DamagedError(f"a member of {ITEM} has more than {limit} bytes")
    return bytes(data)


def _packed(tar: TarStream) -> list[bytes]:
    packer, parts, size = zlib.compressobj(1), list[bytes](), 0
    for _, piece in tar.content():
        size += len(piece)
        if size > kallsyms.MAX_BYTES:
            raise DamagedError(f"a list of symbols of more than {kallsyms.MAX_BYTES} bytes")
        parts.append(packer.compress(piece))
    parts.append(packer.flush())
    return parts


def _unpacked(parts: list[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    for part in parts:
        rest = part
        while rest:
            yield unpacker.decompress(rest, 1 << 20)
            rest = unpacker.unconsumed_tail
    yield unpacker.flush()
