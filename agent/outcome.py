"""What came of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from agent.custody.attempt import Counts

if TYPE_CHECKING:
    from acquirers.base import Flag, Gap
    from agent.errors import ImpoundError


MAX_FINDINGS = 5
"""That are told at the end of a run; all are in the manifest."""


class Outcome(msgspec.Struct):
    """What came of a run."""

    outcome: str = "failed"
    """complete, gaps, stopped or failed."""
    error: ImpoundError | None = None
    run: str = ""
    case: str = ""
    host: str = ""
    attempt: int = 1
    location: str = ""
    authority: str = "local"
    """By whose right objects appear: local, session, broker or ambient."""
    to_finish: bool = False
    """Nobody completed the uploads: that is for `impound finish` to do."""
    signer: str = ""
    receipt_sha256: str = ""
    counts: Counts = msgspec.field(default_factory=Counts)
    plaintext: int = 0
    stored: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    first_gaps: list[tuple[str, Gap]] = msgspec.field(default_factory=list)
    flag_kinds: Counter[str] = msgspec.field(default_factory=Counter)
    first_findings: list[tuple[str, Flag]] = msgspec.field(default_factory=list)
    absent: list[str] = msgspec.field(default_factory=list)
    """Acquirers that found nothing of their kind here: neither gap nor flag."""
    not_here: dict[str, str] = msgspec.field(default_factory=dict)
    """The same, and why in words."""
    says: dict[str, str] = msgspec.field(default_factory=dict)
    """What items said of themselves for the result, e.g. whether the memory image can be analysed."""
    left_out: tuple[str, ...] = ()
    """What the profile asks for and this version does not have."""

    @property
    def exit_code(self) -> int:
        return {"complete": 0, "gaps": 1}.get(self.outcome, 3)
