"""`impound open`: decrypts a run into a directory."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import click

from agent.cli import options
from agent.cli.output import emit, printable, say, size
from agent.errors import StoreError, UsageError

if TYPE_CHECKING:
    from agent.analysis.opening import Opened


@click.command("open")
@click.argument("source", metavar="SRC")
@options.identity_option
@click.option("--output", "-o", required=True, metavar="DIR", help="New or empty directory.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only objects of this name, e.g. 'containers/*'.")
@click.option("--range", "part", metavar="A-B", help="Only bytes A to B (both included) of the one object.")
@click.option("--extract", is_flag=True, help="Unpack the archives, too.")
@options.signer_option
@options.receipt_option
@options.json_option
def command(
    source: str,
    identities: tuple[str, ...],
    output: str,
    only: tuple[str, ...],
    part: str | None,
    extract: bool,
    signers: tuple[str, ...],
    receipts: tuple[str, ...],
    as_json: bool,
) -> int:
    """Decrypt a run into a directory: each object under its own path, less `.zst.age`. Every byte is checked.

    \b
    Example:
      impound open ./evidence --identity case.key --output ./opened --extract
      impound open ./evidence -i case.key -o ./one --only 'containers/docker/*-web.tar'

    \b
    Exit code: 0 done, 3 SRC cannot be read, 4 something is damaged, or no identity opens it.
    """
    from agent.analysis.opening import open_run, prepare_output, read_sound_run
    from agent.custody.plaintext import open_account

    if not identities:
        raise UsageError("--identity FILE is missing: the private key that opens the evidence")
    if extract and part:
        raise UsageError("--range takes a part of an object, which cannot be unpacked")
    byte_range = _range(part)
    keys = options.read_identities(identities)
    pinned, digests = options.parse_pins(signers, receipts)
    stored = options.one_run(source)
    run = read_sound_run(stored, signers=pinned, receipts=digests)
    account = open_account(run, keys)
    directory = prepare_output(output)
    unpacked = _Unpacker(directory, as_json=as_json) if extract else None
    try:
        opened = open_run(
            run,
            account,
            keys,
            directory,
            only=only,
            byte_range=byte_range,
            after=unpacked.after if unpacked else lambda _name: None,
        )
    finally:
        os.close(directory)
        stored.close()
    if not as_json:
        _describe(opened, output)
    damaged = opened.damaged + (unpacked.failed if unpacked else [])
    code = 4 if damaged else 0
    result: dict[str, object] = {
        "verdict": "damaged" if damaged else "opened",
        "run": opened.run,
        "finished": opened.finished,
        "output": os.path.abspath(output),
        "objects": len(opened.objects),
        "bytes": opened.bytes,
        "gaps": opened.gaps,
        "exit": code,
    }
    if unpacked:
        result["not_unpacked"] = unpacked.left_out
        result["not_restored"] = dict(unpacked.unrestored)
    if damaged:
        result["findings"] = [{"name": name, "problem": problem} for name, problem in damaged]
    emit(result)
    return code


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,18})-(\d{1,18})", text)
    if not match or int(match[1]) > int(match[2]):
        raise UsageError("--range is A-B: first and last byte, A not beyond B")
    return int(match[1]), int(match[2])


class _Unpacker:
    """Unpacks each archive that was opened, beside it."""

    def __init__(self, directory: int, *, as_json: bool) -> None:
        self._directory, self._as_json = directory, as_json
        self.failed: list[tuple[str, str]] = []
        self.left_out = 0
        self.unrestored: Counter[str] = Counter()

    def after(self, name: str) -> None:
        if not name.endswith(".tar"):
            return
        from agent.analysis.extract import extract
        from agent.errors import DamagedError

        target = self._make_directory(name.removesuffix(".tar"))
        into = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            with os.fdopen(fd, "rb") as archive:
                summary = extract(archive, into, on_note=lambda note: self._tell(name, note))
            self.left_out += summary.left_out
            self.unrestored.update({str(kind): number for kind, number in summary.unrestored.items()})
        except DamagedError as error:
            self.failed.append((name, str(error)))
        finally:
            os.close(into)

    def _make_directory(self, name: str) -> str:
        """A new directory beside the archive: another object may have been opened under that name."""
        for number in range(1, 1000):
            target = name if number == 1 else f"{name}-{number}"
            try:
                os.mkdir(target, 0o700, dir_fd=self._directory)
            except FileExistsError:
                continue
            return target
        raise StoreError(f"there is no free name to unpack {name} under")

    def _tell(self, name: str, note: object) -> None:
        if not self._as_json:
            say(f"  {printable(name)}: {note}")


def _describe(opened: Opened, output: str) -> None:
    say(f"opened {len(opened.objects)} objects, {size(opened.bytes)}, into {output}")
    if not opened.finished:
        say("  this run is partial: it was cut off before it was finished")
    if opened.gaps:
        say(f"  {opened.gaps} gaps: lines of type gap in attempt-*/manifest.jsonl, or in items.jsonl after a kill")
    for name, problem in opened.damaged:
        say(f"  damaged      {printable(name)}: {problem}")
