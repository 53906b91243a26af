"""Which part is sent once more, and that its blocks are not given away while somebody reads them."""

from __future__ import annotations

import threading
from typing import cast

from agent.stores.s3.hedge import Race
from agent.stores.s3.senders import Origin, Outgoing
from agent.stores.s3.wire import Ticket

MIB = 1 << 20


def part(number: int, size: int = 8 * MIB) -> Outgoing:
    return Outgoing(cast("Origin", None), number, size, [])


def race(*, usual: float = 1.0) -> tuple[Race, list[float]]:
    now = [0.0]
    made = Race(clock=lambda: now[0])
    for number in range(3):
        one = part(number)
        made.start(one, Ticket())
        made.stop(one, usual)
    return made, now


def test_a_part_that_takes_far_longer_than_others_is_given_once() -> None:
    made, now = race()
    slow = part(9)
    made.start(slow, Ticket())
    now[0] = 4.9
    assert made.laggard() is None
    now[0] = 5.1
    assert made.laggard() is slow
    assert made.laggard() is None


def test_what_is_usual_depends_on_the_size() -> None:
    made, now = race(usual=2.0)
    large = part(9, 64 * MIB)  # 16 s would be usual
    made.start(large, Ticket())
    now[0] = 47.0
    assert made.laggard() is None
    now[0] = 49.0
    assert made.laggard() is large


def test_nothing_is_usual_after_two_parts() -> None:
    made = Race(clock=lambda: 1000.0)
    for number in range(2):
        one = part(number)
        made.start(one, Ticket())
        made.stop(one, 1.0)
    made.start(part(9), Ticket())
    made._clock = lambda: 2000.0
    assert made.laggard() is None


def test_the_faster_one_wins_and_a_part_is_not_over_while_its_blocks_are_read() -> None:
    made, _ = race()
    slow = part(9)
    made.start(slow, Ticket())
    second = Ticket()
    assert made.enter(slow, second) == ""
    ended = threading.Event()

    def end() -> None:
        made.end(slow)
        ended.set()

    made.stop(slow)
    threading.Thread(target=end, daemon=True).start()
    assert not ended.wait(0.2)
    assert second.cancelled.is_set()
    made.leave(slow, '"etag"')
    assert ended.wait(5)
    assert slow.etag == '"etag"'


def test_a_part_that_is_over_is_not_entered() -> None:
    made, _ = race()
    slow = part(9)
    made.start(slow, Ticket())
    made.stop(slow, 7.0)
    assert made.enter(slow, Ticket()) is None
