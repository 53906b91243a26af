"""Puts `snapshot/processes.jsonl` together from what the child reads: processes first, then sockets per namespace.

{"type":"snapshot", …}            clocks, boot id, number of pids
{"type":"process","pid":1, …}     one per pid, ascending
{"type":"socket","netns":…, …}    one per socket, with the processes that hold it
{"type":"sockets","netns":…, …}   behind the sockets of a table: which table, read through which process, how many
{"type":"end", …}                 duration and counts: a stream without it is not whole
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import asdict

from acquirers import facts
from acquirers.base import AcquirerError, Flag, FlagKind, Gap, Reason, reason_of
from acquirers.snapshot.encode import line
from acquirers.snapshot.gaps import GapCount
from acquirers.snapshot.holdings import close
from acquirers.snapshot.netns import MAX_CANDIDATES, Namespace, SocketReader, TableNotes
from acquirers.snapshot.notes import SAYS, STEPS, Notes, Step
from acquirers.snapshot.proc import list_pids, mounts_of, open_proc
from acquirers.snapshot.reader import ProcessReader
from acquirers.snapshot.socket_tables import TABLES
from acquirers.snapshot.watch import Ended, Outcome, Part, Received, Watch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from acquirers.base import Report, Scope
    from acquirers.host import Host
    from acquirers.snapshot.holdings import Holdings
    from acquirers.snapshot.watch import Patience

FORMAT = 1
MAX_HOLDERS = 1 << 18
"""Descriptors of sockets that are remembered for the join; beyond, the records of the processes still list them."""
MAX_HANDLES = 256
"""Network namespaces without a process that are entered."""

Task = tuple[int, Step]

_REASONS = {
    Outcome.STUCK: Reason.STUCK,
    Outcome.DIED: Reason.INTERNAL,
    Outcome.SKIPPED: Reason.STUCK,
}
_notes = msgspec.msgpack.Decoder(Notes)
_table_notes = msgspec.msgpack.Decoder(TableNotes)


class Snapshot:
    """One reading of the process table. Keeps per process only what the sockets and the executables need."""

    def __init__(self, host: Host, scope: Scope, holdings: Holdings, patience: Patience) -> None:
        self._host = host
        self._scope = scope
        self._holdings = holdings
        self._patience = patience
        self._proc = -1
        self._reader: ProcessReader | None = None
        self._holders: dict[int, list[tuple[int, int]]] = {}
        self._held_sockets = 0
        self._namespaces: dict[int, Namespace] = {}
        self._handles: dict[int, bytes] = {}
        self._counts: Counter[str] = Counter()
        # Of the record that is being put together:
        self._pid = 0
        self._comm = b""
        self._start_ticks = 0
        self._pieces: list[bytes] = []
        self._vanished = False
        self._denied: list[str] = []
        self._missing: list[str] = []

    def lines(self, report: Report) -> Generator[bytes, None, None]:
        """The whole stream; raises `AcquirerError` when /proc cannot be read at all."""
        started = time.monotonic_ns()
        gaps = GapCount(report)
        try:
            self._proc = open_proc(self._host)
            pids = list_pids(self._proc, self._scope)
            yield self._header(pids)
            self._covered(report)
            yield from self._processes(pids, gaps)
            yield from self._sockets(gaps)
        except OSError as error:
            raise AcquirerError(reason_of(error), f"processes: {error.strerror}", self._host.proc or b"") from error
        finally:
            close(self._proc)
            self._proc = -1
            gaps.finish()
        yield line(self._end(started, gaps))

    def hold(self, report: Report) -> None:
        """Opens the executables only."""
        gaps = GapCount(report)
        try:
            self._proc = open_proc(self._host)
            tasks = [(pid, Step.IMAGE) for pid in list_pids(self._proc, self._scope)]
            watch: Watch[Task] = Watch(self._work, keep=[self._proc], patience=self._patience)
            with closing(watch.run(tasks)) as events:
                for event in events:
                    if isinstance(event, Received):
                        self._take(event, _notes.decode(event.notes), gaps)
                    elif event.outcome is not Outcome.DONE:
                        self._lost(event, gaps)
        except OSError as error:
            gaps.one("processes", Gap(reason_of(error), f"processes: {error.strerror}", self._host.proc or b""))
        finally:
            close(self._proc)
            self._proc = -1
            gaps.finish()

    # -- first and last line ------------------------------------------------------------------------------------------

    def _header(self, pids: list[int]) -> bytes:
        boot = re.search(rb"^btime (\d{1,12})$", self._kernel(b"stat"), re.MULTILINE)
        return line(
            {
                "type": "snapshot",
                "format": FORMAT,
                "clock": asdict(facts.clock()),
                "boot_id": self._kernel(b"sys/kernel/random/boot_id").decode("ascii", "replace").strip(),
                "boot_time": int(boot[1]) if boot else None,
                "ticks_per_second": os.sysconf("SC_CLK_TCK"),
                "pids": len(pids),
                "selected": sorted(self._scope.pids),
                "agent_pid": os.getpid(),
                "mode": str(self._host.mode),
            }
        )

    def _kernel(self, name: bytes) -> bytes:
        try:
            return self._host.read_proc(name)
        except OSError:
            return b""

    def _end(self, started: int, gaps: GapCount) -> dict[str, object]:
        return {
            "type": "end",
            "duration_ns": time.monotonic_ns() - started,
            **{key: self._counts[key] for key in ("processes", "vanished", "not_read", "netns", "sockets")},
            "denied": dict(gaps.denied_counts),
            "holders_complete": self._held_sockets <= MAX_HOLDERS,
        }

    def _covered(self, report: Report) -> None:
        for mount in mounts_of(self._host):
            if re.match(rb"/proc/\d+(/|$)", mount.point):
                detail = "something is mounted over a process: a way to hide it from those who list /proc"
                report.flag(Flag(FlagKind.FINDING, detail, mount.point))

    # -- processes ----------------------------------------------------------------------------------------------------

    def _work(self, task: Task) -> Iterator[Part]:
        """In the child. The reader is made there: it tells psutil where /proc is, for the whole of a process."""
        if self._reader is None:
            self._reader = ProcessReader(
                self._proc,
                known=self._holdings.known,
                room=self._holdings.room,
                expected=lambda pid: self._start_ticks if pid == self._pid else 0,
            )
        return self._reader(task)

    def _processes(self, pids: list[int], gaps: GapCount) -> Iterator[bytes]:
        tasks = [(pid, step) for pid in pids for step in STEPS]
        watch: Watch[Task] = Watch(
            self._work, keep=[self._proc], patience=self._patience, risky=lambda task: task[1] is not Step.BASIC
        )
        with closing(watch.run(tasks)) as events:
            for event in events:
                pid, step = event.task
                if pid != self._pid:
                    self._begin(pid)
                if isinstance(event, Received):
                    self._pieces.append(event.data)
                    self._take(event, _notes.decode(event.notes), gaps)
                    continue
                if event.outcome is not Outcome.DONE:
                    self._missing.append(SAYS[step])
                    self._lost(event, gaps)
                if step is STEPS[-1]:
                    yield self._finish(gaps)

    def _begin(self, pid: int) -> None:
        self._pid, self._comm, self._start_ticks, self._pieces = pid, b"", 0, []
        self._vanished, self._denied, self._missing = False, [], []

    def _finish(self, gaps: GapCount) -> bytes:
        self._counts["processes"] += 1
        self._counts["vanished"] += self._vanished
        self._counts["not_read"] += bool(self._missing)
        gaps.denied(self._pid, self._comm, self._denied)
        tail: dict[str, object] = {}
        if self._vanished:
            tail["vanished"] = True
        if self._denied:
            tail["denied"] = self._denied
        if self._missing:
            tail["not_read"] = self._missing
        head = msgspec.json.encode({"type": "process", "pid": self._pid})[:-1]
        rest = b"," + msgspec.json.encode(tail)[1:-1] if tail else b""
        return b"".join((head, *self._pieces, rest, b"}\n"))

    def _take(self, event: Received[Task], notes: Notes, gaps: GapCount) -> None:
        pid, _ = event.task
        if notes.executable is not None:
            self._holdings.add(pid, notes.executable, event.fd)
        else:
            close(event.fd)
        self._vanished = self._vanished or notes.vanished
        self._denied += notes.denied
        self._start_ticks = notes.start_ticks or self._start_ticks
        self._comm = notes.comm or self._comm
        for reason, kind, detail in notes.gaps:
            gaps.one(kind, Gap(reason, detail, b"/proc/%d" % pid))
        if notes.net:
            namespace = self._namespaces.setdefault(notes.net, Namespace(notes.net))
            namespace.count += 1
            if len(namespace.pids) < MAX_CANDIDATES:
                namespace.pids.append(pid)
        for inode, fd in notes.net_fds:
            if len(self._handles) < MAX_HANDLES:
                self._handles.setdefault(inode, b"%d/fd/%d" % (pid, fd))
        for inode, fd in notes.sockets:
            self._held_sockets += 1
            if self._held_sockets <= MAX_HOLDERS:
                self._holders.setdefault(inode, []).append((pid, fd))

    def _lost(self, event: Ended[Task], gaps: GapCount) -> None:
        pid, step = event.task
        kind = SAYS[step]
        if event.outcome is Outcome.SKIPPED:
            detail = f"{kind}: not tried, too many processes gave no answer before"
            gaps.one("not tried", Gap(Reason.STUCK, detail, b"/proc/%d" % pid))
        else:
            gaps.one(kind, Gap(_REASONS[event.outcome], f"{kind}: {event.detail}", b"/proc/%d" % pid))

    # -- sockets ------------------------------------------------------------------------------------------------------

    def _sockets(self, gaps: GapCount) -> Iterator[bytes]:
        for mount in mounts_of(self._host) if not self._scope.pids else []:
            match = re.fullmatch(rb"net:\[(\d{1,18})\]", mount.root)
            if match and mount.fstype == b"nsfs" and len(self._handles) < MAX_HANDLES:
                self._handles.setdefault(int(match[1]), self._host.here(mount.point))
        # Those without processes last: to read them the child leaves its own namespace.
        for inode, handle in self._handles.items():
            self._namespaces.setdefault(inode, Namespace(inode)).handles.append(handle)
        ordered = sorted(self._namespaces.values(), key=lambda namespace: not namespace.pids)
        tasks = [(namespace, table) for namespace in ordered for table in TABLES]
        self._counts["netns"] = len(ordered)
        watch: Watch[tuple[Namespace, str]] = Watch(
            SocketReader(self._proc, self._holders), keep=[self._proc], patience=self._patience
        )
        with closing(watch.run(tasks)) as events:
            for event in events:
                namespace, table = event.task
                if isinstance(event, Ended):
                    if event.outcome is not Outcome.DONE:
                        detail = f"{table} of network namespace {namespace.inode}: {event.detail or 'not tried'}"
                        gaps.one("sockets", Gap(_REASONS[event.outcome], detail, _where(namespace, table)))
                    continue
                if event.data:
                    yield event.data
                if event.notes:
                    yield from self._table(namespace, table, _table_notes.decode(event.notes), gaps)

    def _table(self, namespace: Namespace, table: str, notes: TableNotes, gaps: GapCount) -> Iterator[bytes]:
        self._counts["sockets"] += notes.sockets
        if notes.error and (notes.entered or table == TABLES[0]):
            error = OSError(notes.error, os.strerror(notes.error))
            what = f"{table} of network" if notes.entered else "network"
            detail = f"{what} namespace {namespace.inode}: {error.strerror}"
            gaps.one("sockets", Gap(reason_of(error), detail, _where(namespace, table)))
        if notes.vanished:
            yield line({"type": "sockets", "netns": namespace.inode, "family": table, "vanished": True})


def _where(namespace: Namespace, table: str) -> bytes:
    if namespace.pids:
        return b"/proc/%d/net/%s" % (namespace.pids[0], table.encode())
    return namespace.handles[0] if namespace.handles else b""
