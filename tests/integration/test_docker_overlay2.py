"""A real dockerd, everything that a filesystem can hold, and what the archives give back of it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from acquirers import syscalls
from acquirers.base import FlagKind, Kind, Reason, Scope
from acquirers.containers.docker import Docker
from acquirers.host import Host, Mode
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import SPARSE_SIZE, Scene, build_everything
from tests.rigs.faithful import Node, age_access_times, differences, survey
from tests.rigs.trees import Recorder
from tests.support.acquired import Acquired, of_root, take

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

_MERGED = frozenset({b"merged"})


def acquire(host: Host, data_root: Path | bytes, directory: Path, scope: Scope | None = None) -> Acquired:
    """Other daemons may run on the machine: only the items of this data root are read."""
    return take(Docker(), host, directory, scope or Scope(), of_root(data_root))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with PrivateDocker(tmp_path_factory.mktemp("docker") / "rig") as docker:
        yield build_everything(docker)


@pytest.fixture(scope="module")
def before(scene: Scene) -> dict[bytes, Node]:
    """The data root as it was before anything was read, its access times so old that a read would move them."""
    data = os.fsencode(scene.docker.data)
    nodes = survey(data, _MERGED)
    age_access_times(data, nodes)
    return {path: replace(nodes[path], stat=node.stat) for path, node in survey(data, _MERGED, deep=False).items()}


@pytest.fixture(scope="module")
def acquired(scene: Scene, before: dict[bytes, Node], tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    return acquire(Host(Mode.HOST), scene.docker.data, tmp_path_factory.mktemp("acquired"))


def below(nodes: dict[bytes, Node], *prefixes: bytes) -> dict[bytes, Node]:
    return {
        path: node
        for path, node in nodes.items()
        if any(path == prefix or path.startswith(prefix + b"/") for prefix in prefixes)
    }


def test_nothing_of_it_changed(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    assert acquired.items
    after = survey(os.fsencode(scene.docker.data), _MERGED, deep=False)
    assert after.keys() == before.keys()
    moved = {path: (node.times, after[path].times) for path, node in before.items() if node.times != after[path].times}
    assert not moved


def test_there_is_no_gap(acquired: Acquired) -> None:
    assert not acquired.gaps


def test_every_file_comes_back(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    copy = survey(os.fsencode(acquired.extracted(str(scene.docker.data))))
    source = below(before, b"containers", b"overlay2", b"image", b"volumes", b"network")
    left_out = {
        path
        for path, node in source.items()
        if path.endswith(b"/merged")
        or node.kind == stat.S_IFSOCK
        or len(path) > 3500
        or path == b"volumes/backingFsBlockDev"
    }
    found = differences(
        {path: node for path, node in source.items() if path not in left_out},
        {path: node for path, node in copy.items() if path in source and path not in left_out},
    )
    # A directory whose members could not all be unpacked is that of the one path beyond PATH_MAX.
    assert not [line for line in found if "d" * 200 not in line and "/deep'" not in line]
    assert sum(path.endswith(b"/socket") for path in left_out) == 2


def test_what_no_tar_can_hold_is_recorded(scene: Scene, acquired: Acquired) -> None:
    members = acquired.members
    sockets = [member for path, member in members.items() if path.endswith(b"/socket")]
    assert {(member.kind, member.offset) for member in sockets} == {(Kind.SOCKET, None)}
    bottom = [member for path, member in members.items() if path.endswith(b"/bottom")]
    assert len(bottom) == 2, "deeper than any path may be, in the layer and in the volume"
    assert all(member.size == 5 and member.offset is not None for member in bottom)


def test_what_there_is_to_be_seen(scene: Scene, before: dict[bytes, Node]) -> None:
    """The scene holds what this file is about: a test of the test."""
    kinds = {stat.S_IFMT(node.stat.st_mode) for node in before.values()}
    assert kinds == {
        stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK,
    }  # fmt: skip
    whiteouts = [node for node in before.values() if node.kind == stat.S_IFCHR and node.stat.st_rdev == 0]
    assert len(whiteouts) >= 2
    xattrs = {name for node in before.values() for name in node.xattrs}
    assert {b"security.capability", b"trusted.overlay.opaque", b"trusted.mark", b"user.note"} <= xattrs
    assert any(node.stat.st_size == SPARSE_SIZE and node.stored < 1 << 20 for node in before.values())
    assert any(node.stat.st_mtime_ns < 0 for node in before.values())


def test_all_four_times_stand_in_the_archive(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    prefix = "[root]" + str(scene.docker.data) + "/"
    count = 0
    with tarfile.open(acquired.path(acquired.container(scene.ids["rich"]))) as tar:
        for member in tar:
            if not member.name.startswith(prefix):
                continue
            node = before.get(os.fsencode(member.name.removeprefix(prefix)))
            if node is None or "/dev/shm" in member.name or member.name.endswith("/merged"):
                continue  # it is read beneath what is mounted there
            for name, value in zip(("atime", "mtime", "ctime"), node.times, strict=True):
                assert _nanoseconds(member.pax_headers[name]) == value, (member.name, name)
            path = os.path.join(os.fsencode(scene.docker.data), os.fsencode(member.name.removeprefix(prefix)))
            if len(path) < 4000:
                assert (
                    _nanoseconds(member.pax_headers["LIBARCHIVE.creationtime"]) == syscalls.statx(-100, path).btime_ns
                )
            count += 1
    assert count > 100


def _nanoseconds(text: str) -> int:
    """Decimal text of an exact time."""
    sign = -1 if text.startswith("-") else 1
    whole, _, fraction = text.lstrip("-").partition(".")
    return sign * (int(whole) * 10**9 + int(fraction.ljust(9, "0")))


def test_what_lies_beneath_a_mount_is_taken(scene: Scene, acquired: Acquired) -> None:
    """And nothing of what is mounted, which is the same files once more."""
    below = [path for path in acquired.members if b"/merged/" in path]
    assert not below
    merged = [member for path, member in acquired.members.items() if path.endswith(b"/merged")]
    assert len(merged) >= 2
    assert {member.kind for member in merged} == {Kind.DIRECTORY}
    devices = {member.stat.dev for path, member in acquired.members.items() if path.endswith(b"/diff")}
    assert {member.stat.dev for member in merged} <= devices, "an overlay has a device of its own"


def test_logs_lie_there_as_they_lay(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    logs = {os.path.basename(path) for path in acquired.members if b"log" in os.path.basename(path)}
    rich = scene.ids["rich"].encode()
    assert {rich + b"-json.log", rich + b"-json.log.1.gz", rich + b"-json.log.3.gz"} <= logs
    assert {b"container.log", b"container.log.1.gz", b"container-cached.log"} <= logs
    item = acquired.path(acquired.container(scene.ids["rich"]))
    with tarfile.open(item) as tar:
        name = f"[root]{scene.docker.data}/containers/{scene.ids['rich']}/{scene.ids['rich']}-json.log"
        file = tar.extractfile(name)
        assert file is not None
        assert b"line 399 of a log that is rotated" in file.read()


def test_memory_of_a_running_container_comes_along(scene: Scene, acquired: Acquired) -> None:
    """/dev/shm is a tmpfs that is mounted below the container's directory."""
    path = scene.docker.data / "containers" / scene.ids["rich"] / "mounts/shm/implant"
    assert acquired.members[os.fsencode(path)].size == 1400


def test_volumes_are_stored_once(scene: Scene, acquired: Acquired) -> None:
    note = [
        path for path, one in acquired.reports.items() for member in one.members if member.path.endswith(b"_data/note")
    ]
    assert len(note) == 1
    users = {acquired.container(scene.ids[name]) for name in ("rich", "second")}
    assert note[0] in users
    (other,) = users - set(note)
    shared = os.fsencode(scene.docker.data / "volumes/shared")
    assert [flag.kind for flag in acquired.reports[other].flags if flag.where == shared] == [FlagKind.ELSEWHERE]


def test_layers_are_stored_once(scene: Scene, acquired: Acquired) -> None:
    layers = [path for path in acquired.items if "/layers/" in path]
    assert len(layers) == 10, "one of the base and nine on top of it, for five containers"
    rich = acquired.items[acquired.container(scene.ids["rich"])]
    assert isinstance(rich.about["layers"], list)
    assert len(rich.about["layers"]) == 10
    for path in layers:
        assert acquired.items[path].estimate is not None


def test_states_are_those_of_the_machine(scene: Scene) -> None:
    scene.docker.pause("second")
    try:
        subjects = {one.id: one.state for one in Docker().probe(Host(Mode.HOST), Scope()).subjects}
    finally:
        scene.docker.unpause("second")
    states = {name: subjects[container] for name, container in scene.ids.items()}
    assert states == {
        "rich": "running", "second": "paused", "local-log": "running", "remote-log": "running",
        "ended": "exited", "never": "created",
    }  # fmt: skip


def test_what_it_says_is_what_docker_says(scene: Scene, acquired: Acquired) -> None:
    for name, container in scene.ids.items():
        about = acquired.items[acquired.container(container)].about
        truth = scene.docker.inspect(name)
        assert about["id"] == truth["Id"]
        assert about["name"] == name.encode()
        assert about["image"] == truth["Config"]["Image"]
        assert about["image_id"] == truth["Image"]
        assert about["created"] == truth["Created"]
        assert about["exit_code"] == truth["State"]["ExitCode"]
        assert about["driver"] == truth["GraphDriver"]["Name"]
        upper = truth["GraphDriver"]["Data"]["UpperDir"]
        assert upper == f"{scene.docker.data}/overlay2/{about['mount_id']}/diff"
        lower = truth["GraphDriver"]["Data"]["LowerDir"].split(":")[1:]  # the first is the init layer
        assert about["layers"] == [path.split("/")[-2] for path in lower]
        assert {mount["destination"] for mount in about["mounts"]} == {  # type: ignore[attr-defined]
            mount["Destination"].encode() for mount in truth["Mounts"]
        }


def test_a_mounted_disk_gives_the_same(
    scene: Scene, before: dict[bytes, Node], acquired: Acquired, tmp_path: Path
) -> None:
    """A copy of the data root below another directory, with nothing of it running. cp cannot copy what is too deep."""
    (tmp_path / "disk/etc").mkdir(parents=True)
    (tmp_path / "disk/var/lib").mkdir(parents=True)
    copy = tmp_path / "disk/var/lib/docker"
    subprocess.run(
        ["cp", "--archive", "--one-file-system", "--sparse=always", str(scene.docker.data), str(copy)],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    dead = acquire(Host(Mode.DEAD, os.fsencode(tmp_path / "disk")), b"/var/lib/docker", tmp_path / "out")
    assert not dead.gaps
    assert contents(dead, b"/var/lib/docker") == contents(acquired, os.fsencode(scene.docker.data))
    shutil.rmtree(tmp_path)


def contents(acquired: Acquired, data_root: bytes) -> dict[bytes, tuple[Kind, bytes | None, int]]:
    """Member -> type, digest and mode, without what only a running machine has."""
    found = {}
    for path, member in acquired.members.items():
        inside = path.removeprefix(data_root)
        if inside != path and b"/mounts/shm/" not in inside and b"/deep/" not in inside and path[-7:] != b"/merged":
            found[inside] = (member.kind, member.sha256, member.stat.mode)
    assert len(found) > 300
    return found


def test_an_old_kernel_gives_the_same(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    """Without clones of mounts (before Linux 5.12, or without CAP_SYS_ADMIN) it is read in place."""
    with mock.patch.object(syscalls, "open_tree_clone", side_effect=OSError(38, "Function not implemented")):
        found = acquire(Host(Mode.HOST), scene.docker.data, tmp_path)
    assert not found.gaps
    root = os.fsencode(scene.docker.data)
    assert contents(found, root) == contents(acquired, root)
    assert FlagKind.NO_CLONE in {flag.kind for report in found.reports.values() for flag in report.flags}


def test_seen_from_a_privileged_pod(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    """The host's root has another path. Not by a bind mount: pytest later removes all that lies below its own."""
    found = acquire(Host(Mode.LIVE_ROOT, b"/proc/self/root"), scene.docker.data, tmp_path)
    assert not found.gaps
    data = os.fsencode(scene.docker.data)
    assert contents(found, data) == contents(acquired, data)


def test_only_what_was_asked_for(scene: Scene, tmp_path: Path) -> None:
    scope = Scope(containers=("ended",))
    found = acquire(Host(Mode.HOST), scene.docker.data, tmp_path, scope)
    assert [path for path in found.items if "/layers/" not in path] == [
        path for path in found.items if "runtime" in path
    ] + [found.container(scene.ids["ended"])]
    assert len([path for path in found.items if "/layers/" in path]) == 10
    assert not found.gaps


def test_a_container_that_is_removed_meanwhile(scene: Scene) -> None:
    container = scene.docker.docker("create", "--network", "none", "--name", "short", "base:1", "true")
    docker, host = Docker(), Host(Mode.HOST)
    docker.probe(host, Scope(containers=("short",)))
    scene.docker.rm("short")
    (item,) = docker.items(host, Scope(containers=("short",)))
    report = Recorder()
    data = b"".join(bytes(chunk) for chunk in item.read(report))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert not tar.getnames()
    assert [gap.reason for gap in report.gaps] == [Reason.VANISHED]
    assert report.gaps[0].where.endswith(container.encode())


def test_the_daemon_is_not_needed(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    """The last test of this file: nobody is there to be asked any more, and the containers run on."""
    scene.docker.kill_daemon()
    host = Host(Mode.HOST)
    found = acquire(host, scene.docker.data, tmp_path)
    assert not found.gaps
    root = os.fsencode(scene.docker.data)
    assert contents(found, root) == contents(acquired, root)
