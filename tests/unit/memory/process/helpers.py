"""What the tests of process memory share: processes that are nobody's children, and a core read back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acquirers.base import Flag, Gap, Item, Member, Scope
from acquirers.host import Host, Mode
from acquirers.memory.process import ProcessMemory
from acquirers.memory.process.chosen import Process
from acquirers.memory.process.core import Core as Writer
from acquirers.memory.process.elf import EM_X86_64
from acquirers.snapshot.watch import Patience

PAGE = os.sysconf("SC_PAGE_SIZE")
QUICK = Patience(first=2.0, later=0.5, generous=2, most=4)
HERE = Host(Mode.HOST)

PRELUDE = """
import ctypes, mmap, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.prctl.argtypes = [ctypes.c_int, ctypes.c_char_p]
def area(size, text=b"", prot=3):
    at = libc.mmap(None, size, 3, 0x22, -1, 0)
    if text:
        ctypes.memmove(at, (text * (size // len(text) + 1))[:size], size)
    if prot != 3:
        libc.mprotect(at, size, prot)
    return at
def tell(*numbers):
    print(*numbers, flush=True)
    while True:
        signal.pause()
"""

# The launcher ends at once, so that the process is no descendant of the test: those are never read.
_LAUNCHER = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Remembered:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []
        self.members: list[Member] = []

    def member(self, member: Member) -> None:
        self.members.append(member)

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)


@dataclass(frozen=True)
class Target:
    """A process that was started for a test, and the numbers that it said."""

    pid: int
    said: list[int]


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[Target]:
    """A process that belongs to nobody here."""
    # Descriptors of whoever runs the tests may well be files without a name.
    launcher = [sys.executable, "-c", _LAUNCHER, *command]
    with subprocess.Popen(
        launcher, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as starter:
        assert starter.stdout is not None
        words = starter.stdout.readline().split()
        starter.wait(10)
        assert words, "the process did not start"
        pid = int(words[0])
        assert pid > 1  # others are groups of processes
        try:
            yield Target(pid, [int(word) for word in words[1:]])
        finally:
            end(pid)


@contextlib.contextmanager
def python(code: str, *, executable: str = sys.executable) -> Iterator[Target]:
    """`code` after `PRELUDE`; it ends with `tell(os.getpid(), …)`."""
    with running([executable, "-c", PRELUDE + code]) as target:
        yield target


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or state(pid) in "ZX":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} does not end")


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


Taken = tuple[Item, bytes, Remembered]


def items(target: Target | Scope, acquirer: ProcessMemory | None = None, **scope: Any) -> Iterator[Item]:
    wanted = target if isinstance(target, Scope) else Scope(pids=(target.pid,), **scope)
    return (acquirer or ProcessMemory(patience=QUICK)).items(HERE, wanted)


def read(item: Item, report: Remembered | None = None) -> bytes:
    return b"".join(bytes(chunk) for chunk in item.read(report or Remembered()))


def taken(target: Target | Scope, acquirer: ProcessMemory | None = None, **scope: Any) -> list[Taken]:
    """Every item, read whole before the next one is asked for."""
    found = []
    for item in items(target, acquirer, **scope):
        report = Remembered()
        found.append((item, read(item, report), report))
    return found


def core_of(target: Target, report: Remembered | None = None, **scope: Any) -> Core:
    found = items(target, **scope)
    item = next(found)
    assert item.path.endswith(".core")
    return Core(read(item, report))


def table(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text in data.decode().splitlines()]


@dataclass
class Core:
    """An ELF core, read back by the letter of elf(5)."""

    data: bytes
    headers: list[tuple[int, ...]] = field(init=False)
    """type, flags, offset, vaddr, paddr, filesz, memsz, align."""

    def __post_init__(self) -> None:
        ident, kind, self.machine, _, _, phoff, shoff, _, ehsize, phentsize, phnum, shentsize, shnum, strndx = (
            struct.unpack_from("<16sHHIQQQIHHHHHH", self.data)
        )
        assert ident[:6] == b"\x7fELF\x02\x01"
        assert (kind, ehsize, phentsize, shentsize) == (4, 64, 56, 64)
        sections = [struct.unpack_from("<IIQQQQIIQQ", self.data, shoff + 64 * index) for index in range(shnum)]
        self.count = sections[0][7] if phnum == 0xFFFF else phnum
        self.headers = [struct.unpack_from("<IIQQQQQQ", self.data, phoff + 56 * index) for index in range(self.count)]
        names = self.data[sections[strndx][4] :]
        self.sections = {
            names[one[0] : names.index(b"\0", one[0])].decode(): self.data[one[4] : one[4] + one[5]] for one in sections
        }
        self.lines = table(self.sections[".impound.pages"])

    @property
    def loads(self) -> list[tuple[int, ...]]:
        return [header for header in self.headers if header[0] == 1]

    def at(self, address: int, size: int) -> bytes | None:
        """What the core says stands there; None where it says nothing."""
        for _, _, offset, start, _, filesz, memsz, _ in self.loads:
            if start <= address and address + size <= start + memsz:
                begin = offset + address - start
                found = self.data[begin : min(begin + size, offset + filesz)] if address < start + filesz else b""
                return found + bytes(size - len(found))
        return None

    def areas(self) -> list[dict[str, Any]]:
        return [one for one in self.lines if one["type"] == "area"]

    def area(self, address: int) -> dict[str, Any]:
        return next(one for one in self.areas() if one["start"] <= address < one["end"])

    @property
    def process(self) -> dict[str, Any]:
        return self.lines[0]

    def notes(self) -> list[tuple[bytes, int, bytes]]:
        """(owner, type, data)."""
        found = []
        for kind, _, offset, _, _, size, _, _ in self.headers:
            if kind != 4:
                continue
            at = offset
            while at < offset + size:
                name, length, number = struct.unpack_from("<III", self.data, at)
                at += 12
                owner = self.data[at : at + name].rstrip(b"\0")
                at += name + -name % 4
                found.append((owner, number, self.data[at : at + length]))
                at += length + -length % 4
        return found


def pagemap(pid: int, start: int, size: int) -> bytes:
    """The last byte of each entry: which pages are present."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(start // PAGE * 8)
        return file.read(size // PAGE * 8)[7::8]


def resident(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {line.split(":")[0]: line for line in text.splitlines() if line.startswith(("VmRSS", "RssAnon", "RssFile"))}


class Made:
    """A directory that looks like `/proc/<pid>`: `S` swapped, `P` present, `A` absent, one letter per page."""

    START = 0x10_0000

    def __init__(self, root: Path, states: str, perms: str = "rw-p", *, content: bool = True) -> None:
        self.root = root / "task/7"
        self.root.mkdir(parents=True)
        self.states = states
        end = self.START + len(states) * PAGE
        area = f"{self.START:08x}-{end:08x} {perms} 00000000 00:00 0 \n"
        (self.root / "maps").write_text(area)
        (self.root / "smaps").write_text(f"{area}Rss: 4 kB\nSwap: 4 kB\nVmFlags: rd wr\n")
        (self.root / "auxv").write_bytes(bytes(16))
        (self.root / "comm").write_text("made\n")
        self.write_states(states)
        with (self.root / "mem").open("wb") as file:
            file.seek(self.START)
            file.write(b"".join(bytes([65 + page % 26]) * PAGE for page in range(len(states) if content else 1)))

    def write_states(self, states: str) -> None:
        with (self.root / "pagemap").open("r+b" if (self.root / "pagemap").exists() else "wb") as file:
            file.seek(self.START // PAGE * 8)
            file.write(b"".join(struct.pack("<Q", {"P": 1 << 63, "S": 1 << 62, "A": 0}[one]) for one in states))
            file.truncate()

    def core(self, report: Remembered, act: Callable[[], None] = lambda: None, *, fault_in: bool = False) -> Core:
        directory = os.open(self.root.parents[1], os.O_RDONLY)
        try:
            writer = Writer(
                Process(7, comm=b"made", living=7), directory, EM_X86_64, fault_in=fault_in, trace=False, patience=QUICK
            )
            parts = []
            for chunk in writer.read(report):
                parts.append(bytes(chunk))
                if len(parts) == 1:
                    act()
            return Core(b"".join(parts))
        finally:
            os.close(directory)

    def page(self, core: Core, page: int) -> bytes | None:
        return core.at(self.START + page * PAGE, PAGE)
