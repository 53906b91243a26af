"""Every event of a run crosses the channel and comes back as it was; what is none comes back as nothing."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from acquirers import base
from acquirers.base import Availability, Flag, FlagKind, Gap, Reason, State
from agent import events
from agent.channel.messages import Event
from agent.channel.watching import from_message, to_message

VALUES: dict[Any, Any] = {
    str: "text\x1b[31m",
    int: 7,
    int | None: None,
    float: 12.5,
    Gap: Gap(Reason.DENIED, "not allowed", b"/\xff", 5),
    Flag: Flag(FlagKind.CHANGED, "changed", b"/b"),
    Availability: Availability(State.AVAILABLE, estimate=3),
}


def event_of(kind: type[Any]) -> Any:
    hints = get_type_hints(kind, {**vars(events), **vars(base)})
    return kind(**{name: VALUES[hints[name]] for name in kind.__struct_fields__})


@pytest.mark.parametrize("kind", get_args(events.Event))
def test_every_event_comes_back_as_it_was(kind: type[Any]) -> None:
    event = event_of(kind)
    line = msgspec.json.encode(to_message(event))
    assert from_message(msgspec.json.decode(line, type=Event)) == event


def test_that_the_store_waits_and_that_it_goes_on_is_told() -> None:
    for seconds in (65.0, 0.0):
        assert from_message(to_message(events.StoreWaiting(seconds))) == events.StoreWaiting(seconds)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("StoreWaiting", {}),
        ("StoreWaiting", {"seconds": "a"}),
        ("StoreWaiting", {"seconds": -1}),
        ("StoreWaiting", {"seconds": 1e300}),
        ("StoreWaiting", {"seconds": 1, "more": 1}),
        ("Unknown", {}),
        ("__class__", {}),
        ("RunEnded", {"outcome": "x" * 5000}),
    ],
)
def test_what_is_no_event_is_nothing(name: str, fields: dict[str, Any]) -> None:
    raw = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in fields.items()}
    assert from_message(Event(name, raw)) is None
