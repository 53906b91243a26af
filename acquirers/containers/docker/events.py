"""What a live daemon remembers: its last 256 events, which are in its memory alone and gone when it restarts.

This is the daemon's word, and no reading of the machine: the item says so. The request changes nothing and is no event
itself (moby, api/server/router/system: `GET /events`; `until` in the past ends the answer). The sockets are those on
which the process listens, whatever its arguments say.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
import stat
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Reason
from acquirers.mounts import Mount, find_mount
from acquirers.root import Resolver, read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acquirers.base import Buffer, Report
    from acquirers.host import Host

MEDIA_TYPE = "application/x-ndjson"
SECONDS = 10.0
"""For the whole answer of one daemon."""
MAX_BYTES = 8 << 20
_WAIT = 3.0
_SOCKET = re.compile(r"socket:\[(\d{1,20})\]")
_LISTENS = 0x10000  # __SO_ACCEPTCON, include/linux/net.h
_METRICS = b"/metrics.sock"
"""For plugins that count (moby `daemon/metrics_unix.go`): it has no events, and connecting moves its access time."""
_MAX_FDS = 100_000
_MAX_SOCKETS = 8
_encode = msgspec.json.Encoder().encode


class EventRing:
    """`Item.read` of the events of these daemons."""

    def __init__(self, host: Host, pids: Sequence[int]) -> None:
        self._host, self._pids = host, pids

    def __call__(self, report: Report) -> Iterator[Buffer]:
        for pid in self._pids:
            sockets = list(islice(sockets_of(self._host, pid), _MAX_SOCKETS))
            head = {
                "type": "daemon",
                "pid": pid,
                "asserted_by": "the daemon",
                "sockets": [_text(one) for one in sockets],
            }
            yield _encode(head) + b"\n"
            why = "it listens on no socket of its own"
            for path in sockets:
                try:
                    yield from _events(os.path.join(self._host.proc or b"/proc", b"%d" % pid), path)
                    why = ""
                    break
                except (OSError, http.client.HTTPException) as error:
                    why = f"{_text(path)}: {error}"
            if why:
                report.gap(Gap(Reason.IO_ERROR, f"dockerd {pid} did not tell its events: {why[:300]}"))


def sockets_of(host: Host, pid: int) -> Iterator[bytes]:
    """Paths, in the daemon's own root, of the sockets on which it listens."""
    try:
        directory = os.path.join(host.proc or b"/proc", b"%d/fd" % pid)
        names = os.listdir(directory)[:_MAX_FDS]
        listed = host.read_proc(b"%d/net/unix" % pid)
    except OSError:
        return
    inodes = set()
    for name in names:
        try:
            match = _SOCKET.fullmatch(os.readlink(os.path.join(directory, name)).decode("ascii", "replace"))
        except OSError:
            continue
        if match:
            inodes.add(match[1].encode())
    for line in listed.split(b"\n")[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(None, 7)
        if len(fields) < 8 or fields[6] not in inodes or not _listens(fields[3]):
            continue
        if fields[7].startswith(b"/") and b"/libnetwork/" not in fields[7] and not fields[7].endswith(_METRICS):
            yield fields[7]


def _listens(flags: bytes) -> bool:
    try:
        return bool(int(flags, 16) & _LISTENS)
    except ValueError:
        return False


class _Inside(Resolver):
    """The root of a process, by its own list of mounts. Its links lead to nothing of ours."""

    def __init__(self, process: bytes) -> None:
        self._process = process
        root = os.open(os.path.join(process, b"root"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            super().__init__(root, checked=True)
        except BaseException:
            os.close(root)
            raise

    def _mount(self, mount_id: int) -> Mount | None:
        return find_mount(read_kernel_file(os.path.join(self._process, b"mountinfo")), mount_id)

    def close(self) -> None:
        os.close(self._root_fd)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _events(process: bytes, path: bytes) -> Iterator[bytes]:
    """The answer, as the daemon gave it. Raises `OSError`, `HTTPException`."""
    until = time.monotonic() + SECONDS
    with contextlib.closing(_Inside(process)) as inside:
        place = inside.open_path(path)
    alarm: threading.Timer | None = None
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise OSError(errno.ENOTSOCK, "is no socket any more")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_WAIT)
            # A path in such an address has at most 107 bytes.
            connection.connect(f"/proc/self/fd/{place}")
            client = http.client.HTTPConnection("docker", timeout=_WAIT)
            client.sock = connection
            # A byte now and then keeps every single read from timing out.
            alarm = threading.Timer(SECONDS, _hang_up, (connection,))
            alarm.daemon = True
            alarm.start()
            client.request("GET", f"/events?since=0&until={int(time.time())}")
            answer = client.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"it answered {answer.status}")
            total = 0
            while piece := answer.read1(1 << 16):
                total += len(piece)
                if total > MAX_BYTES or time.monotonic() > until:
                    raise http.client.HTTPException("its answer does not end")
                yield piece
    finally:
        if alarm is not None:
            alarm.cancel()
        os.close(place)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
