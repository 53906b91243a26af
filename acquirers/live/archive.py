"""One item: a container as it sees itself, what the kernel says of it, and what only its processes still hold.

[root]/…            its files, under the paths that it has for them
kernel/proc/<pid>/… mounts, environment, ids of its first process
kernel/freeze.jsonl when it stood still (`--freeze`)
kernel/metadata/…   of the task or pod, where impound runs in the container
deleted/…           files without a name (`acquirers.nameless`)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec

from acquirers.base import (
    AcquirerError,
    Buffer,
    Flag,
    FlagKind,
    Gap,
    Layers,
    Member,
    Reason,
    Report,
    Scope,
    reason_of,
)
from acquirers.files.archive import ArchiveWriter
from acquirers.host import Mode
from acquirers.live import kernel
from acquirers.live.entering import Entered, enter, enter_own
from acquirers.live.groups import Group, open_process
from acquirers.live.trees import Trees, keep_small_files
from acquirers.live.upper import UpperOnly
from acquirers.live.verdicts import Judgement, Key, Machine, Stored, judge
from acquirers.mounts import parse_mountinfo
from acquirers.nameless import Holder, Nameless, Recovered, Recovery, look
from acquirers.snapshot.encode import line
from acquirers.snapshot.proc import open_proc
from acquirers.snapshot.watch import Patience

if TYPE_CHECKING:
    from acquirers.files.entry import Entry
    from acquirers.host import Host
    from acquirers.snapshot.placing import Process

PATIENCE = Patience(first=2.0, later=0.25)
_MARGIN = 1.0
"""Seconds of a window that are left when no further process is looked at in it."""
MAX_FROZEN = 100
"""Processes that are looked at while they stand still."""


class Window(Protocol):
    """A time in which a container stands still."""

    @property
    def left(self) -> float:
        """Seconds until it runs on in any case."""

    def line(self) -> dict[str, object]: ...


class Freezing(Protocol):
    """`--freeze` (`acquirers.memory.freezer`)."""

    def window(self, pid: int) -> AbstractContextManager[Window]: ...


class Run(msgspec.Struct):
    """What the items of one run share."""

    host: Host
    scope: Scope
    machine: Machine
    recovered: Recovered
    held: frozenset[tuple[int, int]]
    """(device, inode) of executables that somebody else recovers."""
    reserved: Mapping[Key, str]
    own: int
    """This process, as the machine's /proc numbers it."""
    freezer: Freezing | None = None
    remote: bool = False
    deadline: float = 30.0
    inside_out: Callable[[Entered, Judgement], None] = lambda _entered, _judgement: None
    """Finds what is the machine's, where impound itself is inside and has no list of the machine's mounts."""
    stored: dict[Key, Stored] = msgspec.field(default_factory=dict)


class _Noting:
    """A report that remembers whether anything was given up."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.given_up = False

    def member(self, member: Member) -> None:
        self._report.member(member)

    def gap(self, gap: Gap) -> None:
        self.given_up = self.given_up or gap.reason in {Reason.STUCK, Reason.INTERNAL}
        self._report.gap(gap)

    def flag(self, flag: Flag) -> None:
        self._report.flag(flag)


class _Seen(msgspec.Struct, frozen=True):
    """What a process held while it stood still."""

    holder: Holder
    files: list[Nameless]
    trouble: str


class Live:
    """`Item.read` of one container."""

    def __init__(self, run: Run, group: Group, item: str) -> None:
        self._run = run
        self._group = group
        self._item = item

    def __call__(self, report: Report) -> Iterator[Buffer]:
        noting = _Noting(report)
        run, group = self._run, self._group
        if group.error:
            raise AcquirerError(Reason.DENIED, group.error)
        for one in group.pretends:
            detail = f"it bears the id of another container, {one[:12]}: its own control group or files say otherwise"
            report.flag(Flag(FlagKind.FINDING, detail))
        with ExitStack() as stack:
            proc = open_proc(run.host)
            stack.callback(os.close, proc)
            first, directory = self._first(proc, stack)
            seen: dict[int, _Seen] = {}
            with self._standing_still(first, noting) as window:
                entered = stack.enter_context(enter_own() if group.own else enter(directory, first.base))
                if window is not None:
                    self._look_at_all(proc, seen, stack, window)
            judgement = self._judge(entered)
            writer = ArchiveWriter(noting)
            if window is not None:
                yield from self._stood_still(writer, window, noting)
            pid = run.own if group.own else first.pid
            yield from writer.add(kernel.files_of(directory, pid, first.base, noting), prefix=kernel.PREFIX)
            if group.own:
                yield from writer.add(kernel.metadata(run.host.facts.identity), prefix=kernel.PREFIX)
            upper = self._upper(judgement, noting, stack)
            trees = Trees(
                entered,
                judgement,
                noting,
                exclude=run.scope.exclude,
                remote=run.remote,
                upper=upper,
                deadline=run.deadline,
            )
            yield from writer.add(_guarded(trees.entries(), noting))
            yield from self._nameless(writer, noting, proc, seen)
            yield from writer.close()
            if not noting.given_up:
                self._note_stored(judgement, trees.failed, whole_root=upper is None)

    # -- getting in ---------------------------------------------------------------------------------------------------

    def _first(self, proc: int, stack: ExitStack) -> tuple[Process, int]:
        """The first process of the container that still runs, and its directory. Raises `AcquirerError`."""
        trouble = OSError(3, "the container has ended")
        for process in self._group.processes:
            try:
                directory = open_process(proc, process)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                trouble = error
                continue
            stack.callback(os.close, directory)
            return process, directory
        reason = Reason.VANISHED if trouble.errno == 3 else reason_of(trouble)
        raise AcquirerError(reason, trouble.strerror or str(trouble))

    @contextmanager
    def _standing_still(self, first: Process, report: Report) -> Iterator[Window | None]:
        """Its mounts, and what its processes hold, are of one moment; its files are read while it runs on."""
        run = self._run
        with ExitStack() as stack:
            window: Window | None = None
            if run.freezer is not None and self._group.container and not self._group.own:
                try:
                    window = stack.enter_context(run.freezer.window(first.pid))
                except AcquirerError as error:
                    report.flag(Flag(FlagKind.FINDING, f"it was not frozen: {error.detail}"))
                except OSError as error:
                    report.flag(Flag(FlagKind.FINDING, f"it was not frozen: {error.strerror}"))
            yield window

    def _look_at_all(self, proc: int, seen: dict[int, _Seen], stack: ExitStack, window: Window) -> None:
        for process in self._group.processes[:MAX_FROZEN]:
            if window.left < _MARGIN:
                return
            try:
                directory = open_process(proc, process)
            except OSError:
                continue
            stack.callback(os.close, directory)
            try:
                files, trouble = look(directory, process.base, PATIENCE)
            except OSError:
                return  # no child could be started: it is looked at when it runs on
            seen[process.pid] = _Seen(Holder(process.pid, directory), files, trouble)

    def _stood_still(self, writer: ArchiveWriter, window: Window, report: Report) -> Iterator[Buffer]:
        record = window.line()
        held = f"it was frozen for {record.get('held_ms')} ms"
        report.flag(Flag(FlagKind.FINDING, f"{held}, while its mounts were cloned and its open files looked at"))
        yield from writer.add_bytes(kernel.PREFIX + b"/freeze.jsonl", line(record), time.time_ns())

    def _judge(self, entered: Entered) -> Judgement:
        group, run = self._group, self._run
        group.mounts = parse_mountinfo(entered.mountinfo)
        reserved = {key: item for key, item in run.reserved.items() if item != self._item}
        judgement = judge(group, run.machine, run.stored, reserved)
        if judgement is None:
            raise AcquirerError(Reason.MALFORMED, "its root is in no list of mounts")
        run.inside_out(entered, judgement)
        keep_small_files(entered, judgement)
        return judgement

    def _upper(self, judgement: Judgement, report: Report, stack: ExitStack) -> UpperOnly | None:
        """Where image layers were not asked for: the filter that leaves them out."""
        run, path = self._run, self._group.upper
        root = judgement.root
        if run.scope.layers is not Layers.UPPER or root.fstype != b"overlay" or run.host.mode is Mode.INSIDE:
            return None
        try:
            fd = run.host.open_path(path)
        except OSError as error:
            detail = f"its writable layer cannot be found ({error.strerror}): image layers are read with it"
            report.flag(Flag(FlagKind.FINDING, detail, b"/"))
            return None
        stack.callback(os.close, fd)
        report.flag(Flag(FlagKind.LEFT_OUT, "of its root, only what its writable layer holds: --layers upper", b"/"))
        return UpperOnly(fd, judgement.mounts)

    # -- what has no name ---------------------------------------------------------------------------------------------

    def _nameless(self, writer: ArchiveWriter, report: Report, proc: int, seen: dict[int, _Seen]) -> Iterator[Buffer]:
        run = self._run
        recovery = Recovery(writer, report, self._item, run.recovered, PATIENCE)
        ours = descendants(self._group.processes, run.own)
        for process in self._group.processes:
            if process.pid in ours:
                continue
            before = seen.get(process.pid)
            if before is not None:
                yield from recovery.add(before.holder, self._wanted(before.files), before.trouble)
                continue
            try:
                directory = open_process(proc, process)
            except OSError:
                continue  # it has ended, and what it held is gone
            try:
                files, trouble = look(directory, process.base, PATIENCE)
                wanted = self._wanted(files)
                if wanted or trouble:
                    yield from recovery.add(Holder(process.pid, directory), wanted, trouble)
            except OSError as error:
                report.gap(Gap(reason_of(error), f"process {process.pid}: {error.strerror}"))
            finally:
                os.close(directory)

    def _wanted(self, files: list[Nameless]) -> list[Nameless]:
        held = self._run.held
        return [file for file in files if not file.executable or (file.dev, file.ino) not in held]

    # -- for the next ones --------------------------------------------------------------------------------------------

    def _note_stored(self, judgement: Judgement, failed: set[bytes], *, whole_root: bool) -> None:
        for mount in (judgement.root, *judgement.mounts.values()):
            if not mount.local or mount.point in failed or not judgement.reached(mount):
                continue
            if mount is judgement.root and not whole_root:
                continue
            self._run.stored.setdefault(mount.key, Stored(self._item, judgement.covers(mount)))


def descendants(processes: Sequence[Process], own: int) -> frozenset[int]:
    """`own`, and what it has started."""
    found = {own} if own else set()
    while more := {one.pid for one in processes if one.ppid in found} - found:
        found |= more
    return frozenset(found)


def _guarded(entries: Iterator[Entry], report: Report) -> Iterator[Entry]:
    """A fault in the files must not cost what only processes hold."""
    try:
        yield from entries
    except AcquirerError as error:
        report.gap(error.gap())
    except Exception as error:  # noqa: BLE001 - told, and the rest of the item goes on
        report.gap(Gap(Reason.INTERNAL, f"{type(error).__name__}: {str(error)[:200]}", b"/"))
