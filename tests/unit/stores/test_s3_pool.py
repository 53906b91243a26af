"""The blocks of parts: bounded, reused, and never a circle of uploads that wait for each other."""

from __future__ import annotations

import random
import threading
import time

import pytest

from agent.errors import StoreError
from agent.stores.s3.pool import BLOCK, Pool, Share


def take(share: Share) -> bytearray:
    block = share.take()
    assert block is not None
    return block


def test_blocks_are_made_as_needed_and_used_again() -> None:
    pool = Pool(8)
    share = pool.share(5)
    assert pool.made == 0
    blocks = [take(share) for _ in range(3)]
    assert {len(block) for block in blocks} == {BLOCK}
    share.give(blocks)
    assert (blocks, pool.out) == ([], 0)
    share.give([take(share) for _ in range(2)])
    assert pool.made == 3


def test_one_cannot_take_what_another_has_reserved() -> None:
    pool = Pool(10)
    greedy, modest = pool.share(5), pool.share(3)
    held = [take(greedy) for _ in range(7)]
    waiting = threading.Thread(target=lambda: held.append(take(greedy)), daemon=True)
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()
    for _ in range(3):
        take(modest)  # at once
    greedy.give([held.pop()])
    waiting.join(5)
    assert not waiting.is_alive()


def test_more_uploads_than_the_memory_has_parts_for_are_refused() -> None:
    pool = Pool(10)
    first = pool.share(5)
    pool.share(5)
    with pytest.raises(StoreError, match="2 objects are on their way"):
        pool.share(1)
    first.close()
    pool.share(5)


def test_who_waits_for_a_block_is_woken_when_the_upload_ends() -> None:
    pool = Pool(5)
    share = pool.share(5)
    for _ in range(5):
        take(share)
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(share.take()), daemon=True)
    waiting.start()
    time.sleep(0.05)
    share.close()
    waiting.join(5)
    assert got == [None]


def test_blocks_that_come_back_late_are_still_counted() -> None:
    """An upload was aborted, and a sender still holds a part of it: nobody gets those blocks before they are back."""
    pool = Pool(5)
    gone = pool.share(5)
    blocks = [take(gone) for _ in range(5)]
    gone.close()
    following = pool.share(5)
    got: list[bytearray] = []
    waiting = threading.Thread(target=lambda: got.append(take(following)), daemon=True)
    waiting.start()
    time.sleep(0.1)
    assert not got
    gone.give(blocks)
    waiting.join(5)
    assert len(got) == 1
    assert pool.made == 5


@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_uploads_ends_in_any_order(seed: int) -> None:
    """Uploads of three sizes fill parts out of a pool that is barely enough, with one sender for all of them."""
    pool = Pool(25)
    queue: list[tuple[Share, list[bytearray]]] = []
    changed = threading.Condition()
    over = threading.Event()
    chance = random.Random(seed)

    def sender() -> None:
        while not over.is_set():
            with changed:
                changed.wait_for(lambda: bool(queue) or over.is_set(), 0.05)
                taken = queue.pop(chance.randrange(len(queue))) if queue else None
            if taken:
                taken[0].give(taken[1])

    def upload(share: Share, part: int, count: int, *, linger: bool) -> None:
        for _ in range(count):
            blocks = [take(share) for _ in range(part)]
            with changed:
                queue.append((share, blocks))
                changed.notify()
        kept = [take(share) for _ in range(part - 1)] if linger else []
        time.sleep(0.2 if linger else 0)
        share.give(kept)
        share.close()

    plan = [(5, 3, True), (5, 3, True), (8, 40, False), (7, 40, False)]
    shares = [pool.share(part) for part, _, _ in plan]
    threads = [
        threading.Thread(target=upload, args=(share, part, count), kwargs={"linger": linger}, daemon=True)
        for share, (part, count, linger) in zip(shares, plan, strict=True)
    ]
    worker = threading.Thread(target=sender, daemon=True)
    for thread in (*threads, worker):
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    over.set()
    worker.join(5)
    for share, blocks in queue:
        share.give(blocks)
    assert pool.made <= 25
    assert (pool.out, pool.unreserved) == (0, 25)
