"""What a run tells whoever watches it. A live display and JSON lines are made from the same events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from acquirers.base import Availability, Flag, Gap


@dataclass(frozen=True, slots=True)
class RunStarted:
    run: str
    case: str
    host: str
    attempt: int
    signer: str
    location: str


@dataclass(frozen=True, slots=True)
class AcquirerStarted:
    acquirer: str
    availability: Availability


@dataclass(frozen=True, slots=True)
class ItemStarted:
    acquirer: str
    item: str
    estimate: int | None


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """At most a few times a second."""

    item: str
    plaintext: int
    stored: int
    members: int
    gaps: int


@dataclass(frozen=True, slots=True)
class ItemDone:
    item: str
    object: str
    plaintext: int
    stored: int
    members: int
    gaps: int
    flags: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ItemSkipped:
    """An earlier attempt left it whole."""

    item: str
    object: str


@dataclass(frozen=True, slots=True)
class GapFound:
    item: str
    gap: Gap


@dataclass(frozen=True, slots=True)
class FlagRaised:
    item: str
    flag: Flag


@dataclass(frozen=True, slots=True)
class RunEnded:
    outcome: str


Event = (
    RunStarted
    | AcquirerStarted
    | ItemStarted
    | ItemProgress
    | ItemDone
    | ItemSkipped
    | GapFound
    | FlagRaised
    | RunEnded
)


class Observer(Protocol):
    def __call__(self, event: Event, /) -> None: ...
