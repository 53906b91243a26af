"""One run: acquirers in the order of volatility, each item sealed while it streams into the store, all of it accounted.

Evidence flows one way. What an acquirer cannot read is a gap and the run goes on; what the store refuses ends it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Reason, State
from agent import events
from agent.custody.attempt import TOOL, Attempt, now
from agent.custody.manifest import plain
from agent.custody.records import is_object_name
from agent.custody.resuming import machine_of
from agent.errors import ImpoundError, StoppedError, StoreError, StoreFullError, UsageError
from agent.ids import uuid7
from agent.outcome import Outcome
from agent.preparation import check_place, prepare, read_recipients
from agent.report import ItemReport, guarded
from agent.stores.directory import DirectoryStore
from agent.stores.sealed import SUFFIX, SealedObject

if TYPE_CHECKING:
    from acquirers.base import Acquirer, Item
    from agent.events import Observer
    from agent.job import Job
    from agent.preparation import Prepared
    from agent.sealing import Recipient
    from agent.stores.base import Store

PROGRESS_EVERY_S = 0.25


class Stop:
    """Tells a run to end. Set from a signal handler; looked at between chunks."""

    def __init__(self) -> None:
        self.signal = ""

    def __call__(self, name: str) -> None:
        self.signal = self.signal or name


def run(job: Job, observe: Observer, stop: Stop | None = None) -> Outcome:
    """Does what `job` asks. Raises `UsageError` before anything is read or created; then the outcome tells all."""
    recipients = read_recipients(job)
    prepared = prepare(job.selection, job.where)
    check_place(job, prepared)
    return _Run(job, recipients, prepared, observe, stop or Stop()).go()


class _Run:
    def __init__(
        self, job: Job, recipients: list[Recipient], prepared: Prepared, observe: Observer, stop: Stop
    ) -> None:
        self._job, self._recipients, self._prepared = job, recipients, prepared
        self._observe, self._stop = observe, stop
        self._started = time.monotonic()
        earlier = job.earlier
        self._done = {one.object for one in earlier.whole} if earlier else set()
        self._taken = {one.object for one in (*earlier.listed, *earlier.strays)} if earlier else set()
        facts = prepared.host.facts
        self._machine = machine_of(prepared.host)
        if earlier and earlier.machine != self._machine:
            raise UsageError(f"the run {earlier.run} is of another machine: resume it there, or begin a new run here")
        self._out = Outcome(
            run=earlier.run if earlier else str(uuid7()),
            case=job.case,
            host=earlier.host if earlier else facts.host_key(),
            left_out=prepared.left_out,
        )

    def go(self) -> Outcome:
        out = self._out
        store = self._open_store()
        try:
            attempt = Attempt(
                store,
                self._recipients,
                run=out.run,
                host=out.host,
                machine=self._machine,
                job=self._job,
                asked=[acquirer.name for acquirer, _ in self._prepared.probes],
            )
            out.counts, out.signer, out.attempt = attempt.counts, attempt.key.signer, attempt.number
            out.location = store.location
            self._observe(events.RunStarted(out.run, out.case, out.host, out.attempt, out.signer, out.location))
            try:
                self._acquire(store, attempt)
                out.outcome = "gaps" if attempt.counts.gaps else "complete"
            except ImpoundError as error:
                out.error = error
                out.outcome = "stopped" if isinstance(error, StoppedError) else "failed"
            except Exception as error:  # noqa: BLE001 - whatever it is, what is stored is closed and says what it is
                out.error = ImpoundError(f"a fault of impound itself: {type(error).__name__}: {error}")
            self._close(attempt)
        except StoreError as error:
            out.error, out.outcome = out.error or error, "failed"
        finally:
            store.close()
            out.seconds = time.monotonic() - self._started
        self._observe(events.RunEnded(out.outcome))
        return out

    def _open_store(self) -> Store:
        out = self._out
        path = f"{out.case}/{out.host}/{out.run}"
        try:
            return DirectoryStore(self._job.to, path, resume=self._job.earlier is not None)
        except StoreFullError:
            raise
        except StoreError as error:
            raise UsageError(f"the destination {self._job.to!r} cannot be used: {error}") from error

    def _close(self, attempt: Attempt) -> None:
        out = self._out
        finished = out.error is None
        usage = resource.getrusage(resource.RUSAGE_SELF)
        footprint = {
            "seconds": round(time.monotonic() - self._started, 3),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "max_resident_kib": usage.ru_maxrss,
            "stored_bytes": out.stored,
        }
        try:
            attempt.manifest.add({"type": "footprint", **footprint})
            attempt.log.add("footprint", footprint)
            if out.error is not None:
                attempt.log.add("stopped", {"error": str(out.error)})
            out.receipt_sha256 = attempt.close(out.outcome, finished=finished)
        except StoreError:
            attempt.abort()
            if finished:
                raise
            # The store failed already, and says so; that it cannot take the account either is no other fact.

    # -- acquiring ----------------------------------------------------------------------------------------------------

    def _acquire(self, store: Store, attempt: Attempt) -> None:
        self._introduce(attempt)
        scope = replace(self._prepared.scope, exclude=_identity(self._job.to))
        for acquirer, availability in self._prepared.probes:
            self._check()
            self._observe(events.AcquirerStarted(acquirer.name, availability))
            attempt.log.add("acquirer", {"name": acquirer.name, "state": availability.state})
            if availability.state is State.ABSENT:
                self._out.absent.append(acquirer.name)
                continue
            report = self._report(attempt, "", acquirer)
            if availability.state is State.UNAVAILABLE:
                remedy = f"; {availability.remedy}" if availability.remedy else ""
                report.gap(Gap(Reason.DENIED, f"{acquirer.name}: {availability.reason}{remedy}"))
                continue
            if self._late():
                report.gap(Gap(Reason.LIMIT, f"{acquirer.name}: the deadline came before it was begun"))
                continue
            items = acquirer.items(self._prepared.host, scope)
            for item in guarded(items, report, acquirer.name):
                self._take(store, attempt, acquirer, item)

    def _introduce(self, attempt: Attempt) -> None:
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
                "signer": attempt.key.signer,
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

    def _take(self, store: Store, attempt: Attempt, acquirer: Acquirer, item: Item) -> None:
        """Acquires one item into one object."""
        self._check()
        report = self._report(attempt, item.path, acquirer)
        name = item.path + SUFFIX
        if not is_object_name(name):
            report.gap(Gap(Reason.INTERNAL, f"{acquirer.name} gave an item a name that is no object name"))
            return
        if name in self._done:
            attempt.log.add("item-whole-already", {"object": name})
            self._observe(events.ItemSkipped(item.path, name))
            return
        name = self._free(item.path)
        report.item = name.removesuffix(SUFFIX)
        if self._late():
            report.gap(Gap(Reason.LIMIT, "the deadline came before it was begun"))
            return
        self._taken.add(name)
        self._observe(events.ItemStarted(acquirer.name, report.item, item.estimate))
        attempt.log.add("item-started", {"item": report.item})
        attempt.manifest.add(
            {
                "type": "item",
                "item": report.item,
                "acquirer": acquirer.name,
                "media_type": item.media_type,
                "started": now(),
                "about": plain(dict(item.about)),
            }
        )
        out = SealedObject(store, report.item, self._recipients)
        began = time.monotonic()
        try:
            self._pump(item, report, out)
            sealed = out.commit()
        except BaseException as error:
            out.abort()
            if isinstance(error, StoppedError):
                report.gap(Gap(Reason.STOPPED, "the run was stopped while it was read: nothing of it is stored"))
            raise
        counts = report.counts
        record: dict[str, object] = {
            "type": "stored",
            "item": report.item,
            "object": name,
            "size": sealed.ciphertext_size,
            "sha256": sealed.ciphertext_sha256.hex(),
            "plaintext_size": sealed.plaintext_size,
            "plaintext_sha256": sealed.plaintext_sha256.hex(),
            "members": counts.members,
            "gaps": counts.gaps,
            "flags": counts.flags,
        }
        attempt.manifest.add(record | {"ended": now()})
        attempt.counts.items += 1
        attempt.whole(name, sealed, counts, record | {"first_gaps": report.first_gaps})
        self._out.plaintext += sealed.plaintext_size
        self._out.stored += sealed.ciphertext_size
        self._observe(
            events.ItemDone(
                report.item,
                name,
                sealed.plaintext_size,
                sealed.ciphertext_size,
                counts.members,
                counts.gaps,
                counts.flags,
                time.monotonic() - began,
            )
        )

    def _pump(self, item: Item, report: ItemReport, out: SealedObject) -> None:
        """Reads an item to its end, or as far as it goes; what was read stays evidence either way."""
        told = time.monotonic()
        chunks = item.read(report)
        try:
            for chunk in guarded(chunks, report, item.path):
                out.write(chunk)
                self._check()
                moment = time.monotonic()
                if moment - told >= PROGRESS_EVERY_S:
                    told = moment
                    counts = report.counts
                    self._observe(
                        events.ItemProgress(report.item, out.plaintext, out.stored, counts.members, counts.gaps)
                    )
                    if self._late():
                        report.gap(Gap(Reason.LIMIT, "the deadline came while it was read: what follows is missing"))
                        return
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _report(self, attempt: Attempt, item: str, acquirer: Acquirer) -> ItemReport:
        return ItemReport(attempt, self._out, self._observe, item, acquirer.name)

    def _free(self, path: str) -> str:
        """The object name of an item: its own, or the next that nothing has."""
        name, number = path + SUFFIX, 2
        stem, dot, suffix = path.rpartition(".")
        while name in self._taken or name in self._done:
            name = (f"{stem}-{number}.{suffix}" if dot else f"{path}-{number}") + SUFFIX
            number += 1
        return name

    def _check(self) -> None:
        if self._stop.signal:
            raise StoppedError(f"stopped by {self._stop.signal}")

    def _late(self) -> bool:
        limit = self._job.limits.deadline_s
        return limit is not None and time.monotonic() - self._started > limit


def _identity(path: str) -> frozenset[tuple[int, int]]:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return frozenset({(found.st_dev, found.st_ino)})
    return frozenset()
