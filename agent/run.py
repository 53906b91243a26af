"""One run: acquirers in the order of volatility, each item sealed while it streams into the store, all of it accounted.

Evidence flows one way. What an acquirer cannot read is a gap and the run goes on; what the store refuses ends it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from acquirers.base import Gap, Reason, State
from agent import events, runtime
from agent.cost import footprint
from agent.custody.attempt import TOOL, Attempt
from agent.custody.manifest import plain
from agent.custody.resuming import machine_of
from agent.custody.signing import AttemptKey
from agent.destination import Given, check_authority, is_bucket, is_relay, open_store
from agent.errors import ImpoundError, StoppedError, StoreError, UsageError
from agent.ids import uuid7
from agent.limits import DIRECTORY, S3, lower_priority, make_budget
from agent.outcome import Outcome
from agent.pieces import Names
from agent.preparation import check_place, prepare, read_recipients
from agent.report import guarded
from agent.taking import Stop, Taker, Watch

if TYPE_CHECKING:
    from agent.events import Observer
    from agent.job import Job
    from agent.preparation import Prepared
    from agent.sealing import Pipeline, Recipient
    from agent.stores.base import Store

__all__ = ["Stop", "run"]


def run(
    job: Job, observe: Observer, stop: Stop | None = None, *, given: Given | None = None, run_id: str = ""
) -> Outcome:
    """Does what `job` asks. Raises `UsageError` before anything is read or created; then the outcome tells all.

    `given` is what the controller gave that the job came from, `run_id` the id that it gave the run.
    """
    # First: threads inherit it.
    notes = lower_priority(job.limits)
    check_authority(job, channel=given is not None)
    recipients = read_recipients(job)
    prepared = prepare(job.selection, job.where)
    check_place(job, prepared)
    return _Run(job, recipients, prepared, observe, stop or Stop(), notes, given, run_id).go()


class _Run:
    def __init__(
        self,
        job: Job,
        recipients: list[Recipient],
        prepared: Prepared,
        observe: Observer,
        stop: Stop,
        notes: list[str],
        given: Given | None,
        run_id: str,
    ) -> None:
        self._job, self._recipients, self._prepared = job, recipients, prepared
        self._observe, self._notes, self._given = observe, notes, given
        self._watch = Watch(stop, job.limits.deadline_s)
        self._budget = make_budget(job.limits, S3 if is_bucket(job.to) else DIRECTORY)
        earlier = job.earlier
        self._names = Names(
            [one.object for one in earlier.whole] if earlier else [],
            [one.object for one in (*earlier.listed, *earlier.strays)] if earlier else [],
        )
        facts = prepared.host.facts
        self._machine = machine_of(prepared.host)
        if earlier and earlier.machine != self._machine:
            raise UsageError(f"the run {earlier.run} is of another machine: resume it there, or begin a new run here")
        self._out = Outcome(
            run=earlier.run if earlier else run_id or str(uuid7()),
            case=job.case,
            host=earlier.host if earlier else facts.host_key(),
            left_out=prepared.left_out,
        )

    def go(self) -> Outcome:
        out, earlier = self._out, self._job.earlier
        key = AttemptKey()
        out.signer, out.attempt = key.signer, earlier.attempt + 1 if earlier else 1
        if self._given is not None:
            self._given.end.hello(run=out.run, case=out.case, host=out.host, attempt=out.attempt, signer=out.signer)
        path, stop = f"{out.case}/{out.host}/{out.run}", self._watch.stop
        store = open_store(self._job, path, self._budget, self._given, lambda: bool(stop.reason))
        pipeline = self._budget.pipeline(self._job.limits)
        try:
            self._attempt(store, pipeline, key)
        except ImpoundError as error:
            out.error, out.outcome = out.error or error, "failed"
        finally:
            pipeline.close()
            store.close()
            out.seconds = time.monotonic() - self._watch.started
        self._observe(events.RunEnded(out.outcome))
        return out

    def _attempt(self, store: Store, pipeline: Pipeline, key: AttemptKey) -> None:
        out = self._out
        attempt = Attempt(
            store,
            self._recipients,
            run=out.run,
            host=out.host,
            machine=self._machine,
            job=self._job,
            asked=[acquirer.name for acquirer, _ in self._prepared.probes],
            key=key,
            pipeline=pipeline,
        )
        if self._given is not None:
            log = attempt.log
            self._given.end.heads(lambda: (log.head, log.lines))
        out.counts, out.location, out.authority = attempt.counts, store.location, store.authority
        taker = Taker(store, attempt, self._recipients, pipeline, self._names, self._watch, out, self._observe)
        self._observe(events.RunStarted(out.run, out.case, out.host, out.attempt, out.signer, out.location))
        try:
            with taker:
                self._acquire(store, attempt, taker)
            out.outcome = "gaps" if attempt.counts.gaps else "complete"
        except ImpoundError as error:
            if isinstance(error, StoreError) and self._watch.stop.reason:
                error = StoppedError(self._watch.stop.reason)
            out.error = error
            out.outcome = "stopped" if isinstance(error, StoppedError) else "failed"
        except Exception as error:  # noqa: BLE001 - whatever it is, what is stored is closed and says what it is
            out.error = _own_fault(error)
        if taker.account_failed:
            attempt.abort()  # as after a kill: the progress records say what is whole, as far as they go
        else:
            self._close(store, attempt)

    def _close(self, store: Store, attempt: Attempt) -> None:
        out = self._out
        finished = out.error is None
        cost = footprint(self._watch.started, out.stored)
        try:
            _log_clock(store, attempt, "end")
            attempt.manifest.add({"type": "footprint", **cost})
            attempt.log.add("footprint", cost)
            if out.error is not None:
                attempt.log.add("stopped", {"error": str(out.error)})
            out.receipt_sha256 = attempt.close(out.outcome, finished=finished)
        except StoreError:
            attempt.abort()
            if finished:
                raise
            # The store failed already, and says so; that it cannot take the account either is no other fact.
        except Exception as error:
            attempt.abort()
            if finished:
                raise _own_fault(error) from error

    # -- acquiring ----------------------------------------------------------------------------------------------------

    def _acquire(self, store: Store, attempt: Attempt, taker: Taker) -> None:
        self._introduce(store, attempt)
        scope = replace(self._prepared.scope, exclude=_identity(self._job.to))
        for acquirer, availability in self._prepared.probes:
            self._watch.check()
            self._observe(events.AcquirerStarted(acquirer.name, availability))
            attempt.log.add("acquirer", {"name": acquirer.name, "state": availability.state})
            if availability.state is State.ABSENT:
                self._out.absent.append(acquirer.name)
                self._out.not_here[acquirer.name] = availability.reason
                continue
            report = taker.report("", acquirer)
            if availability.state is State.UNAVAILABLE:
                remedy = f"; {availability.remedy}" if availability.remedy else ""
                report.gap(Gap(Reason.DENIED, f"{acquirer.name}: {availability.reason}{remedy}"))
                continue
            if self._watch.late():
                report.gap(Gap(Reason.LIMIT, f"{acquirer.name}: the deadline came before it was begun"))
                continue
            items = acquirer.items(self._prepared.host, scope)
            for item in guarded(items, report, acquirer.name):
                taker.take(acquirer, item)

    def _introduce(self, store: Store, attempt: Attempt) -> None:
        """The first lines of manifest and log: who runs what, where, on what."""
        facts = self._prepared.host.facts.as_dict()
        attempt.manifest.add(
            {
                "type": "run",
                "run": self._out.run,
                "attempt": attempt.number,
                "case": self._out.case,
                "host": self._out.host,
                "started": attempt.started,
                "tool": TOOL,
                "python": sys.version.split()[0],
                "runtime": runtime.current().as_dict(),
                "signer": attempt.key.signer,
                "store": self._describe(store),
                "job": msgspec.to_builtins(msgspec.structs.replace(self._job, earlier=None)),
                "machine": plain(facts),
                "not_in_this_version": list(self._prepared.left_out),
            }
        )
        attempt.log.add(
            "attempt-started",
            {
                "run": self._out.run,
                "attempt": attempt.number,
                "tool": TOOL,
                "pid": os.getpid(),
                "arguments": [argument.encode("utf-8", "backslashreplace").decode() for argument in sys.argv],
                "signer": attempt.key.signer,
                "machine": plain({"boot_id": facts["boot_id"], "clock": facts["clock"]}),
            },
        )
        if self._given is not None and self._given.delivered:
            attempt.manifest.add({"type": "delivered", "how": self._given.delivered})
            attempt.log.add("delivered", {"how": self._given.delivered})
        limits: dict[str, object] = {"workers": self._budget.workers, "memory": self._budget.ceiling}
        attempt.log.add("limits", limits | {"not_applied": self._notes})
        _log_clock(store, attempt, "start")
        for acquirer, availability in self._prepared.probes:
            attempt.manifest.add(
                {
                    "type": "acquirer",
                    "name": acquirer.name,
                    "state": availability.state,
                    "reason": availability.reason,
                    "remedy": availability.remedy,
                }
            )
        if self._job.earlier:
            for one in self._job.earlier.whole:
                attempt.manifest.add({"type": "earlier", **msgspec.to_builtins(one)})
            for stored in self._job.earlier.listed:
                attempt.manifest.add({"type": "listed", **msgspec.to_builtins(stored)})
            for stored in self._job.earlier.strays:
                attempt.manifest.add({"type": "stray", **msgspec.to_builtins(stored)})

    def _describe(self, store: Store) -> dict[str, object]:
        """Where evidence goes, for the manifest."""
        s3 = self._job.s3
        kind = store.authority if is_relay(self._job.to) else S3 if is_bucket(self._job.to) else DIRECTORY
        about: dict[str, object] = {"kind": kind, "location": store.location}
        about["authority"] = store.authority
        if is_bucket(self._job.to):
            about |= {"endpoint": s3.endpoint_url, "bucket_owner": s3.bucket_owner}
        return about


def _own_fault(error: Exception) -> ImpoundError:
    return ImpoundError(f"a fault of impound itself: {type(error).__name__}: {error}")


def _log_clock(store: Store, attempt: Attempt, when: str) -> None:
    """The machine's clock beside that of the store, which is not in the hands of whoever has the machine.

    `ahead_s` is by how much the machine's is ahead; it is right within half of the round trip and, since the store
    tells whole seconds, up to a second too large.
    """
    moment = store.moment()
    if moment is None:
        return
    from email.utils import parsedate_to_datetime

    line: dict[str, object] = {
        "when": when,
        "store_date": moment.date,
        "wall_ns": moment.wall_ns,
        "round_trip_ns": moment.round_trip_ns,
    }
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        told = parsedate_to_datetime(moment.date).timestamp()
        line["ahead_s"] = round(moment.wall_ns / 1e9 - told, 3)
    attempt.log.add("clock", line)


def _identity(path: str) -> frozenset[tuple[int, int]]:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return frozenset({(found.st_dev, found.st_ino)})
    return frozenset()
