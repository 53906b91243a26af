"""Gaps of many processes: the first of a kind by name, the rest as a number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from acquirers.base import Gap, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acquirers.base import Report

NAMED = 20
DENIED_NAMED = 5
"""Processes that are named with what they refuse."""


class GapCount:
    """Passes gaps on to a report: ten thousand processes that refuse their environment are six gaps."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._denied: Counter[str] = Counter()
        self._refusing = 0
        self._unnamed: Counter[str] = Counter()
        self._seen: Counter[tuple[Reason, str]] = Counter()

    @property
    def denied_counts(self) -> Mapping[str, int]:
        return self._denied

    def denied(self, pid: int, comm: bytes, kinds: Sequence[str]) -> None:
        """Pieces of one process were refused: `cwd`, `environ`. The first of such processes are a gap each."""
        if not kinds:
            return
        self._refusing += 1
        self._denied.update(kinds)
        if self._refusing <= DENIED_NAMED:
            called = f" ({_printable(comm)})" if comm else ""
            detail = f"pid {pid}{called}: {', '.join(kinds)}: permission denied"
            self._report.gap(Gap(Reason.DENIED, detail, b"/proc/%d" % pid))
        else:
            self._unnamed.update(kinds)

    def one(self, kind: str, gap: Gap) -> None:
        """`kind` groups what is alike; beyond `NAMED` of a kind only their number is told."""
        self._seen[gap.reason, kind] += 1
        if self._seen[gap.reason, kind] <= NAMED:
            self._report.gap(gap)

    def finish(self) -> None:
        more = self._refusing - DENIED_NAMED
        if more > 0:
            noun = "process" if more == 1 else "processes"
            kinds = ", ".join(f"{kind} of {count}" for kind, count in sorted(self._unnamed.items()))
            self._report.gap(Gap(Reason.DENIED, f"{more} more {noun}: {kinds}: permission denied"))
        for (reason, kind), count in self._seen.items():
            if count > NAMED:
                self._report.gap(Gap(reason, f"{kind}: {count - NAMED} more"))


def _printable(comm: bytes) -> str:
    text = comm.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
