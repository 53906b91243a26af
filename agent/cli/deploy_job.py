"""What every kind of `impound deploy` is told: the job, and by whose right it is stored."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli import options, places
from agent.cli.limits_options import limits_options, make_limits
from agent.cli.output import say
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import UsageError
from agent.job import Job, validate
from agent.stores.directory import check_destination as check_directory

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def job_options(function: F) -> F:
    """What every kind of deploy is told: the job, and how the bucket is reached and by whose right."""
    for option in reversed(
        (
            options.case_option,
            options.destination_option("s3://BUCKET/PREFIX to store into, or with --relay a directory here."),
            click.option("--recipient", "-r", "recipients", multiple=True, metavar="KEY", help="Public key (age1…)."),
            click.option(
                "--recipients-file", "-R", "recipient_files", multiple=True, metavar="FILE", help="Public keys."
            ),
            options.selection,
            limits_options,
            s3_options,
            click.option("--sse-kms-key", default="", metavar="ARN", help="S3: the KMS key that encrypts the bucket."),
            click.option(
                "--authority",
                type=click.Choice(["broker", "session"]),
                default=None,
                help="What the host gets: one signed URL per part, or a session of --role. Default: broker.",
            ),
            click.option(
                "--relay",
                is_flag=True,
                help="Bring the sealed objects back over the channel, and store them from here: for isolated hosts.",
            ),
            click.option("--role", default="", metavar="ARN", help="The role that sessions are minted of."),
            click.option(
                "--session-duration",
                callback=options.parse_duration,
                metavar="TIME",
                help="How long a session lasts before it is minted anew: 15m to 12h. Default: 1h.",
            ),
            click.option("--source-identity", default="", metavar="NAME", help="Who asks, for CloudTrail."),
            click.option(
                "--countersign-key",
                default="",
                metavar="FILE|ARN",
                help="Countersign the finished run with this Ed25519 key file, or this KMS key.",
            ),
            click.option(
                "--resume",
                default="",
                metavar="SRC",
                help="Complete this run (s3://…/CASE/HOST/RUN): its plan is the job, and the ledger here its proof.",
            ),
            click.option("--signer", "signers", multiple=True, metavar="KEY", help="--resume: who signed the plan."),
            click.option("--state", default="", metavar="DIR", help="Where the controller keeps its ledgers."),
            options.json_option,
        )
    ):
        function = option(function)
    return function


def read_job(values: dict[str, Any]) -> Job:
    """The job from options. Raises `UsageError`."""
    role = values["role"]
    if values["relay"] and (
        values["authority"]
        or role
        or (values["sse_kms_key"] and not (values["to"] or values["resume"] or "").startswith("s3://"))
    ):
        raise UsageError("--relay gives the host no right to store: it goes with neither --authority nor --role")
    authority = values["authority"] or ("session" if role else "broker")
    if values["relay"]:
        authority = _own_right(values["resume"] or values["to"] or "")
    if (authority == "session") != bool(role):
        raise UsageError("--authority session needs --role ARN, and broker goes with none")
    if values["resume"]:
        return _resumed(values, authority)
    for name, what in (("case", "--case ID"), ("to", "--to DEST")):
        if not values[name]:
            raise UsageError(f"{what} is missing")
    to = values["to"]
    places.check_destination(to)
    if not to.startswith("s3://"):
        if not values["relay"]:
            raise UsageError(
                "what is deployed stores into a bucket, --to s3://BUCKET/PREFIX; into a directory here, add --relay"
            )
        check_directory(to)
        to = os.path.abspath(to)
    chosen, where = options.make_selection(values)
    options.check_own_keys(values["recipients"])
    recipients = [*values["recipients"], *options.read_recipients_files(values["recipient_files"])]
    return validate(
        Job(
            case=values["case"],
            to=to,
            recipients=recipients,
            selection=chosen,
            where=where,
            limits=make_limits(values),
            s3=make_s3(values, sse_kms_key=values["sse_kms_key"], authority=authority),
        )
    )


def _own_right(to: str) -> str:
    """By whose right a relayed run is stored: the responder's own, in a bucket."""
    return "ambient" if to.startswith("s3://") else ""


def _resumed(values: dict[str, Any], authority: str) -> Job:
    """The job of a run that was cut off, from its signed plan. Raises `UsageError`, `DamagedError`."""
    from agent.custody.resuming import next_attempt
    from agent.delivery.ledger import LEDGER, Ledger, state_directory

    source = values["resume"]
    if values["case"] or values["to"]:
        raise UsageError("--resume names the run: case and place are its own")
    if not source.startswith("s3://") and not values["relay"]:
        raise UsageError("--resume is for a run in a bucket, s3://BUCKET/PREFIX/CASE/HOST/RUN; with --relay, for any")
    s3 = make_s3(values, sse_kms_key=values["sse_kms_key"], authority=authority)
    pinned, _ = options.parse_pins(values["signers"], ())
    ledger = os.path.join(values["state"] or state_directory(), source.rstrip("/").rpartition("/")[2], LEDGER)
    if os.path.exists(ledger):
        pinned.append(Ledger.load(ledger)[0].signer)
    elif not pinned and not values["recipients"]:
        say("impound: there is no ledger of this run here: --signer or --recipient refuses a plan of somebody else")
    with contextlib.closing(options.one_run(source, s3)) as stored:
        return next_attempt(
            stored,
            signers=[signer for signer in pinned if signer],
            recipients=values["recipients"],
            s3=s3,
            warn=lambda line: say(f"impound: {line}"),
        )


def check_recipients(job: Job) -> None:
    """Raises `UsageError` here and now for what the host would refuse."""
    from agent.sealing import parse_recipient

    for text in job.recipients:
        parse_recipient(text)
