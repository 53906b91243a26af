"""`snapshot.executables`: what the processes run, hashed after memory was taken; what has no name any more, whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat as stat_module
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from acquirers import syscalls
from acquirers.base import MAX_CHUNK, AcquirerError, Availability, Flag, FlagKind, Gap, Item, Reason, State, reason_of
from acquirers.facts import reduce_name
from acquirers.files.tree import open_noatime
from acquirers.snapshot.encode import MEDIA_TYPE, chunks, line, put
from acquirers.snapshot.gaps import GapCount
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host
    from acquirers.snapshot.holdings import Held
    from acquirers.snapshot.processes import Processes

NAME = "snapshot.executables"
MAX_CONTENT = 4 << 30
"""Bytes of one executable that are read. A memfd may claim any size."""
MAX_PIDS = 1000
PATIENCE = Patience(first=10.0, later=2.0)
"""A slow disk is no dead one."""


class ContentNotes(msgspec.Struct, omit_defaults=True):
    """How the reading of one file went."""

    sha256: bytes = b""
    size: int = 0
    """Bytes that were read."""
    declared: int = 0
    error: int = 0
    gone: bool = False
    """It was not held, and no process runs it any more."""
    changed: bool = False
    atime_moved: bool = False
    mode: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


_notes = msgspec.msgpack.Encoder()
_decode = msgspec.msgpack.Decoder(ContentNotes)


class Executables:
    """The second half of `snapshot.processes`: reads the executables which that one holds open."""

    name = NAME

    def __init__(self, processes: Processes, patience: Patience = PATIENCE) -> None:
        self._processes = processes
        self._patience = patience

    def probe(self, host: Host, scope: Scope) -> Availability:
        found = self._processes.probe(host, scope)
        return Availability(found.state, found.reason, found.remedy) if found.state is State.AVAILABLE else found

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        """One table of all, then the content of each one that has no name any more. Lets go of everything at the end.

        Where the snapshot was not read (a resumed run has it already), this opens what runs now.
        """
        late = _Late()
        if not self._processes.scanned:
            self._processes.hold(host, scope, late)
        holdings = self._processes.holdings
        try:
            files = holdings.files()
            proc = host.proc or b"/proc"
            yield Item(
                "snapshot/executables.jsonl",
                MEDIA_TYPE,
                lambda report: self._table(files, proc, late, report),
                estimate=400 * len(files),
            )
            for held in files:
                if not held.deleted:
                    holdings.release(held)
            for held in files:
                if held.deleted:
                    yield self._content_item(held, proc)
                    holdings.release(held)
        finally:
            holdings.close()

    # -- the table ----------------------------------------------------------------------------------------------------

    def _table(self, files: list[Held], proc: bytes, late: _Late, report: Report) -> Iterator[Buffer]:
        late.tell(report)
        return chunks(self._lines(files, proc, report))

    def _lines(self, files: list[Held], proc: bytes, report: Report) -> Generator[bytes, None, None]:
        gaps = GapCount(report)
        notes = ContentNotes()
        watch: Watch[Held] = Watch(
            lambda held: _read(held, proc, content=False),
            keep=[held.fd for held in files],
            patience=self._patience,
            risky=lambda held: held.fd < 0,  # what is held lies on a filesystem of this machine
        )
        try:
            with closing(watch.run(files)) as events:
                for event in events:
                    if not isinstance(event, Ended):
                        notes = _decode.decode(event.notes) if event.notes else notes
                        continue
                    _tell(event, notes, gaps, report)
                    if notes.mode:
                        event.task.nlink = notes.nlink  # its name may have gone since the first look
                    yield line(_record(event.task, notes))
                    notes = ContentNotes()
        except OSError as error:  # no child could be started
            raise AcquirerError(reason_of(error), f"executables: {error.strerror}") from error
        finally:
            gaps.finish()
        if self._processes.holdings.left_out:
            detail = f"executables of {self._processes.holdings.left_out} processes: too many different ones"
            report.gap(Gap(Reason.LIMIT, detail))

    # -- the content of what has no name ------------------------------------------------------------------------------

    def _content_item(self, held: Held, proc: bytes) -> Item:
        about: dict[str, object] = {
            "pids": held.pids[:MAX_PIDS],
            "comm": held.comm,
            "exe": held.paths[0],
            "dev": f"{os.major(held.dev)}:{os.minor(held.dev)}",
            "ino": held.ino,
            "memfd": held.memfd,
        }
        return Item(
            _item_path(held),
            "application/octet-stream",
            lambda report: self._content(held, proc, report),
            estimate=min(held.size, MAX_CONTENT),
            about=about,
        )

    def _content(self, held: Held, proc: bytes, report: Report) -> Iterator[Buffer]:
        gaps = GapCount(report)
        notes = ContentNotes()
        watch: Watch[Held] = Watch(lambda one: _read(one, proc, content=True), keep=[held.fd], patience=self._patience)
        try:
            with closing(watch.run([held])) as events:
                for event in events:
                    if isinstance(event, Ended):
                        _tell(event, notes, gaps, report)
                        continue
                    if event.notes:
                        notes = _decode.decode(event.notes)
                    if event.data:
                        yield event.data
        except OSError as error:
            raise AcquirerError(reason_of(error), f"executable: {error.strerror}", held.paths[0]) from error


class _Late:
    """A report for what is noticed before there is an item to report it to."""

    def __init__(self) -> None:
        self._gaps: list[Gap] = []
        self._flags: list[Flag] = []

    def member(self, member: object) -> None:
        """Nothing here has members."""

    def gap(self, gap: Gap) -> None:
        self._gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self._flags.append(flag)

    def tell(self, report: Report) -> None:
        for gap in self._gaps:
            report.gap(gap)
        for flag in self._flags:
            report.flag(flag)


def _item_path(held: Held) -> str:
    return f"snapshot/executables/{held.pids[0]}-{reduce_name(held.comm, 64)}.bin"


def _record(held: Held, notes: ContentNotes) -> dict[str, object]:
    record: dict[str, object] = {"type": "executable"}
    put(record, "path", held.paths[0])
    if len(held.paths) > 1:
        others: list[dict[str, object]] = []
        for path in held.paths[1:]:
            other: dict[str, object] = {}
            put(other, "path", path)
            others.append(other)
        record["other_paths"] = others
    record |= {
        "dev": f"{os.major(held.dev)}:{os.minor(held.dev)}",
        "ino": held.ino,
        "deleted": held.deleted,
        "memfd": held.memfd,
        "sha256": notes.sha256.hex() if notes.sha256 and notes.size >= notes.declared else None,
        "size": notes.declared if notes.mode else held.size,
    }
    if notes.sha256 and notes.size < notes.declared:
        record |= {"sha256_of_start": notes.sha256.hex(), "start": notes.size}
    if notes.mode:
        record |= {
            "mode": notes.mode,
            "uid": notes.uid,
            "gid": notes.gid,
            "nlink": notes.nlink,
            "mtime_ns": notes.mtime_ns,
            "ctime_ns": notes.ctime_ns,
        }
    record["pids"] = held.pids[:MAX_PIDS]
    record["processes"] = len(held.pids)
    if held.deleted:
        record["item"] = _item_path(held)
    return record


def _tell(event: Ended[Held], notes: ContentNotes, gaps: GapCount, report: Report) -> None:
    """Gaps and flags of one file."""
    where = event.task.paths[0]
    if event.outcome is Outcome.STUCK:
        gaps.one("executable", Gap(Reason.STUCK, f"executable: {event.detail}", where))
    elif event.outcome is Outcome.SKIPPED:
        gaps.one("not tried", Gap(Reason.STUCK, "executable: not tried, too many gave no answer before", where))
    elif event.outcome is Outcome.DIED:
        gaps.one("executable", Gap(Reason.INTERNAL, f"executable: {event.detail}", where))
    elif notes.gone:
        gaps.one("not held", Gap(Reason.VANISHED, "executable: was not held open, and no process runs it now", where))
    elif notes.error:
        error = OSError(notes.error, os.strerror(notes.error))
        gaps.one("executable", Gap(reason_of(error), f"executable: {error.strerror}", where, _missing(notes)))
    elif notes.size == MAX_CONTENT < notes.declared:
        gaps.one("size", Gap(Reason.LIMIT, f"executable: only {MAX_CONTENT} bytes are read", where, _missing(notes)))
    elif notes.size < notes.declared:
        gaps.one("short", Gap(Reason.SHORT, "executable: shrank while it was read", where, _missing(notes)))
    if notes.changed:
        report.flag(Flag(FlagKind.CHANGED, "the executable changed while it was read", where))
    if notes.atime_moved:
        report.flag(Flag(FlagKind.ATIME_MOVED, "O_NOATIME was refused", where))


def _missing(notes: ContentNotes) -> int | None:
    return max(0, notes.declared - notes.size) if notes.declared else None


# -- in the child -----------------------------------------------------------------------------------------------------


def _read(held: Held, proc: bytes, *, content: bool) -> Iterator[Part]:
    """The file's bytes, or with `content` off only signs of life, then how it went."""
    notes = ContentNotes()
    fd = held.fd
    try:
        if fd < 0:
            fd = _reopen(held, proc)
        if fd < 0:
            notes.gone = True
        else:
            yield from _bytes(fd, notes, content=content)
    except OSError as error:
        notes.error = error.errno or 5
    finally:
        if fd >= 0 and fd != held.fd:
            os.close(fd)
    yield Part(notes=_notes.encode(notes), last=True)


def _reopen(held: Held, proc: bytes) -> int:
    for pid in held.pids[:MAX_PIDS]:
        link = b"%s/%d/exe" % (proc, pid)
        try:
            found = os.stat(link)
            if (found.st_dev, found.st_ino) != (held.dev, held.ino) or not stat_module.S_ISREG(found.st_mode):
                continue
            fd = open_noatime(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, syscalls.AT_FDCWD)
        except (FileNotFoundError, ProcessLookupError):
            continue
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) == (held.dev, held.ino):
            return fd
        os.close(fd)
    return -1


def _bytes(fd: int, notes: ContentNotes, *, content: bool) -> Iterator[Part]:
    """Reads at explicit offsets: the descriptor, and so its position, is shared with the parent."""
    before = os.fstat(fd)
    notes.declared, notes.mode, notes.nlink = before.st_size, before.st_mode, before.st_nlink
    notes.uid, notes.gid = before.st_uid, before.st_gid
    notes.mtime_ns, notes.ctime_ns = before.st_mtime_ns, before.st_ctime_ns
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MAX_CHUNK))
    try:
        while notes.size < MAX_CONTENT:
            count = os.preadv(fd, [buffer[: MAX_CONTENT - notes.size]], notes.size)
            if not count:
                break
            digest.update(buffer[:count])
            notes.size += count
            yield Part(buffer[:count] if content else b"")
        notes.sha256 = digest.digest()
    finally:
        after = os.fstat(fd)
        notes.changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        moved = before.st_atime_ns != after.st_atime_ns
        notes.atime_moved = moved and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME
