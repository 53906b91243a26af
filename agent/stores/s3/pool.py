"""The blocks that parts are kept in until the bucket has acknowledged them.

All uploads of a store share `total` blocks of 1 MiB. A block is made when it is first needed and used again and again,
so memory never exceeds `total` MiB, and is less where less is under way.

Why uploads never wait for each other in a circle. Each has a share with a reserve of as many blocks as its largest
part, and the reserves together are never more than the pool. A share may hold more than its reserve only out of what
no reserve claims. An upload asks for a block only to fill a part, and a part that is being filled lacks at least one:

- It holds fewer than its reserve: then a block is missing only where others hold more than theirs.
- It holds its reserve or more: then at least one of its blocks is in a part that is full.

A share that holds more than its reserve, too, has a full part. So whoever waits, waits for a full part, its own or
another's. Full parts are with the senders, who need no block, and who end each of them: acknowledged, given up after
the store's patience, or dropped with its upload. Each way gives the blocks back.
"""

from __future__ import annotations

import threading

from agent.errors import StoreError

BLOCK = 1 << 20


class Pool:
    """Blocks that the uploads of a store share."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.made = 0
        """Blocks that exist."""
        self._free: list[bytearray] = []
        self._shares: set[Share] = set()
        self._changed = threading.Condition()

    @property
    def unreserved(self) -> int:
        """Blocks that a new upload could reserve."""
        with self._changed:
            return self.total - sum(share.reserve for share in self._shares)

    @property
    def out(self) -> int:
        """Blocks that uploads hold."""
        with self._changed:
            return sum(share.held for share in self._shares)

    def share(self, reserve: int) -> Share:
        """Raises `StoreError` where so many blocks are not to be had: too many uploads are open at once."""
        with self._changed:
            claimed = sum(share.reserve for share in self._shares)
            if claimed + reserve > self.total:
                raise StoreError(f"{len(self._shares)} objects are on their way, and there is no memory for another")
            share = Share(self, reserve)
            self._shares.add(share)
            return share

    def _may_take(self, share: Share) -> bool:
        if sum(one.held for one in self._shares) >= self.total:
            return False
        return share.held < share.reserve or sum(max(one.held, one.reserve) for one in self._shares) < self.total

    def take(self, share: Share) -> bytearray | None:
        """A block, as soon as there is one. None where the share was closed."""
        with self._changed:
            while not share.closed and not self._may_take(share):
                self._changed.wait()
            if share.closed:
                return None
            share.held += 1
            if self._free:
                return self._free.pop()
            self.made += 1
        return bytearray(BLOCK)

    def give(self, share: Share, blocks: list[bytearray]) -> None:
        """Takes blocks back and leaves the list empty. Blocks of a share may come back after it was closed."""
        with self._changed:
            share.held -= len(blocks)
            self._free += blocks
            blocks.clear()
            self._forget(share)
            self._changed.notify_all()

    def end(self, share: Share) -> None:
        """Ends the reserve, and the wait of whoever waits for a block of it."""
        with self._changed:
            share.closed, share.reserve = True, 0
            self._forget(share)
            self._changed.notify_all()

    def _forget(self, share: Share) -> None:
        if share.closed and not share.held:
            self._shares.discard(share)

    def clear(self) -> None:
        """Lets go of the blocks that nobody holds."""
        with self._changed:
            self.made -= len(self._free)
            self._free.clear()


class Share:
    """The part of the pool that one upload has."""

    def __init__(self, pool: Pool, reserve: int) -> None:
        self.reserve = reserve
        self.held = 0
        self.closed = False
        self._pool = pool

    def take(self) -> bytearray | None:
        return self._pool.take(self)

    def give(self, blocks: list[bytearray]) -> None:
        self._pool.give(self, blocks)

    def close(self) -> None:
        self._pool.end(self)
