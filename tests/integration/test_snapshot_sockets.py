"""Sockets, per network namespace, with the processes that hold them."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from acquirers.base import Scope
from tests.unit.snapshot.helpers import Remembered, here, in_own_mounts, libc, needs_root, running, snapshot

PRELUDE = "import ctypes, os, socket, sys, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
UNSHARE = "assert libc.unshare(0x40000000) == 0\n"  # CLONE_NEWNET
LISTEN = "s = socket.create_server(('', 4711)); u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('', 53))\n"
WAIT = "print('ready', flush=True); time.sleep(60)"


def sockets(lines: list[dict[str, Any]], netns: int) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] == "socket" and line["netns"] == netns]


def tables(lines: list[dict[str, Any]], netns: int) -> dict[str, dict[str, Any]]:
    return {line["family"]: line for line in lines if line["type"] == "sockets" and line["netns"] == netns}


def netns_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def test_a_connection_is_seen_from_both_ends_with_its_holders(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as served,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        lines = snapshot(here(), Scope(pids=(os.getpid(),)))
        found = {line["inode"]: line for line in sockets(lines, netns_of(os.getpid())) if line["inode"]}
        by_fd = {sock.fileno(): found[os.fstat(sock.fileno()).st_ino] for sock in (server, client, served, six)}
        for fd, line in by_fd.items():
            assert {"pid": os.getpid(), "fd": fd} in line["holders"]
        one, other = by_fd[client.fileno()], by_fd[served.fileno()]
        assert (one["local_port"], one["remote_port"]) == (other["remote_port"], other["local_port"])
        assert (one["local"], one["state"], one["uid"]) == ("127.0.0.1", "ESTABLISHED", os.getuid())
        assert by_fd[server.fileno()]["state"] == "LISTEN"
        assert (by_fd[six.fileno()]["family"], by_fd[six.fileno()]["local"]) == ("tcp6", "::1")


def test_unix_sockets_with_names_that_try_to_forge_a_line(tmp_path: Path) -> None:
    forged = "\n0000000000000000: 00000002 00000000 00010000 0001 01 99999999999999 /run/forged"
    os.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as plain, socket.socket(socket.AF_UNIX) as abstract:
        plain.bind("a\nb"[:100])
        plain.listen()
        abstract.bind("\0hidden" + forged[:90])
        lines = snapshot(here(), Scope(pids=(os.getpid(),)))
        found = {line["inode"]: line for line in sockets(lines, netns_of(os.getpid())) if line["family"] == "unix"}
        mine = found[os.fstat(plain.fileno()).st_ino]
        assert (mine["path"], mine["state"], mine["socket_type"]) == ("a\nb", "LISTEN", "stream")
        assert found[os.fstat(abstract.fileno()).st_ino]["path"].startswith("@hidden")
        assert "holders" in found[os.fstat(abstract.fileno()).st_ino]
        # What a path says in the form of a further line is a socket that nobody holds.
        assert all("holders" not in line for inode, line in found.items() if inode == 99999999999999)


@needs_root
def test_a_listener_in_another_network_namespace() -> None:
    with running([sys.executable, "-c", PRELUDE + UNSHARE + LISTEN + WAIT], ready=b"ready") as child:
        netns = netns_of(child.pid)
        report = Remembered()
        lines = snapshot(here(), Scope(pids=(os.getpid(), child.pid)), report)
        assert netns != netns_of(os.getpid())
        assert lines[-1]["netns"] >= 2
        tcp, udp = (line for line in sockets(lines, netns) if line["family"] in {"tcp", "udp"})
        assert (tcp["local"], tcp["local_port"], tcp["state"]) == ("0.0.0.0", 4711, "LISTEN")  # noqa: S104
        assert (udp["local_port"], udp["state"]) == (53, "UNCONNECTED")
        assert [holder["pid"] for holder in tcp["holders"]] == [child.pid]
        summary = tables(lines, netns)["tcp"]
        assert (summary["via_pid"], summary["processes"], summary["count"]) == (child.pid, 1, 1)
        assert not [line for line in sockets(lines, netns_of(os.getpid())) if line["inode"] == tcp["inode"]]
        assert report.gaps == []


@needs_root
def test_a_namespace_that_a_process_has_left_is_entered_through_its_descriptor() -> None:
    """The listener's owner has gone back: no process shows that namespace, and only an open file names it."""
    code = (
        "home = os.open('/proc/self/ns/net', os.O_RDONLY)\n"
        + UNSHARE
        + LISTEN
        + "away = os.open('/proc/self/ns/net', os.O_RDONLY); print(os.fstat(away).st_ino, flush=True)\n"
        + "assert libc.setns(home, 0) == 0\n"
        + WAIT
    )
    with subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            netns = int(child.stdout.readline())
            assert child.stdout.readline() == b"ready\n"
            report = Remembered()
            own = netns_of(os.getpid())
            lines = snapshot(here(), Scope(pids=(child.pid,)), report)
            assert netns_of(os.getpid()) == own
            (tcp,) = (line for line in sockets(lines, netns) if line["family"] == "tcp")
            assert tcp["local_port"] == 4711
            assert [holder["pid"] for holder in tcp["holders"]] == [child.pid]
            summary = tables(lines, netns)["tcp"]
            assert summary["processes"] == 0
            assert summary["via"].startswith(f"{child.pid}/fd/")
            assert report.gaps == []
        finally:
            child.kill()


@needs_root
@in_own_mounts
def test_a_namespace_that_only_a_mount_keeps_alive(tmp_path: Path) -> None:
    point = tmp_path / "netns"
    point.touch()
    with running([sys.executable, "-c", PRELUDE + UNSHARE + WAIT], ready=b"ready") as child:
        netns = netns_of(child.pid)
        source = b"/proc/%d/ns/net" % child.pid
        assert libc().mount(source, os.fsencode(point), None, ctypes.c_ulong(0x1000), None) == 0  # MS_BIND
    found = tables(snapshot(here()), netns)
    assert found["tcp"]["via"] == str(point)
    assert found["tcp"]["processes"] == 0
    assert tables(snapshot(here(), Scope(pids=(os.getpid(),))), netns) == {}


@needs_root
def test_a_sniffer() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
        lines = snapshot(here(), Scope(pids=(os.getpid(),)))
        (found,) = (line for line in lines if line.get("inode") == os.fstat(sniffer.fileno()).st_ino)
        assert (found["family"], found["socket_type"], found["ethertype"]) == ("packet", "raw", "all")
        assert found["holders"] == [{"pid": os.getpid(), "fd": sniffer.fileno()}]
