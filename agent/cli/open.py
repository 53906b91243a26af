"""`impound open`: decrypts a run into a directory."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from agent.analysis.lime import LATE, MERGED, PHYSICAL, merge, pieces, write
from agent.cli import options, places
from agent.cli.other_key import explained
from agent.cli.output import emit, printable, say, size
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.analysis.opening import Opened

SHOWN = 20


@click.command("open")
@click.argument("source", metavar="SRC")
@options.identity_option
@click.option("--output", "-o", required=True, metavar="DIR", help="New or empty directory.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only objects of this name, e.g. 'containers/*'.")
@click.option(
    "--range", "part", metavar="A-B", help="Only bytes A to B (both included) of one object, as far as it goes."
)
@click.option("--extract", is_flag=True, help="Unpack the archives, too.")
@options.signer_option
@options.receipt_option
@s3_options
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
    **values: Any,
) -> int:
    """Decrypt a run into a directory: each object under its own path, less `.zst.age`. Every byte is checked.

    A range is written as NAME.A-B, of a run and of a proof that `export proof` made; a proof needs no key. Only with
    --signer or --receipt-sha256 is a run refused that somebody re-made. Where pages of memory had to be read late, both
    images are joined into memory/merged.lime.

    \b
    Example:
      impound open ./evidence --identity case.key --output ./opened --extract
      impound open ./evidence -i case.key -o ./one --only 'containers/docker/*-web.tar'
      impound open s3://evidence/INC-42 -i case.key -o ./part --only snapshot/processes.jsonl --range 0-511

    \b
    Exit code: 0 done, 3 SRC cannot be read, 4 something is damaged, or no identity opens it.
    """
    from agent.analysis.opening import new_output, open_run, read_sound_run
    from agent.analysis.proof import is_proof
    from agent.custody.plaintext import open_account

    places.check_source(source)
    if is_proof(source):
        from agent.cli.proofs import open_proof

        places.check_proof_file(source)
        if only or part or extract:
            raise UsageError("a proof holds one range: --only, --range and --extract are for a run")
        pinned, digests = options.parse_pins(signers, receipts)
        return open_proof(source, output, pinned, digests, as_json=as_json)
    if not identities:
        raise UsageError("--identity FILE is missing: the private key that opens the evidence")
    if extract and part:
        raise UsageError("--range takes a part of an object, which cannot be unpacked")
    byte_range = options.parse_range(part)
    keys = options.read_identities(identities)
    pinned, digests = options.parse_pins(signers, receipts)
    s3 = make_s3(values)
    stored = options.one_run(source, s3)
    with explained(source, s3, keys), contextlib.closing(stored):
        run = read_sound_run(stored, signers=pinned, receipts=digests)
        notes = [f"{name}: {problem}: its first version is opened" for name, problem in sorted(run.problems.items())]
        notes += [note] if (note := getattr(stored, "note", "")) else []
        account = open_account(run, keys)
        with new_output(output) as directory:
            unpacked = _Unpacker(directory, as_json=as_json) if extract else None
            opened = open_run(
                run,
                account,
                keys,
                directory,
                only=only,
                byte_range=byte_range,
                after=unpacked.after if unpacked else lambda _name: None,
            )
            merged = _merge(directory, opened)
    known = bool(pinned or digests)  # a run of anybody else is not opened
    cut = opened.part is not None and opened.part != byte_range
    if not as_json:
        _describe(opened, output)
        if cut and opened.part:
            say(f"  range        cut: the object ends with byte {opened.part[1]}, before {part} does")
        vouched = "as given" if known else "nobody vouches for it: compare it with what `acquire` printed"
        say(f"  signer       {run.signer} ({vouched})")
        for note in notes[:SHOWN]:
            say(f"  note         {note}")
    if merged and not as_json:
        say(f"  merged       {MERGED}: what was read at once and what was read late, {size(merged)}; analyse this one")
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
        "signer": run.signer,
        "signer_known": known,
        "exit": code,
    }
    if merged:
        result["merged"] = MERGED
    if opened.part is not None:
        result["range"] = {"first": opened.part[0], "last": opened.part[1], "cut": cut}
    if unpacked:
        result["not_unpacked"] = unpacked.left_out
        result["not_restored"] = dict(unpacked.unrestored)
    if notes:
        result["notes"] = notes
    if damaged:
        result["findings"] = [{"name": name, "problem": problem} for name, problem in damaged]
    emit(result)
    return code


def _merge(directory: int, opened: Opened) -> int:
    """Joins the two memory images of one acquisition where there are two. Gives the bytes written, 0 where not."""
    from agent.analysis.opening import write_below
    from agent.errors import DamagedError

    if not {PHYSICAL, LATE} <= set(opened.objects):
        return 0
    try:
        images = [pieces(_chunks(directory, name), name) for name in (PHYSICAL, LATE)]
        written = write_below(directory, MERGED, write(merge(*images)))
    except DamagedError as error:
        opened.damaged.append((MERGED, str(error)))
        return 0
    return written


def _chunks(directory: int, name: str) -> Iterator[bytes]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, "rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


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
