"""`memory.symbols`: what a kernel says about itself, in one archive, and what is not in it told."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import mmap
import os
import struct
import tarfile
from pathlib import Path

import pytest

from acquirers.base import Flag, Gap, Member, Reason, Scope, State
from acquirers.files.deadline import Direct
from acquirers.host import Host, Mode
from acquirers.memory import bpfobjects
from acquirers.memory.kallsyms import X86_LINK
from acquirers.memory.symbols import Symbols
from acquirers.memory.uncached import Uncached

SLIDE = 0x1120_0000
KALLSYMS = b"%x T _text\n%x D init_task\nffffffffc0000000 t hook\t[evil]\n" % (
    X86_LINK + SLIDE,
    X86_LINK + SLIDE + 0x1000,
)
NOTE = b"OSRELEASE=6.1.0\nKERNELOFFSET=11200000\nSYMBOL(kallsyms_names)=ffffffff92300000\n"
RELEASE = os.uname().release


class Told:
    def __init__(self) -> None:
        self.members: dict[bytes, Member] = {}
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []

    def member(self, member: Member) -> None:
        self.members[member.path] = member

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)


def kcore() -> bytes:
    """The head of one, with VMCOREINFO among its notes."""
    note = struct.pack("<III", 11, len(NOTE), 0) + b"VMCOREINFO\0\0" + NOTE + bytes(-len(NOTE) % 4)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    start = 64 + 2 * 56
    headers = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(note), 0, 0)
    headers += struct.pack("<IIQQQQQQ", 1, 7, 0x3000, 0xFFFF888000000000, 0, 0x1000, 0x1000, 0x1000)
    return (header + headers + note).ljust(0x4000, b"\xee")


def make(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


MACHINE: dict[str, bytes] = {
    "etc/os-release": b"ID=debian\n",
    "proc/version": b"Linux version 6.1.0 (x) #1\n",
    "proc/kallsyms": KALLSYMS,
    "proc/kcore": kcore(),
    "sys/kernel/btf/vmlinux": b"btf",
    "sys/kernel/btf/evil": b"split",
    "sys/module/evil/sections/.text": b"0xffffffffc0000000\n",
    "sys/module/evil/refcnt": b"0\n",
    f"boot/vmlinuz-{RELEASE}": os.urandom(3 << 20) + b"end",
    f"boot/config-{RELEASE}": b"CONFIG_X=y\n",
    "boot/vmlinuz-other": b"another kernel",
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    make(tmp_path, MACHINE)
    return tmp_path


def host(root: Path, mode: Mode = Mode.HOST) -> Host:
    return Host(mode, os.fsencode(root), os.fsencode(root / "proc"))


def taken(host: Host) -> tuple[dict[str, bytes], Told]:
    told = Told()
    (item,) = Symbols().items(host, Scope())
    data = b"".join(bytes(chunk) for chunk in item.read(told))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar if one.isfile()}
    for path, member in told.members.items():
        name = path.decode() if path.startswith(b"[derived]/") else "[root]" + path.decode()
        assert member.sha256 == hashlib.sha256(found[name]).digest()
        assert member.size == len(found[name])
    assert len(told.members) == len(found)
    return found, told


def test_all_is_there_under_its_native_path_and_what_was_made_of_it_apart(machine: Path) -> None:
    found, told = taken(host(machine))
    assert [gap for gap in told.gaps if b"bpf.jsonl" not in gap.where] == []
    for name, data in MACHINE.items():
        wanted = name not in {"proc/kcore", "sys/module/evil/refcnt", "boot/vmlinuz-other"}
        assert (f"[root]/{name}" in found) is wanted, name
        assert not wanted or found[f"[root]/{name}"] == data
    assert found["[derived]/vmcoreinfo"] == NOTE
    assert found["[derived]/kcore.head"] == kcore()[: len(found["[derived]/kcore.head"])]
    assert b"\xee\xee" not in found["[derived]/kcore.head"]
    assert found["[derived]/System.map"] == b"ffffffff81000000 T _text\nffffffff81001000 D init_task\n"
    assert json.loads(found["[derived]/slide.json"])["kernel_offset"] == SLIDE


def test_masked_symbols_are_a_flag_and_not_there(machine: Path) -> None:
    (machine / "proc/kallsyms").write_bytes(b"0000000000000000 T _text\n0000000000000000 D init_task\n")
    found, told = taken(host(machine))
    assert "[root]/proc/kallsyms" not in found
    assert "[derived]/System.map" not in found
    assert next(flag.detail for flag in told.flags if flag.where == b"/proc/kallsyms").startswith("masked")
    assert not [gap for gap in told.gaps if gap.where == b"/proc/kallsyms"]
    assert "masked" in Symbols().probe(host(machine), Scope()).reason


def test_what_this_kernel_does_not_have_is_nothing_to_tell(tmp_path: Path) -> None:
    make(tmp_path, {"etc/os-release": b"", "proc/version": b"Linux version 3\n"})
    found, told = taken(host(tmp_path))
    assert [gap for gap in told.gaps if b"bpf.jsonl" not in gap.where] == []
    assert "[root]/proc/version" in found


def test_a_masked_kcore_is_a_gap(machine: Path) -> None:
    (machine / "proc/kcore").unlink()
    (machine / "proc/kcore").symlink_to("/dev/null")
    _, told = taken(host(machine))
    assert [(gap.reason, gap.where) for gap in told.gaps if gap.where == b"/proc/kcore"] == [
        (Reason.DENIED, b"/proc/kcore")
    ]


def test_what_is_no_symbol_is_taken_as_it_is_and_told(machine: Path) -> None:
    (machine / "proc/kallsyms").write_bytes(KALLSYMS + b"not a symbol\n")
    found, told = taken(host(machine))
    assert found["[root]/proc/kallsyms"] == KALLSYMS + b"not a symbol\n"
    assert "[derived]/System.map" not in found
    assert [gap.reason for gap in told.gaps if gap.where == b"/proc/kallsyms"] == [Reason.MALFORMED]


def test_a_link_in_boot_stays_inside_the_root(machine: Path) -> None:
    path = machine / f"boot/vmlinuz-{RELEASE}"
    path.unlink()
    path.symlink_to("/vmlinuz")
    (machine / "vmlinuz").write_bytes(b"the kernel of the fixture")
    found, _ = taken(host(machine))
    assert found["[root]/vmlinuz"] == b"the kernel of the fixture"


def test_a_dead_disk_has_the_files_of_all_its_kernels(machine: Path) -> None:
    found, told = taken(Host(Mode.DEAD, os.fsencode(machine)))
    assert set(found) == {
        "[root]/boot/vmlinuz-other", f"[root]/boot/vmlinuz-{RELEASE}", f"[root]/boot/config-{RELEASE}",
        "[root]/etc/os-release",
    }  # fmt: skip
    assert told.gaps == []
    assert Symbols().probe(Host(Mode.DEAD, os.fsencode(machine)), Scope()).state is State.AVAILABLE


def test_a_dead_disk_without_a_kernel_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert Symbols().probe(Host(Mode.DEAD, os.fsencode(tmp_path)), Scope()).state is State.ABSENT


def test_inside_a_container_neither_memory_nor_programs_are_asked_for(machine: Path) -> None:
    found, told = taken(host(machine, Mode.INSIDE))
    assert "[derived]/bpf.jsonl" not in found
    assert "[derived]/kcore.head" not in found
    assert "[root]/sys/kernel/btf/vmlinux" in found
    assert told.gaps == []


def resident(path: Path) -> int:
    """Pages of the file that are cached: mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        pages = -(-len(view) // mmap.PAGESIZE)
        found = ctypes.create_string_buffer(pages)
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), found) == 0
        return sum(byte & 1 for byte in found.raw)


@pytest.mark.parametrize("direct", [True, False])
def test_reading_leaves_the_page_cache_as_it_was(
    tmp_path: Path, *, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom((2 << 20) + 4097)
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 8192, 1 << 20)  # what somebody else has brought in
    before = resident(path)
    assert 0 < before < 100
    if not direct:

        def refuse(fd: int) -> int:
            raise OSError(22, "no O_DIRECT")

        monkeypatch.setattr("acquirers.memory.uncached._open_direct", refuse)
    file = Uncached(Direct(), fd, len(data))
    assert file.direct is direct
    assert b"".join(bytes(chunk) for chunk in file.chunks()) == data
    file.close()
    os.close(fd)
    assert resident(path) == before


def test_loaded_programs_and_maps_are_listed() -> None:
    # BPF_MAP_CREATE: an array of 3 values of 8 bytes; inner_map_fd, numa_node, name.
    attr = struct.pack("=IIIIIII16s", 2, 4, 8, 3, 0, 0, 0, b"impound_test")
    try:
        fd, _ = bpfobjects._bpf(0, attr)
    except OSError as error:
        pytest.skip(f"needs BPF: {error.strerror}")
    try:
        mine = [one for one in bpfobjects.listed() if one.get("name") == "impound_test"]
    finally:
        os.close(fd)
    assert mine
    assert (mine[0]["type"], mine[0]["key_size"], mine[0]["value_size"], mine[0]["max_entries"]) == ("bpf-map", 4, 8, 3)
