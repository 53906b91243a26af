"""One run on one host that was reached: the controller answers it, compares, and prints what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from typing import TYPE_CHECKING, Any

from msgspec import structs
from msgspec.structs import replace

from acquirers.base import Availability, Flag, Gap
from agent.cli.deploy_job import check_recipients, read_job
from agent.cli.deploy_result import end_of, result_of, summarize
from agent.cli.options import one_run
from agent.cli.output import emit, printable, say
from agent.destination import is_bucket, open_store
from agent.errors import ImpoundError, StoreError, UsageError
from agent.job import Limits
from agent.limits import DIRECTORY, S3, make_budget

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
    from agent.job import Job
    from agent.stores.base import Store

MAX_KEPT = 50
"""Lines of a program's standard error that are kept for its end."""
MAX_UPLOADS = 10_000
"""Unfinished uploads of one run that are counted."""


def _ledger(state: str, run: str, *, goes_on: bool) -> Ledger:
    from agent.delivery.ledger import LEDGER, Ledger, state_directory

    base = state or state_directory()
    if goes_on and os.path.exists(os.path.join(base, run, LEDGER)):
        return Ledger.reopen(base, run)
    return Ledger.create(base, run)


def perform(reach: Reach, values: dict[str, Any], *, as_json: bool) -> int:
    """One run on one host: reaches it, answers it, prints the result, and gives the exit code."""
    result, code = _perform(reach, values, as_json=as_json)
    emit(result)
    return code


def perform_each(targets: list[tuple[str, Reach]], values: dict[str, Any], *, as_json: bool) -> int:
    """A run on each of several hosts, one after the other; the worst exit code. A first signal ends them all."""
    if len(targets) == 1:
        return perform(targets[0][1], values, as_json=as_json)
    told: list[dict[str, object]] = []
    worst = 0
    for number, (name, reach) in enumerate(targets, 1):
        if not as_json:
            say(f"-- {name}, {number} of {len(targets)}")
        try:
            result, code = _perform(reach, dict(values), as_json=as_json)
        except ImpoundError as error:
            result, code = (
                {"verdict": "refused" if error.exit_code == 2 else "failed", "error": str(error)},
                error.exit_code,
            )
            say(f"impound: {error}")
        chosen = {key: result[key] for key in ("verdict", "run", "store", "receipt_sha256", "error") if result.get(key)}
        told.append({"target": name, **chosen})
        worst = max(worst, code)
        if result.get("verdict") == "stopped":
            break
    result = {"targets": len(targets), "done": len(told), "exit": worst, "results": told}
    emit(result)
    return worst


def _perform(reach: Reach, values: dict[str, Any], *, as_json: bool) -> tuple[dict[str, object], int]:
    from agent.cli.display import make_display
    from agent.delivery.controller import Controller
    from agent.delivery.through import BROKEN_GRACE_S, GRACE_S
    from agent.ids import uuid7

    job = read_job(values)
    check_recipients(job)
    key = _countersigner(values["countersign_key"], job)
    client, minter = None, _minter(job, values)
    if is_bucket(job.to):
        client = _client(job)
        if not job.s3.region:  # the host has no configuration of its own to find it in
            job = structs.replace(job, s3=structs.replace(job.s3, region=str(client.meta.region_name)))
        _try_bucket(client, job)
    relay = _Relay(job) if values["relay"] else None
    run = job.earlier.run if job.earlier else str(uuid7())
    heard = _Heard()
    with (
        _ledger(values["state"], run, goes_on=job.earlier is not None) as ledger,
        _reached(reach, heard, ledger) as reached,
        make_display(as_json=as_json) as display,
    ):
        program, observe = reached.remote, _escaping(display, heard)
        controller = Controller(
            job, run, client, ledger, minter=minter, observe=observe, delivered=reached.how, relay=relay
        )

        def end(number: int, _frame: FrameType | None) -> None:
            if relay is not None:
                relay.hurry = True
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
    return result, ending.code


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


class _Relay:
    """Opens the store that a host's objects are put into, by the responder's own right."""

    def __init__(self, job: Job) -> None:
        self._job = structs.replace(job, limits=Limits())  # those are the host's
        self.hurry = False
        """Whether a bucket that does not answer is not waited for any longer."""

    def __call__(self, path: str) -> Store:
        budget = make_budget(Limits(), S3 if is_bucket(self._job.to) else DIRECTORY)
        return open_store(self._job, path, budget, None, lambda: self.hurry)


def _client(job: Job) -> Any:
    from agent.stores.s3.client import standard
    from agent.stores.s3.place import parse_place

    parse_place(job.to)
    return standard(job.s3)


def _countersign(told: Told, job: Job, client: Any, key: Countersigner) -> str:
    """Compares the store with what was noted and signed, and countersigns. Gives the reason where it could not."""
    from agent.custody.verify import Verdict
    from agent.delivery.countersigning import check_bucket_run, check_directory_run
    from agent.stores.s3.control import Control
    from agent.stores.s3.place import parse_place

    if told.findings:
        return "there are findings: see them, and use `impound finish` if they are explained"
    receipts, said = [told.receipt_sha256], told.for_countersignature()
    try:
        if not is_bucket(job.to):
            with contextlib.closing(one_run(told.location)) as stored:
                verdict = check_directory_run(stored, receipts=receipts, key=key, told=said)
        else:
            verdict = check_bucket_run(
                Control(client, parse_place(told.location), job.s3),
                job.s3,
                receipts=receipts,
                key=key,
                told=said,
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
