"""Reads one process, step by step, in the child that `watch` keeps: what cannot hang first, what may hang last.

The directory `/proc/<pid>` is opened once and everything is read below it, so that all of a record belongs to one
process even if the pid is given to another one meanwhile. psutil, which opens by name, stands between two reads of
that directory: if it is still the same process afterwards, it was all the time.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

import msgspec
import psutil

from acquirers import container_id, syscalls
from acquirers.base import Reason
from acquirers.files.deadline import Direct, guard_for
from acquirers.files.tree import open_noatime
from acquirers.snapshot.encode import fragment, put, put_list
from acquirers.snapshot.notes import Executable, Notes, Step
from acquirers.snapshot.process_files import Stat, classify, parse_fdinfo, parse_stat, parse_status
from acquirers.snapshot.watch import Part

if TYPE_CHECKING:
    from types import TracebackType

MAX_FDS = 10_000
MAX_COUNTED = 100_000
MAX_WORDS = 1 << 20
"""Bytes of arguments and environment together."""
_MAX_FILE = 1 << 18
_MAX_MOUNTINFO = 4 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_NO_AUDIT = 0xFFFFFFFF  # loginuid of what no login started

_notes = msgspec.msgpack.Encoder()


class _Guard:
    """One piece of a record: what refuses it or ends it is noted, and the rest of the record goes on."""

    __slots__ = ("_kind", "_reader")

    def __init__(self, reader: ProcessReader, kind: str) -> None:
        self._reader = reader
        self._kind = kind

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, OSError):
            return False
        self._reader.refused(self._kind, error)
        return True


class ProcessReader:
    """Does tasks of (pid, step). `expected` gives the start time of a process whose record a former child began."""

    def __init__(
        self,
        proc: int,
        *,
        known: frozenset[tuple[int, int]] = frozenset(),
        room: int = 0,
        expected: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._proc = proc
        self._known = set(known)
        self._room = room
        self._expected = expected
        self._device = os.fstat(proc).st_dev
        self._pid = 0
        self._dir = -1
        self._stat: Stat | None = None
        self._gone = False
        self._record: dict[str, object] = {}
        self._note = Notes()
        self._fd = -1
        self._mnt = b""
        self._by_mounts: dict[bytes, container_id.Placement] = {}
        self._steps = {
            Step.BASIC: self._basic,
            Step.PLACE: self._place,
            Step.IMAGE: self._image,
            Step.MEMORY: self._memory,
        }
        psutil.PROCFS_PATH = f"/proc/self/fd/{proc}"
        self._ticks = os.sysconf("SC_CLK_TCK")
        try:
            self._boot_time = psutil.boot_time()
        except (OSError, RuntimeError):
            self._boot_time = 0.0

    def __call__(self, task: tuple[int, Step]) -> Iterator[Part]:
        pid, step = task
        self._record, self._note, self._fd = {}, Notes(), -1
        if pid != self._pid:
            self._enter(pid)
        if self._dir >= 0 and not self._gone:
            self._steps[step]()
        self._note.vanished = self._gone
        yield Part(fragment(self._record), _notes.encode(self._note), self._fd, last=True)

    # -- the directory ------------------------------------------------------------------------------------------------

    def _enter(self, pid: int) -> None:
        if self._dir >= 0:
            os.close(self._dir)
        self._pid, self._dir, self._stat, self._gone, self._mnt = pid, -1, None, False, b""
        try:
            self._dir = os.open(b"%d" % pid, _DIRECTORY, dir_fd=self._proc)
            covered = os.fstat(self._dir).st_dev != self._device
            data = b"" if covered else self._read(b"stat", 4096)
        except OSError as error:
            self.refused("stat", error)
            return
        self._stat = parse_stat(data)
        expected = self._expected(pid)
        if covered or (self._stat and self._stat.pid != pid):
            # A bind mount over /proc/<pid> hides a process from tools that list (ATT&CK T1564.013).
            self._note.gaps.append((Reason.NOT_CROSSED, "covered", "something else is mounted over this process"))
            self._record["covered"] = True
            self._leave()
        elif self._stat and expected and self._stat.start_ticks != expected:
            self._gone = True
        elif self._stat is None:
            self._note.gaps.append((Reason.MALFORMED, "stat", "stat is not what proc(5) says"))
            put(self._record, "stat_raw", data)

    def _leave(self) -> None:
        os.close(self._dir)
        self._dir = -1

    def _alive(self) -> bool:
        """The process that was opened is still there: its files are gone with it."""
        try:
            os.stat(b"stat", dir_fd=self._dir)
        except OSError as error:
            return error.errno not in {errno.ENOENT, errno.ESRCH}
        return True

    def refused(self, kind: str, error: OSError) -> None:
        if error.errno in {errno.EACCES, errno.EPERM}:
            self._note.denied.append(kind)
        elif error.errno in {errno.ENOENT, errno.ESRCH}:
            # Without the process: vanished. With it: a zombie, or a kernel that lacks the file.
            self._gone = self._dir < 0 or not self._alive()
        else:
            self._note.gaps.append((Reason.IO_ERROR, kind, f"{kind}: {error.strerror}"))

    def _read(self, name: bytes, limit: int = _MAX_FILE) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dir)
        try:
            data = os.read(fd, limit)
            if not data or len(data) == limit:
                return data
            parts, left = [data], limit - len(data)
            while left and (data := os.read(fd, left)):
                parts.append(data)
                left -= len(data)
            return b"".join(parts)
        finally:
            os.close(fd)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _basic(self) -> None:
        record, note, stat = self._record, self._note, self._stat
        if stat is not None:
            note.start_ticks, note.comm = stat.start_ticks, stat.comm
            put(record, "comm", stat.comm)
            record |= {
                "state": stat.state,
                "ppid": stat.ppid,
                "pgrp": stat.pgrp,
                "session": stat.session,
                "tty": stat.tty,
                "nice": stat.nice,
                "flags": stat.flags,
                "threads": stat.threads,
                "start_ticks": stat.start_ticks,
                "started": round(self._boot_time + stat.start_ticks / self._ticks, 3),
            }
        counters = self._counters()
        with _Guard(self, "status"):
            record |= parse_status(self._read(b"status"))
        if not self._gone:
            record |= counters
        if stat is not None and stat.kernel_thread:
            record["kernel_thread"] = True
            return
        with _Guard(self, "loginuid"):
            value = self._read(b"loginuid", 32)
            if value.isdigit() and int(value) != _NO_AUDIT:
                record["loginuid"] = int(value)
        if stat is not None and stat.dead:
            return
        for name in ("exe", "cwd", "root"):
            with _Guard(self, name):
                put(record, name, os.readlink(name.encode(), dir_fd=self._dir))
        with _Guard(self, "ns"):
            record["ns"] = self._namespaces()
        with _Guard(self, "fd"):
            self._fds()

    def _counters(self) -> dict[str, object]:
        """What psutil reads well: processor times, memory, the state in words.

        Its ids cost another read of `status`, its `ppid` and `create_time` a read of /proc/stat each: together more
        than everything else here. Names of users are never looked up, which would ask the machine's name services.
        """
        try:
            process = psutil.Process(self._pid)
            with process.oneshot():
                cpu, memory = process.cpu_times(), process.memory_info()
                return {
                    "status": str(process.status()),
                    "cpu_user": cpu.user,
                    "cpu_system": cpu.system,
                    "rss": memory.rss,
                    "vms": memory.vms,
                }
        except psutil.NoSuchProcess:
            self.refused("counters", FileNotFoundError(errno.ENOENT, "no such process"))
        except psutil.AccessDenied:
            self._note.denied.append("counters")
        except (OSError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
            # A process whose files are not what psutil expects: what was read here remains.
            self._gone = not self._alive()
        return {}

    def _namespaces(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in _NAMESPACES:
            try:
                target = os.readlink(b"ns/" + name.encode(), dir_fd=self._dir)
            except FileNotFoundError:
                continue  # a kernel without it, or a process that ends
            _, inode = classify(target)
            if inode is not None:
                found[name] = inode
            if name == "mnt":
                self._mnt = target
        self._note.net = found.get("net", 0)
        return found

    def _fds(self) -> None:
        listing = os.open(b"fd", _DIRECTORY, dir_fd=self._dir)
        found: list[dict[str, object]] = []
        count = 0
        try:
            with os.scandir(listing) as entries:
                for entry in entries:
                    count += 1
                    if count > MAX_COUNTED:
                        break
                    if count > MAX_FDS or not entry.name.isdigit():
                        continue
                    try:
                        found.append(self._one_fd(listing, int(entry.name)))
                    except FileNotFoundError:
                        continue  # closed meanwhile
        finally:
            os.close(listing)
        self._record["fds"] = found
        self._record["fd_count"] = count
        if count > MAX_FDS:
            least = "more than " if count > MAX_COUNTED else ""
            self._note.gaps.append((Reason.LIMIT, "open files", f"{least}{count} open files, {MAX_FDS} are listed"))

    def _one_fd(self, listing: int, fd: int) -> dict[str, object]:
        try:
            target = os.readlink(b"%d" % fd, dir_fd=listing)
        except FileNotFoundError:
            raise  # closed meanwhile
        except OSError as error:
            # A path beyond PATH_MAX, for one: it hides itself, not the descriptors beside it.
            return {"fd": fd, "kind": "unknown", "error": error.strerror or str(error)}
        kind, inode = classify(target)
        entry: dict[str, object] = {"fd": fd, "kind": kind}
        put(entry, "target", target)
        if inode is not None:
            entry["inode"] = inode
            if kind == "socket":
                self._note.sockets.append((inode, fd))
            elif target.startswith(b"net:"):
                self._note.net_fds.append((inode, fd))
        elif kind in {"deleted", "memfd"}:
            self._deleted(entry, listing, fd)
        return entry

    def _deleted(self, entry: dict[str, object], listing: int, fd: int) -> None:
        """Size and place of a file whose name is gone. `statx` is told not to ask a server, so it cannot hang."""
        try:
            found = syscalls.statx(listing, b"%d" % fd, flags=0)
            entry |= parse_fdinfo(self._read(b"fdinfo/%d" % fd, 4096))
        except OSError:  # closed meanwhile, or denied by a security module: the mark stays
            return
        if found.nlink:
            entry["kind"] = "file"  # a name that ends so, or one of several names is gone
        entry |= {"dev": _device(found.dev), "ino": found.ino, "size": found.size, "nlink": found.nlink}

    def _place(self) -> None:
        record = self._record
        placement = container_id.Placement()
        with _Guard(self, "cgroup"):
            data = self._read(b"cgroup")
            put_list(record, "cgroup", data, b"\n")
            placement = container_id.from_cgroup(data)
        if not placement.container and self._mnt:
            with _Guard(self, "mountinfo"):
                if self._mnt not in self._by_mounts:
                    self._by_mounts[self._mnt] = container_id.from_mountinfo(self._read(b"mountinfo", _MAX_MOUNTINFO))
                mounts = self._by_mounts[self._mnt]
                placement = mounts if mounts.container or not placement.pod else placement
        if not placement.source:
            return
        record["placed_by"] = placement.source
        if placement.container:
            record["container"] = placement.container
        if placement.chain:
            record["container_chain"] = list(placement.chain)
        if placement.pod:
            record["pod"] = placement.pod
        if placement.sandbox:
            record["sandbox"] = placement.sandbox
        if placement.upperdir:
            put(record, "upperdir", placement.upperdir)

    def _image(self) -> None:
        stat = self._stat
        if stat is not None and (stat.kernel_thread or stat.dead):
            return
        with _Guard(self, "executable"):
            found = os.stat(b"exe", dir_fd=self._dir)
            if not stat_module.S_ISREG(found.st_mode):
                return
            if (found.st_dev, found.st_ino) not in self._known and self._room > 0:
                self._known.add((found.st_dev, found.st_ino))
                if self._closes_at_once():
                    # A lease on the file shall be answered with an error, not waited for.
                    self._fd = open_noatime(b"exe", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, self._dir)
                    found = os.fstat(self._fd)
                    self._room -= 1
            self._record["exe_file"] = {
                "dev": _device(found.st_dev),
                "ino": found.st_ino,
                "size": found.st_size,
                "nlink": found.st_nlink,
                "mode": found.st_mode,
                "uid": found.st_uid,
                "gid": found.st_gid,
                "mtime_ns": found.st_mtime_ns,
                "ctime_ns": found.st_ctime_ns,
            }
            self._record["exe_deleted"] = found.st_nlink == 0
            self._note.executable = Executable(
                dev=found.st_dev,
                ino=found.st_ino,
                path=os.readlink(b"exe", dir_fd=self._dir),
                comm=stat.comm if stat is not None else b"",
                size=found.st_size,
                nlink=found.st_nlink,
            )

    def _closes_at_once(self) -> bool:
        """The executable may be handed to the parent: it lies on a filesystem of this machine.

        Closing a file on FUSE asks its daemon, and the end of a process closes its files: a parent that holds one
        could hang in its own exit. Such a file is opened again when it is hashed, by a child.
        """
        path = os.open(b"exe", os.O_PATH | os.O_CLOEXEC, dir_fd=self._dir)
        try:
            guard = guard_for(path)
            local = isinstance(guard, Direct)
            guard.close()
            return local
        finally:
            os.close(path)

    def _memory(self) -> None:
        stat = self._stat
        if stat is not None and (stat.kernel_thread or stat.dead):
            return
        left = MAX_WORDS
        for name in ("cmdline", "environ"):
            with _Guard(self, name):
                raw = self._read(name.encode(), left + 1)
                if len(raw) > left:
                    raw = raw[:left]
                    self._note.gaps.append((Reason.LIMIT, name, f"{name} is longer than {left} bytes"))
                    self._record[f"{name}_truncated"] = True
                left -= len(raw)
                put_list(self._record, name, raw)


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"
