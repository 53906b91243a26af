"""What an item tells while it is read, and what a run does when an acquirer raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from acquirers.base import AcquirerError, FlagKind, Gap, Reason
from agent import events
from agent.custody.attempt import MAX_SEALED_GAPS, Counts
from agent.custody.manifest import flag_record, gap_record, member_record
from agent.outcome import MAX_FINDINGS
from agent.pieces import Told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Flag, Member
    from agent.custody.attempt import Attempt
    from agent.events import Observer
    from agent.outcome import Outcome

T = TypeVar("T")

MAX_SEALED_BYTES = 1 << 18
"""Of gaps, encoded, in one progress record, which is read whole. The manifest has every gap at any length."""


class ItemReport:
    """Puts what an item tells into the manifest, counts it, and tells whoever watches. A `Report` (acquirers.base)."""

    def __init__(self, attempt: Attempt, outcome: Outcome, observe: Observer, item: str, acquirer: str) -> None:
        self._attempt, self._outcome, self._observe = attempt, outcome, observe
        self.item = item
        self._acquirer = acquirer
        self.counts = Counts()
        """Of the whole item."""
        self._since = Told()
        self._room = MAX_SEALED_BYTES
        self._sealed_gaps = 0
        self.failed: Exception | None = None
        """What the manifest raised: no fault of the acquirer in whose midst it was told."""

    def cut(self) -> Told:
        """What was told since this was last asked."""
        told, self._since = self._since, Told()
        return told

    def member(self, member: Member) -> None:
        self.counts.members += 1
        self._since.counts.members += 1
        self._attempt.counts.members += 1
        self._add(member_record(self.item, member))

    def gap(self, gap: Gap) -> None:
        self.counts.gaps += 1
        self._since.counts.gaps += 1
        self._attempt.counts.gaps += 1
        record = gap_record(self.item, gap)
        if not self.item:
            record["acquirer"] = self._acquirer
        size = len(msgspec.json.encode(record))
        if self._sealed_gaps < MAX_SEALED_GAPS and size <= self._room:
            self._room -= size
            self._sealed_gaps += 1
            self._since.first_gaps.append(record)
        self._add(record)
        name = self.item or self._acquirer
        self._outcome.reasons[gap.reason] += 1
        if len(self._outcome.first_gaps) < MAX_SEALED_GAPS:
            self._outcome.first_gaps.append((name, gap))
        self._observe(events.GapFound(name, gap))

    def flag(self, flag: Flag) -> None:
        self.counts.flags += 1
        self._since.counts.flags += 1
        self._attempt.counts.flags += 1
        self._add(flag_record(self.item, flag))
        outcome = self._outcome
        outcome.flag_kinds[flag.kind] += 1
        if flag.kind is FlagKind.FINDING and len(outcome.first_findings) < MAX_FINDINGS:
            outcome.first_findings.append((self.item or self._acquirer, flag))
        self._observe(events.FlagRaised(self.item or self._acquirer, flag))

    def _add(self, record: dict[str, object]) -> None:
        try:
            self._attempt.manifest.add(record)
        except Exception as error:
            self.failed = self.failed or error
            raise


def guarded(source: Iterator[T], report: ItemReport, what: str) -> Iterator[T]:
    """Yields from an acquirer's iterator; whatever it raises becomes a gap and ends it, not the run.

    What the manifest raised while the acquirer told it something ends the run.
    """
    while True:
        try:
            value = next(source)
        except StopIteration:
            if report.failed is not None:
                raise report.failed from None
            return
        except AcquirerError as error:
            report.gap(error.gap())
            return
        except Exception as error:  # noqa: BLE001 - a fault in one acquirer must not cost the others
            if report.failed is not None:
                raise report.failed from None
            detail = f"a fault of impound while reading {what}: {type(error).__name__}: {error}"
            report.gap(Gap(Reason.INTERNAL, detail))
            return
        if report.failed is not None:
            raise report.failed
        yield value
