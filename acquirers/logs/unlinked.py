"""Logs that have no name any more and that the process which writes them still holds open.

Truncating rotation (`max-file=1`), a removed container, or somebody who deletes what he wrote leave them. They are
found through the links of `/proc/<pid>/fd` of those programs that write logs, and read through the same links: nothing
is opened before the kernel's list of mounts says that its filesystem answers, and before it is known to be a regular
file. (`memory.process` recovers whatever any process holds; this needs neither it nor the memory.)

Members stand at the place where they were found, `deleted/proc/42/fd/5`. The first one, `deleted/index.jsonl`, has a
line for each: {"pid", "comm", "fd", "path" (the last name, as that process saw it), "member", "dev", "ino", "size",
"flags", "pos", "mnt_ns" (inode of its mount namespace), "of_the_machine" (that is the one of process 1), "container"
(of its control group)}; a name that is not UTF-8 stands in "path_b64" as well. A process in another mount namespace can
give its files any name.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from acquirers import container_id, syscalls
from acquirers.base import Buffer, Gap, Kind, Reason, Report
from acquirers.files import xattrs
from acquirers.files.archive import ArchiveWriter
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import guard_for, reason
from acquirers.files.entry import Entry
from acquirers.files.tree import open_noatime
from acquirers.host import Mode
from acquirers.mounts import find_mount
from acquirers.snapshot.encode import line, put
from acquirers.snapshot.process_files import parse_fdinfo

if TYPE_CHECKING:
    from acquirers.host import Host

PREFIX = b"deleted"
INDEX = PREFIX + b"/index.jsonl"
DELETED = b" (deleted)"

# Command names, which the kernel cuts to 15 bytes. Anybody can call himself so: what he then holds is read as well.
WRITERS = frozenset(
    b"dockerd containerd containerd-shim conmon conmonrs crio podman cri-dockerd buildkitd kubelet k3s-server "
    b"k3s-agent rke2 k0s amazon-ecs-init agent amazon-ssm-agen ssm-agent-worke ssm-session-wor ssm-session-log "
    b"ssm-document-wo systemd-journal rsyslogd syslog-ng fluent-bit fluentd vector filebeat promtail".split()
)
_SHIM = b"containerd-shim"

MAX_PROCESSES = 10_000
MAX_LINKS = 100_000
"""Open files of one process that are looked at."""
MAX_FOUND = 10_000
_MAX_TOLD = 100
_MNT_NS = re.compile(rb"mnt:\[(\d{1,20})\]")
_MNT_ID = re.compile(rb"^mnt_id:\s*(\d{1,10})$", re.MULTILINE)


class Unlinked(msgspec.Struct, frozen=True):
    """One file without a name, and a link that leads to it."""

    pid: int
    comm: bytes
    fd: int
    path: bytes
    """Its last name, as the process's own mount namespace has it."""
    dev: int
    ino: int
    size: int
    flags: str = ""
    position: int = -1
    mnt_ns: int = 0
    """Inode of the holder's mount namespace; 0 where the kernel does not tell."""
    of_the_machine: bool = False
    """That is the namespace of process 1: `path` is a name of the machine, not one that the holder has made."""
    container: str = ""
    """Of the holder's control group."""

    @property
    def where(self) -> bytes:
        return b"/proc/%d/fd/%d" % (self.pid, self.fd)


class Search(msgspec.Struct):
    """What was found, each inode once, and what kept something from being found."""

    files: list[Unlinked] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    denied: int = 0
    """Writers of logs whose open files may not be looked at."""
    _seen: set[tuple[int, int]] = msgspec.field(default_factory=set)

    def gap(self, why: Reason, detail: str, where: bytes, missing: int | None = None) -> None:
        if len(self.gaps) < _MAX_TOLD:
            self.gaps.append(Gap(why, detail, where, missing))

    def add(self, file: Unlinked) -> None:
        if (file.dev, file.ino) in self._seen:
            return
        self._seen.add((file.dev, file.ino))
        self.files.append(file)


def search(host: Host) -> Search:
    """Looks through the open files of all that writes logs. Raises nothing for what it finds."""
    found = Search()
    if not host.live:
        return found
    try:
        pids = host.pids()
    except OSError as error:
        found.gap(reason(error), f"processes: {error.strerror}", host.proc or b"")
        return found
    looked_at = 0
    machine = _mount_namespace(host, 1)
    if not machine and host.mode is not Mode.LIVE_ROOT:  # process 1 may refuse even root: a security module
        machine = _mount_namespace(host, os.getpid())
    for pid in pids:
        try:
            comm = host.read_proc(b"%d/comm" % pid, 64).rstrip(b"\n")
        except OSError:
            continue
        if comm not in WRITERS and not comm.startswith(_SHIM):
            continue
        looked_at += 1
        if looked_at > MAX_PROCESSES or len(found.files) >= MAX_FOUND:
            found.gap(Reason.LIMIT, "more processes or files than are looked at", b"/proc/%d" % pid)
            break
        try:
            _Process(host, pid, comm, found, machine).look()
        except OSError as error:
            if reason(error) is Reason.DENIED:
                found.denied += 1
            if reason(error) is not Reason.VANISHED:
                found.gap(reason(error), f"open files: {error.strerror}", b"/proc/%d/fd" % pid)
    return found


def _mount_namespace(host: Host, pid: int) -> int:
    """Inode of its mount namespace, namespaces(7); 0 where it is not told."""
    try:
        match = _MNT_NS.fullmatch(os.readlink(os.path.join(host.proc or b"", b"%d/ns/mnt" % pid)))
    except OSError:
        return 0
    return int(match[1]) if match is not None else 0


def _container(host: Host, pid: int) -> str:
    try:
        return container_id.from_cgroup(host.read_proc(b"%d/cgroup" % pid, 1 << 16)).container
    except OSError:
        return ""


class _Process:
    """One process that writes logs."""

    def __init__(self, host: Host, pid: int, comm: bytes, found: Search, machine: int) -> None:
        self._host = host
        self._mnt_ns = _mount_namespace(host, pid)
        self._of_the_machine = self._mnt_ns == machine != 0
        self._container = _container(host, pid)
        self._pid = pid
        self._comm = comm
        self._found = found
        self._mountinfo: bytes | None = None

    def look(self) -> None:
        """Raises `OSError` when its open files cannot be listed."""
        base = os.path.join(self._host.proc or b"", b"%d/fd" % self._pid)
        directory = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(directory) as entries:
                for count, entry in enumerate(entries):
                    if count >= MAX_LINKS or len(self._found.files) >= MAX_FOUND:
                        self._found.gap(Reason.LIMIT, "more open files than are looked at", b"/proc/%d/fd" % self._pid)
                        return
                    if entry.name.isdigit():
                        self._link(directory, int(entry.name))
        finally:
            os.close(directory)

    def _link(self, directory: int, number: int) -> None:
        name = b"%d" % number
        try:
            target = os.readlink(name, dir_fd=directory)
        except OSError:
            return  # closed
        if not target.endswith(DELETED) or not target.startswith(b"/") or target.startswith(b"/memfd:"):
            return
        where = b"/proc/%d/fd/%d" % (self._pid, number)
        try:
            info = self._host.read_proc(b"%d/fdinfo/%d" % (self._pid, number), 4096)
            foreign = self._foreign(info)
            if foreign:
                text = target.decode("utf-8", "backslashreplace")[:500]
                self._found.gap(Reason.NOT_CROSSED, f"{text}: on {foreign}, which is not entered", where)
                return
            pointer = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
            try:
                stat = os.fstat(pointer)
            finally:
                os.close(pointer)
        except OSError as error:
            if reason(error) is not Reason.VANISHED:
                self._found.gap(reason(error), error.strerror or str(error), where)
            return
        if stat_module.S_ISREG(stat.st_mode):
            told = parse_fdinfo(info)
            position = told.get("pos", -1)
            self._found.add(
                Unlinked(
                    self._pid,
                    self._comm,
                    number,
                    target.removesuffix(DELETED),
                    stat.st_dev,
                    stat.st_ino,
                    stat.st_size,
                    str(told.get("flags", "")),
                    position if isinstance(position, int) else -1,
                    self._mnt_ns,
                    self._of_the_machine,
                    self._container,
                )
            )

    def _foreign(self, info: bytes) -> str:
        """What the file lies on, if it is a filesystem that may never answer; "" for a local one. Raises `OSError`."""
        match = _MNT_ID.search(info)
        if match is None:
            return "a filesystem that is not told"
        if self._mountinfo is None:
            self._mountinfo = self._host.read_proc(b"%d/mountinfo" % self._pid)
        mount = find_mount(self._mountinfo, int(match[1]))
        if mount is None:
            return "a filesystem that is in no list of mounts"
        return "" if mount.local else mount.fstype.decode("ascii", "replace")


class Archive(msgspec.Struct, frozen=True):
    """`Item.read` of what was found."""

    host: Host
    found: Search

    def __call__(self, report: Report) -> Iterator[Buffer]:
        for gap in self.found.gaps:
            report.gap(gap)
        writer = ArchiveWriter(report)
        index = b"".join(line(_record(file)) for file in self.found.files)
        yield from writer.add_bytes(INDEX, index, time.time_ns())
        for file in self.found.files:
            yield from self._one(writer, file, report)
        yield from writer.close()

    def _one(self, writer: ArchiveWriter, file: Unlinked, report: Report) -> Iterator[Buffer]:
        try:
            fd = self._open(file)
        except OSError as error:
            report.gap(_gap(file, error))
            return
        guard = guard_for(fd)
        content: FileContent | None = None
        try:
            stat = guard.call(syscalls.statx, fd, b"")
            attributes = guard.call(xattrs.read, fd)
            content = FileContent(Reader(guard, report, in_place=True), fd, file.where, stat)
            entry = Entry(file.where, Kind.FILE, stat, attributes.values, content=content)
            yield from writer.add([entry], prefix=PREFIX)
        except OSError as error:
            report.gap(_gap(file, error))
        finally:
            if content is not None:
                content.close()
            elif not guard.given_up:
                os.close(fd)
            guard.close()

    def _open(self, file: Unlinked) -> int:
        """The very file that was found. Raises `OSError`."""
        link = os.path.join(self.host.proc or b"", b"%d/fd/%d" % (file.pid, file.fd))
        pointer = os.open(link, os.O_PATH | os.O_CLOEXEC)
        try:
            now = os.fstat(pointer)
            if not stat_module.S_ISREG(now.st_mode) or (now.st_dev, now.st_ino) != (file.dev, file.ino):
                raise FileNotFoundError(errno.ENOENT, "it was closed since it was found")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return open_noatime(b"/proc/self/fd/%d" % pointer, flags, pointer)
        finally:
            os.close(pointer)


def _gap(file: Unlinked, error: OSError) -> Gap:
    name = file.path.decode("utf-8", "backslashreplace")[:500]
    return Gap(reason(error), f"{name}: {error.strerror}", file.where, file.size)


def _record(file: Unlinked) -> dict[str, object]:
    record: dict[str, object] = {"pid": file.pid, "fd": file.fd}
    put(record, "comm", file.comm)
    put(record, "path", file.path)
    record |= {
        "member": (PREFIX + file.where).decode(),
        "dev": f"{os.major(file.dev)}:{os.minor(file.dev)}",
        "ino": file.ino,
        "size": file.size,
    }
    if file.flags:
        record |= {"flags": file.flags, "pos": file.position}
    record["of_the_machine"] = file.of_the_machine
    if file.mnt_ns:
        record["mnt_ns"] = file.mnt_ns
    if file.container:
        record["container"] = file.container
    return record
