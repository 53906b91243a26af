"""The symbols of a Volatility 3 symbol file: link-time addresses, and types as far as they are known.

Addresses come from /proc/kallsyms (or the System.map of the very kernel, where kallsyms was masked) and from
VMCOREINFO, which names some that kallsyms leaves out. Types come from BTF, where it describes variables, and else from
the table of `isf_table`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from acquirers.memory.btf import COMPOSITE, Kind
from agent.analysis.isf_table import DECLARED, LEFT_OUT
from agent.analysis.isf_types import FUNCTION, VOID, Json, Types

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FORM = re.compile(r"(?P<base>[a-z_0-9 ]+?|\{[a-z_ ]+\}) ?(?P<stars>\**)(?P<counts>(?:\[\d*\])*)")
_SPELLED = {
    "int": "int", "char": "char", "unsigned char": "unsigned char", "unsigned short": "short unsigned int",
    "unsigned int": "unsigned int", "unsigned long": "long unsigned int",
    "unsigned long long": "long long unsigned int",
}  # fmt: skip
_SIZES = {
    "int": 4, "char": 1, "unsigned char": 1, "short unsigned int": 2, "unsigned int": 4, "long unsigned int": 8,
    "long long unsigned int": 8,
}  # fmt: skip
_TAGS = {"struct": Kind.STRUCT, "union": Kind.UNION, "enum": Kind.ENUM}
_MAX_COUNT = 1 << 16


class Symbols:
    """Addresses by name, and what lies at them."""

    def __init__(self, types: Types, addresses: Mapping[str, int]) -> None:
        self._types = types
        self._addresses = addresses
        self._sorted = sorted(set(addresses.values()))
        self._variables: dict[str, int] = {}
        for one in types.btf.types():
            if one.kind is Kind.VAR and one.name:
                self._variables.setdefault(one.name, one.refers)

    def all(self) -> Iterator[tuple[str, Json]]:
        """Every symbol as the file has it, without constant data."""
        for name, address in self._addresses.items():
            if name in LEFT_OUT:
                continue
            yield name, {"address": address, "type": self.type_of(name) or VOID}

    def type_of(self, name: str) -> Json | None:
        """What is known of the type of a symbol."""
        if (number := self._variables.get(name)) is not None:
            return self._types.descriptor(number)
        for form in DECLARED.get(name, "").split("|"):
            if form and (found := self._parse(form.strip(), name)) is not None:
                return found
        return None

    def _parse(self, form: str, symbol: str) -> Json | None:
        found = _FORM.fullmatch(form)
        if found is None:
            raise ValueError(form)
        base = self._base(found["base"])
        if base is None:
            return None
        result, size = base
        for _ in found["stars"]:
            result, size = {"kind": "pointer", "subtype": result}, 8
        for text in reversed(re.findall(r"\[(\d*)\]", found["counts"])):
            count = int(text) if text else self._room(symbol) // size if size else 0
            result = {"kind": "array", "count": min(count, _MAX_COUNT), "subtype": result}
            size *= count
        return result

    def _base(self, text: str) -> tuple[Json, int] | None:
        """Descriptor and size in bytes."""
        if text in _SPELLED:
            name = _SPELLED[text]
            return {"kind": "base", "name": name}, _SIZES[name]
        if text == "pointer":
            return {"kind": "pointer", "subtype": FUNCTION}, 8
        if text.startswith("{"):
            number = self._unnamed(text[1:-1].split())
        else:
            tag, _, name = text.rpartition(" ")
            number = self._types.struct_id(name, _TAGS[tag]) if tag else self._types.typedef_id(name)
        if number is None:
            return None
        return self._types.descriptor(number), self._types.btf.size(number)

    def _unnamed(self, members: list[str]) -> int | None:
        for one in self._types.btf.types():
            if one.kind in COMPOSITE and not one.name and one.length >= len(members):
                names = [field.name for field in self._types.btf.fields(one)[: len(members)]]
                if names == members:
                    return one.id
        return None

    def _room(self, name: str) -> int:
        """Bytes to the next symbol."""
        address = self._addresses.get(name)
        index = bisect_right(self._sorted, address) if address is not None else len(self._sorted)
        return self._sorted[index] - (address or 0) if index < len(self._sorted) else 0
