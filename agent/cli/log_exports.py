"""`impound export logs`: the logs of containers, decoded and sorted by time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.cli.output import printable, say, size

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.job import S3
    from agent.sealing import Identity

SHOWN = 10


def export_logs(
    source: str,
    keys: Sequence[Identity],
    output: str,
    *,
    containers: Sequence[str],
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes one timeline for each container into a new or empty directory. Returns the result."""
    from agent.analysis.items import items_of
    from agent.analysis.logs import timeline
    from agent.analysis.opening import new_output

    with items_of(source, keys, signers=signers, receipts=receipts, s3=s3) as items, new_output(output) as fd:
        made = timeline.export(items, fd, containers)
    counts = made.counts
    names = sorted(made.timelines, key=lambda name: (-made.timelines[name].lines, name))
    if not quiet:
        for name in names[:SHOWN]:
            one = made.timelines[name]
            damage = f", {one.damaged} damaged ranges of {size(one.damaged_bytes)}" if one.damaged else ""
            say(f"  {name}  {one.lines} lines of {one.files} files{damage}")
        if len(names) > SHOWN:
            say(f"  … and {len(names) - SHOWN} more")
        if not names:
            say("  empty        no logs of containers are in this run")
        for note in made.notes[:SHOWN]:
            say(f"  note         {note}")
        say(f"wrote {output}, {size(made.bytes)}")
        if names:
            say(f"  jq -ac '[.time, .stream, .line // .damaged]' {printable(os.path.join(output, names[0]))}")
    return {
        "verdict": "done", "output": os.path.abspath(output), "bytes": made.bytes, "timelines": len(names),
        "lines": counts.lines, "files": counts.files, "damaged": counts.damaged,
        "damaged_bytes": counts.damaged_bytes, "unfinished": counts.unfinished, "containers": names[:SHOWN],
        "exit": 0,
    } | ({"notes": made.notes[:SHOWN]} if made.notes else {})  # fmt: skip
