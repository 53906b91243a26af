"""`impound plan`: what would be taken, how big it is, and why something cannot be. Reads no evidence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from acquirers.base import State
from acquirers.container_id import short_id
from acquirers.host import Mode
from agent.cli import options
from agent.cli.output import emit, json_line, printable, size
from agent.custody.manifest import put_bytes
from agent.preparation import Prepared, find_host, prepare

if TYPE_CHECKING:
    from acquirers.base import Availability

MODES = {
    Mode.HOST: "this machine",
    Mode.INSIDE: "the container that impound runs in",
    Mode.LIVE_ROOT: "the live host, seen from a container",
    Mode.DEAD: "a mounted disk, of which nothing runs",
}
NOT_HERE = "not here"
LONG = 40
"""Characters of a container's name that stand in the table; --json has all of it."""


@click.command("plan")
@options.selection
@click.option(
    "--where", "path", metavar="PATH", help="Which container, pod and layer this path of the host is part of."
)
@options.json_option
def command(as_json: bool, path: str | None, **values: Any) -> int:
    """Show what `acquire` would take here, how big it is, and why something cannot be. Reads no evidence.

    \b
    Example:
      impound plan
      impound plan --container web --layers upper
      impound plan --root /mnt/disk
      impound plan --where /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/232/fs/tmp/x
      impound plan --only memory

    \b
    Of memory it shows each source that works, or why it is not used and what would help.
    """
    selection, where = options.make_selection(values)
    if path is not None:
        from agent.cli.where import show

        return show(find_host(where, selection), path, as_json=as_json)
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
        sys.stdout.write(json_line(record) + "\n")


def _rows(name: str, found: Availability) -> list[tuple[str, str, str, str]]:
    """(what, state, size, why and what would help) of one acquirer and its subjects."""
    why = found.reason + (f"; {found.remedy}" if found.remedy else "")
    state = NOT_HERE if found.state is State.ABSENT else str(found.state)
    rows = [(name, state, size(found.estimate) if found.state is State.AVAILABLE else "", why)]
    for one in found.subjects:
        why = "" if one.selected else "not selected"
        if one.kind == "source":  # a way to read all of it: it has no size, and nobody selects it
            works = one.selected
            rows.append((f"  source {one.id}", one.state if works else "not used", "", "" if works else one.state))
            continue
        called = "" if one.kind == "layer" else printable(one.name)  # a layer has another digest for a name
        called = called if len(called) <= LONG else f"{called[:LONG]}…"
        state = one.state
        if name == "containers.census":  # the runtime, and by what it is known, what is odd about it
            state, _, why = one.state.partition(", ")
        rows.append(
            (f"  {one.kind} {printable(short_id(one.id))[:LONG]} {called}".rstrip(), state, size(one.estimate), why)
        )
    return rows


def _sum(prepared: Prepared) -> str:
    """One line on the size of it all, and on what of it is memory."""
    found = [(acquirer.name, one) for acquirer, one in prepared.probes if one.state is State.AVAILABLE]
    whole = sum(one.estimate or 0 for _, one in found)
    memory = sum(one.estimate or 0 for name, one in found if name.startswith("memory."))
    if not found:
        return "nothing of it is here to be read"
    if not whole:
        return "how much it is will be known when it is read"
    part = f", of which memory {size(memory)} (--skip memory leaves it out)" if 0 < memory < whole else ""
    unknown = any(one.estimate is None for _, one in found)
    more = ", and whatever is marked ?, of which the size is known only when it is read" if unknown else ""
    return f"to read: {size(whole)}{part}{more}"


def _print_table(prepared: Prepared) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    facts = prepared.host.facts
    who = "root" if facts.root else f"uid {facts.uid}: what only root may read will be gaps"
    kernel = f", kernel {facts.kernel}" if facts.kernel else ""
    console.print(Text(f"{printable(facts.host_key())}: {MODES[prepared.host.mode]}{kernel}, as {who}"))
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
    console.print(Text(_sum(prepared)))
