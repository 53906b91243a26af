"""`Host`: every path is resolved inside the root, whatever the links there say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from acquirers import syscalls
from acquirers.containers.paths import resolve
from acquirers.host import MAX_DEPTH, Host, Mode, NotARootError, TooLargeError
from tests.rigs.trees import age, times

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


def test_a_view_of_the_kernel_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    host = Host(Mode.HOST)
    assert host.is_file(b"/proc/self/status")  # may be passed
    with pytest.raises(OSError, match="kernel"):
        host.read(b"/proc/self/status")


def test_without_proc_paths_are_followed_as_well(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_proc(path: bytes, *args: int, **kwargs: int) -> int:
        if path.startswith(b"/proc/"):
            raise FileNotFoundError(2, "no /proc")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", without_proc)
    (root / "var/link").symlink_to("/etc/motd")
    host = Host(Mode.DEAD, os.fsencode(root))
    assert host.read(b"/var/link") == b"inside"
    assert host.native(b"/var/link") == b"/etc/motd"


def test_every_link_on_the_way_is_told(root: Path, host: Host) -> None:
    (root / "var/one").symlink_to("../etc/two")
    (root / "etc/two").symlink_to("/etc")
    place = host.follow(b"/var/one/motd")
    os.close(place.fd)
    assert (place.native, place.links) == (b"/etc/motd", [b"/var/one", b"/etc/two"])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_following_a_link_moves_no_access_time(root: Path, host: Host) -> None:
    """relatime moves it at the first read after a change."""
    (root / "etc/config").symlink_to("../var/link/config")
    (root / "var/link").symlink_to("/etc/directory")
    (root / "etc/directory").mkdir()
    (root / "etc/directory/config").write_bytes(b"{}")
    aged = age(root)
    try:
        os.close(syscalls.open_tree_clone(syscalls.AT_FDCWD, os.fsencode(root), recursive=False))
    except OSError as error:
        pytest.skip(f"needs root: no clone of a mount: {error}")
    before = times(aged)
    assert host.read(b"/etc/config") == b"{}"
    assert host.is_dir(b"/var/link")
    assert resolve(host, b"/etc/config") == (b"/etc/directory/config", [b"/etc/config", b"/var/link"])
    assert times(aged) == before
    assert os.readlink(root / "etc/config")  # and here it would have moved
    assert times(aged) != before


def test_where_there_is_no_clone_links_are_read_as_they_lie(
    root: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "var/link").symlink_to("/etc/motd")
    monkeypatch.setattr(syscalls, "open_tree_clone", refuse)
    assert host.read(b"/var/link") == b"inside"


def refuse(*_: object, **__: object) -> int:
    raise PermissionError(1, "not permitted")


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
