"""`impound finish`: completes what a host left in the bucket, checks the run, and countersigns it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from agent.cli import options, places
from agent.cli.output import emit, printable, say
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import SourceError, UsageError

if TYPE_CHECKING:
    from agent.custody.countersign import Countersigner
    from agent.custody.verify import RunVerdict
    from agent.delivery.finish import Finished
    from agent.job import S3
    from agent.stores.s3.place import Place

SHOWN = 20


@click.command("finish")
@click.argument("source", metavar="SRC")
@options.signer_option
@options.receipt_option
@click.option(
    "--countersign-key", "key", metavar="FILE|ARN", help="Countersign with this Ed25519 key file, or this KMS key."
)
@click.option(
    "--compare",
    type=click.Choice(["bucket", "bytes"]),
    default="bucket",
    show_default=True,
    help="Objects of one part by the SHA-256 that the bucket computed, larger ones read; or every byte read again.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Where no receipt is known: complete progress records by their names alone, as far as they follow each other.",
)
@s3_options
@options.json_option
def command(**values: Any) -> int:
    """Complete the uploads of a run, where its parts are those that were signed; then check it, and countersign.

    A host that holds session credentials can add parts and complete nothing. --receipt-sha256, from the result line of
    the run, says which receipt is the true one. A run that ended without one needs --follow: its progress records are
    then completed by their names, which whoever could begin uploads could have taken. Nothing else is completed that no
    signed record names, and nothing is overwritten.

    \b
    Example:
      impound finish s3://evidence/INC-42/i-0abc/01890a5d-... --receipt-sha256 5f1c... --countersign-key ir.sign

    \b
    Exit code: 0 whole, 3 SRC cannot be read, 4 damaged or partial (the verdict says which).
    """
    from agent.stores.s3.place import is_s3

    source, as_json = values.pop("source"), values.pop("as_json")
    places.check_source(source)
    pinned, digests = options.parse_pins(values.pop("signers"), values.pop("receipts"))
    key_text, compare, follow = values.pop("key"), values.pop("compare"), values.pop("follow")
    s3 = make_s3(values)
    if key_text and not (pinned or digests):
        raise UsageError("a countersignature needs --signer or --receipt-sha256, as the result of the run printed them")
    key = _key(key_text, s3.region)
    notes: list[str] = []
    if is_s3(source):
        verdict, finished = _finish_bucket(source, s3, pinned, digests, key, compare, notes, follow=follow)
    else:
        from agent.delivery.countersigning import check_directory_run

        with contextlib.closing(options.one_run(source)) as stored:
            verdict, finished = check_directory_run(stored, signers=pinned, receipts=digests, key=key), None
    return _tell(verdict, finished, key, notes, as_json=as_json)


def _key(text: str | None, region: str) -> Countersigner | None:
    if not text:
        return None
    from agent.delivery.countersigning import read_countersigner

    return read_countersigner(text, region=region)


def _finish_bucket(
    source: str,
    s3: S3,
    signers: list[str],
    receipts: list[str],
    key: Countersigner | None,
    compare: str,
    notes: list[str],
    *,
    follow: bool,
) -> tuple[RunVerdict, Finished]:
    from agent.delivery.countersigning import check_bucket_run
    from agent.delivery.finish import complete_uploads
    from agent.stores.s3.client import standard
    from agent.stores.s3.control import Control
    from agent.stores.s3.place import parse_place
    from agent.stores.s3.source import S3Source

    client = standard(s3)
    place = _run_at(parse_place(source), client, s3)
    control = Control(client, place, s3)
    finished = complete_uploads(
        control,
        lambda: S3Source(place, s3),
        receipts=receipts,
        follow=follow,
        watch=lambda name: say(f"  completed    {printable(name)}"),
    )
    verdict = check_bucket_run(
        control,
        s3,
        signers=signers,
        receipts=receipts,
        compare=compare,
        key=key,
        findings=_left(finished),
        on_note=notes.append,
    )
    return verdict, finished


def _run_at(place: Place, client: Any, s3: S3) -> Place:
    """The one run at or below a place, whole or only begun. Raises `UsageError`, `SourceError`."""
    from agent.custody.records import is_run_id
    from agent.delivery.finish import runs_below
    from agent.stores.s3.control import Control
    from agent.stores.s3.place import parse_place
    from agent.stores.sources import find_runs

    if is_run_id(place.prefix.rpartition("/")[2]):
        return place
    there = {str(place.below(path)) for path in runs_below(Control(client, place, s3))}
    there |= {run.location for run in find_runs(str(place), s3)}
    if not there:
        raise SourceError(f"there is no run in {place}")
    if len(there) > 1:
        raise UsageError(f"there are {len(there)} runs in {place}: name one, such as {max(there)}")
    return parse_place(there.pop())


def _left(finished: Finished) -> list[str]:
    return [f"left unfinished: {printable(name)}: {why}"[:1000] for name, why in finished.left[:SHOWN]]


def _tell(
    verdict: RunVerdict, finished: Finished | None, key: Countersigner | None, notes: list[str], *, as_json: bool
) -> int:
    code = verdict.exit_code
    if not as_json:
        say(f"{verdict.location}")
        say(f"  verdict      {verdict.words}")
        for name, why in finished.left[:SHOWN] if finished else ():
            say(f"  unfinished   {printable(name)}: {why}")
        for finding in verdict.findings[:SHOWN]:
            say(f"  damaged      {printable(finding.name)}: {finding.problem}")
        for note in notes:
            say(f"  note         {note}")
        if verdict.countersigner:
            say(f"  countersigned by {verdict.countersigner}")
        elif key is not None:
            say("  not countersigned: only an intact run is")
    result: dict[str, object] = {
        "verdict": verdict.words,
        "run": verdict.run,
        "case": verdict.case,
        "host": verdict.host,
        "outcome": verdict.outcome,
        "signer": verdict.signer,
        "receipt_sha256": verdict.receipt_sha256,
        "countersigner": verdict.countersigner,
        "objects": verdict.objects,
        "bytes": verdict.bytes,
        "completed": len(finished.completed) if finished else 0,
        "exit": code,
    }
    if finished and finished.left:
        result["unfinished"] = [{"name": name, "why": why} for name, why in finished.left]
    if notes:
        result["notes"] = notes
    if verdict.findings:
        result["findings"] = [{"name": one.name, "problem": one.problem} for one in verdict.findings]
    emit(result)
    return code
