"""The files of `/proc/<pid>` that psutil leaves out or turns into text. Parsers only: bytes in, records out.

Format: proc(5), proc_pid_stat(5), proc_pid_status(5).
"""

from __future__ import annotations

import re

import msgspec

PF_KTHREAD = 0x00200000
"""include/linux/sched.h: a kernel thread. No program can set it, unlike a name in brackets."""

_LINK = re.compile(rb"^([a-z_0-9]+):\[(\d{1,19})\]$")
_DELETED = b" (deleted)"

_CAPABILITIES = {b"Cap" + name.encode(): f"cap_{name.lower()}" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
_LISTS = {b"Uid": "uids", b"Gid": "gids", b"Groups": "groups", b"NSpid": "nspid"}
_NUMBERS = {b"TracerPid": "tracer", b"NoNewPrivs": "no_new_privs", b"Seccomp": "seccomp"}
_STATUS = re.compile(rb"^(%s):\t(.*)$" % b"|".join([b"Umask", *_LISTS, *_NUMBERS, *_CAPABILITIES]), re.MULTILINE)
_HEX = re.compile(rb"[0-9a-f]{1,16}")
_OCTAL = re.compile(rb"[0-7]{1,12}")


class Stat(msgspec.Struct, frozen=True):
    """What is used of `/proc/<pid>/stat`. Times in clock ticks since boot."""

    pid: int
    comm: bytes
    """As the process named itself: up to 15 bytes, blanks, newlines and parentheses included."""
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    flags: int
    nice: int
    threads: int
    start_ticks: int

    @property
    def kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)

    @property
    def dead(self) -> bool:
        """A zombie: it has no memory, files or executable any more."""
        return self.state in "ZXx"


def number(text: bytes) -> int | None:
    """A decimal number that fits into 64 bits with sign, else None."""
    digits = text[1:] if text.startswith(b"-") else text
    return int(text) if digits.isdigit() and len(digits) <= 18 else None


def parse_stat(data: bytes) -> Stat | None:
    """None for what the kernel would not write. The name ends at the last parenthesis: it may hold others."""
    head, opened, rest = data.partition(b" (")
    comm, closed, tail = rest.rpartition(b") ")
    fields = tail.split()
    pid = number(head)
    if not opened or not closed or pid is None or len(fields) < 20 or len(fields[0]) != 1 or not fields[0].isalpha():
        return None
    numbers = [number(fields[index]) for index in (1, 2, 3, 4, 6, 16, 17, 19)]
    known = [value for value in numbers if value is not None]
    if len(known) < len(numbers):
        return None
    return Stat(pid, comm, fields[0].decode(), *known)


def parse_status(data: bytes) -> dict[str, object]:
    """What `/proc/<pid>/status` says beyond psutil: groups, ids in nested namespaces, tracer, rights, umask.

    `uids` and `gids` are real, effective, saved and filesystem id. The name of the process cannot forge a line: the
    kernel escapes newlines in this file.
    """
    found: dict[str, object] = {}
    for match in _STATUS.finditer(data):
        name, value = match[1], match[2]
        words = value.split()
        if not words:
            continue
        if name in _CAPABILITIES:
            if _HEX.fullmatch(words[0]):
                found[_CAPABILITIES[name]] = words[0].decode()
        elif name == b"Umask":
            if _OCTAL.fullmatch(words[0]):
                found["umask"] = words[0].decode()
        elif name in _LISTS:
            numbers = [number(word) for word in words]
            if None not in numbers:
                found[_LISTS[name]] = numbers
        else:
            one = number(words[0])
            if one is not None:
                found[_NUMBERS[name]] = one
    return found


def parse_fdinfo(data: bytes) -> dict[str, object]:
    """Position and open flags (octal) of `/proc/<pid>/fdinfo/<fd>`."""
    found: dict[str, object] = {}
    for line in data.split(b"\n")[:4]:
        key, _, value = line.partition(b":")
        text = value.strip()
        if key == b"pos" and number(text) is not None:
            found["pos"] = int(text)
        elif key == b"flags" and _OCTAL.fullmatch(text):
            found["flags"] = text.decode()
    return found


def classify(target: bytes) -> tuple[str, int | None]:
    """What an open file is, by the text of its link in `/proc/<pid>/fd`, and the inode that the text gives.

    `deleted` and `memfd` are what the text claims: a file may bear a name that ends so (its link count tells).
    """
    if match := _LINK.match(target):
        kind = match[1].decode()
        named = {"socket", "pipe", "pidfd"}
        return (kind if kind in named else "namespace"), int(match[2])
    if target.startswith(b"anon_inode:"):
        return "anon", None
    if target.endswith(_DELETED):
        return ("memfd" if target.startswith(b"/memfd:") else "deleted"), None
    return "file", None
