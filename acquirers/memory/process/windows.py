"""The windows in which the container of one process stands still while that process is read: one after the other.

What does not fit into one window is read in further ones; between two of them nothing of the process is read, and its
container runs for at least as long as it stood still. So every page is of some window, and pages of one window are of
one moment.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from acquirers.base import AcquirerError, Flag, FlagKind

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.memory.freezer import Freezer, Window
    from acquirers.memory.process.chosen import Process

MARGIN = 0.25
"""Seconds before the end of its time at which a window is closed."""
NO_CONTAINER = "it is in no container: only those are frozen"
MOST = 60
"""Windows for one process: five minutes of standing still."""


class Windows:
    """Those of one process. Without a freezer, and for a process of no container, it does nothing.

    The latter is no flag here: on a whole machine most processes are in none. Whoever reads them counts them.
    """

    def __init__(self, freezer: Freezer | None, process: Process) -> None:
        self._freezer = freezer if process.container else None
        self._process = process
        self._stack = ExitStack()
        self._open: Window | None = None
        self._mine: list[tuple[Window, int]] = []
        """Each with the bytes that were read in it."""
        self._why = NO_CONTAINER if freezer is not None and not process.container else ""
        self._late = False

    @property
    def wanted(self) -> bool:
        """Whether it shall be frozen, as far as is known by now."""
        return self._freezer is not None and not self._why

    @property
    def traced_before(self) -> bool:
        """Registers must be taken before it is frozen: what version 1 froze does not stop for a tracer."""
        if self._freezer is None or not self.wanted:
            return False
        try:
            return self._freezer.group_of(self._process.pid).version == 1
        except (AcquirerError, OSError):
            return False  # `open` says why

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def over(self) -> bool:
        """The time of the open window is up."""
        return self._open is not None and self._open.left <= MARGIN

    def open(self, report: Report) -> None:
        """Freezes it, after a pause where one is due. Where it cannot be frozen, that is a flag, and for good."""
        if self._freezer is None or self._open is not None or not self.wanted:
            return
        if self._ended:
            self._end("it has ended", report)
        elif any(window.restarted for window, _ in self._mine):
            self._end("its container ended or was restarted", report)
        elif len(self._mine) >= MOST:
            self._end(f"it was frozen {MOST} times", report)
        else:
            try:
                self._open = self._stack.enter_context(self._freezer.window(self._process.pid))
                self._mine.append((self._open, 0))
            except AcquirerError as error:
                self._end(error.detail, report)
            except OSError as error:
                self._end(error.strerror or str(error), report)

    def renew(self, report: Report) -> None:
        """Another window, where the time of this one is up."""
        if self.over:
            self.close()
        self.open(report)

    def close(self) -> None:
        """It runs on."""
        self._open = None
        self._stack.close()

    def note(self, size: int) -> None:
        """So many bytes were read."""
        if self._open is not None:
            window, before = self._mine[-1]
            self._mine[-1] = window, before + size
        else:
            self._late = True

    def _end(self, why: str, report: Report) -> None:
        self._why = why
        again = " again" if self._mine else ""
        report.flag(Flag(FlagKind.FINDING, f"process {self._process.pid} was not frozen{again}: {why}"))

    @property
    def _ended(self) -> bool:
        process = self._process.pid, self._process.start_ticks
        return any(process in (window.ended or ()) for window, _ in self._mine)

    @property
    def says(self) -> str:
        """For its record."""
        if not self._mine:
            return f"no: {self._why}" if self._why else "no"
        count = len(self._mine)
        windows = f", in {count} windows" if count > 1 else ""
        windows += "; then it ended" if self._ended else ""
        if self._late and not any(size for _, size in self._mine):
            return f"while it was looked at{windows}"
        if self._late:
            return f"while its first pages were read{windows}"
        return f"while it was read{windows}"

    def lines(self) -> list[dict[str, object]]:
        """Each window, with the bytes of memory that were read in it."""
        return [{**window.line(), "read": size} for window, size in self._mine]
