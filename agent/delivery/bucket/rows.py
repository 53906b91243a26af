"""One answer of `impound bucket check`."""

from __future__ import annotations

import enum

import msgspec


class State(enum.Enum):
    """What came of looking. All but OK make the check exit 1."""

    OK = "ok"
    FINDING = "finding"
    GRAVE = "grave"
    """A finding of the highest kind: who holds the examined machine can read, change or remove evidence."""
    UNKNOWN = "unknown"
    """It could not be looked at, and the row says why."""


class Row(msgspec.Struct, frozen=True):
    """One property. Texts may hold what the bucket said: print them escaped."""

    name: str
    state: State
    found: str
    why: str = ""
    """Why it matters."""
    mend: str = ""
    """The command, permission or template parameter that mends it."""
    details: tuple[str, ...] = ()

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "check": self.name, "state": self.state.value, "found": self.found, "why": self.why, "mend": self.mend,
            "details": list(self.details),
        }  # fmt: skip


class UnseenError(Exception):
    """Something could not be looked at. The message says why, `mend` what would help."""

    def __init__(self, why: str, mend: str = "") -> None:
        super().__init__(why)
        self.mend = mend
