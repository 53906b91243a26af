"""`impound acquire`: the main job."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli import options
from agent.cli.output import emit, say, size
from agent.errors import UsageError
from agent.job import MAX_JOB, Job, Limits, parse, validate
from agent.run import Stop, run

if TYPE_CHECKING:
    from types import FrameType

    from agent.outcome import Outcome

FIRST_GAPS = 5


@click.command("acquire")
@click.option("--case", callback=options.parse_case, metavar="ID", help="Case id: 1 to 64 of A-Z a-z 0-9 . _ -")
@click.option("--to", metavar="DEST", help="Directory to store into; made 0700 if its parent exists.")
@click.option("--recipient", "-r", "recipients", multiple=True, metavar="KEY", help="Public key to seal to (age1…).")
@click.option(
    "--recipients-file", "-R", "recipient_files", multiple=True, metavar="FILE", help="Public keys, one per line."
)
@click.option("--job", "job_file", metavar="-", help="The whole job as a document on standard input.")
@options.selection
@click.option(
    "--deadline", callback=options.parse_duration, metavar="TIME", help="End after 90s, 30m, 2h; the rest is gaps."
)
@click.option("--nice", type=click.IntRange(0, 19), default=10, show_default=True, help="Scheduling priority.")
@options.json_option
def command(as_json: bool, **values: Any) -> int:
    """Acquire evidence from this machine, sealed while it streams, into a store.

    \b
    Example:
      impound acquire --case INC-42 --to ./evidence --recipient age1...
      impound acquire --case INC-42 --to /mnt/usb/ev -R team.keys --container web --layers upper
      impound acquire --case INC-42 --to ./evidence -r age1... --root /mnt/disk

    \b
    Exit code: 0 everything was acquired, 1 with gaps (the result names them),
    2 nothing was read and nothing created, 3 failed or stopped (what was stored is valid and partial).
    """
    job = read_job(values)
    return perform(job, as_json=as_json)


def read_job(values: dict[str, Any]) -> Job:
    """The job from a document on standard input, or from options. Raises `UsageError`."""
    document = values.pop("job_file")
    if document is not None:
        given = [name for name in ("case", "to", "recipients", "recipient_files", "only", "skip") if values.get(name)]
        if document != "-" or given:
            raise UsageError("--job - reads the whole job from standard input and goes with no other option")
        return parse(sys.stdin.buffer.read(MAX_JOB + 1))
    for name, what in (("case", "--case ID"), ("to", "--to DEST")):
        if not values[name]:
            raise UsageError(f"{what} is missing")
    selection, where = options.make_selection(values)
    recipients = list(values["recipients"])
    for path in values["recipient_files"]:
        lines = options.read_key_file(path, "recipients file").splitlines()
        recipients += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return validate(
        Job(
            case=values["case"],
            to=os.path.abspath(values["to"]) if not values["to"].startswith("s3://") else values["to"],
            recipients=recipients,
            selection=selection,
            where=where,
            limits=Limits(deadline_s=values["deadline"], nice=values["nice"]),
        )
    )


def perform(job: Job, *, as_json: bool) -> int:
    """Runs the job under a display, prints the result, and gives the exit code."""
    from agent.cli.display import make_display

    stop = Stop()

    def end(number: int, _frame: FrameType | None) -> None:
        stop(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    # No core dump would be evidence in the clear on the examined machine. 1 is what stops a dump into a pipe, too.
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    wanted = job.limits.nice - os.getpriority(os.PRIO_PROCESS, 0)
    if wanted > 0:
        os.nice(wanted)
    with make_display(as_json=as_json) as display:
        outcome = run(job, display.observe, stop)
    if not as_json:
        summarize(outcome)
    emit(result_of(outcome))
    return outcome.exit_code


def summarize(outcome: Outcome) -> None:
    """A few lines for a person."""
    counts = outcome.counts
    words = {
        "complete": "complete: everything that was asked for was acquired"
        + (", as far as this version can" if outcome.left_out else ""),
        "gaps": f"finished with {counts.gaps} gaps: what was asked for was not all read",
        "stopped": "stopped: what is stored is valid, and partial",
        "failed": "failed: what is stored is valid, and partial",
    }
    say()
    say(words[outcome.outcome])
    if outcome.error is not None:
        say(f"  because      {outcome.error}")
    if outcome.location:
        say(f"  evidence     {outcome.location}")
        if outcome.error is not None:
            say(f"  to complete  impound resume {outcome.location}")
        say(f"  case, host   {outcome.case}, {outcome.host}; run {outcome.run}, attempt {outcome.attempt}")
    rate = outcome.plaintext / outcome.seconds if outcome.seconds else 0
    read = f"{size(outcome.plaintext)} in {outcome.seconds:.1f} s ({size(int(rate))}/s)"
    say(f"  read         {read}, stored {size(outcome.stored)}")
    say(f"  items        {counts.items} items, {counts.members} files, {counts.gaps} gaps, {counts.flags} flags")
    for item, gap in outcome.first_gaps[:FIRST_GAPS]:
        where = f" {gap.where.decode('utf-8', 'backslashreplace')}" if gap.where else ""
        say(f"  gap          {item}{where}: {gap.reason}: {gap.detail}")
    here = sum(outcome.reasons.values())
    if here > FIRST_GAPS:
        say(f"  gap          … and {here - FIRST_GAPS} more, in the manifest")
    if counts.gaps > here:
        say(f"  gap          {counts.gaps - here} of earlier attempts, in their accounts")
    if outcome.left_out:
        say(f"  not in this version: {', '.join(outcome.left_out)}")
    if outcome.receipt_sha256:
        say(f"  signer       {outcome.signer}")
        say(f"  receipt      sha256 {outcome.receipt_sha256}")


def result_of(outcome: Outcome) -> dict[str, object]:
    """The result line."""
    counts = outcome.counts
    result: dict[str, object] = {
        "verdict": outcome.outcome,
        "run": outcome.run,
        "case": outcome.case,
        "host": outcome.host,
        "attempt": outcome.attempt,
        "store": outcome.location,
        "signer": outcome.signer,
        "receipt_sha256": outcome.receipt_sha256,
        "items": counts.items,
        "members": counts.members,
        "gaps": counts.gaps,
        "flags": counts.flags,
        "read_bytes": outcome.plaintext,
        "stored_bytes": outcome.stored,
        "seconds": round(outcome.seconds, 3),
        "exit": outcome.exit_code,
    }
    earlier = counts.gaps - sum(outcome.reasons.values())
    if earlier:
        result["gaps_of_earlier_attempts"] = earlier
    if outcome.error is not None:
        result["error"] = str(outcome.error)
    if outcome.reasons:
        result["gap_reasons"] = dict(outcome.reasons)
        result["first_gaps"] = [
            {
                "item": item,
                "where": gap.where.decode("utf-8", "backslashreplace"),
                "reason": str(gap.reason),
                "detail": gap.detail,
            }
            for item, gap in outcome.first_gaps[:FIRST_GAPS]
        ]
    if outcome.absent:
        result["absent"] = outcome.absent
    if outcome.left_out:
        result["not_in_this_version"] = list(outcome.left_out)
    return result
