"""The host's end: requests wait for their own answers, and a controller that is gone is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from agent.channel import messages as say
from agent.channel.framing import Reader
from agent.channel.host import HostEnd
from agent.errors import (
    AuthorityError,
    ObjectExistsError,
    StoreError,
    StoreFullError,
    UnreachableError,
    UsageError,
)
from tests.support.runs import ENVIRONMENT


class Peer:
    """The controller's side, played by a test."""

    def __init__(self) -> None:
        self.host_read, self._write = os.pipe()
        self._read, self.host_write = os.pipe()
        self.reader: Reader[Any] = Reader(self._read, msgspec.json.Decoder(say.FromHost), "host")

    def tell(self, *messages: say.Message) -> None:
        for message in messages:
            os.write(self._write, msgspec.json.encode(message) + b"\n")

    def hear(self) -> Any:
        return self.reader.receive(5)

    def answer(self, make: Callable[[Any], say.Message], count: int = 1) -> threading.Thread:
        def work() -> None:
            for _ in range(count):
                self.tell(make(self.hear()))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Its own side first, so that whoever still reads or writes on the other is told."""
        for name in ("_write", "_read"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def hang_up(self) -> None:
        os.close(self._write)
        self._write = -1


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.close()
    os.close(one.host_read)
    os.close(one.host_write)


def listening(peer: Peer, **settings: Any) -> HostEnd:
    end = HostEnd(peer.host_read, peer.host_write, **settings)
    end.listen(lambda _signal: None)
    return end


def test_start(peer: Peer) -> None:
    peer.tell(say.Start(msgspec.Raw(b'{"case":"C-1"}'), run="r"))
    start = HostEnd(peer.host_read, peer.host_write).start(5)
    assert (bytes(start.job), start.run, start.credentials) == (b'{"case":"C-1"}', "r", None)


@pytest.mark.parametrize("sent", [b"", b"hello\n", b'{"say":"done","id":1}\n', b'{"say":"start","job":'])
def test_what_is_no_start_is_a_usage_error(peer: Peer, sent: bytes) -> None:
    os.write(peer._write, sent)
    peer.hang_up()
    with pytest.raises(UsageError):
        HostEnd(peer.host_read, peer.host_write).start(5)


def test_no_start_in_time_is_a_usage_error(peer: Peer) -> None:
    with pytest.raises(UsageError, match="no job came"):
        HostEnd(peer.host_read, peer.host_write).start(0.2)


def test_answers_find_their_requests_in_any_order(peer: Peer) -> None:
    end = listening(peer)
    with ThreadPoolExecutor(20) as callers:
        asked = {name: callers.submit(end.begin, name) for name in (f"o{number}" for number in range(20))}
        heard = [peer.hear() for _ in range(20)]
        for message in reversed(heard):
            peer.tell(say.Begun(message.id, "upload of " + message.name))
        assert {name: one.result(5) for name, one in asked.items()} == {name: f"upload of {name}" for name in asked}
    end.close()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("exists", ObjectExistsError),
        ("authority", AuthorityError),
        ("unreachable", UnreachableError),
        ("full", StoreFullError),
        ("store", StoreError),
        ("what", StoreError),
    ],
)
def test_a_refusal_is_the_right_error(peer: Peer, kind: str, error: type[StoreError]) -> None:
    end = listening(peer)
    peer.answer(lambda asked: say.Refused(asked.id, kind, "no"))
    with pytest.raises(error, match="no") as caught:
        end.put("a", b"b")
    assert type(caught.value) is error
    end.close()


def test_no_answer_in_time(peer: Peer) -> None:
    end = listening(peer, deadline_s=0.3)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="in time"):
        end.begin("a")
    assert time.monotonic() - began < 3
    late = peer.hear()
    peer.tell(say.Begun(late.id, "late"))
    peer.answer(lambda asked: say.Begun(asked.id, "second"))
    assert end.begin("b") == "second"
    end.close()


def test_the_answer_to_another_question_is_none(peer: Peer) -> None:
    end = listening(peer)
    peer.answer(lambda asked: say.Done(asked.id))
    with pytest.raises(StoreError, match="not asked"):
        end.begin("a")
    end.close()


@pytest.mark.parametrize("garbage", [b"", b"hello\n"])
def test_a_controller_that_is_gone(peer: Peer, garbage: bytes) -> None:
    lost: list[str] = []
    end = HostEnd(peer.host_read, peer.host_write)
    end.listen(lambda _signal: None, lost.append)
    with ThreadPoolExecutor(2) as callers:
        waiting = callers.submit(end.begin, "a")
        peer.hear()
        os.write(peer._write, garbage)
        peer.hang_up()
        with pytest.raises(UnreachableError):
            waiting.result(5)
    with pytest.raises(UnreachableError):
        end.put("b", b"")
    time.sleep(0.05)
    assert len(lost) == 1
    end.head("ab" * 32, 1)
    end.result({"verdict": "failed"})
    began = time.monotonic()
    end.close()
    assert time.monotonic() - began < 3


def test_stop_calls_back(peer: Peer) -> None:
    stopped: list[str] = []
    end = HostEnd(peer.host_read, peer.host_write)
    end.listen(stopped.append)
    peer.tell(say.Stop("SIGINT"))
    for _ in range(100):
        if stopped:
            break
        time.sleep(0.01)
    assert stopped == ["SIGINT"]
    end.close()


def test_nothing_hangs_when_the_controller_stops_reading(peer: Peer) -> None:
    end = listening(peer, deadline_s=0.5)
    began = time.monotonic()
    for number in range(20_000):
        end.head("ab" * 32, number)
    for _ in range(5):
        with pytest.raises(UnreachableError):
            end.put("a", b"x" * (8 << 20))
    assert time.monotonic() - began < 10
    peer.close()
    end.close()


def test_an_object_that_is_too_large_to_hand_over_is_not_sent(peer: Peer) -> None:
    end = listening(peer, deadline_s=1)
    with pytest.raises(StoreError, match="too many"):
        end.put("a", b"x" * (say.MAX_SMALL_OBJECT + 1))
    end.close()


def test_heads_go_on_until_the_end(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.channel.host.HEAD_EVERY_S", 0.05)
    end = listening(peer)
    end.heads(lambda: ("ab" * 32, 5))
    first, second = peer.hear(), peer.hear()
    assert (first.custody, first.lines) == ("ab" * 32, 5)
    assert second.wall_ns > first.wall_ns
    end.close()


def test_standard_input_and_output_become_the_channel() -> None:
    """What is printed by accident goes to standard error, and a child inherits nothing of the channel."""
    code = (
        "import subprocess, sys\n"
        "from agent.channel.host import HostEnd\n"
        "end = HostEnd.standard()\n"
        "start = end.start()\n"
        "print('printed by a library')\n"
        "sys.stdout.flush()\n"
        "subprocess.run(['cat'])\n"
        "subprocess.run(['sh', '-c', 'ls /proc/self/fd; echo from a child'], check=True)\n"
        "end.listen(lambda signal: None)\n"
        "end.result({'verdict': 'done', 'run': start.run})\n"
        "end.close()\n"
    )
    started = msgspec.json.encode(say.Start(msgspec.Raw(b"{}"), run="r")) + b"\n"
    done = subprocess.run([sys.executable, "-c", code], input=started, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b'{"say":"result","result":{"verdict":"done","run":"r"}}\n'
    assert b"printed by a library" in done.stderr
    assert b"from a child" in done.stderr
