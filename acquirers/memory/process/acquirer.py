"""`memory.process`: the memory of processes as ELF cores, and the files that only they still hold."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from acquirers.base import AcquirerError, Availability, Flag, FlagKind, Gap, Item, Reason, State, Subject, reason_of
from acquirers.facts import reduce_name
from acquirers.memory.freezer import Freezer, Task
from acquirers.memory.process.chosen import Chosen, Process, choose
from acquirers.memory.process.core import PATIENCE, Core
from acquirers.memory.process.elf import MACHINES
from acquirers.memory.process.examine import numbers, small_file
from acquirers.memory.process.files import Files, look
from acquirers.memory.process.windows import NO_CONTAINER
from acquirers.nameless import Recovered
from acquirers.snapshot.encode import MEDIA_TYPE, chunks, line, put
from acquirers.snapshot.proc import hidden, open_proc
from acquirers.snapshot.process_files import parse_stat

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host
    from acquirers.memory.freezer import Window
    from acquirers.memory.process.around import Around
    from acquirers.nameless import Nameless
    from acquirers.snapshot.watch import Patience

NAME = "memory.process"
CORE_TYPE = "application/x-coredump"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_SUBJECTS = 1000
MAX_RECORDS = 100_000
_MAX_TOLD = 1000
_MAX_WINDOWS = 500
"""In the manifest; the table has all of them."""
GENEROUS = 4
"""Processes that may hang their reader before the others get little time."""

Names = Callable[["Host"], Mapping[str, tuple[str, ...]]]


def _no_names(_: Host) -> Mapping[str, tuple[str, ...]]:
    return {}


def _nothing_held() -> frozenset[tuple[int, int]]:
    return frozenset()


class ProcessMemory:
    """Reads the processes that a job means, one after the other."""

    name = NAME

    def __init__(
        self,
        *,
        names: Names = _no_names,
        inits: Callable[[Host], Mapping[int, str]] = lambda _: {},
        held: Callable[[], frozenset[tuple[int, int]]] = _nothing_held,
        recovered: Callable[[], Recovered] = Recovered,
        patience: Patience = PATIENCE,
    ) -> None:
        """`names`: of containers, by id. `inits`: first processes of those that no control group names.

        `held`: (device, inode) of executables that somebody else will recover. `recovered`: the files without a name
        that the run has already.
        """
        self._names = names
        self._inits = inits
        self._held = held
        self._recovered = recovered
        self._patience = patience
        self._announced: list[Process] = []
        """What `probe` said that would be read, where the job names processes or containers."""

    def probe(self, host: Host, scope: Scope) -> Availability:
        if not host.live:
            return Availability(State.ABSENT, "a mounted disk has no processes")
        if platform.machine() not in MACHINES:
            return Availability(State.UNAVAILABLE, f"no cores are written for {platform.machine()}")
        try:
            chosen = self._choose(host, scope)
        except OSError as error:
            reason = f"/proc cannot be listed: {error.strerror}"
            return Availability(State.UNAVAILABLE, reason, "mount a proc filesystem")
        reason, remedy = _limits(host, chosen)
        subjects: tuple[Subject, ...] = ()
        if scope.pids or scope.containers:
            self._announced = chosen.processes
            subjects = tuple(
                Subject("process", str(one.pid), one.comm, estimate=one.resident)
                for one in chosen.processes[:_MAX_SUBJECTS]
            )
        if not chosen.processes and chosen.denied:
            return Availability(State.UNAVAILABLE, reason, remedy, matched=chosen.matched)
        if not chosen.processes:
            return Availability(State.ABSENT, "no process with memory of its own", matched=chosen.matched)
        return Availability(
            State.AVAILABLE,
            reason,
            remedy,
            estimate=sum(one.resident for one in chosen.processes),
            subjects=subjects,
            matched=chosen.matched,
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        """A core of each process, after it what it holds that has no name; at the end a table of all of them.

        Each is read before the next one is asked for: after that its process is let go.
        """
        try:
            chosen = self._choose(host, scope)
            proc = open_proc(host)
        except OSError as error:
            raise AcquirerError(reason_of(error), f"processes: {error.strerror}", host.proc or b"") from error
        run = _Run(self, host, scope, chosen, proc)
        try:
            yield from run.items()
        finally:
            os.close(proc)

    def _choose(self, host: Host, scope: Scope) -> Chosen:
        names = dict(self._names(host)) if scope.containers else {}
        inits = self._inits(host) if scope.containers else {}
        return choose(host, scope, names, self._patience, inits)


class _Run:
    """One pass over the processes."""

    def __init__(self, acquirer: ProcessMemory, host: Host, scope: Scope, chosen: Chosen, proc: int) -> None:
        self._host = host
        self._scope = scope
        self._chosen = chosen
        self._proc = proc
        self._patience = acquirer._patience  # noqa: SLF001
        self._stuck = 0
        self._held = acquirer._held()  # noqa: SLF001
        self._freezer = Freezer(host) if scope.freeze else None
        self._recovered = acquirer._recovered()  # noqa: SLF001
        self._announced = acquirer._announced  # noqa: SLF001
        self._records: list[dict[str, object]] = []
        self._left = 0
        self._vanished: list[Process] = []
        self._loose: list[int] = []
        """Those that would be frozen if they were in a container."""

    def items(self) -> Iterator[Item]:
        there = {(process.pid, process.start_ticks) for process in self._chosen.processes}
        for process in self._announced:
            if (process.pid, process.start_ticks) not in there and self._is_gone(process):
                self._gone(process)
        for process in self._chosen.processes:
            directory = self._open(process)
            if directory < 0:
                self._gone(process)
                continue
            if self._freezer is not None and not process.container:
                self._loose.append(process.pid)
            try:
                yield from self._process(process, directory)
            finally:
                os.close(directory)
        about, says = self._windows()
        estimate = 400 * len(self._records)
        yield Item("memory/process/processes.jsonl", MEDIA_TYPE, self._table, estimate, about, says)

    def _windows(self) -> tuple[dict[str, object], dict[str, str]]:
        """What was frozen, for the manifest and for the result."""
        if self._freezer is None or not self._freezer.windows:
            return {}, {}
        self._freezer.settle()
        windows = self._freezer.windows
        longest = max(one.held_ms for one in windows) / 1e3
        says = f"{_counted(len(windows), 'window')} of at most {longest:.1f} s; {_fate(windows)}"
        about: dict[str, object] = {"windows": [one.line() for one in windows[:_MAX_WINDOWS]]}
        if len(windows) > _MAX_WINDOWS:
            about["further_windows"] = len(windows) - _MAX_WINDOWS
        return about, {"frozen": says}

    def _gone(self, process: Process) -> None:
        self._vanished.append(process)
        self._note({"vanished": True}, process)

    def _is_gone(self, process: Process) -> bool:
        """Whether it has ended, and not only become one that may not be read."""
        directory = self._open(process)
        if directory >= 0:
            os.close(directory)
        return directory < 0

    def _open(self, process: Process) -> int:
        """`/proc/<pid>` of the process that was chosen; -1 when it has ended."""
        try:
            directory = os.open(b"%d" % process.pid, _DIRECTORY, dir_fd=self._proc)
        except OSError:
            return -1
        try:
            stat = parse_stat(small_file(directory, b"stat"))
            if stat is not None and stat.dead and len(numbers(directory, b"task")) <= 1:
                stat = None  # nobody has asked for its exit status
        except OSError:
            stat = None
        if stat is None or stat.start_ticks != process.start_ticks:
            os.close(directory)
            return -1
        return directory

    def _process(self, process: Process, directory: int) -> Iterator[Item]:
        name = f"memory/process/{process.pid}-{reduce_name(process.comm, 64)}"
        about: dict[str, object] = {"pid": process.pid, "comm": process.comm, "start_ticks": process.start_ticks}
        if process.container:
            about["container"] = process.container
        around: Around | None = None
        if self._freezer is not None:
            from acquirers.memory.process.around import Around  # with what nobody else needs

            around = Around(process, directory, self._proc)
        core = Core(
            process,
            directory,
            MACHINES[platform.machine()],
            fault_in=self._scope.fault_in,
            trace=self._chosen.own == os.getpid(),
            freezer=self._freezer,
            around=around,
            patience=self._patience,
        )
        yield Item(f"{name}.core", CORE_TYPE, core.read, estimate=process.resident, about=about)
        files, trouble = self._nameless(process, directory, around)
        self._stuck += core.stuck or bool(trouble)
        if self._stuck >= GENEROUS:  # whoever plants thousands of them shall not hold the run up for hours
            self._patience = replace(self._patience, first=self._patience.later)
        self._note({**core.record, "item": f"{name}.core"}, process)
        if files or trouble:
            item = f"{name}.files.tar"
            archive = Files(process, directory, item, files, self._recovered, self._patience, trouble)
            estimate = sum(file.size for file in files if not self._recovered.find(file))
            yield Item(item, "application/x-tar", archive.read, estimate=estimate, about=about)

    def _nameless(self, process: Process, directory: int, around: Around | None) -> tuple[list[Nameless], str]:
        """What was seen while it stood still; else what it holds now."""
        seen = around.nameless if around is not None else None
        try:
            files, trouble = seen or look(directory, process, self._patience)
        except OSError as error:  # no child could be started
            return [], error.strerror or str(error)
        return [file for file in files if not file.executable or (file.dev, file.ino) not in self._held], trouble

    # -- the table ----------------------------------------------------------------------------------------------------

    def _note(self, record: dict[str, object], process: Process) -> None:
        if len(self._records) >= MAX_RECORDS:
            self._left += 1
            return
        if "pid" not in record:
            record = {"type": "process", "pid": process.pid, **record}
            put(record, "comm", process.comm)
        self._records.append(record)

    def _table(self, report: Report) -> Iterator[Buffer]:
        chosen = self._chosen
        if chosen.denied:
            report.gap(Gap(Reason.DENIED, f"memory of {_many(chosen.denied)}: {_why_denied(self._host)[0]}"))
        if why := hidden(self._host):
            report.gap(Gap(Reason.DENIED, why, self._host.proc or b""))
        if chosen.unasked:
            named = ", ".join(map(str, chosen.unasked[:10]))
            detail = f"memory of {_many(len(chosen.unasked))} with more ended threads than are looked at: {named}"
            report.gap(Gap(Reason.LIMIT, detail))
        if chosen.stuck:
            report.gap(Gap(Reason.STUCK, f"memory of {_many(chosen.stuck)}: no answer to a first look"))
        self._tell_vanished(report)
        if self._loose:
            some = f"process {self._loose[0]} was" if len(self._loose) == 1 else f"{_listed(self._loose)} were"
            report.flag(Flag(FlagKind.FINDING, f"{some} not frozen: {NO_CONTAINER}"))
        if self._left:
            report.flag(Flag(FlagKind.LEFT_OUT, f"{self._left} processes are not in the table: it is full"))
        return chunks(self._lines())

    def _tell_vanished(self, report: Report) -> None:
        """What the job named is missing, and each named process is told; of all others many end at any time."""
        why = "ended before it was its turn"
        named = [one.pid for one in self._vanished if one.pid in self._scope.pids]
        for pid in named[:_MAX_TOLD]:
            report.gap(Gap(Reason.VANISHED, f"memory of process {pid}: it {why}"))
        if len(named) > _MAX_TOLD:
            report.gap(Gap(Reason.VANISHED, f"memory of {_many(len(named) - _MAX_TOLD)} more: each {why}"))
        others = [one.pid for one in self._vanished if one.pid not in self._scope.pids]
        if not others:
            return
        if self._scope.containers:  # they were chosen by their container
            report.gap(Gap(Reason.VANISHED, f"memory of {_listed(others)} of a container: each {why}"))
        else:
            report.flag(Flag(FlagKind.FINDING, f"{_listed(others)}: each {why}"))

    def _lines(self) -> Generator[bytes, None, None]:
        for record in self._records:
            yield line(record)
        for window in self._freezer.windows if self._freezer is not None else ():
            yield line(window.line())
        yield line({"type": "end", "processes": len(self._records), "denied": self._chosen.denied})


def _fate(windows: Sequence[Window]) -> str:
    """What became of the processes that were frozen, by the last look; why they ended nobody knows."""
    ended = len(frozenset[Task]().union(*(one.ended or () for one in windows)))
    new = len(frozenset[Task]().union(*(one.new or () for one in windows)))
    unknown = sum(one.ended is None or one.new is None for one in windows)
    if unknown == len(windows) and not ended:
        return "whether a process ended is not known"
    said = f"since then {_counted(ended, 'process')} of it ended" if ended else "no process of it ended"
    said += f", {new} new" if new or ended else ""
    return said + (f"; not known for {_counted(unknown, 'window')}" if unknown else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def _listed(pids: Sequence[int]) -> str:
    """How many, and the first of them."""
    said = ", ".join(map(str, pids[:10])) + (", …" if len(pids) > 10 else "")
    return f"{_counted(len(pids), 'process')} ({said})"


def _many(count: int) -> str:
    return f"{count} processes" if count > 1 else "a process"


def _why_denied(host: Host) -> tuple[str, str]:
    """Why memory of others cannot be read, and what would help."""
    try:
        yama = int(host.read_proc(b"sys/kernel/yama/ptrace_scope", 16))
    except (OSError, ValueError):
        yama = 0
    if yama == 3:
        return "tracing is switched off until the next boot (ptrace_scope 3)", "take physical memory instead"
    if "sys_ptrace" in host.facts.capabilities:
        return "permission denied", "a security module or a user namespace forbids it"
    if yama:
        return f"only root may read it (ptrace_scope {yama})", "run as root, or grant CAP_SYS_PTRACE"
    return "it belongs to other users", "grant CAP_SYS_PTRACE" if host.facts.root else "run as root"


def _limits(host: Host, chosen: Chosen) -> tuple[str, str]:
    """What limits it, in one line, and what would help."""
    if chosen.denied:
        why, remedy = _why_denied(host)
        return f"memory of {_many(chosen.denied)} cannot be read: {why}", remedy
    why = hidden(host)
    return (why, "run as root") if why else ("", "")
