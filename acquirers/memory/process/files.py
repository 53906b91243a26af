"""`memory/process/<pid>-<comm>.files.tar`: what a process holds that has no name any more, each file once in a run.

Members and their index are those of `acquirers.nameless`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acquirers import nameless
from acquirers.files.archive import ArchiveWriter
from acquirers.nameless import Holder, Nameless, Recovered, Recovery

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report
    from acquirers.memory.process.chosen import Process
    from acquirers.snapshot.watch import Patience


def look(directory: int, process: Process, patience: Patience) -> tuple[list[Nameless], str]:
    """What one process holds, and what kept it from being found. Raises `OSError` where no child can be started."""
    base = b"" if process.living == process.pid else b"task/%d/" % process.living
    return nameless.look(directory, base, patience)


class Files:
    """The archive of one process."""

    def __init__(
        self,
        process: Process,
        directory: int,
        item: str,
        files: list[Nameless],
        recovered: Recovered,
        patience: Patience,
        trouble: str = "",
    ) -> None:
        """`directory` is `/proc/<pid>`, open, and stays the caller's. `trouble` is what kept files from being found."""
        self._holder = Holder(process.pid, directory)
        self._item = item
        self._files = files
        self._recovered = recovered
        self._patience = patience
        self._trouble = trouble

    def read(self, report: Report) -> Iterator[Buffer]:
        writer = ArchiveWriter(report)
        recovery = Recovery(writer, report, self._item, self._recovered, self._patience)
        yield from recovery.add(self._holder, self._files, self._trouble)
        yield from writer.close()
