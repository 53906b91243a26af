"""`snapshot.processes`: every process and every socket, in under a second, before memory is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acquirers.base import Availability, Gap, Item, Reason, State
from acquirers.snapshot.encode import MEDIA_TYPE, chunks
from acquirers.snapshot.holdings import Holdings
from acquirers.snapshot.proc import hidden
from acquirers.snapshot.watch import Patience

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host

NAME = "snapshot.processes"
_PER_PROCESS = 4096


class Processes:
    """Reads the process table once, and keeps the executables open for `snapshot.executables`.

    `Scope.pids` narrows it to those processes, with the sockets of their network namespaces. `Scope.containers` does
    not: what else ran on the machine is the context of a container, and costs little.
    """

    name = NAME

    def __init__(self, patience: Patience | None = None, holdings: Holdings | None = None) -> None:
        self._patience = patience or Patience()
        self.holdings = holdings or Holdings()
        self.scanned = False
        """The process table was read: `holdings` is what ran then."""

    def probe(self, host: Host, scope: Scope) -> Availability:
        if not host.live:
            return Availability(State.ABSENT, "a mounted disk has no processes")
        try:
            pids = host.pids()
        except OSError as error:
            reason = f"/proc cannot be listed: {error.strerror}"
            return Availability(State.UNAVAILABLE, reason, "mount a proc filesystem")
        if not pids:
            return Availability(State.UNAVAILABLE, "/proc shows no process", "mount a proc filesystem")
        selected = set(pids) & set(scope.pids) if scope.pids else set(pids)
        reason, remedy = _limits(host)
        return Availability(
            State.AVAILABLE,
            reason,
            remedy,
            estimate=_PER_PROCESS * len(selected),
            matched=frozenset(map(str, selected)) if scope.pids else frozenset(),
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        estimate = self.probe(host, scope).estimate
        yield Item("snapshot/processes.jsonl", MEDIA_TYPE, lambda report: self._read(host, scope, report), estimate)

    def _read(self, host: Host, scope: Scope, report: Report) -> Iterator[Buffer]:
        from acquirers.snapshot.stream import Snapshot

        self.scanned = True
        if why := hidden(host):
            report.gap(Gap(Reason.DENIED, why, host.proc or b""))
        return chunks(Snapshot(host, scope, self.holdings, self._patience).lines(report))

    def hold(self, host: Host, scope: Scope, report: Report) -> None:
        """Opens the executables of what runs now, without reading anything else."""
        from acquirers.snapshot.stream import Snapshot

        self.scanned = True
        if host.live:
            Snapshot(host, scope, self.holdings, self._patience).hold(report)

    def close(self) -> None:
        """Lets go of the executables; for a run that never asks for them."""
        self.holdings.close()


def _limits(host: Host) -> tuple[str, str]:
    """What limits the snapshot, in one line, and what would help."""
    if why := hidden(host):
        return why, "run as root"
    if "sys_ptrace" in host.facts.capabilities:
        return "", ""
    who = "root without CAP_SYS_PTRACE" if host.facts.root else "not root"
    return (
        f"{who}: environment, open files, executable and namespaces of other processes cannot be read",
        "grant CAP_SYS_PTRACE" if host.facts.root else "run as root",
    )
