"""Events of a run as messages, and back: what a responder sees of a machine far away.

What comes back is bounded in every field and of the types that `agent.events` names, and still a stranger's text:
whoever prints it escapes it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from acquirers.base import Availability, Flag, FlagKind, Gap, Reason, State
from agent import events
from agent.channel.messages import Event

MAX_TEXT = 2000
MAX_WHERE = 4096

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Reason
    detail: _Text
    where: Annotated[bytes, msgspec.Meta(max_length=MAX_WHERE)] = b""
    missing: _Count | None = None


class _Flag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: FlagKind
    detail: _Text
    where: Annotated[bytes, msgspec.Meta(max_length=MAX_WHERE)] = b""


class _Availability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: State
    reason: _Text = ""
    remedy: _Text = ""
    estimate: _Count | None = None


_TYPES: dict[str, Any] = {
    "str": _Text,
    "int": _Count,
    "int | None": _Count | None,
    "float": _Seconds,
    "Gap": _Gap,
    "Flag": _Flag,
    "Availability": _Availability,
}
_EVENTS: dict[str, type[Any]] = {
    one.__name__: one
    for one in (
        events.RunStarted,
        events.AcquirerStarted,
        events.ItemStarted,
        events.ItemProgress,
        events.ItemDone,
        events.ItemSkipped,
        events.GapFound,
        events.FlagRaised,
        events.StoreWaiting,
        events.RunEnded,
    )
}


def to_message(event: events.Event) -> Event:
    """An event as a message. Long texts and paths lose their ends: all of them are in the manifest."""
    told = {name: msgspec.Raw(msgspec.json.encode(_plain(getattr(event, name)))) for name in event.__struct_fields__}
    return Event(type(event).__name__, told)


def from_message(message: Event) -> events.Event | None:
    """The event that a message tells, or `None` where it tells none."""
    kind = _EVENTS.get(message.name)
    if kind is None or set(message.fields) != set(kind.__struct_fields__):
        return None
    try:
        values = {
            name: _event_value(msgspec.json.decode(message.fields[name], type=_TYPES[kind.__annotations__[name]]))
            for name in kind.__struct_fields__
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    event: events.Event = kind(**values)
    return event


def _plain(value: object) -> object:
    match value:
        case Gap():
            return _Gap(value.reason, _text(value.detail), value.where[:MAX_WHERE], value.missing)
        case Flag():
            return _Flag(value.kind, _text(value.detail), value.where[:MAX_WHERE])
        case Availability():
            return _Availability(value.state, _text(value.reason), _text(value.remedy), value.estimate)
        case str():
            return _text(value)
        case _:
            return value


def _text(text: str) -> str:
    """The same without lone surrogates, which JSON does not have, and with an end."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:MAX_TEXT]


def _event_value(value: object) -> object:
    match value:
        case _Gap():
            return Gap(value.reason, value.detail, value.where, value.missing)
        case _Flag():
            return Flag(value.kind, value.detail, value.where)
        case _Availability():
            return Availability(value.state, value.reason, value.remedy, value.estimate)
        case _:
            return value
