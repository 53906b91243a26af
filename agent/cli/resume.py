"""`impound resume`: completes a run that was cut off, in the same place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from agent.cli import options, places
from agent.cli.acquire import perform
from agent.cli.output import say
from agent.cli.s3_options import make_s3, s3_options
from agent.custody.resuming import next_attempt
from agent.custody.signing import parse_signer
from agent.custody.stored import read_run
from agent.errors import DamagedError, UsageError

if TYPE_CHECKING:
    from agent.stores.base import Source


@click.command("resume")
@click.argument("source", metavar="SRC")
@click.option("--signer", "signers", multiple=True, metavar="KEY", help="Who must have signed the plan (ed25519:…).")
@click.option(
    "--recipient", "-r", "recipients", multiple=True, metavar="KEY", help="Refuse unless sealed to just these."
)
@s3_options
@click.option("--sse-kms-key", default="", metavar="ARN", help="S3: the KMS key that the bucket seals objects with.")
@click.option(
    "--authority",
    type=click.Choice(["session", "broker", "ambient"]),
    default=None,
    help="S3: by whose right objects appear. ambient is this machine's own role.",
)
@options.json_option
def command(
    source: str,
    signers: tuple[str, ...],
    recipients: tuple[str, ...],
    authority: str | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Take what is missing into the same run, without repeating what is whole.

    The job is read from the run's signed plan. --signer and --recipient refuse a plan that somebody else has put there.
    How a bucket is reached, and by whose right, is taken from this command line alone.

    \b
    Example:
      impound resume ./evidence/INC-42/i-0abc/01890a5d-... --signer ed25519:...
      impound resume s3://evidence/INC-42/i-0abc/01890a5d-... --signer ed25519:... --authority ambient

    \b
    Exit code: as for `acquire`; 4 when what is stored is damaged.
    """
    places.check_source(source)
    pinned = [parse_signer(text) for text in signers]
    in_bucket = source.startswith("s3://")
    if in_bucket and authority is None:
        raise UsageError("--authority is missing: `ambient` stores with the role of this machine")
    if authority and not in_bucket:
        raise UsageError("--authority is for a run in a bucket")
    s3 = make_s3(values, sse_kms_key=values.pop("sse_kms_key"), authority=authority or "")
    with contextlib.closing(options.one_run(source, s3)) as stored:
        try:
            job = next_attempt(
                stored, signers=pinned, recipients=recipients, s3=s3, warn=lambda line: say(f"impound: {line}")
            )
        except DamagedError:
            _check_signer(stored, pinned)
            raise
        if note := getattr(stored, "note", ""):
            say(f"impound: note: {note}")
    if not (signers or recipients):
        say(
            f"impound: sealing to {', '.join(job.recipients)}, as the plan stored there says: "
            "--signer or --recipient refuses a plan that somebody else has put there"
        )
    return perform(job, as_json=as_json)


def _check_signer(stored: Source, pinned: list[str]) -> None:
    """Refuses a plan that none of the given keys signed, with both named. Raises `DamagedError`, `SourceError`."""
    if not pinned:
        return
    run = read_run(stored)
    plans = run.progress.plans
    known = {run.signer, *([run.countersigned.countersigner] if run.countersigned is not None else [])}
    if not plans or run.progress.problem or known & set(pinned):
        return
    earlier = next((plan.signer for plan in plans[:-1] if plan.signer in pinned), "")
    why = (
        "that key signed an earlier attempt: give the one that the last `resume` printed"
        if earlier
        else "compare both with what `acquire` printed: --signer is mistyped, or somebody else put this plan there"
    )
    raise DamagedError(
        f"the plan of {stored.location} is signed by another key than the one given: it is signed by {run.signer}, "
        f"and --signer says {' and '.join(pinned)}; {why}"
    )
