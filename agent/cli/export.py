"""`impound export`: turns a run into what other tools read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agent import __version__
from agent.cli import options
from agent.cli.output import emit, say, size
from agent.errors import StoreError, UsageError
from agent.stores.directory import check_outside_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.analysis.notes import Note

SHOWN = 10
KINDS = {"host": "one host.tar that dissect.target opens, with its containers as child targets"}


@click.command("export")
@click.argument("kind", metavar="KIND")
@click.argument("source", metavar="SRC|OPENED")
@options.identity_option
@click.option("--output", "-o", required=True, metavar="PATH", help="New file.")
@options.signer_option
@options.receipt_option
@options.json_option
def command(
    kind: str,
    source: str,
    identities: tuple[str, ...],
    output: str,
    signers: tuple[str, ...],
    receipts: tuple[str, ...],
    as_json: bool,
) -> int:
    """Turn a run, sealed or opened, into what other tools read.

    \b
    KIND:
      host   one host.tar that dissect.target opens, with its containers as child targets

    \b
    Example:
      impound export host ./evidence --identity case.key --output host.tar
      target-query host.tar --list-children
    """
    if kind not in KINDS:
        raise UsageError(f"there is no export {kind!r}; this version has {', '.join(KINDS)}")
    from agent.analysis.archives import archives_of
    from agent.analysis.hosttar import join

    keys = options.read_identities(identities)
    left_out = 0

    def note(one: Note) -> None:
        nonlocal left_out
        left_out += 1
        if not as_json and left_out <= SHOWN:
            say(f"  {one}")

    pinned, digests = options.parse_pins(signers, receipts)
    with archives_of(source, keys, signers=pinned, receipts=digests) as archives:
        written = _write(
            output, join(archives, on_note=note, about=f"impound {__version__}: the archives of one run, joined")
        )
    if not as_json:
        if left_out > SHOWN:
            say(f"  … and {left_out - SHOWN} more notes of this kind")
        say(f"wrote {output}, {size(written)}")
    emit({"verdict": "done", "output": os.path.abspath(output), "bytes": written, "notes": left_out, "exit": 0})
    return 0


def _write(output: str, chunks: Iterator[bytes]) -> int:
    check_outside_runs(output)
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{output!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{output!r} cannot be written: {error.strerror}") from error
    written = 0
    try:
        with os.fdopen(fd, "wb", buffering=1 << 20) as file:
            for chunk in chunks:
                file.write(chunk)
                written += len(chunk)
    except OSError as error:
        os.unlink(output)
        raise StoreError(f"{output!r} could not be written: {error.strerror}") from error
    except BaseException:
        os.unlink(output)
        raise
    return written
