"""Reads the sockets of one network namespace, in the child that `watch` keeps.

`/proc/<pid>/net` shows the namespace of that process, so any process in it serves. A namespace that only a mount or an
open file keeps alive (`ip netns add`, a tunnel that was moved away) is entered with setns(2), which the child may do:
it does nothing else afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from acquirers import syscalls
from acquirers.snapshot import socket_tables
from acquirers.snapshot.encode import line, put
from acquirers.snapshot.watch import Part

MAX_CANDIDATES = 64
_BLOCK = 1 << 16
_CLONE_NEWNET = 0x40000000
_NSFS_MAGIC = 0x6E736673
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Namespace(msgspec.Struct):
    """A network namespace, and the ways to it."""

    inode: int
    pids: list[int] = msgspec.field(default_factory=list)
    """The first processes that were seen in it."""
    count: int = 0
    """How many processes were seen in it."""
    handles: list[bytes] = msgspec.field(default_factory=list)
    """Of a namespace without processes: paths below /proc, or absolute ones, of files that stand for it."""


class TableNotes(msgspec.Struct, omit_defaults=True):
    sockets: int = 0
    malformed: int = 0
    error: int = 0
    """errno, where the table could not be read to its end."""
    entered: bool = True
    """False: the error is that of the namespace, not of the table."""
    vanished: bool = False
    """The namespace has ended with its last process."""


Task = tuple[Namespace, str]
_notes = msgspec.msgpack.Encoder()


class SocketReader:
    """Does tasks of (namespace, table). `holders` maps the inode of a socket to the (pid, descriptor) that hold it."""

    def __init__(self, proc: int, holders: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        self._proc = proc
        self._holders = holders

    def __call__(self, task: Task) -> Iterator[Part]:
        namespace, table = task
        notes = TableNotes()
        try:
            directory, via = self._open(namespace)
        except OSError as error:
            notes.error, notes.entered = error.errno or errno.EIO, False
            yield Part(notes=_notes.encode(notes), last=True)
            return
        if directory < 0:
            notes.vanished = True
            yield Part(notes=_notes.encode(notes), last=True)
            return
        try:
            fd = os.open(table, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.ENOENT and _lists(directory):
                return  # a kernel without this protocol
            notes.vanished = error.errno in {errno.ENOENT, errno.ESRCH, errno.ENXIO}
            notes.error = 0 if notes.vanished else error.errno or errno.EIO
            yield Part(notes=_notes.encode(notes), last=True)
            return
        finally:
            os.close(directory)
        try:
            yield from self._table(fd, namespace, table, notes)
        finally:
            os.close(fd)
        summary: dict[str, object] = {
            "type": "sockets",
            "netns": namespace.inode,
            "family": table,
            "processes": namespace.count,
            "count": notes.sockets,
        }
        if isinstance(via, int):
            summary["via_pid"] = via
        else:
            put(summary, "via", via)
        if notes.malformed:
            summary["malformed"] = notes.malformed
        yield Part(line(summary), _notes.encode(notes), last=True)

    def _table(self, fd: int, namespace: Namespace, table: str, notes: TableNotes) -> Iterator[Part]:
        lines = socket_tables.split(self._blocks(fd, notes))
        batch: list[bytes] = []
        size = 0
        for text in socket_tables.join_unix(lines) if table == "unix" else lines:
            record: dict[str, object] = {"type": "socket", "netns": namespace.inode}
            record |= socket_tables.parse(table, text)
            notes.sockets += 1
            notes.malformed += "raw" in record
            inode = record.get("inode")
            if isinstance(inode, int) and inode in self._holders:
                record["holders"] = [{"pid": pid, "fd": number} for pid, number in self._holders[inode]]
            batch.append(line(record))
            size += len(batch[-1])
            if size > _BLOCK:
                yield Part(b"".join(batch))
                batch, size = [], 0
        if batch:
            yield Part(b"".join(batch))

    @staticmethod
    def _blocks(fd: int, notes: TableNotes) -> Iterator[bytes]:
        try:
            while block := os.read(fd, _BLOCK):
                yield block
        except OSError as error:
            notes.error = error.errno or errno.EIO

    # -- ways into a namespace ----------------------------------------------------------------------------------------

    def _open(self, namespace: Namespace) -> tuple[int, int | bytes]:
        """A descriptor of its `net` directory and what led there; -1 when the namespace has ended."""
        for pid in namespace.pids:
            directory = self._of_process(pid, namespace.inode)
            if directory >= 0:
                return directory, pid
        for handle in namespace.handles:
            if self._enter(handle, namespace.inode):
                return os.open(b"/proc/self/net", _DIRECTORY), handle
        return -1, b""

    def _of_process(self, pid: int, inode: int) -> int:
        """Holds the process itself while it looks: a pid may have been given away, a process may have moved."""
        try:
            process = os.open(b"%d" % pid, _DIRECTORY, dir_fd=self._proc)
        except (FileNotFoundError, ProcessLookupError):
            return -1
        try:
            if os.readlink(b"ns/net", dir_fd=process) != b"net:[%d]" % inode:
                return -1
            return os.open(b"net", _DIRECTORY, dir_fd=process)
        except (FileNotFoundError, ProcessLookupError):
            return -1
        finally:
            os.close(process)

    def _enter(self, handle: bytes, inode: int) -> bool:
        # A link below /proc leads to the namespace itself; a mount point is no link.
        follow = os.O_NOFOLLOW if handle.startswith(b"/") else 0
        try:
            path = os.open(handle, os.O_PATH | os.O_CLOEXEC | follow, dir_fd=self._proc)
        except (FileNotFoundError, ProcessLookupError):
            return False
        try:
            if syscalls.filesystem_type(path) != _NSFS_MAGIC or os.fstat(path).st_ino != inode:
                return False
            fd = os.open(b"/proc/self/fd/%d" % path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(path)
        try:
            _setns(fd)
        finally:
            os.close(fd)
        return True


def _lists(directory: int) -> bool:
    """There is a namespace behind this `net`: that of a process which has ended shows nothing (fs/proc/proc_net.c)."""
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _setns(fd: int) -> None:
    """`setns(2)` into a network namespace, for this thread; CAP_SYS_ADMIN. Python has a name for it since 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(ctypes.c_int(fd), ctypes.c_int(_CLONE_NEWNET)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
