"""What a process holds at the moment at which it stands still: its descriptors, and what its sockets are.

Taken inside the window in which it is frozen, beside its memory, so that a connection in the one is there in the other.
Read as the snapshot reads it, by the same readers, in a child with a deadline: a window is short.

{"type":"descriptors","pid":…, "fds":[…], …}    the first step of a record of `snapshot/processes.jsonl`
{"type":"socket","netns":…, …}                  one for each socket that it holds
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Reason
from acquirers.memory.process.files import look
from acquirers.snapshot.encode import line
from acquirers.snapshot.netns import Namespace, SocketReader, TableNotes
from acquirers.snapshot.notes import Notes, Step
from acquirers.snapshot.reader import ProcessReader
from acquirers.snapshot.socket_tables import TABLES
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Report
    from acquirers.memory.process.chosen import Process
    from acquirers.nameless import Nameless

QUICK = Patience(first=1.0, later=0.25, generous=1, most=4)
MAX_BYTES = 16 << 20
_HELD = b'"holders":['  # a name cannot say it: in JSON its quotes are escaped
_notes = msgspec.msgpack.Decoder(Notes)
_table_notes = msgspec.msgpack.Decoder(TableNotes)


class Around:
    """What surrounds the memory of one process."""

    def __init__(self, process: Process, directory: int, proc: int) -> None:
        """`directory` is `/proc/<pid>` and `proc` is `/proc`; both open, and the caller's."""
        self._process, self._directory, self._proc = process, directory, proc
        self.nameless: tuple[list[Nameless], str] | None = None
        """Files without a name that it held then, and what kept them from being found."""
        self._lines: list[bytes] = []
        self._room = MAX_BYTES
        self._holders: dict[int, list[tuple[int, int]]] = {}
        self._net = 0

    def take(self, report: Report) -> list[bytes]:
        """Looks, and gives what was seen as JSON lines. Raises `OSError` where no child can be started."""
        self._descriptors(report)
        if self._net and self._holders:
            self._sockets(report)
        self.nameless = look(self._directory, self._process, QUICK)
        return self._lines

    def _descriptors(self, report: Report) -> None:
        pid = self._process.pid

        def work(step: Step) -> Iterator[Part]:
            return ProcessReader(self._proc, expected=lambda _: self._process.start_ticks)((pid, step))

        watch: Watch[Step] = Watch(work, keep=[self._proc], patience=QUICK)
        with closing(watch.run([Step.BASIC])) as events:
            for event in events:
                if isinstance(event, Ended):
                    self._ended(event.outcome, f"descriptors: {event.detail}", report)
                    continue
                notes = _notes.decode(event.notes)
                for inode, fd in notes.sockets:
                    self._holders.setdefault(inode, []).append((pid, fd))
                self._net = notes.net
                for kind in notes.denied:
                    report.gap(Gap(Reason.DENIED, f"process {pid}: {kind}: permission denied"))
                for reason, _, detail in notes.gaps:
                    report.gap(Gap(reason, f"process {pid}: {detail}"))
                self._add(line({"type": "descriptors", "pid": pid})[:-2] + event.data + b"}\n", report)

    def _sockets(self, report: Report) -> None:
        read = SocketReader(self._proc, self._holders)

        def work(table: str) -> Iterator[Part]:
            for part in read((Namespace(self._net, [self._process.pid], 1), table)):
                mine = [text for text in bytes(part.data).splitlines(keepends=True) if _HELD in text]
                yield Part(b"".join(mine), part.notes, last=part.last)

        watch: Watch[str] = Watch(work, keep=[self._proc], patience=QUICK)
        with closing(watch.run(TABLES)) as events:
            for event in events:
                if isinstance(event, Ended):
                    self._ended(event.outcome, f"sockets ({event.task}): {event.detail}", report)
                    continue
                self._add(event.data, report)
                if event.notes and (error := _table_notes.decode(event.notes).error):
                    detail = f"process {self._process.pid}: sockets ({event.task}) cannot be read: errno {error}"
                    report.gap(Gap(Reason.IO_ERROR, detail))

    def _add(self, data: bytes, report: Report) -> None:
        if len(data) <= self._room:
            self._lines.append(data)
        elif self._room:
            report.gap(
                Gap(Reason.LIMIT, f"process {self._process.pid}: descriptors and sockets beyond {MAX_BYTES} bytes")
            )
        self._room = max(0, self._room - len(data)) if len(data) <= self._room else 0

    def _ended(self, outcome: Outcome, detail: str, report: Report) -> None:
        if outcome is not Outcome.DONE:
            reason = Reason.INTERNAL if outcome is Outcome.DIED else Reason.STUCK
            report.gap(Gap(reason, f"process {self._process.pid}: {detail}"))
