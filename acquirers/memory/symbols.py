"""`memory.symbols`: what makes an image of memory readable: types, symbols, layout and identity of the running kernel.

One archive, `memory/symbols.tar`, small, taken before the image. Below `[root]/` stand the kernel's own views and the
files of the running kernel in /boot, under their native paths. Below `[derived]/` stands what impound made of them:

    [derived]/kcore.head     /proc/kcore from its ELF header to the end of its notes, verbatim; the memory is not in it
    [derived]/vmcoreinfo     the text of VMCOREINFO, as the live kernel holds it
    [derived]/System.map     /proc/kallsyms of the kernel itself, addresses as they were linked: KASLR removed
    [derived]/slide.json     how far KASLR moved the kernel, and how that is known
    [derived]/bpf.jsonl      loaded BPF programs, maps and links

On a dead disk there are only the files of /boot.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from acquirers.base import Availability, Flag, FlagKind, Gap, Item, Reason, State
from acquirers.files.archive import ArchiveWriter
from acquirers.files.deadline import Deadlined, reason
from acquirers.host import Mode
from acquirers.memory import bpfobjects, child, kallsyms, kcore, kernelfiles, sidefiles, sources, vmcoreinfo
from acquirers.memory.quiet import giving_back
from acquirers.memory.sidefiles import PROC, SYS, Spool, Views
from acquirers.syscalls import Stat

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report, Scope
    from acquirers.files.deadline import Guard
    from acquirers.files.entry import Entry
    from acquirers.host import Host
    from acquirers.memory.kcore import Header
    from acquirers.memory.vmcoreinfo import Vmcoreinfo

NAME = "memory.symbols"
ITEM = "memory/symbols.tar"
MEDIA_TYPE = "application/x-tar"
DERIVED = b"[derived]/"

_KALLSYMS, _KCORE = b"/proc/kallsyms", b"/proc/kcore"
_ESTIMATE = 48 << 20
_KCORE_SECONDS = 10.0
_MEMORY_SECONDS = 30.0
_MANY = 1000
"""Lines of System.map that are handed on together."""


class Symbols:
    """Takes the kernel's description of itself."""

    name = NAME

    def probe(self, host: Host, scope: Scope) -> Availability:  # noqa: ARG002 - the contract of acquirers
        if not host.live:
            if not any(kernelfiles.candidates(host, "")):
                return Availability(State.ABSENT)
            return Availability(State.AVAILABLE, "a disk has no running kernel: only the files of its kernels")
        why = ""
        if host.mode is Mode.INSIDE:
            why = "inside a container the kernel shows only part of itself"
        elif not _shown(host):
            why = "/proc/kallsyms is masked for this user: symbols will be without addresses"
        remedy = "run it as root on the host" if why else ""
        return Availability(State.AVAILABLE, why, remedy, estimate=_ESTIMATE)

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:  # noqa: ARG002
        with giving_back():
            yield Item(ITEM, MEDIA_TYPE, partial(_read, host), estimate=_ESTIMATE)


def _shown(host: Host) -> bool:
    try:
        return bool(kallsyms.find(host, {"_stext"}))
    except FileNotFoundError:
        return True  # there is nothing that could be masked
    except (OSError, kallsyms.KallsymsError):
        return False


def _read(host: Host, report: Report) -> Iterator[Buffer]:
    writer = ArchiveWriter(report)
    reader = _Reader(host, report)
    try:
        if host.live:
            yield from writer.add(reader.views())
            yield from writer.add(reader.derived(), prefix=b"")
        yield from writer.add(kernelfiles.entries(host, reader.release, report))
    finally:
        reader.guard.close()
    yield from writer.close()


class _Reader:
    """What one archive is made of, in the order in which it is read."""

    def __init__(self, host: Host, report: Report) -> None:
        self.guard: Guard = Deadlined()
        self.release = host.facts.kernel if host.live else ""
        self._machine = host.facts.architecture
        self._host = host
        self._report = report
        self._views = Views(host)
        self._symbols: Spool | None = None
        self._text: int | None = None
        """Where the kernel's code begins at this boot."""

    def views(self) -> Iterator[Entry]:
        """/proc and /sys."""
        yield from sidefiles.entries(self._views, (*PROC, *SYS), self.guard, self._report)
        path = self._views.here(_KALLSYMS) or b""
        try:
            found = self.guard.call(sidefiles.read_whole, path, kallsyms.MAX_BYTES)
            shown = self._look(found.spool)
        except FileNotFoundError:
            return  # a kernel without CONFIG_KALLSYMS
        except OSError as error:
            self._gap(reason(error), error.strerror or str(error), _KALLSYMS)
            return
        except kallsyms.KallsymsError as error:
            self._gap(Reason.MALFORMED, str(error), _KALLSYMS)
            shown = True
        if not shown:
            detail = "masked: the kernel shows its addresses as zeros (kptr_restrict, or CAP_SYSLOG is missing)"
            self._report.flag(Flag(FlagKind.FINDING, f"{detail}; it is left out", _KALLSYMS))
            return
        self._symbols = found.spool
        yield sidefiles.entry(_KALLSYMS, found.stat, found.spool)

    def _look(self, spool: Spool) -> bool:
        """Whether there are addresses."""
        shown = False
        for symbol in kallsyms.parse(kallsyms.lines_of(spool.chunks())):
            shown = shown or symbol.address != 0
            if symbol.name in {"_text", "_stext"} and not symbol.module and self._text is None:
                self._text = symbol.address
        return shown

    def derived(self) -> Iterator[Entry]:
        information = None
        if self._host.mode is not Mode.INSIDE:
            head = self._kcore()
            if head is not None:
                yield _made(b"kcore.head", head.verbatim)
            text = self._vmcoreinfo(head)
            if text is not None:
                yield _made(b"vmcoreinfo", text)
                information = self._parsed(text)
        yield from self._system_map(information)
        if self._host.mode is not Mode.INSIDE:
            yield from self._bpf()

    def _kcore(self) -> Header | None:
        """In a child: opening kcore waits while memory is plugged."""
        path = self._views.here(_KCORE) or b""
        try:
            if not os.path.exists(path):
                return None  # a kernel without CONFIG_PROC_KCORE
            return kcore.parse_header(child.call(lambda: _head_of(path), _KCORE_SECONDS))
        except child.StuckError as error:
            self._gap(Reason.STUCK, str(error), _KCORE)
        except child.ChildError as error:
            self._gap(Reason.DENIED, f"its header cannot be read: {error}", _KCORE)
        except kcore.MalformedError as error:
            self._gap(Reason.MALFORMED, str(error), _KCORE)
        return None

    def _vmcoreinfo(self, head: Header | None) -> bytes | None:
        """Out of the notes of kcore, else out of live memory."""
        if head is not None and head.vmcoreinfo:
            return head.vmcoreinfo
        return self._from_memory()

    def _from_memory(self) -> bytes | None:
        """In a child: what reads memory may block."""
        try:
            place = vmcoreinfo.where(self._host)
        except FileNotFoundError:
            return None  # a kernel without CONFIG_VMCORE_INFO
        except OSError:
            return None  # told when /sys was read
        except vmcoreinfo.MalformedError as error:
            self._gap(Reason.MALFORMED, str(error), vmcoreinfo.SYS)
            return None
        host = self._host
        try:
            return child.call(lambda: _note_of(host, *place), _MEMORY_SECONDS)
        except child.StuckError as error:
            self._gap(Reason.STUCK, f"VMCOREINFO in memory: {error}", vmcoreinfo.SYS)
        except child.ChildError as error:
            self._gap(Reason.DENIED, f"VMCOREINFO lies in memory and could not be read: {error}", vmcoreinfo.SYS)
        return None

    def _parsed(self, text: bytes) -> Vmcoreinfo | None:
        try:
            return vmcoreinfo.parse(text)
        except vmcoreinfo.MalformedError as error:
            self._gap(Reason.MALFORMED, str(error), vmcoreinfo.SYS)
            return None

    def _system_map(self, information: Vmcoreinfo | None) -> Iterator[Entry]:
        offset = information.kernel_offset if information is not None else None
        slide = kallsyms.slide(self._text, offset, self._machine)
        yield _made(
            b"slide.json",
            json.dumps({"kernel_offset": slide.offset, "source": slide.source, "text": self._text}).encode() + b"\n",
        )
        if self._symbols is None:
            return
        if slide.offset is None:
            self._report.flag(Flag(FlagKind.FINDING, f"no System.map is made of it: {slide.source}", _KALLSYMS))
            return
        spool = Spool()
        lines = kallsyms.system_map(kallsyms.parse(kallsyms.lines_of(self._symbols.chunks())), slide.offset)
        try:
            while chunk := b"".join(islice(lines, _MANY)):
                spool.add(chunk)
        except kallsyms.KallsymsError:
            return  # told already
        yield _member(b"System.map", spool)

    def _bpf(self) -> Iterator[Entry]:
        spool = Spool()
        try:
            for record in self.guard.call(lambda: list(bpfobjects.listed())):
                spool.add(json.dumps(record).encode() + b"\n")
        except OSError as error:
            if error.errno not in {errno.ENOSYS, errno.EINVAL}:
                detail = f"the BPF programs could not be listed: {error.strerror or error}"
                self._gap(reason(error), detail, DERIVED + b"bpf.jsonl")
            return
        yield _member(b"bpf.jsonl", spool)

    def _gap(self, why: Reason, detail: str, path: bytes) -> None:
        self._report.gap(Gap(why, detail, path))


def _head_of(path: bytes) -> bytes:
    fd = kcore.open_checked(path)
    try:
        return kcore.read_header(fd)
    finally:
        os.close(fd)


def _note_of(host: Host, address: int, size: int) -> bytes:
    """The text of VMCOREINFO through the first source that has it. Raises `OSError`."""
    found = sources.survey(host)
    note = memoryview(bytearray(size))
    problem = OSError(errno.ENODEV, found.reason or "no source of physical memory")
    for source in found.sources:
        try:
            reader = source.open()
            reader.read(address, note)
            return vmcoreinfo.parse_note(bytes(note))
        except (OSError, vmcoreinfo.MalformedError) as error:
            problem = OSError(errno.EIO, f"{source.name}: {getattr(error, 'strerror', None) or error}")
    raise problem


def _made(name: bytes, data: bytes) -> Entry:
    spool = Spool()
    spool.add(data)
    return _member(name, spool)


def _member(name: bytes, spool: Spool) -> Entry:
    """A member that no file of the machine is: its path says so, too."""
    now = time.time_ns()
    stat = Stat(
        mode=0o100600, uid=0, gid=0, size=spool.size, nlink=1, ino=0, dev=0, rdev=0, atime_ns=now, mtime_ns=now,
        ctime_ns=now, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
    )  # fmt: skip
    return sidefiles.entry(DERIVED + name, stat, spool)
