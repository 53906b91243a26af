"""A real podman, everything that a filesystem can hold, and what the archives give back of it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Kind, Layers, Reason, Scope
from acquirers.containers.storage import Podman, container_names, known
from acquirers.host import Host, Mode
from tests.rigs.faithful import Node, age_access_times, differences, survey
from tests.rigs.podman import PrivatePodman, why_not
from tests.rigs.podman_scenes import Scene, build_scene
from tests.rigs.trees import Recorder
from tests.support.acquired import Acquired, of_root, take

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]

_MERGED = frozenset({b"merged"})
_STATES = {
    "rich": "running", "second": "running", "maker": "running", "member": "running",
    "ended": "exited", "never": "created", "inbare": "created",
}  # fmt: skip


def acquire(host: Host, root: Path | bytes, directory: Path, scope: Scope | None = None) -> Acquired:
    """Other podmans may run on the machine: only the items of this graph root are read."""
    return take(Podman(), host, directory, scope or Scope(), of_root(root))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with PrivatePodman() as podman:
        yield build_scene(podman)


@pytest.fixture(scope="module")
def before(scene: Scene) -> dict[bytes, Node]:
    """The disk as it was before anything was read, its access times so old that a read would move them."""
    disk = os.fsencode(scene.podman.disk)
    nodes = survey(disk, _MERGED)
    age_access_times(disk, nodes)
    return {path: replace(nodes[path], stat=node.stat) for path, node in survey(disk, _MERGED, deep=False).items()}


@pytest.fixture(scope="module")
def acquired(scene: Scene, before: dict[bytes, Node], tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    return acquire(Host(Mode.HOST), scene.podman.root, tmp_path_factory.mktemp("acquired"))


def test_nothing_of_it_changed(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    assert len(acquired.items) > 8
    after = survey(os.fsencode(scene.podman.disk), _MERGED, deep=False)
    assert after.keys() == before.keys()
    moved = {path: (node.times, after[path].times) for path, node in before.items() if node.times != after[path].times}
    assert not moved


def test_there_is_no_gap(acquired: Acquired) -> None:
    assert not acquired.gaps


def test_every_file_comes_back(scene: Scene, before: dict[bytes, Node], acquired: Acquired) -> None:
    disk, prefix = str(scene.podman.disk), b"var/lib/containers/storage/"
    copy = survey(os.fsencode(acquired.extracted(disk)))
    wanted = (b"overlay", b"overlay-containers", b"overlay-images", b"overlay-layers", b"volumes", b"libpod")
    left_out = {
        path
        for path, node in before.items()
        if path.endswith((b"/merged", b"backingFsBlockDev")) or node.kind == stat.S_IFSOCK or len(path) > 3500
    }
    source = {
        path: node
        for path, node in before.items()
        if (
            path.removeprefix(prefix).partition(b"/")[0] in wanted
            or path.startswith(b"run/containers/storage/overlay-")
        )
        and path not in left_out
    }
    assert sum(path.startswith(b"run/") for path in source) > 20
    found = differences(source, {path: node for path, node in copy.items() if path in source})
    # A directory whose members could not all be unpacked is that of the one path beyond PATH_MAX.
    found = [line for line in found if "d" * 200 not in line and "/deep'" not in line]
    # Only the whole list of a podman that does nothing can be compared: locks are touched by whoever asks it.
    assert not found


def test_what_there_is_to_be_seen(scene: Scene, before: dict[bytes, Node]) -> None:
    """The scene holds what this file is about: a test of the test."""
    whiteouts = [node for node in before.values() if node.kind == stat.S_IFCHR and node.stat.st_rdev == 0]
    assert len(whiteouts) >= 2
    xattrs = {name for node in before.values() for name in node.xattrs}
    assert {b"security.capability", b"trusted.overlay.opaque", b"trusted.mark", b"user.note"} <= xattrs
    assert any(node.kind == stat.S_IFREG and node.stat.st_nlink == 3 for node in before.values())


def test_memory_of_a_running_container_comes_along(scene: Scene, acquired: Acquired) -> None:
    """/dev/shm is a tmpfs that is mounted below the container's directory."""
    path = scene.podman.root / "overlay-containers" / scene.ids["rich"] / "userdata/shm/implant"
    assert acquired.members[os.fsencode(path)].size == 1400


def test_logs_and_small_files_come_along(scene: Scene, acquired: Acquired) -> None:
    rich = scene.ids["rich"]
    about = acquired.items[acquired.container(rich)].about
    logs = about["logs"]
    assert isinstance(logs, list)
    (log,) = logs
    assert log == os.fsencode(scene.podman.root / "overlay-containers" / rich / "userdata/ctr.log")
    with tarfile.open(acquired.path(acquired.container(rich))) as tar:
        file = tar.extractfile("[root]" + os.fsdecode(log))
        assert file is not None
        lines = file.read()
        names = {os.path.basename(name) for name in tar.getnames()}
    assert b"stdout F line one\n" in lines
    assert b"stderr F error\n" in lines
    assert {"config.json", "hosts", "hostname", "pidfile", "conmon.pid", ".containerenv"} <= names


def test_volumes_are_stored_once(scene: Scene, acquired: Acquired) -> None:
    note = [path for path, one in acquired.reports.items() for member in one.members if b"/volumes/shared/_data/one" in
            member.path or member.path.endswith(b"/volumes/shared/_data/srv/three")]  # fmt: skip
    assert len(note) == 1
    users = {acquired.container(scene.ids[name]) for name in ("rich", "second")}
    assert note[0] in users
    (other,) = users - set(note)
    shared = os.fsencode(scene.podman.root / "volumes/shared")
    assert [flag.kind for flag in acquired.reports[other].flags if flag.where == shared] == [FlagKind.ELSEWHERE]
    idle = os.fsencode(scene.podman.root / "volumes/idle/_data")
    assert idle in {member.path for member in acquired.reports["containers/podman/runtime.tar"].members}


def test_layers_are_stored_once_with_their_tar_split(scene: Scene, acquired: Acquired) -> None:
    assert len(acquired.layers()) == 2, "of the base, and of what was committed on top of it"
    for path in acquired.layers():
        about = acquired.items[path].about
        members = {member.path for member in acquired.reports[path].members}
        assert about["path"] in members
        assert any(name.endswith(str(about["layer"]).encode() + b".tar-split.gz") for name in members)
        assert str(about["diff_id"]).startswith("sha256:")
        assert acquired.items[path].estimate == about["size"]
    top, base = acquired.items[acquired.container(scene.ids["rich"])].about["rootfs"]["lowers"]  # type: ignore[index]
    chain = {one.about["path"]: one.about for path, one in acquired.items.items() if "/layers/" in path}
    assert chain[base]["chain_id"] == chain[base]["diff_id"]
    assert chain[top]["chain_id"] not in {"", chain[top]["diff_id"]}


def test_what_belongs_to_no_container(scene: Scene, acquired: Acquired) -> None:
    names = {member.path.removeprefix(os.fsencode(scene.podman.disk)) for member in
             acquired.reports["containers/podman/runtime.tar"].members}  # fmt: skip
    root = b"/var/lib/containers/storage/"
    assert {
        root + b"libpod/bolt_state.db", root + b"overlay-containers/containers.json",
        root + b"overlay-layers/layers.json", root + b"overlay-images/images.json",
        root + b"overlay-containers/containers.lock", root + b"overlay/.has-mount-program",
        b"/run/containers/storage/overlay-layers/mountpoints.json", b"/run/libpod/events/events.log",
    } <= names  # fmt: skip
    assert any(b"overlay-images/" in name and name.endswith(b"/manifest") for name in names)
    assert any(b"overlay-images/" in name and b"/=" in name for name in names)
    assert not any(name.endswith(b"/ctr.log") or b"/diff" in name for name in names)


def test_states_are_those_of_the_machine(scene: Scene, acquired: Acquired) -> None:
    scene.podman.podman("pause", "second")
    try:
        subjects = {one.id: one.state for one in Podman().probe(Host(Mode.HOST), Scope()).subjects}
    finally:
        scene.podman.podman("unpause", "second")
    states = {name: subjects[scene.ids[name]] for name in _STATES}
    assert states == _STATES | {"second": "paused"}


def test_what_it_says_is_what_podman_says(scene: Scene, acquired: Acquired) -> None:
    for name, container in scene.ids.items():
        about = acquired.items[acquired.container(container)].about
        truth = scene.podman.inspect(container)
        assert (about["id"], about["name"]) == (truth["Id"], name.encode())
        assert about["image"] == truth["ImageName"]
        assert about["image_id"] == truth["Image"]
        assert about["pod_id" if truth["Pod"] else "state"] == (truth["Pod"] or truth["State"]["Status"])
        assert (about["pid"] or 0) == truth["State"]["Pid"]
        assert (about["exit_code"] or 0) == truth["State"]["ExitCode"]
        assert about["hostname"] == truth["Config"]["Hostname"] or not about["hostname"]
        assert about["labels"] == len(truth["Config"]["Labels"] or {})
        rootfs = about["rootfs"]
        assert isinstance(rootfs, dict)
        assert rootfs["upper"] == truth["GraphDriver"]["Data"]["UpperDir"].encode()
        assert [path.decode() for path in rootfs["lowers"]] == truth["GraphDriver"]["Data"]["LowerDir"].split(":")
        assert (rootfs["driver"], rootfs["userxattr"]) == ("overlay", False)
        volumes = {mount["Name"].encode() for mount in truth["Mounts"] if mount["Type"] == "volume"}
        assert set(about["volumes"]) == volumes  # type: ignore[call-overload]
    assert "hunter2" not in repr(acquired.items), "the environment holds secrets"


@pytest.mark.parametrize("how", ["id", "prefix", "name", "pod", "pod id", "pod and name"])
def test_only_what_was_asked_for(scene: Scene, tmp_path: Path, how: str) -> None:
    names = (
        {"member", *(name for name in scene.ids if name.endswith("-infra"))} if how in {"pod", "pod id"} else {"member"}
    )
    selector = {
        "id": scene.ids["member"], "prefix": scene.ids["member"][:10], "name": "member", "pod": "crew",
        "pod id": scene.pods["crew"][:12], "pod and name": "crew/member",
    }[how]  # fmt: skip
    scope = Scope(containers=(selector,), layers=Layers.UPPER)
    assert Podman().probe(Host(Mode.HOST), scope).matched == {selector}
    found = acquire(Host(Mode.HOST), scene.podman.root, tmp_path, scope)
    wanted = {found.container(scene.ids[name]) for name in names}
    assert set(found.items) == wanted | {"containers/podman/runtime.tar"}
    assert not found.gaps


def test_names_for_other_acquirers(scene: Scene) -> None:
    names = container_names(Host(Mode.HOST))
    assert names[scene.ids["rich"]] == ("rich",)
    assert set(names[scene.ids["member"]]) == {"member", "crew", "crew/member"}
    told = {one.id: one for one in known(Host(Mode.HOST))}
    member = told[scene.ids["member"]]
    assert (member.runtime, member.pod, member.state, member.sandbox) == ("podman", "crew", "running", False)
    assert member.upper.endswith(b"/diff")
    assert [one.sandbox for one in told.values() if one.name.endswith("-infra")] == [True]


def contents(acquired: Acquired, root: bytes) -> dict[bytes, tuple[Kind, bytes | None, int]]:
    """Member below the graph root -> type, digest and mode, without what only a running machine has."""
    found = {}
    for path, member in acquired.members.items():
        inside = path.removeprefix(root)
        if inside != path and b"/userdata/shm" not in inside and b"/deep/" not in inside:
            found[inside] = (member.kind, member.sha256, member.stat.mode)
    assert len(found) > 200
    return found


def test_seen_from_a_privileged_pod(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    found = acquire(Host(Mode.LIVE_ROOT, b"/proc/self/root"), scene.podman.root, tmp_path)
    assert not found.gaps
    root = os.fsencode(scene.podman.root)
    assert found.items.keys() == acquired.items.keys()
    assert {path for path in contents(found, root) if b"/overlay/" in path} == {
        path for path in contents(acquired, root) if b"/overlay/" in path
    }


def test_locks_do_not_matter(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    """Somebody holds every lock that podman has: nothing waits, and nothing is taken."""
    script = (
        "import fcntl, glob, sys\n"
        "files = [open(path, 'r+b') for path in glob.glob(sys.argv[1] + '/**/*.lock', recursive=True)]\n"
        "files.append(open(sys.argv[1] + '/libpod/bolt_state.db', 'r+b'))\n"
        "for file in files:\n"
        "    fcntl.flock(file, fcntl.LOCK_EX)\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(len(files), flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(scene.podman.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert int(holder.stdout.readline()) >= 5
            found = acquire(Host(Mode.HOST), scene.podman.root, tmp_path, Scope(layers=Layers.UPPER))
        finally:
            holder.kill()
    assert not found.gaps
    root = os.fsencode(scene.podman.root)
    now = {path: one for path, one in contents(found, root).items() if path.startswith((b"/overlay/", b"/volumes/"))}
    assert len(now) > 100
    assert now.items() <= contents(acquired, root).items()


def test_a_container_that_is_removed_meanwhile(scene: Scene) -> None:
    container = scene.podman.create("short", "base:1", "true")
    podman, host = Podman(), Host(Mode.HOST)
    podman.probe(host, Scope(containers=("short",)))
    scene.podman.podman("rm", "short")
    (item,) = podman.items(host, Scope(containers=("short",)))
    report = Recorder()
    data = b"".join(bytes(chunk) for chunk in item.read(report))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert not tar.getnames()
    assert [gap.reason for gap in report.gaps] == [Reason.VANISHED]
    assert report.gaps[0].where.endswith(container.encode())


def test_a_layer_that_nobody_claims(scene: Scene, tmp_path: Path) -> None:
    """What is left when the record of a container is taken away behind podman's back, on a copy of the disk."""
    copy = copied(scene, tmp_path / "disk")
    (copy / "overlay-containers/containers.json").write_text("[]")
    shutil.rmtree(copy / "overlay-containers" / scene.ids["rich"])
    (copy / "libpod/bolt_state.db").unlink()
    found = acquire(Host(Mode.DEAD, os.fsencode(tmp_path / "disk")), b"/var/lib/containers/storage", tmp_path / "out")
    unclaimed = [one for path, one in found.items.items() if path.endswith("-unclaimed.tar")]
    assert len(unclaimed) == len(scene.ids), "each writable layer, and no layer of an image"
    uppers = {one.about["rootfs"]["upper"] for one in unclaimed}  # type: ignore[index]
    rich = scene.podman.inspect("rich")["GraphDriver"]["Data"]["UpperDir"].encode()
    assert rich.removeprefix(os.fsencode(scene.podman.disk)) in uppers
    assert len(found.layers()) == 2
    gone = [one.about["state"] for path, one in found.items.items() if path.endswith("-unnamed.tar")]
    assert gone == ["record is gone"] * (len(scene.ids) - 1)


def copied(scene: Scene, disk: Path) -> Path:
    """A copy of the graph root below another root. cp cannot copy what is too deep."""
    copy = disk / "var/lib/containers/storage"
    copy.parent.mkdir(parents=True)
    (disk / "etc").mkdir()
    command = ["cp", "--archive", "--one-file-system", "--sparse=always", str(scene.podman.root), str(copy)]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    # podman mounts this directory on itself, and cp calls that another filesystem.
    subprocess.run(
        [*command[:-2], str(scene.podman.root / "overlay"), str(copy)], check=False, stderr=subprocess.DEVNULL
    )
    return copy


def test_a_dead_machine_gives_the_same(scene: Scene, acquired: Acquired, tmp_path: Path) -> None:
    """The last test of this file: all processes are killed, and a reboot took the run root away."""
    scene.podman.reboot()
    root = os.fsencode(scene.podman.root)
    dead = acquire(Host(Mode.DEAD, os.fsencode(scene.podman.disk)), b"/var/lib/containers/storage", tmp_path)
    assert not dead.gaps
    for name, container in scene.ids.items():
        about = dead.items[dead.container(container)].about
        assert about["name"] == name.encode()
        assert about["pod_id"] == scene.pods["crew"] if name == "member" else True
    now, then = contents(dead, b"/var/lib/containers/storage"), contents(acquired, root)
    changed = {path for path in now.keys() | then.keys() if now.get(path) != then.get(path)}
    assert not {path for path in changed if b"/overlay/" in path or b"/volumes/" in path}
    told_anew = {b"bolt_state.db", b"containers.json", b"layers.json", b"containers.lock", b"layers.lock"}
    of_processes = {b"ctl", b"winsz", b"attach", b"shm", b"backingFsBlockDev"}
    assert {path.rpartition(b"/")[2] for path in changed} <= told_anew | of_processes
