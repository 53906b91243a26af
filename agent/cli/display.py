"""What a person or a program sees while a run goes on: a live table on a terminal, else one JSON line per event.

Both go to standard error, and losing it never ends a run: a responder's connection may drop.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol, Self

from acquirers.base import Availability, Flag, Gap
from agent import events
from agent.cli.output import is_terminal, json_line, printable, size, tell
from agent.custody.manifest import put_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Group

    from agent.events import Event

MAX_EVENT_GAPS = 1000
"""Gap and flag lines beyond this are counted, not printed: all of them are in the manifest."""
ROWS = 8


class Display(Protocol):
    def observe(self, event: Event) -> None: ...


@contextlib.contextmanager
def make_display(*, as_json: bool) -> Iterator[Display]:
    """A live display on a terminal, JSON lines elsewhere and where asked for."""
    if as_json or not is_terminal():
        yield JsonLines()
        return
    with LiveTable() as table:
        yield table


def _name(event: object) -> str:
    words = type(event).__name__
    return "".join("-" + char.lower() if char.isupper() else char for char in words).lstrip("-")


def _value(value: object) -> object:
    if isinstance(value, Gap):
        record: dict[str, object] = {"reason": value.reason, "detail": value.detail}
        put_bytes(record, "where", value.where)
        return record
    if isinstance(value, Flag):
        record = {"kind": value.kind, "detail": value.detail}
        put_bytes(record, "where", value.where)
        return record
    if isinstance(value, Availability):
        return {"state": value.state, "reason": value.reason, "remedy": value.remedy}
    return round(value, 3) if isinstance(value, float) else value


class JsonLines:
    """One JSON line per event on standard error."""

    def __init__(self) -> None:
        self._noted = 0

    def observe(self, event: Event) -> None:
        if isinstance(event, (events.GapFound, events.FlagRaised)):
            self._noted += 1
            if self._noted > MAX_EVENT_GAPS:
                return
        record: dict[str, object] = {"event": _name(event), "time": round(time.time(), 3)}
        record |= {name: _value(getattr(event, name)) for name in event.__struct_fields__}
        tell(json_line(record))


class LiveTable:
    """A few lines that are drawn anew: what is read now, what is done, and the whole."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._began = time.monotonic()
        self._head = ""
        self._waiting: events.StoreWaiting | None = None
        self._done: list[events.ItemDone] = []
        self._now: events.ItemProgress | None = None
        self._item: events.ItemStarted | None = None
        self._item_began = self._began
        self._gaps = self._flags = self._plaintext = self._stored = self._members = self._items = 0
        # Last: it asks for the first picture at once.
        console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()

    def observe(self, event: Event) -> None:
        match event:
            case events.RunStarted():
                self._head = f"case {event.case}  host {event.host}  run {event.run}  attempt {event.attempt}"
            case events.ItemStarted():
                self._item, self._now, self._item_began = event, None, time.monotonic()
            case events.ItemProgress():
                self._now = event
            case events.ItemDone():
                self._done = [*self._done[1 - ROWS :], event]
                self._item = self._now = None
                self._items += 1
                self._members += event.members
                self._plaintext += event.plaintext
                self._stored += event.stored
            case events.GapFound():
                self._gaps += 1
            case events.FlagRaised():
                self._flags += 1
            case events.StoreWaiting():
                self._waiting = event if event.seconds else None
            case _:
                pass

    def _render(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for _ in range(6):
            table.add_column(justify="left")
        for done in self._done:
            table.add_row(
                Text("whole", style="green" if not done.gaps else "yellow"),
                Text(printable(done.item)),
                size(done.plaintext),
                _rate(done.plaintext, done.seconds),
                f"{done.members} files",
                Text(f"{done.gaps} gaps", style="red" if done.gaps else "dim"),
            )
        plaintext, members = self._plaintext, self._members
        if self._item is not None:
            now = self._now
            read, seen = (now.plaintext, now.members) if now else (0, 0)
            plaintext, members = plaintext + read, members + seen
            seconds = time.monotonic() - self._item_began
            estimate = f" of ~{size(self._item.estimate)}" if self._item.estimate else ""
            table.add_row(
                Text("reading", style="bold"),
                Text(printable(self._item.item)),
                size(read) + estimate,
                _rate(read, seconds),
                f"{seen} files",
                f"{now.gaps if now else 0} gaps",
            )
        seconds = time.monotonic() - self._began
        whole = (
            f"{self._items} items  {members} files  {size(plaintext)} read at {_rate(plaintext, seconds)}  "
            f"{self._gaps} gaps  {self._flags} flags  {seconds:.0f} s"
        )
        head, foot = Text(printable(self._head)), Text(whole, style="bold")
        if self._waiting is None:
            return Group(head, table, foot)
        waiting = f"the store has taken nothing more for {self._waiting.seconds:.0f} s: it is tried again"
        return Group(head, table, foot, Text(waiting, style="yellow"))


def _rate(amount: int, seconds: float) -> str:
    return f"{size(int(amount / seconds))}/s" if seconds > 0.05 else "-"
