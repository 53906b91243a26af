"""Lines in and out: bounded, strict, and never blocked for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.channel import messages as say
from agent.channel.framing import MAX_PLAIN, ROOM, ChannelError, Reader, SilentError, Writer
from agent.channel.messages import MAX_MESSAGE

FROM_HOST: msgspec.json.Decoder[Any] = msgspec.json.Decoder(say.FromHost)


class Pipe:
    """Both ends, each closed once, whoever does it: a number that is closed twice may be somebody else's by then."""

    def __init__(self) -> None:
        self.ends = dict(zip(("read", "write"), os.pipe(), strict=True))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __getitem__(self, which: int) -> int:
        return self.ends[("read", "write")[which]]

    def close(self, which: str) -> None:
        with self._lock:
            fd = self.ends.pop(which, -1)
        if fd >= 0:
            os.close(fd)

    def feed(self, data: bytes) -> threading.Thread:
        """Writes from a thread, and closes."""
        fd = self[1]

        def work() -> None:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(fd, rest) :]
            except BrokenPipeError:
                pass
            self.close("write")

        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        return thread

    def end(self) -> None:
        self.close("read")
        for thread in self._threads:
            thread.join(10)
        self.close("write")


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    one = Pipe()
    yield one
    one.end()


def reader(fd: int) -> Reader[Any]:
    return Reader(fd, FROM_HOST, "host")


def all_of(fd: int) -> list[Any]:
    one, found = reader(fd), []
    while (message := one.receive(5)) is not None:
        found.append(message)
    return found


def test_messages_come_as_they_went(pipe: Pipe) -> None:
    sent = [
        say.Begin(1, "a/b"),
        say.Put(2, "c", bytes(range(256)) * 40_000),
        say.Sign(3, "a/b", "u", 1, say.PartSum(5, "ab" * 32)),
        say.Complete(4, "a/b", "u", [say.PartSum(5, "ab" * 32)] * 10_000),
    ]
    writer = Writer(pipe[1], "controller")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(all_of(pipe[0])))
    thread.start()
    for message in sent:
        writer.post(message, 5)
    writer.close(5)
    pipe.close("write")
    thread.join(10)
    assert got == sent


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"",
        b"\x00\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        b'{"say":"begin"}',
        b'{"say":"begin","id":1,"name":"a","more":1}',
        b'{"say":"begin","id":-1,"name":"a"}',
        b'{"say":"begin","id":1,"name":""}',
        b'{"say":"done","id":1}',
        b'{"say":"sign","id":1,"name":"a","upload":"u","number":0,"part":{"size":1,"sha256":"' + b"ab" * 32 + b'"}}',
        b'{"say":"sign","id":1,"name":"a","upload":"u","number":1,"part":{"size":1,"sha256":"AB"}}',
        b'{"say":"put","id":1,"name":"a","data":"no base64!"}',
        b'{"say":"complete","id":1,"name":"a","upload":"u","parts":[]}',
        b'{"say":"event","name":"x","fields":' + b"[" * 5000,
        b'{"say":"begin","id":1,"name":"\xff"}',
    ],
)
def test_what_is_no_message_ends_the_channel(pipe: Pipe, line: bytes) -> None:
    pipe.feed(line + b"\n")
    with pytest.raises(ChannelError, match="no message"):
        reader(pipe[0]).receive(5)


@pytest.mark.parametrize(
    ("beginning", "limit"),
    [(b"x", MAX_PLAIN), (b'{"say":"event",', MAX_PLAIN), (b'{"say":"put",', MAX_MESSAGE)],
)
def test_a_line_without_an_end_is_given_up_early(pipe: Pipe, beginning: bytes, limit: int) -> None:
    thread = pipe.feed(beginning + b"x" * (limit + (4 << 20)))
    one = reader(pipe[0])
    with pytest.raises(ChannelError, match="no message"):
        one.receive(5)
    assert len(one._buffer) <= limit + (1 << 19)
    pipe.close("read")
    thread.join(5)


def test_a_long_line_with_an_end_is_no_message_either(pipe: Pipe) -> None:
    pipe.feed(b'{"say":"begin","id":1,"name":"a' + b" " * (MAX_PLAIN + 10) + b'"}\n')
    with pytest.raises(ChannelError):
        reader(pipe[0]).receive(5)


def test_half_a_line_is_no_end(pipe: Pipe) -> None:
    pipe.feed(msgspec.json.encode(say.Renew(1)) + b'\n{"say":"ren')
    one = reader(pipe[0])
    assert one.receive(5) == say.Renew(1)
    with pytest.raises(ChannelError, match="in the middle"):
        one.receive(5)


def test_silence_is_told_and_costs_nothing(pipe: Pipe) -> None:
    one = reader(pipe[0])
    began, cpu = time.monotonic(), time.process_time()
    with pytest.raises(SilentError):
        one.receive(0.5)
    assert 0.4 < time.monotonic() - began < 2
    assert time.process_time() - cpu < 0.1


def test_waking(pipe: Pipe) -> None:
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK)
    woken: list[bool] = []
    one = reader(pipe[0])
    one.wake_by(wake_read, lambda: woken.append(True))
    os.write(wake_write, b"x")
    threading.Timer(0.1, pipe.feed, (msgspec.json.encode(say.Renew(1)) + b"\n",)).start()
    assert one.receive(5) == say.Renew(1)
    assert woken == [True]
    os.close(wake_read)
    os.close(wake_write)


def test_nobody_reads(pipe: Pipe) -> None:
    """A request gives up at its deadline; what is only told is dropped; nothing hangs."""
    writer = Writer(pipe[1], "controller")
    began = time.monotonic()
    dropped = sum(not writer.offer(say.Head("ab" * 32, number, 0)) for number in range(50_000))
    assert dropped > 30_000
    put = say.Put(1, "a", b"x" * (8 << 20))
    writer.post(put, 1)
    with pytest.raises(ChannelError, match="does not read"):
        writer.post(put, 0.5)
    assert writer._size <= ROOM + (12 << 20)
    assert not writer.flush(0.1)
    pipe.close("read")
    writer.close(0.1)
    assert time.monotonic() - began < 20


def test_the_other_side_is_gone(pipe: Pipe) -> None:
    pipe.close("read")
    writer = Writer(pipe[1], "controller")
    writer.post(say.Renew(1), 1)
    assert not writer.flush(5)
    with pytest.raises(ChannelError, match="cannot be reached"):
        writer.post(say.Renew(1), 1)
    assert writer.offer(say.Renew(1)) is False
    writer.close()


def test_a_descriptor_that_somebody_made_nonblocking(pipe: Pipe) -> None:
    for which in (0, 1):
        os.set_blocking(pipe[which], False)
    writer = Writer(pipe[1], "controller")
    message = say.Put(1, "a", b"x" * (1 << 20))
    writer.post(message, 5)
    assert reader(pipe[0]).receive(5) == message
    writer.close(5)


def test_many_threads_write_whole_lines(pipe: Pipe) -> None:
    writer = Writer(pipe[1], "controller")
    got: list[Any] = []
    listener = threading.Thread(target=lambda: got.extend(all_of(pipe[0])))
    listener.start()

    def work(first: int) -> None:
        for number in range(200):
            writer.post(say.Begin(first + number, "n" * (number * 5 + 1)), 10)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(10)
    pipe.close("write")
    listener.join(10)
    assert sorted(message.id for message in got) == sorted(1000 * a + b for a in range(8) for b in range(200))


@given(data=st.binary(max_size=2000))
def test_any_bytes_are_messages_or_an_error(data: bytes) -> None:
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, data)
        os.close(write_fd)
        try:
            all_of(read_fd)
        except ChannelError:
            pass
    finally:
        os.close(read_fd)


def test_secrets_do_not_stand_in_a_repr() -> None:
    credentials = say.Credentials("AKIAKEY", "SECRET", "TOKEN", 1.0)
    signed = say.Signed(1, "PUT", "https://b/k?X-Amz-Signature=SECRET&X-Amz-Security-Token=TOKEN", {})
    for one in (
        credentials,
        signed,
        say.Renewed(1, credentials),
        say.Start(msgspec.Raw(b"{}"), credentials),
        [credentials, signed],
    ):
        assert not any(secret in f"{one!r} {one}" for secret in ("AKIAKEY", "SECRET", "TOKEN"))
