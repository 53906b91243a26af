"""A made-up x86-64 kernel in 4 MiB: a list of tasks, and what describes a kernel, to be found, walked and broken."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from acquirers.host import Host, Mode
from acquirers.memory.block import Block
from acquirers.memory.kcore import Kcore, parse_header
from acquirers.memory.paging import X86, X86_IMAGE, Layout
from acquirers.memory.ranges import Ranges
from acquirers.memory.source import Candidate, Survey
from acquirers.memory.tasks import Memory, Offsets, Task

BASE = 0xFFFF_8880_0000_0000
IMAGE_START, IMAGE_END = 0x10_0000, 0x20_0000
IMAGE = Ranges([(IMAGE_START, IMAGE_END)])
SIZE = 0x40_0000
INIT = 0x18_0800
WHERE = Offsets(tasks=1056, pid=1264, tgid=1268, comm=1752, real_parent=1280)


class Machine:
    """4 MiB of memory with an init_task in the kernel image, and tasks in the direct map."""

    def __init__(self) -> None:
        self.ram = bytearray(SIZE)
        self.layout = Layout(X86, Ranges([(0, SIZE)]), IMAGE, X86_IMAGE, BASE)
        self.reads = 0
        self.before: Callable[[int], None] = lambda _: None
        self.memory = Memory(self.read, self.layout, WHERE)
        self.init = X86_IMAGE + INIT
        self.task(INIT, self.init, 0, b"swapper/0", self.init)
        self.chain([])

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        self.before(address - WHERE.window[0])
        if not 0 <= address <= SIZE - size:
            raise OSError(14, "Bad address")
        return bytes(self.ram[address : address + size])

    def put(self, address: int, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.ram, self.physical(address) + offset, value)

    def physical(self, address: int) -> int:
        return address - X86_IMAGE if address >= X86_IMAGE else address - BASE

    def task(self, physical: int, address: int, pid: int, comm: bytes, parent: int) -> int:
        struct.pack_into("<ii", self.ram, physical + WHERE.pid, pid, pid)
        struct.pack_into("<16s", self.ram, physical + WHERE.comm, comm)
        self.put(address, WHERE.real_parent, parent)
        return address

    def add(self, pid: int, comm: bytes = b"bash") -> int:
        physical = 0x20_0000 + 0x1000 * pid
        return self.task(physical, BASE + physical, pid, comm, self.init)

    def chain(self, addresses: list[int]) -> None:
        ring = [self.init, *addresses]
        for at, address in enumerate(ring):
            self.put(address, WHERE.tasks, ring[(at + 1) % len(ring)] + WHERE.tasks)
            self.put(address, WHERE.tasks + 8, ring[at - 1] + WHERE.tasks)

    def filled(self, pids: range) -> list[int]:
        added = [self.add(pid, b"task-%d" % pid) for pid in pids]
        self.chain(added)
        return added

    def start(self) -> Task:
        return self.memory.task(self.init)

    def unlink(self, ring: list[int], gone: int) -> None:
        """What list_del_rcu() does."""
        self.chain([address for address in ring if address != gone])
        self.put(gone, WHERE.tasks + 8, 0xDEAD000000000122)


# -- a whole kernel ---------------------------------------------------------------------------------------------------

BANNER = b"Linux version 6.1.0-test (made@up) (gcc 12) #1 SMP\n"
BANNER_AT, ROOT, NOTE_AT = 0x12_0100, 0x13_0000, 0x30_0000
IOMEM = b"00000000-003fffff : System RAM\n  00100000-0017ffff : Kernel code\n  00180000-001fffff : Kernel data\n"


def vmcoreinfo_text(levels: int) -> bytes:
    return b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=%x\nNUMBER(phys_base)=0\n" % (
        X86_IMAGE + ROOT
    ) + b"NUMBER(pgtable_l5_enabled)=%d\nKERNELOFFSET=0\nNUMBER(sme_mask)=0\n" % (levels == 5)


def btf_of(members: dict[str, int], size: int = 4096) -> bytes:
    """BTF (Documentation/bpf/btf.rst) of an integer and of task_struct with these members, offsets in bytes."""
    strings, names = b"\0", {}
    for name in ("unsigned long", "task_struct", *members):
        names[name] = len(strings)
        strings += name.encode() + b"\0"
    types = struct.pack("<IIII", names["unsigned long"], 1 << 24, 8, 64)
    types += struct.pack("<III", names["task_struct"], 4 << 24 | len(members), size)
    types += b"".join(struct.pack("<III", names[name], 1, 8 * offset) for name, offset in members.items())
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


class Kernel(Machine):
    """The machine with VMCOREINFO, banner and page tables, as a source and as a host in a directory."""

    name = "fake"
    covers = Ranges([(0, SIZE)])
    zero_fills = False
    direct_map: int | None = BASE

    def __init__(self, place: Path, levels: int = 4) -> None:
        super().__init__()
        self.place = place
        text = vmcoreinfo_text(levels)
        note = struct.pack("<III12s", 11, len(text), 0, b"VMCOREINFO") + text
        self.ram[NOTE_AT : NOTE_AT + len(note)] = note
        self.ram[BANNER_AT : BANNER_AT + len(BANNER)] = BANNER
        self._tables = 0
        self._map(X86_IMAGE, levels)
        self._map(BASE, levels)
        for name, data in {
            "etc/os-release": b"",
            "sys/kernel/vmcoreinfo": b"0x%016x %x\n" % (NOTE_AT, len(note)),
            "sys/kernel/btf/vmlinux": btf_of(
                {name: getattr(WHERE, name) for name in ("tasks", "pid", "tgid", "comm", "real_parent")}
            ),
            "proc/version": BANNER,
            "proc/iomem": IOMEM,
            "proc/2/stat": b"2 (kthreadd) S 0 0 0 0 -1 %d 0 0" % 0x00208040,
        }.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.host = Host(Mode.HOST, root=os.fsencode(place), proc=os.fsencode(place / "proc"))
        self.survey = Survey(Ranges([(0, SIZE)]), IOMEM, (Candidate("fake", self),))

    def _map(self, address: int, levels: int) -> None:
        """Physical 0 and what follows at `address`, in pages of 2 MiB."""
        table = ROOT
        for level in range(levels, 2, -1):
            at = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
            below = struct.unpack_from("<Q", self.ram, at)[0] & ~0xFFF
            if not below:
                self._tables += 0x1000
                below = ROOT + self._tables
                struct.pack_into("<Q", self.ram, at, below | 0x63)
            table = below
        for index in range(2):
            struct.pack_into("<Q", self.ram, table + 8 * ((address >> 21 & 511) + index), index << 21 | 0xE3)

    def live(self, pids: range) -> None:
        """Tasks that /proc shows, too."""
        self.filled(pids)
        for pid in pids:
            (self.place / f"proc/{pid}").mkdir(exist_ok=True)

    def kcore(self, text: bytes | None = None, reader: int | None = None) -> Kcore:
        """The same as a /proc/kcore, with VMCOREINFO and the task_struct of its reader among its notes."""
        notes = _note(b"VMCOREINFO", 0, vmcoreinfo_text(4) if text is None else text)
        if reader is not None:
            notes += _note(b"CORE", 4, bytes(self.ram[self.physical(reader) : self.physical(reader) + 4096]))
        loads = [(BASE, 0, SIZE), (X86_IMAGE + IMAGE_START, IMAGE_START, IMAGE_END - IMAGE_START)]
        at, heads = 0x4000, [struct.pack("<IIQQQQQQ", 4, 0, 64 + 56 * 3, 0, 0, len(notes), 0, 4)]
        for virtual, physical, size in loads:
            heads.append(struct.pack("<IIQQQQQQ", 1, 7, at + physical, virtual, physical, size, size, 4096))
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        head = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(heads), 0, 0, 0)
        place = self.place / "proc/kcore"
        before = (head + b"".join(heads) + notes).ljust(at, b"\0")
        place.write_bytes(before + self.ram)
        return Kcore(os.fsencode(place), ram=Ranges([(0, SIZE)]), header=parse_header(before))

    # -- as a source --------------------------------------------------------------------------------------------------

    def open(self) -> _Reader:
        return _Reader(self)


def _note(name: bytes, kind: int, data: bytes) -> bytes:
    name += b"\0"
    return struct.pack("<III", len(name), len(data), kind) + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self, address: int, into: memoryview) -> None:
        into[:] = self._kernel.read(address, len(into))

    def close(self) -> None:
        pass


def blocks(ram: bytes | bytearray, size: int = 1 << 20) -> list[Block]:
    return [Block(at, at + size, memoryview(ram)[at : at + size]) for at in range(0, len(ram), size)]
