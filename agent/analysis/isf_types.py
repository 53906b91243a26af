"""BTF as the types of a Volatility 3 symbol file (Intermediate Symbol Format 6.2.0): base types, user types, enums.

Volatility's schemas/schema-6.2.0.json says what may stand there; how things are called follows dwarf2json 0.9, because
plugins look for its names: a structure without a name has that of its typedef, or `unnamed_` and a number of our own;
members without a name are `unnamed_field_N`, marked `anonymous`, and Volatility counts their members as those of what
they stand in; aliases (typedef, const, volatile) are seen through; bit fields begin at their first byte.

Two types of one name, which C allows in different files: the one that is described first has it, and the others have a
number behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from acquirers.memory.btf import ALIASES, COMPOSITE, ENUMS, MAX_DEPTH, Btf, BtfError, Kind, Type

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]

VOID: Json = {"kind": "base", "name": "void"}
FUNCTION: Json = {"kind": "function"}

_POINTER = 8
# What plugins ask for by name, whatever the compiler called it: (bytes, signed, kind).
_KNOWN: dict[str, tuple[int, bool, str]] = {
    "void": (0, False, "void"), "pointer": (_POINTER, False, "int"), "_Bool": (1, False, "bool"),
    "char": (1, True, "char"), "signed char": (1, True, "char"), "unsigned char": (1, False, "char"),
    "short int": (2, True, "int"), "short unsigned int": (2, False, "int"), "int": (4, True, "int"),
    "unsigned int": (4, False, "int"), "long int": (8, True, "int"), "long unsigned int": (8, False, "int"),
    "long long int": (8, True, "int"), "long long unsigned int": (8, False, "int"), "bool": (1, False, "bool"),
    "unsigned short": (2, False, "int"), "unsigned long": (8, False, "int"),
}  # fmt: skip
_BY_SIZE = {
    (1, True): "signed char", (1, False): "unsigned char", (2, True): "short int", (2, False): "short unsigned int",
    (4, True): "int", (4, False): "unsigned int", (8, True): "long int", (8, False): "long unsigned int",
}  # fmt: skip
_SIZES = frozenset({1, 2, 4, 8})


class Names(msgspec.Struct):
    """What is called how in one file: its kernel and its modules share one room of names."""

    structs: dict[str, int] = msgspec.field(default_factory=dict)
    """Structures and unions -> number of the type."""
    enums: dict[str, int] = msgspec.field(default_factory=dict)
    typedefs: dict[str, int] = msgspec.field(default_factory=dict)
    mentioned: dict[str, str] = msgspec.field(default_factory=dict)
    """Structures that nothing describes so far -> `struct` or `union`."""
    of: dict[int, str] = msgspec.field(default_factory=dict)
    """The name in the file of each structure, union and enum of the kernel; a module's are its own."""


class Types:
    """The types of one BTF: of a kernel, or of a module that goes on from its kernel's. Raises `BtfError`."""

    def __init__(self, btf: Btf, base: Types | None = None, tag: str = "") -> None:
        """`tag` tells apart what modules call the same, and what has no name."""
        self.btf = btf
        self.names: Names = Names() if base is None else base.names
        self._tag = tag
        self._of: dict[int, str] = self.names.of if base is None else {}
        self._second: list[tuple[str, int]] = []
        """Structures that have a name and are called by a typedef, too."""
        self._name_all()

    # -- names --------------------------------------------------------------------------------------------------------

    def _name_all(self) -> None:
        unnamed: dict[int, Type] = {}
        typedefs: list[Type] = []
        for one in self.btf.types():
            if one.kind in COMPOSITE or one.kind in ENUMS:
                if one.name:
                    self._name(one, one.name)
                else:
                    unnamed[one.id] = one
            elif one.kind is Kind.TYPEDEF and one.name:
                typedefs.append(one)
        for alias in typedefs:
            self.names.typedefs.setdefault(alias.name, alias.id)
            if alias.refers in unnamed and alias.name not in self._room(unnamed[alias.refers]):
                self._name(unnamed.pop(alias.refers), alias.name)
            elif self.btf.type(alias.refers).kind in COMPOSITE and alias.name not in self.names.structs:
                self.names.structs[alias.name] = alias.refers
                self._second.append((alias.name, alias.refers))
        for one in unnamed.values():
            self._name(one, f"unnamed_{self._tag}{one.id:x}")

    def _room(self, one: Type) -> dict[str, int]:
        return self.names.enums if one.kind in ENUMS else self.names.structs

    def _name(self, one: Type, name: str) -> None:
        name = name.replace("!", "_")  # to Volatility, what stands before it is another file
        room = self._room(one)
        if name in room:
            name = f"{name}_{self._tag}{one.id:x}"
        self._of[one.id] = name
        room.setdefault(name, one.id)

    def _name_of(self, one: Type) -> str:
        return self._of[one.id] if one.id >= self.btf.first else self.names.of[one.id]

    def struct_id(self, name: str, kind: Kind) -> int | None:
        """The structure, union or enum that has the name in the file."""
        number = (self.names.enums if kind in ENUMS else self.names.structs).get(name)
        return number if number is not None and self.btf.type(number).kind in {kind, Kind.ENUM64} else None

    def typedef_id(self, name: str) -> int | None:
        return self.names.typedefs.get(name)

    # -- descriptors --------------------------------------------------------------------------------------------------

    def descriptor(self, number: int) -> Json:
        """How a member, symbol or element refers to a type."""
        outer: list[Json] = []
        for _ in range(MAX_DEPTH):
            one = self.btf.type(number)
            if one.kind is Kind.PTR:
                outer.append({"kind": "pointer"})
                number = one.refers
            elif one.kind is Kind.ARRAY:
                found = self.btf.array_of(one)
                outer.append({"kind": "array", "count": found.length})
                number = found.element
            elif one.kind in ALIASES and not self._names_struct(one):
                number = one.refers
            else:
                inner = self._leaf(one)
                for wrapper in reversed(outer):
                    wrapper["subtype"] = inner
                    inner = wrapper
                return inner
        raise BtfError(f"more than {MAX_DEPTH} pointers and aliases of one type in BTF")

    def _names_struct(self, one: Type) -> bool:
        """A typedef by which a structure is called where it stands."""
        return one.kind is Kind.TYPEDEF and self.names.structs.get(one.name, 0) == one.refers > 0

    def _leaf(self, one: Type) -> Json:
        if one.kind is Kind.TYPEDEF:
            target = self.btf.type(one.refers)
            return {"kind": "struct" if target.kind is Kind.STRUCT else "union", "name": one.name}
        if one.kind in COMPOSITE:
            return {"kind": "struct" if one.kind is Kind.STRUCT else "union", "name": self._name_of(one)}
        if one.kind in ENUMS:
            return {"kind": "enum", "name": self._name_of(one)}
        if one.kind is Kind.INT or one.kind is Kind.FLOAT:
            return {"kind": "base", "name": one.name or _BY_SIZE.get((one.size, False), "void")}
        if one.kind is Kind.FWD:
            kind = "union" if one.flag else "struct"
            if one.name not in self.names.structs:
                self.names.mentioned.setdefault(one.name, kind)
            return {"kind": kind, "name": one.name}
        if one.kind is Kind.FUNC_PROTO or one.kind is Kind.FUNC:
            return FUNCTION
        return VOID

    # -- the sections of the file -------------------------------------------------------------------------------------

    def base_types(self) -> Iterator[tuple[str, Json]]:
        found: dict[str, tuple[int, bool, str]] = {}
        for one in self.btf.types():
            if one.kind is Kind.INT and one.name:
                about = self.btf.int_of(one)
                kind = "bool" if about.bool_ else "char" if one.size == 1 and "char" in one.name else "int"
                found.setdefault(one.name, (one.size, about.signed, kind))
            elif one.kind is Kind.FLOAT and one.name:
                found.setdefault(one.name, (one.size, True, "float"))
        for name, (size, signed, kind) in (_KNOWN | found | {key: _KNOWN[key] for key in ("void", "pointer")}).items():
            yield name, {"size": size, "signed": signed, "kind": kind, "endian": "little"}

    def user_types(self) -> Iterator[tuple[str, Json]]:
        for one in self.btf.types():
            if one.kind in COMPOSITE:
                yield self._of[one.id], self._user_type(one)
        for name, number in self._second:
            yield name, self._user_type(self.btf.type(number))

    def forward(self) -> Iterator[tuple[str, Json]]:
        """Structures that are mentioned and not described, after all others."""
        for name, kind in self.names.mentioned.items():
            if name not in self.names.structs:
                yield name, {"kind": kind, "size": 0, "fields": {}}

    def enums(self) -> Iterator[tuple[str, Json]]:
        for one in self.btf.types():
            if one.kind in ENUMS:
                values = dict(self.btf.values(one))
                signed = any(value < 0 for value in values.values())
                base = _BY_SIZE.get((one.size, signed), "unsigned int")
                yield self._of[one.id], {"size": one.size, "base": base, "constants": values}

    def _user_type(self, one: Type) -> Json:
        fields: Json = {}
        unnamed = 0
        for member in self.btf.fields(one):
            inner = self.btf.plain(member.type_id)
            if not member.name:
                if inner.kind in COMPOSITE:
                    place: Json = {"type": self._leaf(inner), "offset": member.offset_bits // 8, "anonymous": True}
                    fields[f"unnamed_field_{unnamed:x}"] = place
                    unnamed += 1
                continue  # else padding between bit fields
            bits, offset = member.bits, member.offset_bits
            if inner.kind is Kind.INT and not bits:
                about = self.btf.int_of(inner)
                if about.bits != inner.size * 8 or about.offset:  # how it was said before Linux 5.0
                    bits, offset = about.bits, offset + about.offset
            if bits or offset % 8:
                fields[member.name] = self._bit_field(inner, offset, bits or inner.size * 8)
            else:
                fields[member.name] = {"type": self.descriptor(member.type_id), "offset": offset // 8}
        return {"kind": "struct" if one.kind is Kind.STRUCT else "union", "size": one.size, "fields": fields}

    def _bit_field(self, one: Type, offset: int, bits: int) -> Json:
        """An integer of its own size, or of more if the field crosses its end (packed structures).

        Volatility cuts the bits out of the value of that type: of a bool that would be 0 or 1, of an enum refused.
        """
        position = offset % 8
        about = self.btf.int_of(one) if one.kind is Kind.INT else None
        signed = about is not None and about.signed
        if about is not None and not about.bool_ and position + bits <= 8 * one.size and one.name:
            name = one.name
        else:
            size = next((size for size in (one.size, 1, 2, 4) if size in _SIZES and position + bits <= 8 * size), 8)
            name = _BY_SIZE[size, signed]
        base = {"kind": "base", "name": name}
        kind = {"kind": "bitfield", "bit_position": position, "bit_length": bits, "type": base}
        return {"type": kind, "offset": offset // 8}
