"""`impound acquire`: the main job."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from acquirers.base import FlagKind, Reason
from agent.cli import options, places
from agent.cli.limits_options import limits_options, make_limits
from agent.cli.output import emit, say, size
from agent.cli.s3_options import make_s3, s3_options
from agent.destination import Given
from agent.errors import ImpoundError, UsageError
from agent.job import MAX_JOB, S3, Job, parse, validate
from agent.run import Stop, run

if TYPE_CHECKING:
    from types import FrameType

    from acquirers.base import Gap
    from agent.channel.host import HostEnd
    from agent.outcome import Outcome

FIRST_GAPS = 5


@click.command("acquire")
@options.case_option
@options.destination_option("A directory (made 0700 if its parent exists), or s3://BUCKET/PREFIX.")
@click.option("--recipient", "-r", "recipients", multiple=True, metavar="KEY", help="Public key to seal to (age1…).")
@click.option(
    "--recipients-file", "-R", "recipient_files", multiple=True, metavar="FILE", help="Public keys, one per line."
)
@click.option("--job", "job_file", metavar="-", help="The whole job as a document on standard input.")
@options.selection
@limits_options
@s3_options
@click.option("--sse-kms-key", default="", metavar="ARN", help="S3: the KMS key that the bucket seals objects with.")
@click.option(
    "--authority",
    type=click.Choice(["session", "broker", "ambient"]),
    help="S3: by whose right. ambient: this machine's own role; the others come with --channel.",
)
@click.option("--channel", is_flag=True, help="With --job -: standard input and output are a channel to a controller.")
@click.option("--lasting", default="", metavar="NAME", hidden=True, help="With --channel: it may break and come back.")
@click.option("--attach", default="", metavar="NAME", hidden=True, help="Become the channel of a run that lasts.")
@click.option("--stay", is_flag=True, help="When done, stay until SIGTERM: for what would start it again at once.")
@options.json_option
def command(as_json: bool, stay: bool, **values: Any) -> int:
    """Acquire evidence from this machine, sealed while it streams, into a store.

    \b
    Example:
      impound acquire --case INC-42 --to ./evidence --recipient age1...
      impound acquire --case INC-42 --to /mnt/usb/ev -R team.keys --container web --layers upper
      impound acquire --case INC-42 --to ./evidence -r age1... --root /mnt/disk
      impound acquire --case INC-42 --to s3://evidence/2026 -r age1... --authority ambient
      impound acquire --case INC-42 --to ./evidence -r age1... --skip memory
      impound acquire --case INC-42 --to ./evidence -r age1... --only memory.process --pid 1234

    \b
    Memory: all of RAM and of all processes is taken unless a selection says otherwise, as --skip memory does. It needs
    room at the destination. --pid and --container choose among processes; they do not make the image of RAM smaller.

    \b
    Exit code: 0 everything was acquired, 1 with gaps (the result names them),
    2 nothing was read and nothing created, 3 failed or stopped (what was stored is valid and partial).
    """
    if attached := values.pop("attach"):
        from agent.channel.attaching import attach

        _check_alone(values | {"job_file": None})
        return attach(attached)
    if values.pop("channel"):
        if values.pop("job_file") != "-":
            raise UsageError("--channel goes with --job -: the job is the first thing that comes over it")
        lasting = values.pop("lasting")
        _check_alone(values)
        return perform_over_lasting_channel(lasting) if lasting else perform_over_channel()
    if values.pop("lasting"):
        raise UsageError("--lasting goes with --channel")
    job = read_job(values)
    code = perform(job, as_json=as_json)
    if stay:
        _stay()
    return code


def read_job(values: dict[str, Any]) -> Job:
    """The job from a document on standard input, or from options. Raises `UsageError`."""
    document = values.pop("job_file")
    if document is not None:
        if document != "-":
            raise UsageError("--job - reads the job from standard input; there is no other place for it")
        _check_alone(values)
        return parse(sys.stdin.buffer.read(MAX_JOB + 1))
    for name, what in (("case", "--case ID"), ("to", "--to DEST")):
        if not values[name]:
            raise UsageError(f"{what} is missing")
    places.check_destination(values["to"])
    selection, where = options.make_selection(values)
    limits = make_limits(values)
    s3 = make_s3(values, sse_kms_key=values.pop("sse_kms_key"), authority=values.pop("authority") or "")
    if not values["to"].startswith("s3://") and s3 != S3(authority=s3.authority):
        raise UsageError("--endpoint-url, --region, --ca-bundle, --bucket-owner and --sse-kms-key are for a bucket")
    options.check_own_keys(values["recipients"])
    recipients = [*values["recipients"], *options.read_recipients_files(values["recipient_files"])]
    return validate(
        Job(
            case=values["case"],
            to=os.path.abspath(values["to"]) if not values["to"].startswith("s3://") else values["to"],
            recipients=recipients,
            selection=selection,
            where=where,
            limits=limits,
            s3=s3,
        )
    )


def _check_alone(values: dict[str, Any]) -> None:
    """Whether the job says everything. What has a default is not looked at. Raises `UsageError`."""
    given = [name for name, value in values.items() if value and name not in {"profile", "layers", "nice", "io"}]
    if given:
        raise UsageError("--job - reads the whole job from standard input and goes with no other option")


def perform(job: Job, *, as_json: bool) -> int:
    """Runs the job under a display, prints the result, and gives the exit code."""
    from agent.cli.display import make_display

    stop = _prepare_process()
    with make_display(as_json=as_json) as display:
        outcome = run(job, display.observe, stop)
    if not as_json:
        summarize(outcome)
    emit(result_of(outcome))
    return outcome.exit_code


def perform_over_lasting_channel(name: str) -> int:
    """The same over a channel that may break, in a child of its own, which waits for its controller to come back."""
    from agent.channel.attaching import PATIENCE_S, stay
    from agent.channel.host import COMPLETE_DEADLINE_S, DEADLINE_S, LAST_WORDS_S, HostEnd

    stream = stay(name)
    more = PATIENCE_S  # an answer may come after the pause
    end = HostEnd(stream.reads, stream.writes, deadline_s=DEADLINE_S + more, complete_s=COMPLETE_DEADLINE_S + more)
    try:
        return perform_over_channel(end)
    finally:
        os.close(stream.writes)
        stream.wait(PATIENCE_S if stream.connected else LAST_WORDS_S)


def perform_over_channel(ready: HostEnd | None = None) -> int:
    """Runs the job that a controller sends; events and result go to it, errors to standard error as well."""
    from agent.channel.host import HostEnd

    stop = _prepare_process()
    with ready or HostEnd.standard() as end:
        start = end.start()
        try:
            job = parse(bytes(start.job))

            # A session that came with the job needs nobody: what it stores is completed later.
            alone = start.credentials is not None and job.s3.authority == "session"

            def on_lost(why: str) -> None:
                if not alone:
                    stop.because(f"the controller is gone: {why}")

            end.listen(stop, on_lost)
            given = Given(end, start.credentials if alone else None, start.delivered)
            outcome = run(job, end.observe, stop, given=given, run_id=start.run)
        except ImpoundError as error:
            end.refuse(str(error), error.exit_code)
            raise
        except Exception as error:
            end.refuse(f"a fault of impound itself: {type(error).__name__}: {error}", 3)
            raise
        outcome.to_finish = alone
        end.result(result_of(outcome))
    summarize(outcome)
    return outcome.exit_code


def _prepare_process() -> Stop:
    """Signals end the run in order, and nothing of this process is dumped to a disk."""
    stop = Stop()

    def end(number: int, _frame: FrameType | None) -> None:
        stop(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    # No core dump would be evidence in the clear on the examined machine. 1 is what stops a dump into a pipe, too.
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    return stop


def _stay() -> None:
    """Until somebody ends the process. Whoever has already done so is not asked twice."""
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # What came during the run has left its mark: from the first signal on, the second would end the process.
    if any(signal.getsignal(number) is signal.SIG_DFL for number in ends):
        return
    # The first process of a container is sent nothing that it neither handles nor waits for.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigwait(ends)


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
            say(f"  to complete  {_to_complete(outcome)}")
        if outcome.authority != "local":
            say(f"  authority    {outcome.authority}")
        if outcome.to_finish:
            say(f"  to finish    impound finish {outcome.location} --receipt-sha256 {outcome.receipt_sha256}")
        say(f"  case, host   {outcome.case}, {outcome.host}; run {outcome.run}, attempt {outcome.attempt}")
    rate = outcome.plaintext / outcome.seconds if outcome.seconds else 0
    read = f"{size(outcome.plaintext)} in {outcome.seconds:.1f} s ({size(int(rate))}/s)"
    say(f"  read         {read}, stored {size(outcome.stored)}")
    say(f"  items        {counts.items} items, {counts.members} files, {counts.gaps} gaps, {counts.flags} flags")
    for item, gap in _worst(outcome)[:FIRST_GAPS]:
        say(f"  gap          {item}{_at(gap.where)}: {gap.reason}: {gap.detail}")
    here = sum(outcome.reasons.values())
    if here > FIRST_GAPS:
        say(f"  gap          … and {here - FIRST_GAPS} more, in the manifest")
    if counts.gaps > here:
        say(f"  gap          {counts.gaps - here} of earlier attempts, in their accounts")
    for item, flag in outcome.first_findings:
        say(f"  finding      {item}{_at(flag.where)}: {flag.detail}")
    findings = outcome.flag_kinds[FlagKind.FINDING]
    if findings > len(outcome.first_findings):
        say(f"  finding      … and {findings - len(outcome.first_findings)} more, in the manifest")
    if known := outcome.flag_kinds[FlagKind.KNOWN]:
        layers = f"{known} image layers" if known > 1 else "an image layer"
        say(f"  left out     {layers} that you named as known, proved by digest: see layers/proof.jsonl")
    for name, value in outcome.says.items():
        say(f"  {name:12} {value}")
    for line in _not_here(outcome):
        say(f"  not here     {line}")
    if outcome.left_out:
        say(f"  not in this version: {', '.join(outcome.left_out)}")
    if outcome.receipt_sha256:
        say(f"  signer       {outcome.signer}")
        say(f"  receipt      sha256 {outcome.receipt_sha256}")


def _at(where: bytes) -> str:
    return f" {where.decode('utf-8', 'backslashreplace')}" if where else ""


def _worst(outcome: Outcome) -> list[tuple[str, Gap]]:
    """What was not read at all comes before single files."""
    return sorted(outcome.first_gaps, key=lambda one: one[1].reason not in {Reason.LIMIT, Reason.STOPPED})


def _not_here(outcome: Outcome) -> list[str]:
    """What was looked for and is not on this machine, in words: acquirers that say the same stand together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in outcome.not_here.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _to_complete(outcome: Outcome) -> str:
    pin = f" --signer {outcome.signer}" if outcome.signer else ""
    if outcome.authority in {"broker", "session", "relay"}:
        place = "…" if outcome.authority == "relay" else outcome.location
        return f"on the controller: impound deploy … --resume {place}"
    if outcome.authority == "ambient":
        return (
            f"impound resume {outcome.location}{pin} --authority ambient, with credentials that may list and read; "
            "the same options for region, endpoint and owner"
        )
    return f"impound resume {outcome.location}{pin}"


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
    if outcome.authority != "local":
        result["authority"] = outcome.authority
    if outcome.to_finish:
        result["to_finish"] = f"impound finish {outcome.location}"
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
            for item, gap in _worst(outcome)[:FIRST_GAPS]
        ]
    if findings := outcome.flag_kinds[FlagKind.FINDING]:
        result["findings"] = findings
        result["first_findings"] = [
            f"{item}{_at(flag.where)[:100]}: {flag.detail[:200]}" for item, flag in outcome.first_findings[:3]
        ]
    if known := outcome.flag_kinds[FlagKind.KNOWN]:
        result["known_left_out"] = known
    result |= {name: value for name, value in outcome.says.items() if name not in result}
    if outcome.absent:
        result["absent"] = outcome.absent
        result["not_here"] = _not_here(outcome)
    if outcome.left_out:
        result["not_in_this_version"] = list(outcome.left_out)
    return result
