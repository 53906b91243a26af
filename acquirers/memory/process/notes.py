"""The notes of a core: what the kernel would write of a process that dies (fs/binfmt_elf.c, include/linux/elfcore.h).

All little-endian, for 64-bit x86 and arm64, which differ in the registers alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory.process.elf import note
from acquirers.memory.process.pagemap import PAGE

if TYPE_CHECKING:
    from acquirers.memory.process.maps import Area

NT_PRSTATUS = 1
NT_FPREGSET = 2
NT_PRPSINFO = 3
NT_AUXV = 6
NT_FILE = 0x46494C45

REGISTERS = {62: 216, 183: 272}
"""Bytes of the general registers by `e_machine`: `user_regs_struct`, `user_pt_regs`."""
MAX_FILE_NOTE = 4 << 20
"""As the kernel's own limit, `core_file_note_size_limit`."""

# siginfo: signo, code, errno; cursig; pending and held signals; pid, ppid, pgrp, sid; four times of seconds and
# microseconds: user, system, and those of children. The registers follow, and an int: whether others were saved.
_PRSTATUS = struct.Struct("<iiih2xQQiiii8q")
_PRPSINFO = struct.Struct("<bcbbxxxxQIIiiii16s80s")
_STATES = "RSDTZW"
_FILE_HEAD = struct.Struct("<QQ")
_FILE = struct.Struct("<QQQ")


class Task(msgspec.Struct, frozen=True):
    """One thread, or a process as its first thread is it. Times in clock ticks."""

    pid: int
    ppid: int = 0
    pgrp: int = 0
    session: int = 0
    state: str = "S"
    nice: int = 0
    flags: int = 0
    utime: int = 0
    stime: int = 0
    pending: int = 0
    held: int = 0


def prstatus(task: Task, registers: bytes, ticks: int, *, floating: bool) -> bytes:
    def time(value: int) -> tuple[int, int]:
        return value // ticks, value % ticks * 1_000_000 // ticks

    head = _PRSTATUS.pack(
        0, 0, 0, 0, task.pending, task.held, task.pid, task.ppid, task.pgrp, task.session,
        *time(task.utime), *time(task.stime), 0, 0, 0, 0,
    )  # fmt: skip
    return note(b"CORE", NT_PRSTATUS, head + registers + struct.pack("<i4x", floating))


def prpsinfo(task: Task, uid: int, gid: int, comm: bytes, arguments: bytes) -> bytes:
    """`comm` up to 15 bytes, `arguments` up to 79, blanks for the zeros between them, as the kernel does."""
    state = _STATES.find(task.state)
    words = arguments.rstrip(b"\0")[:79].replace(b"\0", b" ")
    data = _PRPSINFO.pack(
        max(state, 0), task.state.encode()[:1], task.state == "Z", task.nice, task.flags, uid, gid, task.pid, task.ppid,
        task.pgrp, task.session, comm[:15], words,
    )  # fmt: skip
    return note(b"CORE", NT_PRPSINFO, data)


class FileNote:
    """NT_FILE: which file is mapped where. Beyond `MAX_FILE_NOTE` bytes further ones are only counted."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []
        self._names: list[bytes] = []
        self._size = _FILE_HEAD.size
        self.left_out = 0

    def add(self, area: Area) -> None:
        size = _FILE.size + len(area.name) + 1
        if self._size + size > MAX_FILE_NOTE:
            self.left_out += 1
            return
        self._size += size
        self._entries.append(_FILE.pack(area.start, area.end, area.offset // PAGE))
        self._names.append(area.name + b"\0")

    def data(self) -> bytes:
        """What stands in the note."""
        return b"".join((_FILE_HEAD.pack(len(self._entries), PAGE), *self._entries, *self._names))


def of_process(psinfo: bytes, auxv: bytes, files: bytes) -> bytes:
    return b"".join(_present((psinfo, note(b"CORE", NT_AUXV, auxv) if auxv else b"", note(b"CORE", NT_FILE, files))))


def _present(parts: Iterable[bytes]) -> Iterable[bytes]:
    return (part for part in parts if part)
