"""`impound watch`: how far all runs of a case are."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.cli import options, places
from agent.cli.output import emit, is_terminal, json_line, printable, say, size, tell
from agent.cli.s3_options import make_s3, s3_options
from agent.custody.status import DAMAGED, RunStatus, status_of
from agent.custody.stored import read_run
from agent.errors import SourceError
from agent.stores.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from agent.job import S3
    from agent.stores.sources import OpenSource

EVERY_S = 10
MAX_NAMED = 5


@click.command("watch")
@click.argument("source", metavar="CASE")
@click.option("--once", is_flag=True, help="Show it once, and end. Where standard error is no terminal, that is so.")
@click.option("--every", type=click.IntRange(1, 3600), default=EVERY_S, metavar="SECONDS", help=f"Default: {EVERY_S}.")
@s3_options
@options.json_option
def command(source: str, once: bool, every: int, as_json: bool, **values: Any) -> int:
    """Show how far every run below CASE is: a case, a host or a whole destination, in a bucket or a directory.

    It reads what the runs say of themselves: signed progress records and receipts, nothing else. That is no proof of
    what is stored; `impound verify` is. It ends when no run is under way, or with Ctrl-C; nothing is changed anywhere.

    \b
    Example:
      impound watch s3://evidence/cases/INC-42
      impound watch ./evidence/INC-42 --once --json

    \b
    Exit code: 0 shown, 3 CASE cannot be read.
    """
    s3 = make_s3(values)
    places.check_source(source)
    watching = _Watching(source, s3)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if once or as_json or not is_terminal():
                _one_by_one(watching, every, once=once or not as_json, as_json=as_json)
            else:
                _live(watching, every)
    finally:
        watching.close()
    emit(_result(watching.last))
    return 0


class _Watching:
    """The runs below a place, and what was known of them when they were last looked at."""

    def __init__(self, source: str, s3: S3) -> None:
        self._source, self._s3 = source, s3
        self._open: dict[str, tuple[OpenSource, Remembered]] = {}
        self._heard: dict[str, dt.datetime] = {}
        self.last: list[RunStatus] = []

    def look(self) -> list[RunStatus]:
        """Raises `SourceError` where there is no run at all."""
        from agent.stores.sources import find_runs, open_source

        found = find_runs(self._source, self._s3)
        if not found:
            raise places.no_run(self._source)
        for one in found:
            if one.location not in self._open:
                source = open_source(one)
                self._open[one.location] = source, Remembered(source)
        self.last = [self._status(one.location) for one in found]
        return self.last

    def _status(self, location: str) -> RunStatus:
        _, source = self._open[location]
        first, source.fresh = location not in self._heard, False
        now = dt.datetime.now(dt.UTC)
        try:
            run = read_run(source)
        except SourceError as error:
            return RunStatus(location, DAMAGED, problem=str(error))
        if first:  # when it was stored is not known: its own word counts
            self._heard[location] = dt.datetime.min.replace(tzinfo=dt.UTC)
        elif source.fresh:
            self._heard[location] = now
        return status_of(run, now, self._heard[location])

    def close(self) -> None:
        for source, _ in self._open.values():
            source.close()


def _one_by_one(watching: _Watching, every: int, *, once: bool, as_json: bool) -> None:
    """Each run when it is first seen, and again when something of it has changed."""
    shown: dict[str, RunStatus] = {}
    while True:
        for one in watching.look():
            if shown.get(one.location) != one:
                shown[one.location] = one
                tell(json_line(msgspec.to_builtins(one))) if as_json else _describe(one)
        if once or not any(one.under_way for one in watching.last):
            return
        time.sleep(every)


def _describe(one: RunStatus) -> None:
    say(f"{one.state:9} {one.host or '?'}  {one.location}")
    say(f"  run        {one.run}, attempt {one.attempt}, begun {one.started}, last word {one.last}")
    say(f"  whole      {one.items} items, {size(one.size)}, {one.gaps} gaps, {one.flags} flags")
    if one.signer:
        say(f"  signer     {one.signer}" + (f", countersigned by {one.countersigned}" if one.countersigned else ""))
    if one.problem:
        say(f"  problem    {one.problem}")


def _live(watching: _Watching, every: int) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(watching.look()), refresh=True)
            if not any(one.under_way for one in watching.last):
                return
            time.sleep(every)


def _table(found: Iterable[RunStatus]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("state", "host", "run", "items", "stored", "gaps", "last word"):
        table.add_column(name, justify="right" if name in {"items", "stored", "gaps"} else "left", overflow="fold")
    for one in found:
        cells = [one.state, one.host, one.run[-12:], str(one.items), size(one.size), str(one.gaps), one.last[:19]]
        table.add_row(*(Text(printable(cell)) for cell in cells))
        if one.problem:
            table.add_row(Text(), Text(printable(one.problem)[:200]))
    return table


def _result(found: list[RunStatus]) -> dict[str, object]:
    counts = Counter(one.state for one in found)
    result: dict[str, object] = {"runs": len(found), **{state: counts[state] for state in sorted(counts)}}
    if len(found) == 1:
        one = found[0]
        result |= {"run": one.run, "host": one.host, "store": one.location, "signer": one.signer}
        result |= {"receipt_sha256": one.receipt_sha256}
    odd = [f"{one.location}: {one.problem[:200]}" for one in found if one.problem]
    if odd:
        result["problems"] = odd[:MAX_NAMED]
    return result | {"exit": 0}
