"""A process as intruders leave it: its program is deleted, it listens, holds a file, and runs code from nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.rigs.s3_process import RigError

if TYPE_CHECKING:
    from tests.rigs.guest import Guest

NAME = "planted"
PROGRAM = f"/tmp/{NAME}"
OPEN_FILE = "/tmp/kept-open.txt"
PORT = 4444
CODE = b"\x90" * 16 + b"\xeb\xfeplanted shellcode"
"""What lies at the beginning of its anonymous mapping that may be read, written and executed."""

_SCRIPT = f"""
import mmap, os, socket, time
code = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
code[:{len(CODE)}] = {CODE!r}
kept = open({OPEN_FILE!r}, "w")
kept.write("kept open")
kept.flush()
listening = socket.create_server(("127.0.0.1", {PORT}))
os.unlink({PROGRAM!r})
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True, slots=True)
class Planted:
    pid: int


def plant(guest: Guest) -> Planted:
    """Starts it in the guest and waits until it is all there."""
    guest.run(["cp", "/usr/bin/python3", PROGRAM], check=True)
    pid = guest.start([PROGRAM, "-S", "-c", _SCRIPT], output="/tmp/planted.out")
    for _ in range(100):
        if guest.read("/tmp/planted.out").startswith(b"ready"):
            break
        guest.run(["sleep", "0.1"])
    else:
        raise RigError(f"the planted process is not ready: {guest.read('/tmp/planted.out')!r}")
    target = guest.run(["readlink", f"/proc/{pid}/exe"]).out
    if target.strip() != f"{PROGRAM} (deleted)".encode():
        raise RigError(f"the planted process runs {target!r}")
    return Planted(pid)
