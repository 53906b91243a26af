"""The host's side of a channel that may break, as processes: what stays, what attaches, and what ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.channel.attaching import attach
from agent.channel.lasting import Lasting
from agent.errors import UnreachableError, UsageError
from tests.support.runs import ENVIRONMENT, impound

RUN = """
import os, sys
from agent.channel.attaching import stay
stream = stay(sys.argv[1], float(sys.argv[2]))
number = 0
while data := os.read(stream.reads, 100):
    number += len(data)
    os.write(stream.writes, b"%d %d\\n" % (os.getpid(), number))
os.write(stream.writes, b"end\\n")
os.close(stream.writes)
stream.wait(10)
sys.exit(7)
"""
"""A run that answers each byte with its process id and how many came so far."""


class Host:
    """The first bridge, and further ones; a `Lasting` of ours as the controller."""

    def __init__(self, patience_s: float = 60.0) -> None:
        self.name = secrets.token_hex(8)
        self.bridges: list[subprocess.Popen[bytes]] = []
        self.stream = Lasting()
        self._start([sys.executable, "-c", RUN, self.name, str(patience_s)])

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        bridge = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, bufsize=0)
        self.bridges.append(bridge)
        assert bridge.stdin is not None
        assert bridge.stdout is not None
        self.stream.connect(os.dup(bridge.stdout.fileno()), os.dup(bridge.stdin.fileno()))
        bridge.stdin.close()
        bridge.stdout.close()
        return bridge

    def attach(self) -> subprocess.Popen[bytes]:
        return self._start([sys.executable, "-m", "agent", "acquire", "--attach", self.name])

    def ask(self) -> tuple[int, int]:
        os.write(self.stream.writes, b"x")
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self.stream.reads, 1)
            assert piece
            line += piece
        pid, number = line.split()
        return int(pid), int(number)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    close(made)


def close(made: Host) -> None:
    made.stream.give_up()
    for fd in (made.stream.reads, made.stream.writes):
        with contextlib.suppress(OSError):
            os.close(fd)
    for bridge in made.bridges:
        bridge.kill()
        bridge.wait(10)


def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    )


def test_a_run_outlives_its_bridge_and_goes_on_over_another(host: Host) -> None:
    pid, number = host.ask()
    assert number == 1
    assert pid != host.bridges[0].pid
    assert os.getsid(pid) == pid  # in a session of its own
    host.bridges[0].kill()
    host.bridges[0].wait(10)
    until(lambda: not host.stream.connected)
    assert is_there(pid)
    os.write(host.stream.writes, b"xx")  # said into nothing, and heard later
    second = host.attach()
    assert os.read(host.stream.reads, 100).split()[1] in {b"2", b"3"}
    host.stream.wait(5)
    os.close(host.stream.writes)
    rest = b""
    while data := os.read(host.stream.reads, 100):
        rest += data
    assert rest.endswith(b"end\n")
    assert second.wait(20) == 0
    until(lambda: not is_there(pid))


def test_the_newest_bridge_counts(host: Host) -> None:
    """A connection that is dead and does not know it: the controller comes back over another one."""
    host.ask()
    host.attach()
    assert host.ask()[1] == 2
    until(lambda: host.bridges[0].poll() is not None)


def test_the_exit_code_of_the_run_is_that_of_its_bridge(host: Host) -> None:
    host.ask()
    os.close(host.stream.writes)
    while os.read(host.stream.reads, 100):
        pass
    assert host.bridges[0].wait(20) == 7


def test_a_run_that_nobody_comes_back_to_ends() -> None:
    made = Host(patience_s=0.5)
    try:
        pid, _ = made.ask()
        made.bridges[0].send_signal(signal.SIGKILL)
        until(lambda: not is_there(pid))
    finally:
        close(made)


def test_there_is_one_of_a_name_and_no_other(host: Host) -> None:
    host.ask()
    done = subprocess.run(
        [sys.executable, "-m", "agent", "acquire", "--job", "-", "--channel", "--lasting", host.name],
        env=ENVIRONMENT, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"there is such a channel already" in done.stderr
    with pytest.raises(UnreachableError, match="no such run"):
        attach("0" * 16)
    for name in ("short", "a/b/c/d/e/f", "x" * 100, "ä" * 10):
        with pytest.raises(UsageError):
            attach(name)


def test_another_user_is_not_let_in(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to be somebody else")
    host.ask()
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "one.connect('\\0impound-' + sys.argv[1])\n"
        "one.settimeout(20)\n"
        "sys.exit(0 if one.recv(1) == b'' else 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, host.name], timeout=60, check=False)
    assert done.returncode == 0
    assert host.ask()[1] == 2


def test_the_options_go_with_a_channel_only() -> None:
    code, _, error = impound("acquire", "--lasting", "a" * 16, "--case", "C", "--to", "/tmp/x", "-r", "age1")
    assert code == 2
    assert "--lasting goes with --channel" in error
    code, _, error = impound("acquire", "--attach", "a" * 16, "--case", "C")
    assert code == 2
