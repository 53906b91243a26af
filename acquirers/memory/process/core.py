"""The core of one process as an item: looked at, planned, read and accounted for. The side of it that never reads."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from acquirers.base import MAX_CHUNK, AcquirerError, Flag, FlagKind, Gap, Reason, reason_of
from acquirers.memory.process import threads
from acquirers.memory.process.elf import Layout
from acquirers.memory.process.examine import Examination, Kind, registers
from acquirers.memory.process.pagemap import PAGE
from acquirers.memory.process.reading import GONE, Batch, Batches, Lost, PageReader
from acquirers.memory.process.told import Lines, Told
from acquirers.memory.process.windows import Windows
from acquirers.memory.ranges import Ranges
from acquirers.snapshot.encode import line, put
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report
    from acquirers.memory.freezer import Freezer
    from acquirers.memory.process.around import Around
    from acquirers.memory.process.chosen import Process

FORMAT = 1
PATIENCE = Patience(first=10.0, later=2.0)
MAX_LOST = 1 << 14
"""Ranges that could not be read and are told apart; what lies between further ones is given up with them."""

_THREADS, _PLAN = "threads", "plan"


class Core:
    """Reads one process once. `record` is what is known of it afterwards."""

    def __init__(
        self,
        process: Process,
        directory: int,
        machine: int,
        *,
        fault_in: bool,
        trace: bool,
        freezer: Freezer | None = None,
        around: Around | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        """`directory` is `/proc/<pid>`, open, and stays the caller's. Without `trace` no thread is stopped.

        `around` is what is looked at as well, where the process stands still.
        """
        self._process = process
        self._directory = directory
        self._machine = machine
        self._fault_in = fault_in
        self._trace = trace
        self._windows = Windows(freezer, process)
        self._around = around
        self._patience = patience
        self._told = Told()
        self._around_lines: list[bytes] = []
        self._lost: list[tuple[int, int]] = []
        self._missing: Counter[tuple[Reason, str]] = Counter()
        self._first: dict[tuple[Reason, str], int] = {}
        self._given_up = 0
        """Bytes that were read, and lie between so many lost pieces that no segment leads to them."""
        self.record: dict[str, object] = {}
        self.stuck = False
        """It hung whoever asked what it has mapped."""

    def read(self, report: Report) -> Iterator[Buffer]:
        """The stream. Raises `AcquirerError` only before its first byte, or when no child can be started."""
        began, wall = time.monotonic_ns(), time.time_ns()
        try:
            self._look(report)
            layout = Layout(self._machine, self._told.notes_size, self._told.segments)
            yield from self._head(layout)
            yield from self._pages(report)
        except OSError as error:  # no child could be started
            raise AcquirerError(reason_of(error), f"process {self._process.pid}: {error.strerror}") from error
        finally:
            self._windows.close()
            self._told.close()
        lost = layout.fitting(Ranges(self._lost))
        self._given_up = layout.covered(lost) - sum(self._missing.values())
        self._account(report, began, wall)
        lines = self._final_lines(lost)
        yield from layout.tail(lost, lines.size)
        yield from lines.chunks()

    # -- before -------------------------------------------------------------------------------------------------------

    def _look(self, report: Report) -> None:
        """Everything but the pages, in the first window, as far as its time goes."""
        if self._windows.traced_before:
            self._examine(report, _THREADS)
        self._windows.open(report)
        self._examine(report, _THREADS)
        if self._around is not None and self._windows.is_open:
            self._around_lines = self._around.take(report)
        self._windows.renew(report)
        self._examine(report, _PLAN)
        if self._told.facts.changed:
            self._look_again(report)

    def _look_again(self, report: Report) -> None:
        """Once: what runs in it now is another program, of which nothing is known yet. The old one's memory is gone."""
        before, self._told = self._told, Told()
        try:
            self._examine(report, _THREADS)
            self._examine(report, _PLAN)
        except AcquirerError:
            pass
        except BaseException:
            before.close()
            raise
        if self._told.facts.areas and {Kind.MEMORY, Kind.PAGEMAP} <= self._told.fds.keys():
            before.close()
            detail = f"process {self._process.pid}: another program began in it, and is what was read"
            report.flag(Flag(FlagKind.CHANGED, detail))
        else:  # it has ended: what is known of it is what was seen before
            self._told.close()
            self._told = before

    def _examine(self, report: Report, task: str) -> None:
        """Each task in a child of its own: with its end the kernel lets go of every thread that it holds."""
        if task == _THREADS and (not self._trace or self._told.taken.threads):
            return
        threads.prepare()

        def work(task: str) -> Iterator[Part]:
            if task == _THREADS:
                return registers(self._directory, self._process.pid, self._machine)
            return Examination(self._directory, self._process.living, fault_in=self._fault_in).parts()

        failed: OSError | None = None
        watch: Watch[str] = Watch(work, keep=[self._directory], patience=self._patience)
        with closing(watch.run([task])) as events:
            for event in events:
                if isinstance(event, Ended):
                    self._ended(event, report)
                elif event.notes == Kind.ERROR:
                    number = int(event.data)
                    failed = OSError(number, os.strerror(number))
                else:
                    self._told.take(event.notes, event.data, event.fd)
        if failed is not None:
            raise AcquirerError(reason_of(failed), f"process {self._process.pid}: {failed.strerror}")
        if task == _PLAN and not {Kind.MEMORY, Kind.PAGEMAP} <= self._told.fds.keys():
            raise AcquirerError(Reason.VANISHED, f"process {self._process.pid} cannot be read")

    def _ended(self, event: Ended[str], report: Report) -> None:
        if event.outcome is Outcome.DONE:
            return
        reason = Reason.INTERNAL if event.outcome is Outcome.DIED else Reason.STUCK
        detail = f"{event.task} of process {self._process.pid}: {event.detail or event.outcome.value}"
        if event.task == _PLAN:
            self.stuck = event.outcome is Outcome.STUCK
            raise AcquirerError(reason, detail)
        report.gap(Gap(reason, detail))

    # -- the stream ---------------------------------------------------------------------------------------------------

    def _head(self, layout: Layout) -> Iterator[bytes]:
        data = b"".join((layout.head(), *self._told.process_notes, *self._told.thread_notes))
        self._told.process_notes, self._told.thread_notes = [], []
        data += bytes(layout.data - len(data))
        for start in range(0, len(data), MAX_CHUNK):
            yield data[start : start + MAX_CHUNK]

    def _pages(self, report: Report) -> Iterator[Buffer]:
        """All of them. What was on its way when a window closed is read again in the next one."""
        fds = self._told.fds
        batches = Batches(self._told.segments, apart=self._fault_in)
        work = PageReader(fds[Kind.MEMORY], fds[Kind.PAGEMAP], batches, fault_in=self._fault_in)
        patience, at, failed = self._patience, 0, 0
        while at < len(batches):
            self._windows.renew(report)
            watch: Watch[Batch] = Watch(work, keep=list(fds.values()), patience=patience)
            given = 0
            with closing(watch.run(_Rest(batches, at))) as events:
                for event in events:
                    if not isinstance(event, Ended):
                        given += len(event.data)
                        for lost in msgspec.msgpack.decode(event.notes, type=list[Lost]) if event.notes else ():
                            self._lose(lost[0], lost[1], *_reason(lost[2]))
                        yield event.data
                        continue
                    if given < event.task.size:  # nothing, or all of it: a batch is one part
                        reason = Reason.INTERNAL if event.outcome is Outcome.DIED else Reason.STUCK
                        for address, size in batches.pieces(event.task):
                            self._lose(address, address + size, reason, event.detail or event.outcome.value)
                        yield bytes(event.task.size - given)
                        failed += 1
                    self._windows.note(given)
                    given, at = 0, at + 1
                    if self._windows.over:
                        self._windows.close()
                        break
            if (
                failed >= patience.generous
            ):  # whoever hangs its readers shall not be patiently waited for in each window
                patience = replace(patience, first=patience.later)

    def _lose(self, start: int, end: int, reason: Reason, detail: str) -> None:
        self._missing[reason, detail] += end - start
        self._first.setdefault((reason, detail), start)
        lost = self._lost
        if lost and (lost[-1][1] == start or len(lost) >= MAX_LOST):
            lost[-1] = lost[-1][0], end
        else:
            lost.append((start, end))

    # -- after --------------------------------------------------------------------------------------------------------

    def _account(self, report: Report, began: int, wall: int) -> None:
        process, facts, taken = self._process, self._told.facts, self._told.taken
        for (reason, detail), missing in sorted(self._missing.items()):
            first = self._first[reason, detail]
            said = f"process {process.pid}: {missing} bytes of memory from {first:#x} on: {detail}"
            report.gap(Gap(reason, said, b"", missing))
        for reason, missing, detail in (
            (Reason.LIMIT, facts.beyond, "lie in more pieces than a core holds"),
            (Reason.LIMIT, self._given_up, "lie between more lost pieces than a core tells apart"),
            (Reason.UNSUPPORTED, facts.unknown, "are of files that may be devices, which is not known"),
            (Reason.VANISHED, facts.vanished, "were mapped, and gone before it was known what of them was present"),
        ):
            if missing:
                report.gap(Gap(reason, f"process {process.pid}: {missing} bytes {detail}", b"", missing))
        if facts.changed:
            detail = f"process {process.pid}: it ended, or began another program, while it was looked at"
            report.gap(Gap(Reason.VANISHED, detail))
        if facts.malformed:
            detail = f"process {process.pid}: {facts.malformed} lines of its map are no areas, or none in their order"
            report.gap(Gap(Reason.MALFORMED, detail))
        if facts.unasked:
            detail = f"process {process.pid}: {facts.unasked} absent bytes of shared memory were not asked for"
            report.flag(Flag(FlagKind.LEFT_OUT, detail))
        if facts.swapped and not self._fault_in:
            detail = f"process {process.pid}: {facts.swapped} bytes are swapped out and were not brought back"
            report.flag(Flag(FlagKind.ELSEWHERE, detail))
        state = self._registers()
        if state != "all":
            report.flag(Flag(FlagKind.FINDING, f"process {process.pid}: registers: {state}"))
        self.record = {
            "type": "process",
            "format": FORMAT,
            "pid": process.pid,
            "start_ticks": process.start_ticks,
            "container": process.container,
            "threads": taken.threads,
            "registers": state,
            "stopped_us": taken.stopped_ns // 1000,
            "areas": facts.areas,
            "mapped": facts.mapped,
            "present": facts.present,
            "swapped": facts.swapped,
            "of_devices": facts.devices,
            "read": self._told.segments.content - sum(self._missing.values()) - self._given_up,
            "missing": sum(self._missing.values()) + self._given_up + facts.beyond + facts.unknown + facts.vanished,
            "segments": len(self._told.segments),
            "fault_in": self._fault_in,
            "frozen": self._windows.says,
            "wall_ns": wall,
            "began_ns": began,
            "ended_ns": time.monotonic_ns(),
        }
        put(self.record, "comm", process.comm)
        if facts.files_left_out:
            self.record["files_left_out"] = facts.files_left_out

    def _registers(self) -> str:
        taken = self._told.taken
        if not self._trace:
            return "none: its threads cannot be stopped from this process namespace"
        if taken.read and taken.read + taken.ended == taken.threads:
            return "all, of a 32-bit program" if taken.compat else "all"
        why = os.strerror(taken.error) if taken.error else ""
        if taken.busy:
            why = f"{taken.busy} did not stop in time"
        some = f"{taken.read} of {taken.threads} threads" if taken.read else "none"
        return f"{some}: {why}" if why else some

    def _final_lines(self, lost: Ranges) -> Lines:
        """The record of the process, its areas, what was lost, and the end."""
        found = Lines()
        found.add(line({**self.record, "page": PAGE}))
        for data in self._around_lines:
            found.add(data)
        for data in self._told.lines.chunks():
            found.add(data)
        for start, end in lost:
            found.add(line({"type": "lost", "start": start, "end": end}))
        for window in self._windows.lines():
            found.add(line(window))
        found.add(line({"type": "end"}))
        return found


class _Rest(Sequence[Batch]):
    """Batches from one on."""

    def __init__(self, batches: Batches, start: int) -> None:
        self._batches, self._start = batches, start

    def __len__(self) -> int:
        return len(self._batches) - self._start

    def __getitem__(self, index: int | slice) -> Batch:  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("one at a time")
        return self._batches[self._start + index]


def _reason(why: int) -> tuple[Reason, str]:
    if why == GONE:
        return Reason.VANISHED, "gone while it was read"
    return Reason.IO_ERROR, os.strerror(why)
