"""BTF made by hand, as include/uapi/linux/btf.h says: types are numbered in the order in which they are added."""

from __future__ import annotations

import struct

from acquirers.memory.btf import MAGIC, Kind


class Maker:
    """One BTF. `first` and `base_names` are of a base that it goes on from."""

    def __init__(self, order: str = "<", *, first: int = 1, base_names: int = 0) -> None:
        self.order = order
        self.types = bytearray()
        self.names = bytearray(b"" if base_names else b"\0")
        self.next = first
        self._base_names = base_names

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self._base_names + len(self.names)
        self.names += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, value: int, rest: bytes = b"", *, count: int = 0, flag: bool = False) -> int:
        info = int(flag) << 31 | kind << 24 | count
        self.types += struct.pack(self.order + "III", self.name(name), info, value) + rest
        self.next += 1
        return self.next - 1

    def words(self, *values: int) -> bytes:
        return struct.pack(f"{self.order}{len(values)}I", *(value & 0xFFFFFFFF for value in values))

    # -- kinds --------------------------------------------------------------------------------------------------------

    def integer(
        self, name: str, size: int, *, signed: bool = False, bits: int = 0, kind: int = 0, shift: int = 0
    ) -> int:
        about = (int(signed) | kind) << 24 | shift << 16 | (bits or size * 8)
        return self.add(Kind.INT, name, size, self.words(about))

    def pointer(self, to: int) -> int:
        return self.add(Kind.PTR, "", to)

    def array(self, of: int, count: int, by: int = 1) -> int:
        return self.add(Kind.ARRAY, "", 0, self.words(of, by, count))

    def struct(
        self,
        name: str,
        size: int,
        members: list[tuple[str, int, int]] | list[tuple[str, int, int, int]],
        *,
        union: bool = False,
        flag: bool = False,
    ) -> int:
        """Members are (name, type, offset in bits) and, with `flag`, width in bits."""
        rest = b"".join(
            self.words(self.name(member[0]), member[1], member[2] | (member[3] << 24 if len(member) > 3 else 0))
            for member in members
        )
        return self.add(Kind.UNION if union else Kind.STRUCT, name, size, rest, count=len(members), flag=flag)

    def enum(self, name: str, values: list[tuple[str, int]], size: int = 4, *, signed: bool = False) -> int:
        rest = b"".join(self.words(self.name(key), value) for key, value in values)
        return self.add(Kind.ENUM, name, size, rest, count=len(values), flag=signed)

    def enum64(self, name: str, values: list[tuple[str, int]], *, signed: bool = False) -> int:
        rest = b"".join(self.words(self.name(key), value, value >> 32) for key, value in values)
        return self.add(Kind.ENUM64, name, 8, rest, count=len(values), flag=signed)

    def bytes(self) -> bytes:
        header = struct.pack(
            self.order + "HBBIIIII", MAGIC, 1, 0, 24, 0, len(self.types), len(self.types), len(self.names)
        )
        return header + bytes(self.types) + bytes(self.names)


def kernel() -> Maker:
    """A small kernel: what an image's symbol file is made of."""
    made = Maker()
    number = made.integer("int", 4, signed=True)  # 1
    made.integer("long unsigned int", 8)  # 2
    char = made.integer("char", 1, signed=True, kind=2)  # 3
    boolean = made.integer("_Bool", 1, kind=4)  # 4
    head = made.next
    made.struct("list_head", 16, [("next", head + 1, 0), ("prev", head + 1, 64)])  # 5
    made.pointer(head)  # 6
    comm = made.array(char, 16)  # 7
    parts = made.struct("", 8, [("inner", number, 0), ("other", number, 32)], union=False)  # 8
    choice = made.struct("", 8, [("whole", 2, 0), ("", parts, 0)], union=True)  # 9
    lock = made.add(Kind.TYPEDEF, "spinlock_t", made.next + 1)
    made.struct("spinlock", 4, [("raw", number, 0)])
    function = made.add(Kind.FUNC_PROTO, "", number, made.words(made.name("x"), number), count=1)
    handler = made.pointer(function)
    state = made.enum("state", [("IDLE", 0), ("BUSY", 1)])
    made.struct(
        "task_struct",
        96,
        [
            ("pid", number, 0, 0), ("", choice, 64, 0), ("tasks", head, 128, 0), ("comm", comm, 256, 0),
            ("flag", boolean, 384, 1), ("mode", state, 385, 2), ("handler", handler, 448, 0), ("lock", lock, 512, 0),
        ],
        flag=True,
    )  # fmt: skip
    made.add(Kind.FWD, "nowhere", 0)
    files = made.struct("files_struct", 8, [("away", made.pointer(made.next - 1), 0)])
    made.add(Kind.VAR, "runqueues", files, made.words(1))
    return made
