"""Where Docker keeps its data: every way of saying so, on disks and fake processes made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Reason, State
from acquirers.containers.docker.roots import Found, find_roots
from acquirers.host import Host, Mode
from acquirers.mounts import Mount
from tests.unit.containers.disk import Disk, probe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/docker").mkdir(parents=True)
    return tmp_path


def data_root(root: Path, name: str) -> Path:
    path = root / name
    (path / "containers").mkdir(parents=True)
    return path


def paths(found: Found) -> list[bytes]:
    return [one.path for one in found.roots]


def dead(root: Path) -> Host:
    return Host(Mode.DEAD, os.fsencode(root))


def test_nothing_is_absent(root: Path) -> None:
    assert probe(dead(root)).state is State.ABSENT
    (root / "var/lib/docker").mkdir(parents=True)
    assert probe(dead(root)).state is State.ABSENT, "an empty directory is no data root"


def test_default_and_snap(root: Path) -> None:
    data_root(root, "var/lib/docker")
    data_root(root, "var/snap/docker/common/var-lib-docker")
    assert paths(find_roots(dead(root))) == [b"/var/lib/docker", b"/var/snap/docker/common/var-lib-docker"]


@pytest.mark.parametrize("key", ["data-root", "graph"])
def test_daemon_json(root: Path, key: str) -> None:
    data_root(root, "srv/docker data")
    (root / "etc/docker/daemon.json").write_text(json.dumps({key: "/srv/docker data"}))
    found = find_roots(dead(root))
    assert paths(found) == [b"/srv/docker data"]
    assert found.roots[0].configs == [b"/etc/docker/daemon.json"]


@pytest.mark.parametrize("data", [b"{", b"[1]", b'{"data-root": 5}', b"[" * 100_000, b"x" * 300_000])
def test_malformed_daemon_json_is_a_gap_and_the_default_is_still_found(root: Path, data: bytes) -> None:
    data_root(root, "var/lib/docker")
    (root / "etc/docker/daemon.json").write_bytes(data)
    found = find_roots(dead(root))
    assert paths(found) == [b"/var/lib/docker"]
    assert [gap.where for gap in found.gaps] == [b"/etc/docker/daemon.json"]


def test_a_data_root_that_was_told_and_is_not_there_is_a_finding(root: Path) -> None:
    (root / "etc/docker/daemon.json").write_text('{"data-root": "/gone"}')
    found = find_roots(dead(root))
    assert [(flag.kind, flag.where) for flag in found.flags] == [(FlagKind.FINDING, b"/gone")]
    assert not found.gaps


def test_units_drop_ins_and_variables(root: Path) -> None:
    for name in ("a", "b", "c", "d"):
        data_root(root, name)
    unit = root / "usr/lib/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/bin/dockerd --data-root /a\n")
    drop_in = root / "etc/systemd/system/docker.service.d/override.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/dockerd -g /b --config-file /opt/d.json\n")
    (root / "etc/default").mkdir()
    (root / "etc/default/docker").write_text('DOCKER_OPTS="--graph=/c"\n')
    (root / "opt").mkdir()
    (root / "opt/d.json").write_text('{"data-root": "/d"}')
    found = find_roots(dead(root))
    assert sorted(paths(found)) == [b"/a", b"/b", b"/c", b"/d"]


def test_user_namespaces(root: Path) -> None:
    (root / "var/lib/docker").mkdir(parents=True)
    data_root(root, "var/lib/docker/165536.165536")
    (root / "var/lib/docker/200000.200000").mkdir()
    (root / "var/lib/docker/1.2.3/containers").mkdir(parents=True)
    assert paths(find_roots(dead(root))) == [b"/var/lib/docker/165536.165536"]
    data_root(root, "var/lib/docker/.")  # and one from before it was remapped
    assert paths(find_roots(dead(root))) == [b"/var/lib/docker", b"/var/lib/docker/165536.165536"]


def test_rootless(root: Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    data_root(root, "home/ann/.local/share/docker")
    data_root(root, "home/ann/elsewhere")
    config = root / "home/ann/.config/docker/daemon.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"data-root": "/home/ann/elsewhere"}')
    assert paths(find_roots(dead(root))) == [b"/home/ann/.local/share/docker", b"/home/ann/elsewhere"]


def test_links_are_followed_inside_the_machine_and_remembered(root: Path) -> None:
    data_root(root, "mnt/big/docker")
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/docker").symlink_to("/mnt/disk/docker")
    (root / "mnt/disk").symlink_to("big")
    (root / "etc/docker/daemon.json").write_text('{"data-root": "/mnt/big/docker"}')
    found = find_roots(dead(root))
    assert paths(found) == [b"/mnt/big/docker"], "one directory under two names is one data root"
    assert found.roots[0].links == [b"/var/lib/docker", b"/mnt/disk"]


@pytest.mark.parametrize("target", ["docker", "/var/lib/docker", "/", "../" * 50, "/proc/self/root", "/dev/null"])
def test_links_that_lead_nowhere(root: Path, target: str) -> None:
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/docker").symlink_to(target)
    assert not find_roots(dead(root)).roots


def test_a_root_inside_of_another_is_stored_with_it(root: Path) -> None:
    data_root(root, "var/lib/docker")
    data_root(root, "var/lib/docker/volumes/dind/_data")
    (root / "etc/docker/daemon.json").write_text('{"data-root": "/var/lib/docker/volumes/dind/_data"}')
    found = find_roots(dead(root))
    assert paths(found) == [b"/var/lib/docker"]
    assert [flag.kind for flag in found.flags] == [FlagKind.ELSEWHERE]


def test_no_root_can_hide_another_one(root: Path) -> None:
    data_root(root, "var/lib/docker")
    (root / "containers").mkdir()
    (root / "etc/docker/daemon.json").write_text('{"data-root": "/"}')
    assert paths(find_roots(dead(root))) == [b"/var/lib/docker", b"/"]


def mount(point: bytes, fstype: bytes, device: int = 1, inside: bytes = b"/") -> Mount:
    return Mount(7, 1, device, inside, point, b"rw", fstype, b"source", b"rw")


class Mounted(Host):
    """Shows the mounts that a test chose."""

    shown: tuple[Mount, ...] = ()

    @property
    def mounts(self) -> list[Mount]:
        return list(self.shown)


def show_mounts(host: Host, mounts: list[Mount]) -> None:
    host.__class__ = Mounted
    assert isinstance(host, Mounted)
    host.shown = tuple(mounts)


def test_a_root_on_a_network_filesystem_is_a_gap_and_not_touched(root: Path) -> None:
    data_root(root, "var/lib/docker")
    host = dead(root)
    show_mounts(host, [mount(b"/var/lib/docker", b"nfs4")])
    found = find_roots(host)
    assert not found.roots
    assert [(gap.reason, gap.where) for gap in found.gaps] == [(Reason.NOT_CROSSED, b"/var/lib/docker")]
    assert probe(host).state is State.UNAVAILABLE


def test_a_mounted_overlay_tells_a_root_that_no_configuration_names(root: Path) -> None:
    data_root(root, "opt/hidden")
    host = dead(root)
    show_mounts(host, [mount(b"/opt/hidden/overlay2/" + b"a" * 64 + b"/merged", b"overlay")])
    assert paths(find_roots(host)) == [b"/opt/hidden"]


class LiveDisk:
    """A live host whose /proc is a directory of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.process(1, "init", ["init"])

    def process(self, pid: int, comm: str, arguments: list[str], namespace: str = "host") -> Path:
        path = self.proc / str(pid)
        (path / "ns").mkdir(parents=True)
        (path / "comm").write_text(comm + "\n")
        (path / "cmdline").write_bytes(b"\0".join(os.fsencode(word) for word in arguments) + b"\0")
        (path / "root").symlink_to("/")
        (path / "cwd").symlink_to("/srv")
        name = self.proc / f"namespace-{namespace}"
        name.touch()
        (path / "ns/mnt").symlink_to(name)
        (path / "mountinfo").write_text("")
        return path

    def host(self) -> Host:
        return Host(Mode.LIVE_ROOT, os.fsencode(self.root), os.fsencode(self.proc))


@pytest.mark.parametrize(
    "arguments", [["--data-root", "/srv/d"], ["--data-root=/srv/d"], ["-g", "/srv/d"], ["--data-root", "d"]]
)
def test_live_dockerd(root: Path, arguments: list[str]) -> None:
    data_root(root, "srv/d")
    machine = LiveDisk(root)
    machine.process(40, "dockerd", ["/usr/bin/dockerd", *arguments])
    machine.process(41, "not-dockerd", ["/usr/bin/x", "--data-root", "/etc"])
    found = find_roots(machine.host())
    assert paths(found) == [b"/srv/d"]
    assert found.roots[0].pids == [40]


def test_live_dockerd_with_a_config_file(root: Path) -> None:
    data_root(root, "srv/d")
    (root / "srv/c.json").write_text('{"data-root": "/srv/d"}')
    machine = LiveDisk(root)
    machine.process(40, "dockerd", ["dockerd", "--config-file", "/srv/c.json"])
    found = find_roots(machine.host())
    assert paths(found) == [b"/srv/d"]
    assert found.roots[0].pids == [40]
    assert found.roots[0].configs == [b"/srv/c.json"]


def test_a_daemon_in_another_mount_namespace_is_translated(root: Path) -> None:
    """It sees /disk as its root, in its own namespace only, and its data root is a link there."""
    there = data_root(root, "disk/docker")
    machine = LiveDisk(root)
    process = machine.process(40, "dockerd", ["dockerd", "--data-root", "/var/lib/docker"], "other")
    device = os.stat(there).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    process.joinpath("mountinfo").write_text(
        f"1 0 99:1 / / rw - ext4 /dev/y rw\n2 1 {number} /docker /docker rw - ext4 /dev/x rw\n"
    )
    process.joinpath("root").unlink()
    process.joinpath("root").symlink_to(root / "disk")
    (root / "disk/var/lib").mkdir(parents=True)
    (root / "disk/var/lib/docker").symlink_to("/docker")
    host = machine.host()
    show_mounts(host, [mount(b"/", b"ext4", 99), mount(b"/disk", b"ext4", device)])
    found = find_roots(host)
    assert paths(found) == [b"/disk/docker"]
    assert not found.gaps


def test_a_daemon_in_another_mount_namespace_that_cannot_be_reached_is_a_gap(root: Path) -> None:
    data_root(root, "var/lib/docker")
    machine = LiveDisk(root)
    machine.process(40, "dockerd", ["dockerd", "--data-root", "/inner/docker"], "other")
    found = find_roots(machine.host())
    assert paths(found) == [b"/var/lib/docker"]
    assert [(gap.reason, gap.where) for gap in found.gaps] == [(Reason.NOT_CROSSED, b"/inner/docker")]


def test_hostile_directories_in_place_of_configuration(root: Path) -> None:
    """Devices, FIFOs and loops where files should be: nothing hangs, nothing raises."""
    data_root(root, "var/lib/docker")
    os.mkfifo(root / "etc/docker/daemon.json")
    (root / "etc/default").symlink_to("default")
    (root / "etc/passwd").symlink_to("passwd")
    found = find_roots(dead(root))
    assert paths(found) == [b"/var/lib/docker"]
    assert b"/etc/docker/daemon.json" in [gap.where for gap in found.gaps]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_without_privilege_it_is_unavailable_not_absent(root: Path) -> None:
    Disk(root).container("web")
    (root / "var/lib/docker").chmod(0o710)
    for path in (*root.parents, root):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o5)
    host = dead(root)
    os.seteuid(65534)
    try:
        available = probe(host)
    finally:
        os.seteuid(0)
    assert available.state is State.UNAVAILABLE
    assert available.remedy == "run as root"
