"""The events that a real daemon remembers, and daemons that do not answer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquirers.containers.docker import events
from acquirers.containers.docker.events import EventRing, sockets_of
from acquirers.host import Host, Mode
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.trees import Recorder

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDocker]:
    with PrivateDocker(tmp_path_factory.mktemp("docker")) as docker:
        docker.import_base("base:1")
        yield docker


def taken(pid: int) -> tuple[list[dict[str, object]], Recorder]:
    report = Recorder()
    data = b"".join(bytes(chunk) for chunk in EventRing(Host(Mode.HOST), [pid])(report))
    return [json.loads(line) for line in data.splitlines() if line.startswith(b"{")], report


def test_what_happened_is_told_and_asking_is_no_event(docker: PrivateDocker) -> None:
    container = docker.run("told", "base:1", "true")
    docker.wait("told")
    time.sleep(1.1)  # `until` has whole seconds
    lines, report = taken(docker.pid)
    assert report.gaps == []
    assert lines[0]["asserted_by"] == "the daemon"
    actions = [line["Action"] for line in lines[1:] if line.get("id") == container]
    assert {"create", "start", "die"} <= set(actions)
    again, _ = taken(docker.pid)
    assert [line for line in again if "Action" in line] == [line for line in lines if "Action" in line]


@pytest.mark.parametrize("manner", ["silent", "endless", "closing", "junk"])
def test_a_daemon_that_does_not_answer_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    monkeypatch.setattr(events, "_WAIT", 0.5)
    monkeypatch.setattr(events, "SECONDS", 1.0)
    stop = threading.Event()
    server = socket.socket(socket.AF_UNIX)
    path = tmp_path / ("long" * 30) / "docker.sock"
    path.parent.mkdir()
    directory = os.open(path.parent, os.O_PATH)
    server.bind(f"/proc/self/fd/{directory}/docker.sock")
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            if manner == "junk":
                connection.sendall(b"\x00" * 4096)
            elif manner == "endless":
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while not stop.is_set():
                    try:
                        connection.sendall(b"1\r\n\n\r\n")
                    except OSError:
                        return
            elif manner == "silent":
                stop.wait(5)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monkeypatch.setattr(events, "sockets_of", lambda _host, _pid: [os.fsencode(path)])
    began = time.monotonic()
    try:
        _, report = taken(os.getpid())
    finally:
        stop.set()
        server.close()
        os.close(directory)
        thread.join(5)
    assert time.monotonic() - began < 4
    assert [gap.reason.value for gap in report.gaps] == ["io-error"]


def test_sockets_are_those_on_which_it_listens(docker: PrivateDocker) -> None:
    assert os.fsencode(docker.socket) in list(sockets_of(Host(Mode.HOST), docker.pid))
    assert list(sockets_of(Host(Mode.HOST), 1 << 21)) == []
