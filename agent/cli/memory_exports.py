"""`impound export isf`: what of an acquired memory other tools need beside the image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent import __version__
from agent.cli.output import say, size
from agent.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from agent.job import S3
    from agent.sealing import Identity

SUFFIXES = (".json", ".json.xz")
NOTES = 10


def export_isf(
    source: str,
    keys: Sequence[Identity],
    output: str,
    write: Callable[[str, Iterator[bytes]], int],
    *,
    signers: Collection[str],
    receipts: Collection[str],
    s3: S3 | None,
    quiet: bool,
) -> dict[str, object]:
    """Writes the symbol file and says how it is used. Returns the result. Raises `ImpoundError`."""
    from agent.analysis import isf, isf_source
    from agent.analysis.items import items_of

    if not output.endswith(SUFFIXES):
        raise UsageError(f"Volatility finds symbol files by their name: it must end with {' or '.join(SUFFIXES)}")
    with items_of(source, keys, signers=signers, receipts=receipts, s3=s3) as items:
        if isf_source.ITEM not in items.names:
            raise SourceError(
                f"{source}: {isf_source.ITEM} is not in this run: memory.symbols was not acquired, and a symbol file "
                "is made of nothing else"
            )
        kernel = isf_source.read(items.stream(isf_source.ITEM))
        made = isf.Made()
        chunks = isf.make(kernel, made, version=__version__)
        if output.endswith(".xz"):
            chunks = isf.compressed(chunks)
        written = write(output, chunks)
    path = os.path.abspath(output)
    if not quiet:
        say(f"  kernel       {made.banner}")
        say(f"  symbols      {made.symbols}, {made.typed} with a type; from {made.addresses}")
        say(f"  types        {made.types} structures, {made.enums} enums, those of {made.modules} modules among them")
        for note in made.notes[:NOTES]:
            say(f"  note         {note}")
        say(f"wrote {output}, {size(written)}; for example")
        say(f"  vol -s {os.path.dirname(path)} -f memory/physical.lime linux.pslist.PsList")
        say("  Volatility 2.28 finds nothing in an image of a kernel with five-level paging (`la57` in /proc/cpuinfo)")
    return {
        "verdict": "done", "output": path, "bytes": written, "banner": made.banner[:300],
        "symbols": made.symbols, "types": made.types, "notes": made.notes[:NOTES],
        "exit": 0,
    }  # fmt: skip
