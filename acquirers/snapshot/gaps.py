"""Gaps of many processes: the first of a kind by name, the rest as a number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from acquirers.base import Gap, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.base import Report

NAMED = 20


class GapCount:
    """Passes gaps on to a report: ten thousand processes that refuse their environment are one gap."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._denied: Counter[str] = Counter()
        self._seen: Counter[tuple[Reason, str]] = Counter()

    @property
    def denied_counts(self) -> Mapping[str, int]:
        return self._denied

    def denied(self, kind: str) -> None:
        """A piece of one process was refused: `environ`."""
        self._denied[kind] += 1

    def one(self, kind: str, gap: Gap) -> None:
        """`kind` groups what is alike; beyond `NAMED` of a kind only their number is told."""
        self._seen[gap.reason, kind] += 1
        if self._seen[gap.reason, kind] <= NAMED:
            self._report.gap(gap)

    def finish(self) -> None:
        for kind, count in sorted(self._denied.items()):
            noun = "process" if count == 1 else "processes"
            self._report.gap(Gap(Reason.DENIED, f"{kind} of {count} {noun}: permission denied"))
        for (reason, kind), count in self._seen.items():
            if count > NAMED:
                self._report.gap(Gap(reason, f"{kind}: {count - NAMED} more"))
