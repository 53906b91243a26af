"""Kernel memory through eBPF: a program of eleven instructions, loaded with bpf(2) and run by hand.

The program is of type raw tracepoint, attached to nothing, and run with BPF_PROG_TEST_RUN (Linux 5.10). It copies what
lies at a kernel address into a map that is also mapped here (BPF_F_MMAPABLE, 5.5), by the helper probe_read_kernel
(5.5), which fails for what is not mapped and survives it. It needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN; the
lockdown mode `confidentiality` takes the helper away, `integrity` does not. No symbols, no file below /sys, no sysctl.
All numbers are of include/uapi/linux/bpf.h.

Each reader has a program and a map of its own, named `impound_…`, which end with it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import secrets
import struct
from typing import TYPE_CHECKING, Final

from acquirers.memory import bpfobjects, directmap

if TYPE_CHECKING:
    from collections.abc import Callable

    from acquirers.memory.ranges import Ranges

WORD: Final = 1 << 64
SIZE: Final = 2 << 20
"""Bytes of the map, and of one run of the program."""

_NR_BPF = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _PROG_LOAD, _TEST_RUN = 0, 5, 10
_ARRAY, _MMAPABLE, _RAW_TRACEPOINT = 2, 0x400, 17
_GET_CURRENT_TASK, _PROBE_READ_KERNEL = 35, 113
_MAP_VALUE = 2  # BPF_PSEUDO_MAP_VALUE: the address of the map's value instead of the map
_KERNEL_HALF = 0xFF << 56  # no kernel address is lower, neither with five levels nor with 52 bits

_INSN = struct.Struct("=BBhi")
_CONTEXT = struct.Struct("=QQ")
_ATTR = 128
_RETVAL = struct.Struct("=i")


class UnavailableError(Exception):
    """A step did not work: which one, and with what errno."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(f"{step}: {error.strerror}")
        self.step = step
        """`map`, `mmap`, `load`, `run`."""
        self.errno = error.errno or 0


def _insn(code: int, target: int = 0, source: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return _INSN.pack(code, source << 4 | target, off, imm)


def _map_value(register: int, map_fd: int) -> bytes:
    return _insn(0x18, register, _MAP_VALUE, imm=map_fd) + _insn(0)


def _copier(map_fd: int) -> bytes:
    """Context: address and size, u64 each. Returns 0 or a negative errno."""
    return b"".join((
        _insn(0xBF, 6, 1),  # r6 = r1, the context
        _insn(0x79, 7, 6, off=0),  # r7 = address
        _insn(0x79, 8, 6, off=8),  # r8 = size
        _insn(0xB7, 0, imm=-errno.EINVAL),  # r0 = -EINVAL
        _insn(0x25, 8, off=5, imm=SIZE),  # if r8 > SIZE goto exit
        _map_value(1, map_fd),
        _insn(0xBF, 2, 8),
        _insn(0xBF, 3, 7),
        _insn(0x85, imm=_PROBE_READ_KERNEL),  # r0 = probe_read_kernel(r1, r2, r3)
        _insn(0x95),  # exit
    ))  # fmt: skip


def _task_finder(map_fd: int) -> bytes:
    """Puts the address of the current task_struct at the beginning of the map."""
    return b"".join((
        _insn(0x85, imm=_GET_CURRENT_TASK),
        _insn(0xBF, 6, 0),  # r6 = r0
        _map_value(1, map_fd),
        _insn(0x7B, 1, 6, off=0),  # *(u64 *)r1 = r6
        _insn(0xB7, 0, imm=0),
        _insn(0x95),
    ))  # fmt: skip


class _Program:
    """A program and the map that it writes into, which is mapped here."""

    def __init__(self, make: Callable[[int], bytes], label: bytes) -> None:
        """`make` gives the instructions for the descriptor of the map. Raises `UnavailableError`."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._program = self._fd = -1
        self._map: mmap.mmap | None = None
        step = "map"
        try:
            self._fd = self._bpf(_MAP_CREATE, struct.pack("=IIIIIII16s", _ARRAY, 4, SIZE, 1, _MMAPABLE, 0, 0, label))
            step = "mmap"
            self._map = mmap.mmap(self._fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            step = "load"
            self._program = self._load(make(self._fd), label)
        except OSError as error:
            self.close()
            raise UnavailableError(step, error) from error
        self.value = memoryview(self._map)
        self._context = ctypes.create_string_buffer(_CONTEXT.size)
        self._attr = ctypes.create_string_buffer(_ATTR)
        where = ctypes.addressof(self._context)
        struct.pack_into("=I36xIIQ", self._attr, 0, self._program, _CONTEXT.size, 0, where)

    def run(self, address: int, size: int) -> None:
        """Raises `OSError`: of the call, or the negative errno that the program returned."""
        _CONTEXT.pack_into(self._context, 0, address, size)
        self._call(_TEST_RUN, self._attr)
        result = _RETVAL.unpack_from(self._attr, 4)[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def close(self) -> None:
        if self._map is not None:
            if hasattr(self, "value"):
                self.value.release()
            self._map.close()
            self._map = None
        for fd in (self._program, self._fd):
            if fd >= 0:
                os.close(fd)
        self._program = self._fd = -1

    def _load(self, code: bytes, label: bytes) -> int:
        # Both live until the call has returned: the kernel gets their addresses.
        instructions, license_name = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
        places = ctypes.addressof(instructions), ctypes.addressof(license_name)
        attr = struct.pack("=IIQQIIQII16s", _RAW_TRACEPOINT, len(code) // _INSN.size, *places, 0, 0, 0, 0, 0, label)
        return self._bpf(_PROG_LOAD, attr)

    def _bpf(self, command: int, attr: bytes) -> int:
        return self._call(command, ctypes.create_string_buffer(attr, _ATTR))

    def _call(self, command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
        """Fields that a command does not have, and that a kernel does not know, must be zero: both are here."""
        number = _NR_BPF.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, "the number of bpf(2) is not known for this architecture")
        result = self._libc.syscall(
            ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(attr), ctypes.c_uint(_ATTR)
        )
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(result)


def current_task(label: bytes) -> int:
    """The virtual address of this thread's task_struct. Raises `UnavailableError`."""
    program = _Program(_task_finder, label)
    try:
        program.run(0, 0)
        return int.from_bytes(program.value[:8], "little")
    except OSError as error:
        raise UnavailableError("run", error) from error
    finally:
        program.close()


class BpfReader:
    """Reads by physical and by virtual address, 2 MiB at a time. What is not mapped is `OSError(EFAULT)`."""

    def __init__(self, covers: Ranges, direct_map: int | None, label: bytes) -> None:
        """Raises `UnavailableError`."""
        self._covers = covers
        self._direct_map = direct_map
        self._program = _Program(_copier, label)

    def read(self, address: int, into: memoryview) -> None:
        if self._direct_map is None or not self._covers.covers(address, address + len(into)):
            raise OSError(errno.EINVAL, "not System RAM")
        self.read_virtual((self._direct_map + address) % WORD, into)

    def read_virtual(self, address: int, into: memoryview) -> None:
        if address < _KERNEL_HALF or address + len(into) > WORD:
            raise OSError(errno.EINVAL, "no address of the kernel")
        for start in range(0, len(into), SIZE):
            size = min(SIZE, len(into) - start)
            self._program.run(address + start, size)
            into[start : start + size] = self._program.value[:size]

    def close(self) -> None:
        self._program.close()


class Bpf:
    """The source: System RAM by the direct map, byte by byte."""

    name = "bpf"
    zero_fills = False

    def __init__(self, covers: Ranges, direct_map: int, label: bytes) -> None:
        self.covers = covers
        self.direct_map: int | None = direct_map
        self.label = label

    def open(self) -> BpfReader:
        try:
            return BpfReader(self.covers, self.direct_map, self.label)
        except UnavailableError as error:
            raise OSError(error.errno, f"eBPF: {error}") from error

    @property
    def ids(self) -> dict[str, list[int]]:
        """What is loaded of this source now, by the readers of all processes. Empty if the kernel does not tell."""
        found: dict[str, list[int]] = {"programs": [], "maps": []}
        name, kinds = self.label.decode(), {"bpf-program": "programs", "bpf-map": "maps"}
        try:
            for one in bpfobjects.listed():
                if one.get("name") == name and (kind := kinds.get(str(one["type"]))) and isinstance(one["id"], int):
                    found[kind].append(one["id"])
        except OSError:
            return {}
        return found


def probe(ram: Ranges, machine: str, hint: int | None = None) -> Bpf:
    """Loads both programs and finds the direct map. Raises `UnavailableError`, `NotFoundError` and `OSError`."""
    label = b"impound_" + secrets.token_hex(4)[:7].encode()
    task = current_task(label)
    reader = BpfReader(ram, None, label)
    try:
        base = directmap.find(reader.read_virtual, task, ram, machine, [] if hint is None else [hint])
    finally:
        reader.close()
    return Bpf(ram, base, label)
