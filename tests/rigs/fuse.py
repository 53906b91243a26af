"""A small FUSE filesystem that fails as it is told: calls that are never answered, pages that cannot be read.

Speaks the kernel's protocol (include/uapi/linux/fuse.h, 7.31) on `/dev/fuse`; needs root, and no library. The server is
a process of its own that dies with the test: when it is gone the kernel ends every call that still waits for it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.rigs.trees import REPOSITORY, libc_call, mount

PAGE = 4096

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 25, 26, 27, 28, 29, 36, 42
_NAMES = {_LOOKUP: "lookup", _OPEN: "open", _READ: "read", _FLUSH: "flush", _OPENDIR: "opendir", _READDIR: "readdir"}

_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_PR_SET_PDEATHSIG = 1
_PARALLEL = 1 << 18  # FUSE_PARALLEL_DIROPS: a lookup that is stuck does not hold up others in its directory


@dataclass
class Node:
    """One name in the root of the filesystem."""

    size: int = 0
    directory: bool = False
    hangs: list[str] = field(default_factory=list)
    """Calls that are never answered: lookup, open, read, flush, opendir, readdir."""
    bad: list[int] = field(default_factory=list)
    """Pages that give EIO."""


def content(size: int) -> bytes:
    """What a file of that size holds."""
    return (bytes(range(1, 252)) * (size // 251 + 1))[:size]


@contextmanager
def mounted(target: Path, nodes: dict[str, Node], *, silent: bool = False) -> Iterator[None]:
    """Mounts the filesystem; to be used in a private mount namespace. `silent`: it never answers anything."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount("fuse", target, "fuse", data=f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other")
        server = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from tests.rigs.fuse import serve; serve()",
                str(device),
                str(int(silent)),
                str(os.getpid()),
            ],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            pass_fds=[device],
        )
    finally:
        os.close(device)
    try:
        assert server.stdin is not None
        server.stdin.write(json.dumps({name: asdict(node) for name, node in nodes.items()}).encode())
        server.stdin.close()
        yield
    finally:
        server.kill()
        server.wait()


def serve() -> None:
    """The server's process."""
    libc_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[3]):
        return  # it has died already
    nodes = {name: Node(**about) for name, about in json.load(sys.stdin).items()}
    _Server(int(sys.argv[1]), nodes, silent=sys.argv[2] == "1").run()


class _Server:
    def __init__(self, device: int, nodes: dict[str, Node], *, silent: bool) -> None:
        self.device = device
        self.silent = silent
        self.names = list(nodes)
        self.nodes = [Node(directory=True), *nodes.values()]

    def run(self) -> None:
        while True:
            with suppress(FileNotFoundError, InterruptedError):  # the call was taken back before we saw it
                self.answer(os.read(self.device, 1 << 18))

    def answer(self, request: bytes) -> None:
        _, call, unique, number, *_ = _IN.unpack_from(request)
        if call in {_FORGET, _BATCH_FORGET, _INTERRUPT} or (self.silent and call != _INIT):
            return
        body = request[_IN.size :]
        node = self.nodes[number - 1] if number else self.nodes[0]
        if call == _LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name in self.names:
                number = self.names.index(name) + 2
                node = self.nodes[number - 1]
            else:
                call = 0
        if _NAMES.get(call) in node.hangs:
            return
        try:
            reply = self.reply(call, number, node, body)
            result = 0
        except OSError as error:
            reply, result = b"", -(error.errno or errno.EIO)
        with suppress(FileNotFoundError):
            os.write(self.device, _OUT.pack(_OUT.size + len(reply), result, unique) + reply)

    def reply(self, call: int, number: int, node: Node, body: bytes) -> bytes:
        if call == _INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, _PARALLEL, 16, 12, 1 << 17, 1, 32, 0, 0)
        if call == _LOOKUP:
            return struct.pack("=QQQQII", number, 0, 3600, 3600, 0, 0) + self.attributes(number, node)
        if call == _GETATTR:
            return struct.pack("=QII", 3600, 0, 0) + self.attributes(number, node)
        if call in {_OPEN, _OPENDIR}:
            return struct.pack("=QII", 0, 0, 0)
        if call == _READ:
            return self.read(node, body)
        if call == _READDIR:
            return self.names_from(struct.unpack_from("=QQ", body)[1]) if number == 1 else b""
        if call == _STATFS:
            return bytes(80)
        if call in {_RELEASE, _RELEASEDIR, _FLUSH}:
            return b""
        raise OSError(errno.ENOENT if call == 0 else errno.ENOSYS, "")

    def attributes(self, number: int, node: Node) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node.directory else stat.S_IFREG | 0o644
        times = (1_500_000_000, 1_600_000_000, 1_600_000_000)
        return struct.pack(
            "=QQQQQQIIIIIIIIII", number, node.size, -(-node.size // 512), *times, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0
        )

    def read(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        end = min(offset + size, node.size)
        if any(offset < (page + 1) * PAGE and page * PAGE < end for page in node.bad):
            raise OSError(errno.EIO, "")
        return content(node.size)[offset:end]

    def names_from(self, start: int) -> bytes:
        reply = b""
        for index, name in list(enumerate(self.names))[start:]:
            raw = name.encode()
            kind = 4 if self.nodes[index + 1].directory else 8
            record = struct.pack("=QQII", index + 2, index + 1, len(raw), kind) + raw
            reply += record.ljust(-(-len(record) // 8) * 8, b"\0")
        return reply
