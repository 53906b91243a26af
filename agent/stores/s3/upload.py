"""One object on its way into the bucket.

Small objects are kept until they are whole and stored at once. Of others each part is handed to the senders as soon as
it is full, and its blocks come back when the bucket has it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agent.errors import StoreError
from agent.stores.base import Part
from agent.stores.s3.parts import MIB
from agent.stores.s3.pool import BLOCK
from agent.stores.s3.senders import Outgoing

if TYPE_CHECKING:
    from acquirers.base import Buffer
    from agent.stores.s3.authority import Authority
    from agent.stores.s3.parts import Schedule
    from agent.stores.s3.pool import Share
    from agent.stores.s3.senders import Senders
    from agent.stores.s3.wire import Ticket
    from agent.stores.throttle import Throttle

MAX_PUT = 8 * MIB
"""Objects up to this size are stored whole, where they are no larger than one part."""


class S3Upload:
    """One object. `write` may be called by any thread, by one at a time; `abort` by any at any time."""

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        share: Share,
        senders: Senders,
        authority: Authority,
        throttle: Throttle | None = None,
    ) -> None:
        self.name, self.upload_id = name, ""
        self.gone = threading.Event()
        self.capacity = schedule.capacity
        """Bytes that fit into this object. Beyond them an item continues in the next one."""
        self.size = 0
        """Bytes so far."""
        self._schedule, self._share, self._senders, self._authority = schedule, share, senders, authority
        self._throttle = throttle
        self._blocks: list[bytearray] = []
        self._filled = 0  # bytes of the part that is being filled
        self._part_size = schedule.size(1)
        self._parts: list[Outgoing] = []
        self._under_way = 0
        self._error: BaseException | None = None
        self._tickets: set[Ticket] = set()
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._over = False

    # -- Upload -------------------------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            self._check()
            if self._filled == self._part_size:
                self._hand_over()
            block = self._share.take() if self._filled % BLOCK == 0 else None
            if block is None and self._filled % BLOCK == 0:
                self._check()
                raise self._given_up()
            # An abort from another thread gives the blocks to others: nothing may be written into them after that.
            with self._writing:
                if block is not None:
                    self._blocks.append(block)
                if self._over:
                    self._share.give(self._blocks)
                    raise self._given_up()
                view = view[self._fill(view) :]

    def commit(self) -> tuple[Part, ...]:
        try:
            self._check()
            if not self._parts and self._filled <= min(MAX_PUT, self._part_size):
                self._put()
                return ()
            self._hand_over()
            with self._changed:
                self._changed.wait_for(lambda: self._error is not None or not self._under_way)
            self._check()
            parts = tuple(Part(part.size, part.sha256) for part in self._parts)
            etags = [part.etag for part in self._parts]
            self._senders.persist(
                lambda: self._authority.complete(self.name, self.upload_id, parts, etags), self.gone, self.name
            )
            return parts
        finally:
            self.abort()

    def abort(self) -> None:
        """What is in the bucket of it is left there: to abort it is the controller's right, or the lifecycle's."""
        with self._changed:
            if self._over:
                return
            self._over = True
            self.gone.set()
            tickets = list(self._tickets)
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel()
        self._senders.drop(self)
        # Whoever is in the middle of `write` may be waiting for a block, which it will not get.
        self._share.close()
        with self._writing:
            self._share.give(self._blocks)

    # -- Origin, for the senders --------------------------------------------------------------------------------------

    def attach(self, ticket: Ticket) -> None:
        with self._changed:
            self._tickets.add(ticket)

    def detach(self, ticket: Ticket) -> None:
        with self._changed:
            self._tickets.discard(ticket)

    def over(self, part: Outgoing, error: BaseException | None = None) -> None:
        self._share.give(part.blocks)
        with self._changed:
            self._under_way -= 1
            if error is None and not part.etag and not self._over:
                error = self._given_up()
            first = error is not None and self._error is None
            if first:
                self._error = error
            self._changed.notify_all()
        if first:
            self.gone.set()
            with self._changed:
                tickets = list(self._tickets)
            for ticket in tickets:
                ticket.cancel()
            self._senders.drop(self)
            self._share.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._over:
            raise self._given_up()

    def _given_up(self) -> StoreError:
        return StoreError(f"{self.name} was given up")

    def _fill(self, view: memoryview) -> int:
        """Takes into the last block what fits; gives the number of bytes."""
        at = self._filled % BLOCK
        count = min(len(view), BLOCK - at)
        self._blocks[-1][at : at + count] = view[:count]
        self._filled += count
        self.size += count
        return count

    def _put(self) -> None:
        with self._writing:
            self._check()
            views = Outgoing(self, 1, self._filled, self._blocks).views()
            data = b"".join(views)
            del views
            self._share.give(self._blocks)
        if self._throttle:
            self._throttle.take(len(data), self.gone.wait)
        self._senders.persist(lambda: self._authority.put(self.name, data), self.gone, self.name)

    def _hand_over(self) -> None:
        """Gives the part that is being filled to the senders; begins the upload with the first."""
        if not self._parts:
            self.upload_id = self._senders.persist(lambda: self._authority.begin(self.name), self.gone, self.name)
        number = len(self._parts) + 1
        if not self._schedule.size(number):
            raise StoreError(f"{self.name} is larger than the parts that S3 takes of one object")
        with self._writing:
            self._check()
            part = Outgoing(self, number, self._filled, self._blocks)
            self._blocks, self._filled, self._part_size = [], 0, self._schedule.size(number + 1)
            self._parts.append(part)
        with self._changed:
            self._under_way += 1
        self._senders.send(part)
