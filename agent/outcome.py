"""What came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.custody.attempt import Counts

if TYPE_CHECKING:
    from acquirers.base import Gap
    from agent.errors import ImpoundError


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    outcome: str = "failed"
    """complete, gaps, stopped or failed."""
    error: ImpoundError | None = None
    run: str = ""
    case: str = ""
    host: str = ""
    attempt: int = 1
    location: str = ""
    signer: str = ""
    receipt_sha256: str = ""
    counts: Counts = field(default_factory=Counts)
    plaintext: int = 0
    stored: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    first_gaps: list[tuple[str, Gap]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Acquirers that found nothing of their kind here: neither gap nor flag."""
    left_out: tuple[str, ...] = ()
    """What the profile asks for and this version does not have."""

    @property
    def exit_code(self) -> int:
        return {"complete": 0, "gaps": 1}.get(self.outcome, 3)
