"""The BPF programs, maps and links that the kernel holds, as `bpftool prog`, `map` and `link` would list them.

bpf(2), include/uapi/linux/bpf.h: ids one after the other, and for each a descriptor and its `struct bpf_*_info`. It
takes CAP_SYS_ADMIN. Programs are neither dumped nor maps read: both are in the image.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_OBJECTS = 1 << 16
MAX_MAPS = 256
"""Ids of maps that are told of one program."""

_NR_BPF = {"x86_64": 321, "aarch64": 280}
_INFO_BY_FD = 15
_ATTR = 128

# bpf_prog_info: type, id, tag, jited and xlated length, (pointers), load_time, created_by_uid, nr_map_ids, (map_ids),
# name, ifindex, a bit for gpl_compatible.
_PROG = struct.Struct("=II8sII16xQIIQ16sII")
# bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name, ifindex.
_MAP = struct.Struct("=IIIIII16sI")
# bpf_link_info: type, id, prog_id.
_LINK = struct.Struct("=III")


class _What(NamedTuple):
    kind: str
    next_id: int
    by_id: int
    info: struct.Struct


_KINDS = (
    _What("bpf-program", 11, 13, _PROG),
    _What("bpf-map", 12, 14, _MAP),
    _What("bpf-link", 31, 30, _LINK),
)


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """One call. Returns its result and what it made of its argument. Raises `OSError`."""
    number = _NR_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "the number of bpf(2) is not known for this architecture")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    raw = ctypes.create_string_buffer(attr, _ATTR)
    result = libc.syscall(ctypes.c_long(number), ctypes.c_int(command), raw, ctypes.c_uint(_ATTR))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result), raw.raw


def _info(fd: int, size: int, given: bytes = b"") -> bytes:
    """`BPF_OBJ_GET_INFO_BY_FD`: as many bytes as were asked for, zeros where this kernel knows fewer."""
    into = ctypes.create_string_buffer(given, size)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", fd, size, ctypes.addressof(into)))
    return into.raw


def listed() -> Iterator[dict[str, object]]:
    """One record per object, programs first. Raises `OSError`: ENOSYS and EINVAL of kernels without such a list."""
    for what in _KINDS:
        try:
            yield from _of_kind(what)
        except OSError as error:
            if what.kind != "bpf-link" or error.errno != errno.EINVAL:  # links: Linux 5.8
                raise


def _of_kind(what: _What) -> Iterator[dict[str, object]]:
    last = 0
    for _ in range(MAX_OBJECTS):
        try:
            last = struct.unpack_from("=I", _bpf(what.next_id, struct.pack("=II", last, 0))[1], 4)[0]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        try:
            fd, _ = _bpf(what.by_id, struct.pack("=I", last))
        except OSError as error:
            if error.errno != errno.ENOENT:  # gone meanwhile
                yield {"type": what.kind, "id": last, "error": error.strerror}
            continue
        try:
            yield _record(what, fd)
        finally:
            os.close(fd)


def _record(what: _What, fd: int) -> dict[str, object]:
    if what.info is _MAP:
        kind, number, key, value, entries, flags, name, ifindex = _MAP.unpack(_info(fd, _MAP.size))
        return {
            "type": what.kind, "id": number, "map_type": kind, "name": _name(name), "key_size": key,
            "value_size": value, "max_entries": entries, "flags": flags, "ifindex": ifindex,
        }  # fmt: skip
    if what.info is _LINK:
        kind, number, program = _LINK.unpack(_info(fd, _LINK.size))
        return {"type": what.kind, "id": number, "link_type": kind, "program": program}
    ids = (ctypes.c_uint32 * MAX_MAPS)()
    asked = _PROG.pack(0, 0, b"", 0, 0, 0, 0, MAX_MAPS, ctypes.addressof(ids), b"", 0, 0)
    kind, number, tag, jited, xlated, loaded, uid, maps, _, name, ifindex, bits = _PROG.unpack(
        _info(fd, _PROG.size, asked)
    )
    return {
        "type": what.kind, "id": number, "program_type": kind, "name": _name(name), "tag": tag.hex(),
        "jited_bytes": jited, "xlated_bytes": xlated, "loaded_ns": loaded, "uid": uid,
        "maps": list(ids)[: min(maps, MAX_MAPS)], "map_count": maps, "ifindex": ifindex, "gpl": bool(bits & 1),
    }  # fmt: skip


def _name(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("ascii", "backslashreplace")
