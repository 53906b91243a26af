"""`impound export isf`: a Volatility 3 symbol file from what the kernel itself said: BTF, kallsyms and banner.

No debug package of the vendor and no DWARF is needed. Intermediate Symbol Format 6.2.0 (schemas/schema-6.2.0.json of
volatility3); `metadata` has no `linux`, whose kinds know neither BTF nor kallsyms. The file is written as it is made.
"""

from __future__ import annotations

import base64
import json
import lzma
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import btf as btf_module
from acquirers.memory.btf import BtfError
from agent.analysis import isf_source
from agent.analysis.isf_symbols import Symbols
from agent.analysis.isf_types import VOID, Json, Types
from agent.analysis.notes import printable
from agent.errors import DamagedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent.analysis.isf_source import Kernel

FORMAT = "6.2.0"
NEEDED = ("init_task", "init_files", "init_mm")
"""What Volatility finds a kernel by; `linux_banner` and the page tables aside."""
TABLES = ("init_top_pgt", "init_level4_pgt", "swapper_pg_dir")

_GATHER = 1 << 18
_START = b"Linux version "


class Made(msgspec.Struct):
    """What came of it, filled while the file is made."""

    banner: str = ""
    types: int = 0
    enums: int = 0
    symbols: int = 0
    typed: int = 0
    """Symbols whose type is known."""
    modules: int = 0
    """Whose types are in it, too."""
    addresses: str = ""
    """Where the addresses are from."""
    notes: list[str] = msgspec.field(default_factory=list)
    """What limits the file: lines for a person."""


def make(kernel: Kernel, made: Made, *, version: str) -> Iterator[bytes]:
    """The file as JSON. Raises `SourceError` if something is missing that it cannot do without, and `DamagedError`."""
    if not kernel.banner.startswith(_START):
        raise SourceError("/proc/version is not in the run: without the banner no symbol file is found for an image")
    if not kernel.btf:
        raise SourceError(
            "the examined kernel has no BTF (CONFIG_DEBUG_INFO_BTF): its types are only in the vendor's debug package, "
            "from which dwarf2json makes a symbol file"
        )
    addresses, made.addresses = isf_source.addresses(kernel)
    made.banner = kernel.banner.decode("utf-8", "backslashreplace").strip()
    made.notes += _lacking(addresses, kernel)
    try:
        own = Types(btf_module.parse(kernel.btf))
        yield from _gathered(
            _document(own, _modules(kernel, own, made), Symbols(own, addresses), kernel, made, version)
        )
    except BtfError as error:
        raise DamagedError(f"the acquired BTF cannot be read: {error}") from error


def _lacking(addresses: Mapping[str, int], kernel: Kernel) -> Iterator[str]:
    missing = [name for name in NEEDED if name not in addresses]
    if not any(name in addresses for name in TABLES):
        missing.append(" or ".join(TABLES))
    if missing:
        yield (
            f"the kernel's symbols do not name {', '.join(missing)} (no CONFIG_KALLSYMS_ALL): Volatility will find no "
            "kernel with this file"
        )
    if kernel.left_out:
        yield f"the types of {kernel.left_out} modules are left out: too many or too large"


class _Part(msgspec.Struct):
    """The types of one module."""

    user_types: list[tuple[str, Json]]
    enums: list[tuple[str, Json]]


def _modules(kernel: Kernel, own: Types, made: Made) -> list[_Part]:
    """What modules have beyond their kernel. One whose BTF cannot be read is left out, and told."""
    found = []
    for index, (name, data) in enumerate(kernel.modules.items()):
        try:
            types = Types(btf_module.parse(data, own.btf), own, tag=f"m{index:x}_")
            found.append(_Part(list(types.user_types()), list(types.enums())))
        except BtfError as error:
            made.notes.append(f"the types of the module {printable(name.encode())[:80]} are left out: {error}")
    made.modules = len(found)
    return found


def _document(
    own: Types, modules: list[_Part], symbols: Symbols, kernel: Kernel, made: Made, version: str
) -> Iterator[str]:
    metadata = {"format": FORMAT, "producer": {"name": "impound", "version": version}}
    yield f'{{"metadata":{json.dumps(metadata)},"base_types":{{'
    yield from _entries(own.base_types())
    yield '},"enums":{'
    for enum in _entries(chain(own.enums(), *(part.enums for part in modules))):
        made.enums += 1
        yield enum
    yield '},"user_types":{'
    described = chain(own.user_types(), *(part.user_types for part in modules))
    for user_type in _entries(chain(described, own.forward())):
        made.types += 1
        yield user_type
    yield '},"symbols":{'
    yield from _entries(_symbols(symbols, kernel.banner, made))
    yield "}}\n"


def _symbols(symbols: Symbols, banner: bytes, made: Made) -> Iterator[tuple[str, Json]]:
    text = {"kind": "array", "count": len(banner), "subtype": {"kind": "base", "name": "char"}}
    constant = {"type": text, "constant_data": base64.b64encode(banner).decode()}
    named = False
    for name, symbol in symbols.all():
        if name == "linux_banner":
            symbol |= constant  # noqa: PLW2901
            named = True
        made.symbols += 1
        made.typed += symbol["type"] != VOID
        yield name, symbol
    if not named:  # a kernel without CONFIG_KALLSYMS_ALL: Volatility still asks for it
        yield "linux_banner", {"address": 0} | constant


def _entries(pairs: Iterable[tuple[str, Json]]) -> Iterator[str]:
    comma = ""
    for name, value in pairs:
        yield f"{comma}{json.dumps(name)}:{json.dumps(value, separators=(',', ':'))}"
        comma = ","


def _gathered(pieces: Iterator[str]) -> Iterator[bytes]:
    waiting, size = list[str](), 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _GATHER:
            yield "".join(waiting).encode()
            waiting, size = [], 0
    yield "".join(waiting).encode()


def compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """As .xz, which Volatility reads as it is."""
    packer = lzma.LZMACompressor(preset=1)
    for chunk in chunks:
        if data := packer.compress(chunk):
            yield data
    yield packer.flush()
