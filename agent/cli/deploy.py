"""`impound deploy`: the controller's side of a run. It sends the job, holds the authority, and keeps the ledger."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import structs
from msgspec.structs import replace

from acquirers.base import Availability, Flag, Gap
from agent.cli import options, places
from agent.cli.deploy_result import end_of, result_of, summarize
from agent.cli.limits_options import limits_options, make_limits
from agent.cli.output import emit, printable, say
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import ImpoundError, StoreError, UsageError
from agent.job import Job, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from agent.cli.display import Display
    from agent.custody.countersign import Countersigner
    from agent.delivery.ledger import Ledger
    from agent.delivery.remote import Reach, Reached
    from agent.delivery.session import Minter
    from agent.delivery.told import Told
    from agent.events import Event

F = TypeVar("F", bound="Callable[..., Any]")


KINDS = ("ssh",)
"""Kinds with a file of their own, which is imported when it is asked for."""
PLANNED = {"ssm", "kubectl", "ecs"}
"""Kinds of the design that this version does not have."""
ACQUIRE = ("acquire", "--job", "-", "--channel")
"""What the agent on the far side is started with."""
MAX_KEPT = 50
"""Lines of a program's standard error that are kept for its end."""
MAX_UPLOADS = 10_000
"""Unfinished uploads of one run that are counted."""


def job_options(function: F) -> F:
    """What every kind of deploy is told: the job, and how the bucket is reached and by whose right."""
    for option in reversed(
        (
            options.case_option,
            options.destination_option("s3://BUCKET/PREFIX to store into."),
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


class _Kinds(click.Group):
    """Shows in its own help what every kind is told."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *KINDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in KINDS:
            found: click.Command = import_module(f"agent.cli.deploy_{cmd_name}").command
            return found
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in PLANNED:
            raise UsageError(
                f"`deploy {args[0]}` is not part of this version: `deploy command … -- ARGV` goes through any program "
                "that connects, such as ssh -T root@web-1 /run/impound"
            )
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, str] = {}
        for name in self.list_commands(ctx):
            kind = self.get_command(ctx, name)
            assert kind is not None  # noqa: S101 - it is of the list
            options_of = [one for one in kind.params if isinstance(one, click.Option)]
            rows |= dict(row for one in options_of if (row := one.get_help_record(ctx)) is not None)
        with formatter.section("Options of every kind"):
            formatter.write_dl(list(rows.items()))


@click.group("deploy", cls=_Kinds)
def command() -> None:
    """Run the agent on another machine, and hold the authority here.

    The host gets the job and no more right than to start uploads and add parts below its own run: it can read, list,
    overwrite, delete and complete nothing. What it stores is noted here first, in a hash-chained ledger.

    \b
    Example:
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- ssh -T root@web-1 /run/impound
    """


@command.command("command")
@job_options
@click.argument("argv", nargs=-1, required=True, metavar="-- ARGV...")
def through_command(argv: tuple[str, ...], as_json: bool, **values: Any) -> int:
    """Deploy through any program that connects to an agent: ARGV, and `acquire --job - --channel` behind it.

    \b
    Example:
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- ssh -T root@web-1 /run/impound
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- docker exec -i web impound
      impound deploy command --resume s3://evidence/cases/INC-42/web-1/01890a5d-... -- ssh -T root@web-1 /run/impound

    \b
    Exit code: as for `acquire`; 3, too, when the channel broke (what was stored is valid and partial).
    """
    from agent.delivery.remote import Reached
    from agent.delivery.through import Program

    def reach(on_line: Callable[[bytes], object]) -> Reached:
        return Reached(Program([*argv, *ACQUIRE], on_line), {"transport": "command", "program": printable(argv[0])})

    return perform(reach, values, as_json=as_json)


def read_job(values: dict[str, Any]) -> Job:
    """The job from options. Raises `UsageError`."""
    role = values["role"]
    authority = values["authority"] or ("session" if role else "broker")
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
        raise UsageError("deploy stores into a bucket in this version: --to s3://BUCKET/PREFIX")
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


def _resumed(values: dict[str, Any], authority: str) -> Job:
    """The job of a run that was cut off, from its signed plan. Raises `UsageError`, `DamagedError`."""
    from agent.custody.resuming import next_attempt
    from agent.delivery.ledger import LEDGER, Ledger, state_directory

    source = values["resume"]
    if values["case"] or values["to"]:
        raise UsageError("--resume names the run: case and place are its own")
    if not source.startswith("s3://"):
        raise UsageError("--resume is for a run in a bucket: s3://BUCKET/PREFIX/CASE/HOST/RUN")
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


def _ledger(state: str, run: str, *, goes_on: bool) -> Ledger:
    from agent.delivery.ledger import LEDGER, Ledger, state_directory

    base = state or state_directory()
    if goes_on and os.path.exists(os.path.join(base, run, LEDGER)):
        return Ledger.reopen(base, run)
    return Ledger.create(base, run)


def perform(reach: Reach, values: dict[str, Any], *, as_json: bool) -> int:
    """One run on one host: reaches it, answers it, prints the result, and gives the exit code."""
    from agent.cli.display import make_display
    from agent.delivery.controller import Controller
    from agent.delivery.through import BROKEN_GRACE_S, GRACE_S
    from agent.ids import uuid7
    from agent.stores.s3.client import standard
    from agent.stores.s3.place import parse_place

    job = read_job(values)
    check_recipients(job)
    key = _countersigner(values["countersign_key"], job)
    parse_place(job.to)
    client, minter = standard(job.s3), _minter(job, values)
    if not job.s3.region:  # the host has no configuration of its own to find it in
        job = structs.replace(job, s3=structs.replace(job.s3, region=str(client.meta.region_name)))
    _try_bucket(client, job)
    run = job.earlier.run if job.earlier else str(uuid7())
    heard = _Heard()
    with (
        _ledger(values["state"], run, goes_on=job.earlier is not None) as ledger,
        _reached(reach, heard, ledger) as reached,
        make_display(as_json=as_json) as display,
    ):
        program, observe = reached.remote, _escaping(display, heard)
        controller = Controller(job, run, client, ledger, minter=minter, observe=observe, delivered=reached.how)

        def end(number: int, _frame: FrameType | None) -> None:
            controller.request_stop(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        told = controller.talk(program.writes, program.reads)
        ended = program.end(GRACE_S if told.result else BROKEN_GRACE_S)
    if not told.result:
        heard.show()
    if told.verdict == "failed" and not told.signer and ended == 2 and not told.found:
        told = replace(told, verdict="refused", why=told.why or "the agent on the host refused the job")
    if minter is not None and told.location:
        told = replace(told, unfinished=_begun_by_the_host(client, job, told.location))
    ending = end_of(told)
    why = ""
    if key is not None:
        why = (
            _countersign(told, job, client, key)
            if ending.code <= 1
            else "only a run that has finished is, without findings"
        )
        ending = end_of(told, why)
    countersigner = key.signer if key is not None and not why else ""
    if not as_json:
        summarize(told, ending, ended, countersigner=countersigner, why_not=why)
    result = result_of(told, ending, why)
    if key is not None:
        result |= {"countersigner": countersigner} if countersigner else {"not_countersigned": why}
    emit(result)
    return ending.code


@contextlib.contextmanager
def _reached(reach: Reach, heard: _Heard, ledger: Ledger) -> Iterator[Reached]:
    """A host that was reached, and is left in any case. That it could not be stands in the ledger."""
    from agent.delivery.notes import Ended, Found
    from agent.delivery.ssh.hostkeys import HostKeyError

    try:
        reached = reach(heard.line)
    except ImpoundError as error:
        if isinstance(error, HostKeyError):
            ledger.note(Found(str(error)[:1000]))
        ledger.note(Ended("refused" if error.exit_code == 2 else "failed", str(error)[:1000]))
        raise
    try:
        yield reached
    finally:
        reached.remote.end(0.0)


def _countersigner(text: str, job: Job) -> Countersigner | None:
    if not text:
        return None
    from agent.delivery.countersigning import read_countersigner

    return read_countersigner(text, region=job.s3.region)


def _countersign(told: Told, job: Job, client: Any, key: Countersigner) -> str:
    """Compares the bucket with what was noted and signed, and countersigns. Gives the reason where it could not."""
    from agent.custody.verify import Verdict
    from agent.delivery.countersigning import check_bucket_run
    from agent.stores.s3.control import Control
    from agent.stores.s3.place import parse_place

    if told.findings:
        return "there are findings: see them, and use `impound finish` if they are explained"
    try:
        verdict = check_bucket_run(
            Control(client, parse_place(told.location), job.s3),
            job.s3,
            receipts=[told.receipt_sha256],
            key=key,
            told=told.for_countersignature(),
            noted={one.name: (one.size, one.checksum) for one in told.objects.values() if one.sure},
            on_note=lambda note: say(f"impound: note: {note}"),
        )
    except ImpoundError as error:
        return str(error)
    return "" if verdict.verdict is Verdict.INTACT and verdict.countersigner == key.signer else f"it is {verdict.words}"


def _try_bucket(client: Any, job: Job) -> None:
    """Whether the bucket is there and answers this controller, before anything is started. Raises `UsageError`."""
    from agent.stores.s3.control import explained
    from agent.stores.s3.place import parse_place

    bucket = parse_place(job.to).bucket
    owner = {"ExpectedBucketOwner": job.s3.bucket_owner} if job.s3.bucket_owner else {}
    try:
        with explained(f"the bucket {bucket} cannot be used"):
            client.head_bucket(Bucket=bucket, **owner)
    except StoreError as error:
        raise UsageError(str(error)) from error


def _begun_by_the_host(client: Any, job: Job, location: str) -> list[tuple[str, str, int]]:
    """Uploads that a host with a session left unfinished: the ledger knows only those that it completed."""
    from itertools import islice

    from agent.stores.s3.control import Control
    from agent.stores.s3.place import parse_place

    try:
        uploads = Control(client, parse_place(location), job.s3).uploads()
        return [(one.name, one.upload_id, 0) for one in islice(uploads, MAX_UPLOADS)]
    except StoreError as error:
        say(f"impound: {error}")
        return []


def check_recipients(job: Job) -> None:
    """Raises `UsageError` here and now for what the host would refuse."""
    from agent.sealing import parse_recipient

    for text in job.recipients:
        parse_recipient(text)


def _minter(job: Job, values: dict[str, Any]) -> Minter | None:
    if job.s3.authority != "session":
        return None
    from agent.delivery.session import DURATION_S, Minter, sts_client
    from agent.stores.s3.place import parse_place

    minter = Minter(
        sts_client(job.s3),
        job.s3,
        values["role"],
        duration_s=values["session_duration"] or DURATION_S,
        source_identity=values["source_identity"],
    )
    probe = parse_place(job.to).below(f"{job.case}/{'h' * 40}/{'0' * 36}")
    try:
        minter.mint(probe, "impound-probe")  # what would be refused in the middle is refused now
    except StoreError as error:
        raise UsageError(str(error)) from error
    return minter


class _Heard:
    """What the program says on standard error. From when the agent behind it reports, only its complaints are shown.

    What an agent sums up at its end comes over the channel as well, and is said once, by whoever knows more. Where
    nothing came over the channel, these lines are all that there is.
    """

    def __init__(self) -> None:
        self.reports = False
        self._kept: deque[bytes] = deque(maxlen=MAX_KEPT)

    def line(self, line: bytes) -> None:
        if self.reports and not line.startswith(b"impound: "):
            self._kept.append(line)
        else:
            say(f"host: {printable(line)}")

    def show(self) -> None:
        while self._kept:
            say(f"host: {printable(self._kept.popleft())}")


def _escaping(display: Display, heard: _Heard) -> Callable[[Event], None]:
    """Shows what a host tells, with nothing in it that a terminal would obey."""

    def observe(event: Event) -> None:
        heard.reports = True
        changes = {name: _escaped(getattr(event, name)) for name in event.__struct_fields__}
        display.observe(replace(event, **changes))

    return observe


def _escaped(value: Any) -> Any:
    match value:
        case Gap() | Flag():
            return replace(value, detail=printable(value.detail))
        case Availability():
            return replace(value, reason=printable(value.reason), remedy=printable(value.remedy))
        case str():
            return printable(value)
        case _:
            return value
