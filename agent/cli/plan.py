"""`impound plan`: what would be taken, how big it is, and why something cannot be. Reads no evidence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from acquirers.base import State
from agent.cli import options
from agent.cli.output import emit, printable, size
from agent.custody.manifest import put_bytes
from agent.preparation import Prepared, prepare

if TYPE_CHECKING:
    from acquirers.base import Availability


@click.command("plan")
@options.selection
@options.json_option
def command(as_json: bool, **values: Any) -> int:
    """Show what `acquire` would take here, how big it is, and why something cannot be. Reads no evidence.

    \b
    Example:
      impound plan
      impound plan --container web --layers upper
      impound plan --root /mnt/disk
    """
    selection, where = options.make_selection(values)
    prepared = prepare(selection, where)
    if as_json:
        _print_json(prepared)
    else:
        _print_table(prepared)
    states = [availability.state for _, availability in prepared.probes]
    emit(
        {
            "verdict": "plan",
            "host": prepared.host.facts.host_key(),
            "mode": str(prepared.host.mode),
            "available": states.count(State.AVAILABLE),
            "unavailable": [acquirer.name for acquirer, found in prepared.probes if found.state is State.UNAVAILABLE],
            "absent": [acquirer.name for acquirer, found in prepared.probes if found.state is State.ABSENT],
            "estimate": sum(found.estimate or 0 for _, found in prepared.probes),
            "not_in_this_version": list(prepared.left_out),
            "exit": 0,
        }
    )
    return 0


def _print_json(prepared: Prepared) -> None:
    for acquirer, found in prepared.probes:
        record: dict[str, object] = {
            "acquirer": acquirer.name,
            "state": found.state,
            "reason": found.reason,
            "remedy": found.remedy,
            "estimate": found.estimate,
        }
        subjects = []
        for one in found.subjects:
            subject: dict[str, object] = {"kind": one.kind, "id": one.id, "state": one.state}
            put_bytes(subject, "name", one.name)
            subject |= {"estimate": one.estimate, "selected": one.selected}
            subjects.append(subject)
        record["subjects"] = subjects
        sys.stdout.write(msgspec.json.encode(record).decode("utf-8") + "\n")


def _rows(name: str, found: Availability) -> list[tuple[str, str, str, str]]:
    """(what, state, size, why and what would help) of one acquirer and its subjects."""
    why = found.reason + (f"; {found.remedy}" if found.remedy else "")
    rows = [(name, str(found.state), size(found.estimate) if found.state is State.AVAILABLE else "", why)]
    for one in found.subjects:
        name = "" if one.kind == "layer" else printable(one.name)  # a layer has another digest for a name
        what = f"  {one.kind} {one.id[:12]} {name}".rstrip()
        rows.append((what, one.state, size(one.estimate), "" if one.selected else "not selected"))
    return rows


def _print_table(prepared: Prepared) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    facts = prepared.host.facts
    who = "root" if facts.root else f"uid {facts.uid}: what only root may read will be gaps"
    console.print(Text(f"{printable(facts.host_key())}: {prepared.host.mode}, kernel {facts.kernel or '-'}, as {who}"))
    table = Table(show_edge=False, pad_edge=False, box=None, header_style="bold")
    for title in ("what", "state", "size", "why, and what would help"):
        table.add_column(title, overflow="fold", justify="right" if title == "size" else "left")
    styles = {State.AVAILABLE: "green", State.UNAVAILABLE: "red", State.ABSENT: "dim"}
    for acquirer, found in prepared.probes:
        for number, row in enumerate(_rows(acquirer.name, found)):
            cells = [Text(printable(cell)) for cell in row]
            if number == 0:
                cells[1].stylize(styles[found.state])
            table.add_row(*cells)
    for name in prepared.left_out:
        table.add_row(Text(name), Text("not in this version", style="dim"), "", "")
    console.print(table)
