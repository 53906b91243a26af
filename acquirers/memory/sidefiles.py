"""What the kernel says about itself in /proc and /sys, and how such a file is read.

Files of the kernel have no size to trust and no content that is stored anywhere: each is read once, whole, with a bound
and a deadline, and nothing of it stays in the page cache. What this kernel does not have is nothing to tell; what is
refused is, once for each kind of file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_module
import zlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from acquirers import syscalls
from acquirers.base import MAX_CHUNK, Gap, Kind, Reason
from acquirers.files.deadline import StuckError, reason
from acquirers.files.entry import Entry
from acquirers.host import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.base import Report
    from acquirers.files.deadline import Guard
    from acquirers.host import Host
    from acquirers.syscalls import Stat

SMALL = 1 << 20
MAX_FILES = 100_000
"""Files of one kind; a kernel with 1,000 modules has 20,000 sections."""
MAX_NAMES = 1 << 16
"""Names of one directory."""

_SYSFS = 0x62656572  # SYSFS_MAGIC, include/uapi/linux/magic.h
_READ = 1 << 16
# What an attribute of sysfs or a file of proc answers whose subject is gone, which this machine does not have, or which
# is a link to another place.
_NOTHING = frozenset({
    errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP, errno.ELOOP,
})  # fmt: skip


class Files(msgspec.Struct, frozen=True):
    """Files of one kind: a native path, `*` in a component stands for any name."""

    pattern: bytes
    limit: int = SMALL
    """Bytes; what is longer is cut there, which is a gap."""


PROC = tuple(
    Files(b"/proc/" + name, limit)
    for name, limit in (
        (b"version", SMALL), (b"cmdline", SMALL), (b"iomem", SMALL), (b"ioports", SMALL), (b"modules", SMALL),
        (b"meminfo", SMALL), (b"zoneinfo", 8 * SMALL), (b"pagetypeinfo", 8 * SMALL), (b"buddyinfo", SMALL),
        (b"slabinfo", SMALL), (b"vmallocinfo", 32 * SMALL), (b"swaps", SMALL), (b"cpuinfo", 8 * SMALL),
        (b"config.gz", 4 * SMALL), (b"devices", SMALL), (b"filesystems", SMALL), (b"consoles", SMALL),
        (b"sys/kernel/osrelease", SMALL), (b"sys/kernel/version", SMALL), (b"sys/kernel/kptr_restrict", SMALL),
        (b"sys/kernel/perf_event_paranoid", SMALL), (b"sys/kernel/randomize_va_space", SMALL),
        (b"sys/kernel/tainted", SMALL), (b"sys/kernel/modules_disabled", SMALL),
        (b"sys/kernel/unprivileged_bpf_disabled", SMALL), (b"sys/kernel/kexec_load_disabled", SMALL),
    )
)  # fmt: skip
SYS = tuple(
    Files(b"/sys/" + name, limit)
    for name, limit in (
        (b"kernel/vmcoreinfo", SMALL), (b"kernel/notes", SMALL), (b"kernel/btf/*", 64 * SMALL),
        (b"kernel/security/lockdown", SMALL), (b"kernel/security/lsm", SMALL), (b"kernel/kexec_crash_size", SMALL),
        (b"kernel/address_bits", SMALL), (b"kernel/cpu_byteorder", SMALL),
        (b"module/*/sections/*", SMALL), (b"module/*/notes/*", SMALL), (b"module/*/coresize", SMALL),
        (b"module/*/initsize", SMALL), (b"module/*/srcversion", SMALL), (b"module/*/version", SMALL),
        (b"module/*/taint", SMALL), (b"module/*/initstate", SMALL),
        (b"devices/system/node/online", SMALL), (b"devices/system/node/possible", SMALL),
        (b"devices/system/node/node*/meminfo", SMALL), (b"devices/system/node/node*/cpulist", SMALL),
        (b"devices/system/node/node*/distance", SMALL), (b"devices/system/cpu/online", SMALL),
        (b"devices/system/memory/block_size_bytes", SMALL), (b"devices/system/memory/auto_online_blocks", SMALL),
        (b"devices/system/clocksource/clocksource0/current_clocksource", SMALL),
        (b"devices/system/clocksource/clocksource0/available_clocksource", SMALL),
        (b"devices/virtual/dmi/id/*", SMALL), (b"hypervisor/type", SMALL), (b"hypervisor/uuid", SMALL),
        (b"firmware/dmi/tables/*", SMALL),
    )
)  # fmt: skip


class Spool:
    """Bytes that are kept, compressed, until their number is known: a tar states it before them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._packer = zlib.compressobj(1)
        self._whole = False
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._digest.update(data)
        self._keep(self._packer.compress(data))

    def close(self) -> None:
        if not self._whole:
            self._keep(self._packer.flush())
            self._whole = True

    def _keep(self, packed: bytes) -> None:
        if packed:
            self._parts.append(packed)

    def chunks(self) -> Iterator[bytes]:
        self.close()
        unpacker = zlib.decompressobj()
        for part in self._parts:
            rest = part
            while rest:
                if data := unpacker.decompress(rest, MAX_CHUNK):
                    yield data
                rest = unpacker.unconsumed_tail
        if data := unpacker.flush():
            yield data

    @property
    def sha256(self) -> bytes:
        return self._digest.digest()


class Held:
    """`entry.Content` of what is in memory already."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @property
    def size(self) -> int:
        return self._spool.size

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.size),) if self.size else ()

    @property
    def true_size(self) -> int:
        return self._spool.size

    @property
    def sha256(self) -> bytes:
        return self._spool.sha256

    def chunks(self) -> Iterator[memoryview]:
        for data in self._spool.chunks():
            view = memoryview(data)
            for start in range(0, len(view), MAX_CHUNK):
                yield view[start : start + MAX_CHUNK]


def entry(path: bytes, stat: Stat, spool: Spool) -> Entry:
    """A member: `stat` is the file's own, but for the size, which files of the kernel do not have."""
    spool.close()
    return Entry(path, Kind.FILE, replace(stat, size=spool.size), content=Held(spool))


class _Read(NamedTuple):
    stat: Stat
    spool: Spool
    cut: bool


def read_whole(path: bytes, limit: int) -> _Read:
    """One regular file, at most `limit` bytes of it. Raises `OSError`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    fd = os.open(path, flags)
    try:
        stat = syscalls.statx(fd, b"")
        if not stat_module.S_ISREG(stat.mode):
            raise OSError(errno.EINVAL, "not a regular file")
        spool = Spool()
        while spool.size < limit and (chunk := os.read(fd, min(_READ, limit - spool.size))):
            spool.add(chunk)
        cut = spool.size == limit and bool(os.read(fd, 1))
        spool.close()
        return _Read(stat, spool, cut)
    finally:
        os.close(fd)


class Views:
    """Where /proc and /sys of the examined kernel are for this process."""

    def __init__(self, host: Host) -> None:
        self._proc = host.proc
        self._sys = host.here(b"/sys")
        if host.mode is Mode.LIVE_ROOT and not _is_sysfs(self._sys):
            self._sys = b"/sys"  # a pod has its own, and it is the same kernel's

    def here(self, native: bytes) -> bytes | None:
        """How this process would name a native path below /proc or /sys; None without a running kernel."""
        if self._proc is None:
            return None
        head, _, rest = native.lstrip(b"/").partition(b"/")
        return os.path.join(self._proc if head == b"proc" else self._sys, rest)

    def expand(self, pattern: bytes, guard: Guard) -> Iterator[tuple[bytes, bytes]]:
        """(native path, path here) of what a pattern names, in order. Raises `OSError`, not for what is not there."""
        here = self.here(pattern)
        if here is None:
            return
        head, star, rest = pattern.partition(b"*")
        if not star:
            yield pattern, here
            return
        above, _, before = head.rpartition(b"/")
        after, _, below = rest.partition(b"/")
        directory = self.here(above)
        try:
            names = guard.call(_names, directory or b"")
        except FileNotFoundError:
            return
        for name in names:
            if fnmatchcase(os.fsdecode(name), os.fsdecode(before) + "*" + os.fsdecode(after)):
                path = above + b"/" + name
                if below:
                    yield from self._below(path + b"/" + below, guard)
                else:
                    yield path, self.here(path) or b""

    def _below(self, pattern: bytes, guard: Guard) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from self.expand(pattern, guard)
        except NotADirectoryError:
            return


def _is_sysfs(path: bytes) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return syscalls.filesystem_type(fd) == _SYSFS
    except OSError:
        return False
    finally:
        os.close(fd)


def _names(directory: bytes) -> list[bytes]:
    found = []
    with os.scandir(directory) as listing:
        for one in listing:
            found.append(one.name)
            if len(found) > MAX_NAMES:
                raise OSError(errno.E2BIG, f"a directory of more than {MAX_NAMES} names")
    return sorted(found)


def entries(views: Views, kinds: Iterable[Files], guard: Guard, report: Report) -> Iterator[Entry]:
    """All these files, as members; each kind tells at most one gap for each reason."""
    for kind in kinds:
        lost = _Lost(kind, report)
        count = 0
        try:
            for native, here in views.expand(kind.pattern, guard):
                count += 1
                if count > MAX_FILES:
                    report.gap(Gap(Reason.LIMIT, f"more than {MAX_FILES} such files: the rest is left out", native))
                    break
                try:
                    found = guard.call(read_whole, here, kind.limit)
                except OSError as error:
                    lost.add(native, error)
                    continue
                if found.cut:
                    report.gap(Gap(Reason.LIMIT, f"more than {kind.limit} bytes: the rest is left out", native))
                yield entry(native, found.stat, found.spool)
        except OSError as error:
            lost.add(kind.pattern, error)
        lost.tell()


class _Lost:
    """What could not be read of one kind of file."""

    def __init__(self, kind: Files, report: Report) -> None:
        self._kind = kind
        self._report = report
        self._found: dict[Reason, tuple[bytes, str, int]] = {}

    def add(self, path: bytes, error: OSError) -> None:
        if error.errno in _NOTHING and not isinstance(error, StuckError):
            return
        first, text, count = self._found.get(reason(error), (path, error.strerror or str(error), 0))
        self._found[reason(error)] = (first, text, count + 1)

    def tell(self) -> None:
        for why, (path, text, count) in self._found.items():
            more = f" (and {count - 1} more of {os.fsdecode(self._kind.pattern)})" if count > 1 else ""
            self._report.gap(Gap(why, f"{text}{more}", path))
