"""A FUSE filesystem with one file, whose daemon a test can stop: `python deadfs.py MOUNTPOINT FILE`.

It shows FILE as `MOUNTPOINT/program` and promises nothing to the cache, so that the kernel asks it every time. After
SIGUSR1 it takes requests and answers none: whoever asks sleeps beyond the reach of signals, SIGKILL included. With the
daemon's end the kernel gives up all requests. Format: include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, BATCH_FORGET = 1, 2, 3, 14, 15, 17, 18, 25, 26, 42
ROOT, PROGRAM = 1, 2
HEADER = struct.Struct("<IIQQIIIHH")


def attributes(node: int, size: int) -> bytes:
    mode = 0o40755 if node == ROOT else 0o100755
    return struct.pack("<6Q10I", node, size, size // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode: int, node: int, body: bytes, content: bytes) -> bytes | int | None:
    """The body of an answer, an errno, or None where none is expected."""
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 17, 0, 8, 8, 1 << 17, 1, 32, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        if body != b"program\0":
            return errno.ENOENT
        return struct.pack("<QQQQII", PROGRAM, 0, 60, 0, 0, 0) + attributes(PROGRAM, len(content))
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + attributes(node, len(content) if node == PROGRAM else 0)
    if opcode == OPEN:
        return struct.pack("<QII", 1, 0, 0)
    if opcode == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        return content[offset : offset + size]
    if opcode == STATFS:
        return struct.pack("<5Q4I6I", 1, 0, 0, 2, 0, 4096, 255, 4096, 0, *[0] * 6)
    if opcode in {FLUSH, RELEASE}:
        return b""
    if opcode in {FORGET, BATCH_FORGET}:
        return None
    return errno.ENOSYS


def main(point: str, path: str) -> None:
    with open(path, "rb") as file:
        content = file.read()
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"deadfs", os.fsencode(point), b"fuse.deadfs", ctypes.c_ulong(6), options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    dead = []
    signal.signal(signal.SIGUSR1, lambda *_: dead.append(True))
    print("ready", flush=True)  # noqa: T201
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        if dead:
            continue
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        found = answer(opcode, node, request[HEADER.size :], content)
        if found is None:
            continue
        body, error_number = (b"", -found) if isinstance(found, int) else (found, 0)
        os.write(device, struct.pack("<IiQ", 16 + len(body), error_number, unique) + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
