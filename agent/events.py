"""What a run tells whoever watches it. A live display and JSON lines are made from the same events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from acquirers.base import Availability, Flag, Gap


class RunStarted(msgspec.Struct, frozen=True):
    run: str
    case: str
    host: str
    attempt: int
    signer: str
    location: str


class AcquirerStarted(msgspec.Struct, frozen=True):
    acquirer: str
    availability: Availability


class ItemStarted(msgspec.Struct, frozen=True):
    acquirer: str
    item: str
    estimate: int | None


class ItemProgress(msgspec.Struct, frozen=True):
    """At most a few times a second. What is sealed is on its way to the store: what is stored, `ItemDone` tells."""

    item: str
    plaintext: int
    sealed: int
    members: int
    gaps: int


class ItemDone(msgspec.Struct, frozen=True):
    item: str
    object: str
    plaintext: int
    stored: int
    members: int
    gaps: int
    flags: int
    seconds: float


class ItemSkipped(msgspec.Struct, frozen=True):
    """An earlier attempt left it whole."""

    item: str
    object: str


class GapFound(msgspec.Struct, frozen=True):
    item: str
    gap: Gap


class FlagRaised(msgspec.Struct, frozen=True):
    item: str
    flag: Flag


class StoreWaiting(msgspec.Struct, frozen=True):
    """For so many seconds the store has taken nothing more of what waits for it. 0: it takes something again."""

    seconds: float


class RunEnded(msgspec.Struct, frozen=True):
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
    | StoreWaiting
    | RunEnded
)


class Observer(Protocol):
    def __call__(self, event: Event, /) -> None: ...
