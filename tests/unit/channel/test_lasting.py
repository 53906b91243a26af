"""A stream that outlives its connections: whatever is cut, each byte arrives once and in order."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.channel import lasting
from agent.channel.lasting import Lasting


def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Cable:
    """What connects two ends, and can be cut after so many bytes of one direction."""

    def __init__(self, one: Lasting, other: Lasting, cut_after: int | None = None) -> None:
        self.left, self._left_far = socket.socketpair()
        self.right, self._right_far = socket.socketpair()
        self._threads = [
            threading.Thread(target=self._carry, args=(self._left_far, self._right_far, cut_after), daemon=True),
            threading.Thread(target=self._carry, args=(self._right_far, self._left_far, None), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        for end, side in ((one, self.left), (other, self.right)):
            end.connect(os.dup(side.fileno()), os.dup(side.fileno()))
            side.close()

    def cut(self) -> None:
        for side in (self._left_far, self._right_far):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(10)
        self._left_far.close()
        self._right_far.close()

    def _carry(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if left is not None:
                    data = data[:left]
                    left -= len(data)
                target.sendall(data)
                if left == 0:
                    break
        self.cut()


def write_all(fd: int, data: bytes) -> threading.Thread:
    def work() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest[: 1 << 16]) :]
        os.close(fd)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def read_all(fd: int) -> tuple[bytearray, threading.Thread]:
    into = bytearray()

    def work() -> None:
        while data := os.read(fd, 1 << 16):
            into.extend(data)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return into, thread


@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 3_000_000), st.integers(0, 300_000)),
    cuts=st.lists(st.integers(0, 900_000), max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_whatever_is_cut_each_byte_arrives_once_and_in_order(
    seed: int, sizes: tuple[int, int], cuts: list[int]
) -> None:
    generator = random.Random(seed)
    there, back = (generator.randbytes(size) for size in sizes)
    one, other = Lasting(window=1 << 19), Lasting(window=1 << 19)
    cables: list[Cable] = []
    got_there, first = read_all(other.reads)
    got_back, second = read_all(one.reads)
    writers = [write_all(one.writes, there), write_all(other.writes, back)]
    for cut in [*cuts, None]:
        until(lambda: not (one.connected or other.connected))
        cables.append(Cable(one, other, cut))
        if cut is not None:
            until(lambda: one.finished or not one.connected)
            cables[-1].cut()
            if one.finished and other.finished:
                break
            until(lambda: not other.connected)
    for thread in (*writers, first, second):
        thread.join(20)
        assert not thread.is_alive()
    assert (bytes(got_there), bytes(got_back)) == (there, back)
    assert one.wait(5.0)
    assert other.wait(5.0)
    for cable in cables:
        cable.close()
    for end in (one, other):
        end.give_up()
        os.close(end.reads)


def test_what_is_kept_is_bounded_and_the_writer_waits() -> None:
    end = Lasting(window=1 << 18)
    os.set_blocking(end.writes, False)
    written = 0
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            written += os.write(end.writes, b"x" * 4096)
        except BlockingIOError:
            time.sleep(0.01)
    assert (1 << 18) <= written <= (1 << 18) + (1 << 17)  # the window, and what a pipe holds
    end.give_up()
    os.close(end.writes)
    os.close(end.reads)


def test_who_loses_its_connection_is_told_and_one_that_is_given_up_has_an_end() -> None:
    lost = threading.Event()
    one, other = Lasting(lost.set), Lasting()
    cable = Cable(one, other)
    until(lambda: one.connected)
    cable.cut()
    assert lost.wait(10)
    got, reader = read_all(one.reads)
    one.give_up()
    reader.join(10)
    assert not reader.is_alive()
    assert not got
    other.give_up()
    cable.close()
    for end in (one, other):
        os.close(end.writes)
    os.close(one.reads)
    os.close(other.reads)


def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    one = Lasting(lost.set, silence_s=0.5)
    here, far = socket.socketpair()
    one.connect(os.dup(here.fileno()), os.dup(here.fileno()))
    here.close()
    far.sendall(lasting._HEADER.pack(b"H", 0, 0))
    assert lost.wait(10)
    one.give_up()
    far.close()
    os.close(one.writes)
    os.close(one.reads)


def test_one_that_answers_says_nothing_before_it_is_spoken_to() -> None:
    """`kubectl attach` shows nothing of what was said before it was there."""
    one, other = Lasting(answers=True), Lasting()
    here, far = socket.socketpair()
    one.connect(os.dup(here.fileno()), os.dup(here.fileno()))
    here.close()
    os.write(one.writes, b"early")
    far.settimeout(0.5)
    with pytest.raises(TimeoutError):
        far.recv(1)
    far.settimeout(None)
    other.connect(os.dup(far.fileno()), os.dup(far.fileno()))
    far.close()
    assert other.wait_for_greeting(10)
    assert os.read(other.reads, 10) == b"early"
    for end in (one, other):
        end.give_up()
        os.close(end.writes)
        os.close(end.reads)


def test_two_ends_that_have_nothing_to_say_keep_each_other_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "BEAT_S", 0.1)
    lost = threading.Event()
    one, other = Lasting(lost.set, silence_s=1.0), Lasting()
    cable = Cable(one, other)
    assert not lost.wait(2.5)
    for end in (one, other):
        end.give_up()
        os.close(end.writes)
        os.close(end.reads)
    cable.close()


@pytest.mark.parametrize(
    "says",
    [
        lasting._HEADER.pack(b"X", 0, 0),
        lasting._HEADER.pack(b"H", 5, 0),
        lasting._HEADER.pack(b"H", 0, 0) + lasting._HEADER.pack(b"D", 7, 1) + b"x",
        lasting._HEADER.pack(b"H", 0, 0) + lasting._HEADER.pack(b"D", 0, 1 << 30),
        lasting._HEADER.pack(b"H", 0, 0) + lasting._HEADER.pack(b"A", 9, 0),
        lasting._HEADER.pack(b"H", 0, 0) + lasting._HEADER.pack(b"F", 9, 0),
        lasting._HEADER.pack(b"H", 0, 0) + lasting._HEADER.pack(b"?", 0, 0),
    ],
)
def test_an_end_that_does_not_keep_to_it_is_hung_up_on(says: bytes) -> None:
    lost = threading.Event()
    one = Lasting(lost.set)
    here, far = socket.socketpair()
    one.connect(os.dup(here.fileno()), os.dup(here.fileno()))
    here.close()
    far.sendall(says)
    assert lost.wait(10)
    one.give_up()
    far.close()
    os.close(one.writes)
    assert os.read(one.reads, 10) == b""
    os.close(one.reads)
