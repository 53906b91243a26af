"""`Host`: every path is resolved inside the root, whatever the links there say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from acquirers.host import MAX_DEPTH, Host, Mode, NotARootError, TooLargeError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "disk"
    (base / "etc").mkdir(parents=True)
    (base / "var/lib").mkdir(parents=True)
    (base / "etc/motd").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    return base


@pytest.fixture
def host(root: Path) -> Host:
    return Host(Mode.DEAD, os.fsencode(root))


def test_a_directory_without_etc_usr_or_var_is_no_root(tmp_path: Path) -> None:
    with pytest.raises(NotARootError):
        Host(Mode.DEAD, os.fsencode(tmp_path))


@pytest.mark.parametrize(
    "target",
    ["/etc/motd", "../etc/motd", "../../../../../../etc/motd", "/../../etc/motd", "//etc/./motd", "/var/../etc/motd"],
)
def test_links_are_followed_inside_the_root(root: Path, host: Host, target: str) -> None:
    (root / "var/link").symlink_to(target)
    assert host.read(b"/var/link") == b"inside"
    assert host.is_file(b"/var/link")
    assert host.native(b"/var/link") == b"/etc/motd"


def test_no_link_leads_out(root: Path, host: Host, tmp_path: Path) -> None:
    (root / "var/absolute").symlink_to(tmp_path / "secret")
    (root / "var/relative").symlink_to("../../secret")
    (root / "var/directory").symlink_to(tmp_path)
    for path in (b"/var/absolute", b"/var/relative", b"/var/directory/secret", b"/../secret", b"/var/../../secret"):
        with pytest.raises(OSError):
            host.read(path)
        assert not host.is_file(path)


def test_loops_and_endless_paths_end(root: Path, host: Host) -> None:
    (root / "var/a").symlink_to("b")
    (root / "var/b").symlink_to("a")
    (root / "var/self").symlink_to("self/x")
    (root / "var/here").symlink_to(".")
    for path in (b"/var/a", b"/var/self", b"/var/a/b"):
        with pytest.raises(OSError):
            host.open_path(path)
    with pytest.raises(OSError):
        host.open_path(b"/var" + b"/here" * 100)
    deep = root / "var"
    for _ in range(MAX_DEPTH + 5):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(OSError):
        host.open_path(b"/var" + b"/d" * (MAX_DEPTH + 5))


def test_only_small_regular_files_are_read(root: Path, host: Host) -> None:
    os.mkfifo(root / "etc/fifo")
    with open(root / "etc/big", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="regular"):
        host.read(b"/etc/fifo")
    with pytest.raises(OSError):
        host.read(b"/etc")
    with pytest.raises(TooLargeError):
        host.read(b"/etc/big")
    assert host.read(b"/etc/motd", limit=6) == b"inside"
    with pytest.raises(TooLargeError):
        host.read(b"/etc/motd", limit=5)


def test_descriptors_do_not_leak(root: Path, host: Host) -> None:
    (root / "var/loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        host.read(b"/etc/motd")
        host.names(b"/etc")
        host.tree(b"/etc").close()
        with pytest.raises(OSError):
            host.read(b"/var/loop")
        with pytest.raises(OSError):
            host.read(b"/none/there")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dead_host_has_no_processes(host: Host) -> None:
    assert not host.live
    assert host.pids() == []
    with pytest.raises(OSError):
        host.read_proc(b"uptime")
    assert host.facts.boot_id == ""
    assert host.facts.kernel == ""


def test_the_key_of_a_dead_host_is_its_own_name(root: Path) -> None:
    (root / "etc/hostname").write_bytes(b"../we\x1b[31mb/01\n")
    host = Host(Mode.DEAD, os.fsencode(root))
    assert host.facts.host_key() == "__we_31mb_01"


def test_this_machine_has_facts() -> None:
    host = Host(Mode.HOST)
    facts = host.facts
    assert facts.kernel == os.uname().release
    assert len(facts.boot_id) == 36
    assert facts.namespaces["mnt"] == os.stat("/proc/self/ns/mnt").st_ino
    assert facts.clock.boottime_ns >= facts.clock.monotonic_ns - 10**9
    assert facts.clock.discipline is not None
    assert os.getpid() in host.pids()
    assert facts.host_key()
    if os.geteuid() == 0:
        assert "chown" in facts.capabilities
