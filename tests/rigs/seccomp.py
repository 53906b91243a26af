"""Runs a program under a seccomp filter: python -m tests.rigs.seccomp old|no-memfd PROGRAM …

old         what came after Linux 5.0 (system calls from 424 on) is refused with EPERM, as an old profile of Docker does
no-memfd    memfd_create is refused with EPERM
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_LOAD, _GE, _EQ, _RETURN = 0x20, 0x35, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
FIRST_NEW = 424


def filter_of(kind: str) -> bytes:
    """BPF over `struct seccomp_data`, whose first word is the number of the call."""
    test = (_GE, 0, 1, FIRST_NEW) if kind == "old" else (_EQ, 0, 1, _MEMFD_CREATE[platform.machine()])
    lines = [(_LOAD, 0, 0, 0), test, (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def confine(kind: str) -> None:
    """This process, and what it starts. Raises `OSError`."""
    program = filter_of(kind)
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - it becomes that program
