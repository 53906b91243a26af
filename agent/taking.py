"""Taking one item: what an acquirer reads becomes objects in the store and lines of the account.

What the acquirer cannot read is a gap and the item ends there; what the store refuses ends the run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Self

import msgspec

from acquirers.base import Gap, Reason
from agent import events
from agent.custody.attempt import now
from agent.custody.manifest import plain
from agent.custody.records import is_object_name
from agent.errors import StoppedError, StoreError
from agent.pieces import PieceWriter
from agent.report import ItemReport, guarded
from agent.stores.sealed import SUFFIX, SealedObject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acquirers.base import Acquirer, Item
    from agent.custody.attempt import Attempt
    from agent.events import Observer
    from agent.outcome import Outcome
    from agent.pieces import Names, Piece
    from agent.sealing import Pipeline, Recipient
    from agent.stores.base import Store

PROGRESS_EVERY_S = 0.25
WAITING_S = 5.0
"""After how long it is told that the store takes nothing, and how often."""
GRACE_S = 3.0
"""How long the object that is being stored may still take when the run was told to stop: then it is given up."""


class Stop:
    """Tells a run to end. Set from a signal handler or another thread; looked at between chunks."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self, name: str) -> None:
        """`name` of the signal."""
        self.because(f"stopped by {name}")

    def because(self, reason: str) -> None:
        self.reason = self.reason or reason


class Watch(msgspec.Struct):
    """When a run is to end before it is done."""

    stop: Stop
    deadline_s: int | None
    started: float = msgspec.field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raises `StoppedError` when somebody wants the run to end."""
        if self.stop.reason:
            raise StoppedError(self.stop.reason)

    def late(self) -> bool:
        """Whether the deadline has come."""
        return self.deadline_s is not None and time.monotonic() - self.started > self.deadline_s


class Taker:
    """Takes the items of one attempt, one after the other."""

    def __init__(
        self,
        store: Store,
        attempt: Attempt,
        recipients: Sequence[Recipient],
        pipeline: Pipeline,
        names: Names,
        watch: Watch,
        outcome: Outcome,
        observe: Observer,
    ) -> None:
        self._store, self._attempt, self._recipients, self._pipeline = store, attempt, recipients, pipeline
        self._names, self._watch, self._outcome, self._observe = names, watch, outcome, observe
        self._writer: PieceWriter | None = None
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look_after, name="looking-after", daemon=True)
        self.account_failed = False
        """Something failed between the first line on a whole item and its last record, or nobody knows whether a record
        was stored: manifest and receipt would disagree with the chain of records."""

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.join(PROGRESS_EVERY_S)  # not for ever: who is told may not listen

    def _look_after(self) -> None:
        """Tells when the store takes nothing, and lets a run that was told to stop not wait for that."""
        stopped = moved = told = time.monotonic()
        before: tuple[int, ...] = ()
        ended = False
        while not ended:
            ended = self._ended.wait(PROGRESS_EVERY_S)  # one look more, so that nobody goes on believing that it waits
            moment, writer = time.monotonic(), self._writer
            if not self._watch.stop.reason:
                stopped = moment
            elif writer is not None and moment - stopped > GRACE_S:
                writer.give_up()
            now_at = (writer.plaintext, writer.stored, id(writer)) if writer is not None and writer.waits else ()
            if now_at != before or not now_at:
                if told > moved:
                    self._observe(events.StoreWaiting(0.0))
                before, moved = now_at, moment
                told = moment
            elif moment - told >= WAITING_S:
                told = moment
                self._observe(events.StoreWaiting(moment - moved))

    def report(self, item: str, acquirer: Acquirer) -> ItemReport:
        return ItemReport(self._attempt, self._outcome, self._observe, item, acquirer.name)

    def take(self, acquirer: Acquirer, item: Item) -> None:
        """Acquires one item, unless an earlier attempt left it whole. Raises `StoreError`, `StoppedError`."""
        self._watch.check()
        report = self.report(item.path, acquirer)
        if not is_object_name(item.path + SUFFIX):
            report.gap(Gap(Reason.INTERNAL, f"{acquirer.name} gave an item a name that is no object name"))
            return
        if self._names.is_done(item.path):
            name = item.path + SUFFIX
            self._attempt.log.add("item-whole-already", {"object": name})
            self._observe(events.ItemSkipped(item.path, name))
            return
        if self._watch.late():
            report.gap(Gap(Reason.LIMIT, "the deadline came before it was begun"))
            return
        report.item = self._names.take(item.path)
        self._outcome.says.update(item.says)
        self._observe(events.ItemStarted(acquirer.name, report.item, item.estimate))
        self._attempt.log.add("item-started", {"item": report.item})
        self._attempt.manifest.add(
            {
                "type": "item",
                "item": report.item,
                "acquirer": acquirer.name,
                "media_type": item.media_type,
                "started": now(),
                "about": plain(dict(item.about) | dict(item.says)),
            }
        )
        began = time.monotonic()
        pieces = self._seal(item, report)
        with self._accounting():
            self._record(report, pieces)
        counts = report.counts
        plaintext = sum(one.sealed.plaintext_size for one in pieces)
        stored = sum(one.sealed.ciphertext_size for one in pieces)
        self._outcome.plaintext += plaintext
        self._outcome.stored += stored
        self._observe(
            events.ItemDone(
                report.item,
                pieces[0].object,
                plaintext,
                stored,
                counts.members,
                counts.gaps,
                counts.flags,
                time.monotonic() - began,
            )
        )

    def _seal(self, item: Item, report: ItemReport) -> list[Piece]:
        def begin(number: int) -> SealedObject:
            name = report.item if number == 1 else self._names.continuation(report.item, number)
            estimate = item.estimate if number == 1 else None
            return SealedObject(self._store, name, self._recipients, estimate=estimate, pipeline=self._pipeline)

        def goes_on(piece: Piece) -> None:
            about = {"item": report.item, "object": piece.object, "sha256": piece.sealed.ciphertext_sha256.hex()}
            self._attempt.log.add("item-continues", about)

        out = self._writer = PieceWriter(begin, report.cut, goes_on)
        try:
            self._pump(item, report, out)
            return out.commit()
        except BaseException as raised:
            error: BaseException = raised
            if isinstance(raised, StoreError) and self._watch.stop.reason:
                error = StoppedError(self._watch.stop.reason)
            out.abort()
            left_over = [one.object for one in out.pieces]
            if left_over:
                self._attempt.log.add("item-unfinished", {"item": report.item, "objects": left_over})
            if isinstance(error, StoppedError):
                stored = "what is stored of it is not evidence" if left_over else "nothing of it is stored"
                report.gap(Gap(Reason.STOPPED, f"the run was stopped while it was read: {stored}"))
            raise error from raised
        finally:
            self._writer = None

    def _record(self, report: ItemReport, pieces: list[Piece]) -> None:
        """Manifest lines and progress records of a whole item."""
        records = []
        for number, piece in enumerate(pieces, 1):
            sealed, counts = piece.sealed, piece.told.counts
            record: dict[str, object] = {
                "type": "stored",
                "item": report.item,
                "object": piece.object,
                "size": sealed.ciphertext_size,
                "sha256": sealed.ciphertext_sha256.hex(),
                "plaintext_size": sealed.plaintext_size,
                "plaintext_sha256": sealed.plaintext_sha256.hex(),
                "members": counts.members,
                "gaps": counts.gaps,
                "flags": counts.flags,
            }
            if len(pieces) > 1:
                record |= {"piece": number, "pieces": len(pieces), "begins": piece.offset}
            self._attempt.manifest.add(record | {"ended": now()})
            records.append(record)
        self._attempt.counts.items += 1
        # The first object last: an item is whole when there is a record of that, and then there is one of all others.
        for piece, record in reversed(list(zip(pieces, records, strict=True))):
            told = piece.told
            self._attempt.whole(
                piece.object, piece.sealed, piece.parts, told.counts, record | {"first_gaps": told.first_gaps}
            )

    @contextlib.contextmanager
    def _accounting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.account_failed = True
            raise

    def _pump(self, item: Item, report: ItemReport, out: PieceWriter) -> None:
        """Reads an item to its end, or as far as it goes; what was read stays evidence either way."""
        told = time.monotonic()
        stop = self._watch.stop
        chunks = item.read(report)
        try:
            for chunk in guarded(chunks, report, item.path):
                out.write(chunk)
                if stop.reason:
                    self._watch.check()
                moment = time.monotonic()
                if moment - told >= PROGRESS_EVERY_S:
                    told = moment
                    counts = report.counts
                    self._observe(
                        events.ItemProgress(report.item, out.plaintext, out.stored, counts.members, counts.gaps)
                    )
                    with self._accounting():
                        self._attempt.beat()
                    if self._watch.late():
                        report.gap(Gap(Reason.LIMIT, "the deadline came while it was read: what follows is missing"))
                        return
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
