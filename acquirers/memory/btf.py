"""BTF: the kernel's own description of its types, as /sys/kernel/btf gives it.

Format: Linux, include/uapi/linux/btf.h and Documentation/bpf/btf.rst. A header, the types one after the other, and
their names. Types are numbered from 1 in the order in which they stand; 0 is `void`. A module's BTF is *split*: its
numbers and names go on where those of its base, vmlinux, end. Both byte orders are read.

It comes from the examined machine: everything is bounded, and whatever is wrong with it raises `BtfError`. `parse` goes
over the types once and keeps where each stands; members are decoded when they are asked for.
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAGIC = 0xEB9F
MAX_BTF = 64 << 20
"""Bytes; the largest kernels have 10 MiB."""
MAX_TYPES = 1 << 22
MAX_NAME = 4096
MAX_DEPTH = 64
"""Types that refer to one another without an end in sight; also structures inside of structures."""
MAX_MEMBERS = 1 << 16
"""Members of one structure together with those of its unnamed parts."""
MAX_BYTES = 1 << 48
"""Bytes that one type may have."""

POINTER = 8
"""Bytes of a pointer: no 32-bit kernel is read here."""

_HEADER = 24


class BtfError(ValueError):
    """Not what the format says: one line for a person."""


class Kind(enum.IntEnum):
    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_KINDS = tuple(Kind)
# Bytes that follow `struct btf_type`: (once, for each of vlen).
_FOLLOWS = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}
COMPOSITE = frozenset({Kind.STRUCT, Kind.UNION})
ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
ALIASES = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
"""Kinds that only say something more about the type that they refer to."""


class Type(NamedTuple):
    """One type as it stands."""

    id: int
    kind: Kind
    name: str
    """Empty if it has none."""
    size: int
    """Bytes of INT, STRUCT, UNION, ENUM, FLOAT, DATASEC and ENUM64; else 0."""
    refers: int
    """The type that a PTR, alias, FUNC, FUNC_PROTO, VAR or DECL_TAG refers to; else 0."""
    flag: bool
    """`kind_flag`: FWD of a union, signed ENUM, STRUCT and UNION with bit fields."""
    length: int
    """How many members, values, parameters or variables."""


class Int(NamedTuple):
    bits: int
    offset: int
    """Bits; only in BTF of compilers before 2019."""
    signed: bool
    char: bool
    bool_: bool


class Array(NamedTuple):
    element: int
    by: int
    """The type that it is indexed by."""
    length: int


class Field(NamedTuple):
    """A member as its structure names it."""

    name: str
    """Empty: an unnamed structure or union, whose members count as its own; or unnamed padding of bits."""
    type_id: int
    offset_bits: int
    bits: int
    """Width of a bit field, 0 if it is none."""


class Member(NamedTuple):
    """A member, counted from the start of the structure that was asked for."""

    offset_bits: int
    bits: int
    """Width of a bit field, 0 if it is none."""
    type_id: int


class Struct(msgspec.Struct, frozen=True):
    """A structure or union, members of its unnamed parts included."""

    id: int
    size: int
    """Bytes."""
    members: Mapping[str, Member]


class Section:
    """The bytes of one BTF, and where in them each type stands; private to this module."""

    def __init__(self, data: bytes, first: int, first_name: int) -> None:
        """`first` and `first_name` are the number of its first type and the offset of its first name."""
        if len(data) > MAX_BTF:
            raise BtfError(f"BTF of {len(data)} bytes is larger than any kernel's")
        if len(data) < _HEADER:
            raise BtfError("BTF is shorter than its header")
        order = "<" if data[:2] == MAGIC.to_bytes(2, "little") else ">"
        magic, version, _, header, types, types_size, names, names_size = struct.unpack_from(order + "HBBIIIII", data)
        if magic != MAGIC:
            raise BtfError("BTF does not begin with its magic number")
        if version != 1:
            raise BtfError(f"BTF of version {version}, and only 1 is known")
        if header < _HEADER or max(header + types + types_size, header + names + names_size) > len(data):
            raise BtfError("BTF says that it is longer than it is")
        if names_size and data[header + names + names_size - 1]:
            raise BtfError("the last name of BTF has no end")
        self.data = data
        self.order = order
        self.first = first
        self.first_name = first_name
        self.names_at: int = header + names
        self.names_size: int = names_size
        self.head, self.pair, self.word = (struct.Struct(order + form) for form in ("III", "Ii", "I"))
        self.places, self.names = array("I"), array("I")
        self._index(header + types, header + types + types_size)

    def _index(self, at: int, end: int) -> None:
        head, size, data, known = self.head.unpack_from, self.head.size, self.data, len(_KINDS)
        once, each = [0] * known, [0] * known
        for kind, (fixed, repeated) in _FOLLOWS.items():
            once[kind], each[kind] = fixed, repeated
        places, names = self.places.append, self.names.append
        while at + size <= end:
            name, info, _ = head(data, at)
            kind = info >> 24 & 0x7F
            if not kind or kind >= known:
                raise BtfError(f"type {self.end} of BTF is of the unknown kind {kind}")
            places(at)
            names(name)
            # 16 bits of length and 5 of kind; the bits above them are zero, and reserved for more of the same.
            at += size + once[kind] + each[kind] * (info & 0xFFFFFF)
        if at != end:
            raise BtfError("the last type of BTF is cut short")
        if self.end > MAX_TYPES:
            raise BtfError(f"BTF of more than {MAX_TYPES} types")

    @property
    def end(self) -> int:
        """One more than the number of its last type."""
        return self.first + len(self.places)

    @property
    def end_name(self) -> int:
        return self.first_name + self.names_size

    def name(self, offset: int) -> str:
        start, end = self.names_at + offset - self.first_name, self.names_at + self.names_size
        found = self.data.find(b"\0", start, min(start + MAX_NAME, end))
        if found < 0:
            raise BtfError(f"a name of BTF is longer than {MAX_NAME} bytes")
        return self.data[start:found].decode("utf-8", "backslashreplace")

    def offsets_of(self, name: str) -> set[int]:
        """Every place at which `name` can be read; the end of a longer name counts, too."""
        wanted, found = name.encode("utf-8", "surrogateescape") + b"\0", set()
        at, end = self.names_at, self.names_at + self.names_size
        while name and (at := self.data.find(wanted, at, end)) >= 0:
            found.add(at - self.names_at + self.first_name)
            at += 1
        return found


class Btf:
    """Made by `parse`. What it raises, `KeyError` of what is not there aside, is `BtfError`."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        below = base.sections if base is not None else ()
        own = Section(data, below[-1].end, below[-1].end_name) if below else Section(data, 1, 0)
        if below and below[-1].order != own.order:
            raise BtfError("BTF has another byte order than its base")
        self.sections: tuple[Section, ...] = (*below, own)
        self.first = own.first
        """The first number of a type that is no type of its base."""
        self.end = own.end
        """One more than the last number of a type."""
        self._structs: dict[str, Struct] = {}

    # -- single types -------------------------------------------------------------------------------------------------

    def type(self, number: int) -> Type:
        if number == 0:
            return _VOID
        section, at = self._place(number)
        name, info, value = section.head.unpack_from(section.data, at)
        kind = _KINDS[info >> 24 & 0x7F]
        return Type(
            number,
            kind,
            self.name(name) if name else "",
            value if kind in _SIZED else 0,
            value if kind in _REFERRING else 0,
            bool(info >> 31),
            info & 0xFFFFFF,
        )

    def types(self) -> Iterator[Type]:
        """All that are not its base's, in order."""
        return map(self.type, range(self.first, self.end))

    def int_of(self, one: Type) -> Int:
        value = self._u32(one, Kind.INT)
        encoding = value >> 24 & 0xF
        return Int(value & 0xFF, value >> 16 & 0xFF, bool(encoding & 1), bool(encoding & 2), bool(encoding & 4))

    def array_of(self, one: Type) -> Array:
        section, at = self._after(one, Kind.ARRAY)
        return Array(*section.head.unpack_from(section.data, at))

    def linkage_of(self, one: Type) -> int:
        """Of a VAR: 0 static, 1 global, 2 extern."""
        return self._u32(one, Kind.VAR)

    def fields(self, one: Type) -> list[Field]:
        """The members of a STRUCT or UNION, in order."""
        found = []
        for name, type_id, offset in self._triples(one, Kind.STRUCT, Kind.UNION):
            bits = offset >> 24 if one.flag else 0
            found.append(Field(self.name(name), type_id, offset & 0xFFFFFF if one.flag else offset, bits))
        return found

    def values(self, one: Type) -> list[tuple[str, int]]:
        """The names and numbers of an ENUM or ENUM64.

        Before Linux 6.0 nothing says whether an ENUM is signed: its negative numbers are given as 32-bit ones then.
        """
        if one.kind is Kind.ENUM64:
            found = [(self.name(name), high << 32 | low) for name, low, high in self._triples(one, Kind.ENUM64)]
            return [(name, value - (1 << 64) if one.flag and value >> 63 else value) for name, value in found]
        section, at = self._after(one, Kind.ENUM)
        pairs = section.pair.iter_unpack(section.data[at : at + section.pair.size * one.length])
        return [(self.name(name), value if one.flag else value & 0xFFFFFFFF) for name, value in pairs]

    def variables(self, one: Type) -> list[tuple[int, int, int]]:
        """What a DATASEC lists: (number of a VAR, offset in bytes, size in bytes)."""
        return list(self._triples(one, Kind.DATASEC))

    def name(self, offset: int) -> str:
        if not offset:
            return ""
        for section in self.sections:
            if offset < section.end_name:
                return section.name(offset)
        raise BtfError(f"a name of BTF lies outside of it, at {offset}")

    # -- what types mean ----------------------------------------------------------------------------------------------

    def plain(self, number: int) -> Type:
        """The type behind all aliases: typedefs, const, volatile, restrict and tags."""
        for _ in range(MAX_DEPTH):
            one = self.type(number)
            if one.kind not in ALIASES:
                return one
            number = one.refers
        raise BtfError(f"more than {MAX_DEPTH} aliases of one type in BTF")

    def size(self, number: int) -> int:
        """Bytes of a type; 0 of what has none (void, functions, forward declarations)."""
        factor = 1
        for _ in range(MAX_DEPTH):
            one = self.plain(number)
            if one.kind is not Kind.ARRAY:
                size = factor * (POINTER if one.kind is Kind.PTR else one.size)
                if size > MAX_BYTES:
                    break
                return size
            array_ = self.array_of(one)
            number = array_.element
            factor = min(factor * array_.length, MAX_BYTES + 1)
        raise BtfError(f"type {number} of BTF is larger than any memory")

    def ids(self, name: str) -> list[int]:
        """The numbers of all types of that name, ascending; those of its base come first."""
        wanted = set[int]().union(*(section.offsets_of(name) for section in self.sections))
        return [
            number
            for section in self.sections
            for number, offset in enumerate(section.names if wanted else (), section.first)
            if offset in wanted
        ]

    def find(self, name: str, *kinds: Kind) -> Type:
        """The first type of that name and of the first of these kinds that there is. Raises `KeyError`."""
        found = [self.type(number) for number in self.ids(name)]
        for kind in kinds:
            for one in found:
                if one.kind is kind:
                    return one
        raise KeyError(name)

    def struct(self, name: str) -> Struct:
        """The structure of that name, else the union, else what a typedef gives that name. Raises `KeyError`."""
        found = self._structs.get(name)
        if found is None:
            one = self.plain(self.find(name, Kind.STRUCT, Kind.UNION, Kind.TYPEDEF).id)
            if one.kind not in COMPOSITE:
                raise KeyError(name)
            found = self._structs[name] = Struct(one.id, one.size, self._members(one))
        return found

    def offset(self, struct: str, member: str) -> int:
        """Where a member begins, in bytes from the start of the structure. Raises `KeyError` of what is not there."""
        found = self.struct(struct).members.get(member)
        if found is None:
            raise KeyError(f"{struct}.{member}")
        if found.offset_bits % 8:
            raise KeyError(f"{struct}.{member} (a bit field)")
        return found.offset_bits // 8

    def _members(self, one: Type) -> dict[str, Member]:
        """Breadth first. An unnamed part may stand in many places: all that is looked at counts, not what is new."""
        members: dict[str, Member] = {}
        todo, looked_at = deque([(one, 0, 0)]), 0
        while todo:
            outer, shift, depth = todo.popleft()
            looked_at += outer.length
            if looked_at > MAX_MEMBERS or depth > MAX_DEPTH:
                raise BtfError(f"a structure of more than {MAX_MEMBERS} members or {MAX_DEPTH} levels in BTF")
            for field in self.fields(outer):
                if field.name:
                    members.setdefault(field.name, Member(shift + field.offset_bits, field.bits, field.type_id))
                    continue
                inner = self.plain(field.type_id)
                if inner.kind in COMPOSITE:
                    todo.append((inner, shift + field.offset_bits, depth + 1))
        return members

    # -- places -------------------------------------------------------------------------------------------------------

    def _place(self, number: int) -> tuple[Section, int]:
        for section in self.sections:
            if section.first <= number < section.end:
                return section, section.places[number - section.first]
        raise BtfError(f"BTF has no type {number}")

    def _after(self, one: Type, *kinds: Kind) -> tuple[Section, int]:
        """Where what follows a type begins, and in whose data."""
        if one.kind not in kinds:
            raise BtfError(f"type {one.id} of BTF is of kind {one.kind.name}")
        section, at = self._place(one.id)
        return section, at + section.head.size

    def _u32(self, one: Type, kind: Kind) -> int:
        section, at = self._after(one, kind)
        return int(section.word.unpack_from(section.data, at)[0])

    def _triples(self, one: Type, *kinds: Kind) -> Iterator[tuple[int, int, int]]:
        section, at = self._after(one, *kinds)
        return section.head.iter_unpack(section.data[at : at + section.head.size * one.length])


_VOID = Type(0, Kind.VOID, "void", 0, 0, flag=False, length=0)
_SIZED = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.DATASEC, Kind.ENUM64})
_REFERRING = ALIASES | {Kind.PTR, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG}


def parse(data: bytes, base: Btf | None = None) -> Btf:
    """Reads BTF; of a module together with that of its kernel. Raises `BtfError`."""
    return Btf(data, base)
