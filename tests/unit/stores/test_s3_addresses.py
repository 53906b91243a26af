"""Which address a part goes to."""

from __future__ import annotations

import threading
import time

import pytest

from agent.stores.s3.addresses import Addresses


class World:
    """A clock and a name service."""

    def __init__(self, *hosts: str) -> None:
        self.now, self.hosts, self.asked = 1000.0, list(hosts), 0

    def clock(self) -> float:
        return self.now

    def resolve(self, host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
        self.asked += 1
        if not self.hosts:
            raise OSError("no such name")
        return [(2, (one, port)) for one in self.hosts]

    def addresses(self) -> Addresses:
        return Addresses("s3.example", 443, resolver=self.resolve, clock=self.clock)


def settle(what: object, wanted: object) -> None:
    end = time.monotonic() + 5
    while callable(what) and what() != wanted and time.monotonic() < end:
        time.sleep(0.01)
    assert callable(what)
    assert what() == wanted


def test_parts_are_spread_over_all_addresses() -> None:
    addresses = World("a", "b", "c").addresses()
    taken = [addresses.choose() for _ in range(9)]
    assert sorted(one.host for one in taken) == [*"aaabbbccc"]


def test_the_slow_one_gets_fewer_and_is_tried_again_later() -> None:
    world = World("a", "b", "c")
    addresses = world.addresses()
    for one in [addresses.choose() for _ in range(3)]:
        addresses.done(one, size=1_000_000, seconds=10 if one.host == "b" else 1)
    taken = [addresses.choose() for _ in range(10)]
    assert [one.host for one in taken].count("b") == 0
    for one in taken:
        addresses.done(one)
    world.now += 61
    assert "b" in [addresses.choose().host for _ in range(3)]


def test_what_fails_is_left_alone_for_a_while_unless_there_is_nothing_else() -> None:
    world = World("a", "b")
    addresses = world.addresses()
    bad = addresses.choose()
    addresses.done(bad, failed=True)
    others = [addresses.choose() for _ in range(4)]
    assert {one.host for one in others} == {"a", "b"} - {bad.host}
    for one in others:
        addresses.done(one, failed=True)
    addresses.done(addresses.choose())
    world.now += 100
    assert {addresses.choose().host for _ in range(4)} == {"a", "b"}


def test_one_that_is_to_be_avoided_is_taken_when_it_is_the_only_one() -> None:
    addresses = World("a", "b").addresses()
    assert {addresses.choose(avoid={"a"}).host for _ in range(5)} == {"b"}
    assert World("a").addresses().choose(avoid={"a"}).host == "a"


def test_the_name_is_asked_for_again_every_half_minute_and_after_failures() -> None:
    world = World("a")
    addresses = world.addresses()
    one = addresses.choose()
    assert world.asked == 1
    world.hosts = ["b"]
    world.now += 31
    addresses.choose()
    settle(lambda: world.asked, 2)
    settle(lambda: sorted(addresses.hosts), ["a", "b"])
    world.now += 3
    addresses.done(one, failed=True)
    addresses.choose()
    settle(lambda: world.asked, 3)
    world.now += 200  # nobody has named `a` for minutes
    addresses.choose()
    settle(lambda: addresses.hosts, ["b"])


def test_a_name_that_cannot_be_looked_up_keeps_what_was_known() -> None:
    world = World("a")
    addresses = world.addresses()
    addresses.choose()
    world.hosts, world.now = [], world.now + 31
    addresses.choose()
    settle(lambda: world.asked, 2)
    assert addresses.choose().host == "a"


def test_a_name_that_never_was_is_said() -> None:
    with pytest.raises(OSError, match=r"the name s3\.example cannot be looked up: no such name"):
        World().addresses().choose()


def test_any_number_of_threads() -> None:
    addresses = World("a", "b", "c").addresses()

    def work() -> None:
        for _ in range(200):
            one = addresses.choose()
            addresses.done(one, size=1000, seconds=0.001, failed=False)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all(addresses.choose().under_way == 1 for _ in range(3))
