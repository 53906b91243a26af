"""A real containerd, locked databases and all: what is taken of it, alive, killed, and as a mounted disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Reason, Scope
from acquirers.bolt import database, open_file, read
from acquirers.containers.containerd import Containerd, container_names
from acquirers.containers.containerd.metadata import read_metadata
from acquirers.host import Host, Mode
from tests.rigs.containerd import IMAGE, PrivateContainerd, why_not
from tests.rigs.faithful import Node, age_access_times, differences, survey
from tests.support.acquired import Acquired, take
from tests.support.runs import ENVIRONMENT, agent_command, keygen

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

POD = ("shop", "web-7d9f", "6f0a1c4e-5f3b-4a8e-9a41-2f5a3b1c0d9e")
SANDBOX = hashlib.sha256(b"sandbox").hexdigest()
WEB = hashlib.sha256(b"web").hexdigest()
_ROOTFS = frozenset({b"rootfs"})
_CHANGES = """
echo new > /new; echo changed > /etc/motd; rm /etc/shadow; rm -r /opt/old; mkdir /opt/old; echo x > /opt/old/y
ln /new /new-link; ln -s /etc/passwd /abs; mkfifo /fifo; mkdir -p /deep/a/b; echo secret > /deep/a/b/c; chmod 4755 /deep
"""


def acquire(host: Host, root: bytes, directory: Path, scope: Scope | None = None) -> Acquired:
    """Other daemons may run on the machine: only the items of this root are read."""
    return take(
        Containerd(),
        host,
        directory,
        scope or Scope(),
        lambda item: bool(item.about.get("root") == root or item.about.get("carved")),
    )


def build(rig: PrivateContainerd) -> None:
    """Running, exited, never started, deleted, deleted without its snapshot; a pod; the native snapshotter."""
    rig.import_image()
    rig.run("runs", _CHANGES)
    rig.run("exited", _CHANGES, wait=True)
    rig.create("never")
    rig.run("lost", "echo evidence > /evidence", wait=True)
    rig.delete("lost", keep_snapshot=True)
    rig.import_image(snapshotter="native")
    rig.run("copied", "echo copied > /copied", options=["--snapshotter", "native"], wait=True)
    rig.import_image("k8s.io")
    namespace, pod, uid = POD
    labels = [
        "--label", f"io.kubernetes.pod.name={pod}", "--label", f"io.kubernetes.pod.namespace={namespace}",
        "--label", f"io.kubernetes.pod.uid={uid}",
    ]  # fmt: skip
    rig.run(SANDBOX, ":", namespace="k8s.io", options=[*labels, "--label", "io.cri-containerd.kind=sandbox"])
    name = ["--label", "io.cri-containerd.kind=container", "--label", "io.kubernetes.container.name=app"]
    rig.run(WEB, _CHANGES, namespace="k8s.io", options=[*labels, *name])
    logs = rig.machine / f"var/log/pods/{namespace}_{pod}_{uid}/app"
    logs.mkdir(parents=True)
    (logs / "0.log").write_text("2026-01-02T03:04:05.678901234Z stdout F hello\n")
    (logs / "0.log.20260102-030405.gz").write_bytes(b"\x1f\x8b")
    pods = rig.machine / f"var/lib/kubelet/pods/{uid}"
    for path, content in {
        "etc-hosts": "127.0.0.1 localhost\n",
        "containers/app/0a1b2c3d": "terminated\n",
        "volumes/kubernetes.io~empty-dir/work/file": "on disk\n",
        "volumes/kubernetes.io~csi/pvc/mount/file": "a device of its own\n",
    }.items():
        (pods / path).parent.mkdir(parents=True, exist_ok=True)
        (pods / path).write_text(content)
    cri = rig.root / f"io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}"
    cri.mkdir(parents=True)
    (cri / "hosts").write_text("10.0.0.1 web\n")
    upper = rig.upper_of("runs")
    os.setxattr(upper / "new", "user.note", b"\x00\xff")
    with (upper / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    os.mknod(upper / "device", 0o600 | 0o020000, os.makedev(1, 3))
    rig.run("deleted-for-good", "true", wait=True)
    rig.delete("deleted-for-good")
    rig.settle()
    # The garbage collector would take it, too.
    (rig.snapshots() / "new-123").mkdir()
    (rig.snapshots() / "new-123/half").write_text("half made\n")


def places(rig: PrivateContainerd) -> tuple[bytes, ...]:
    return os.fsencode(rig.root), os.fsencode(rig.state), os.fsencode(rig.machine / "var/log")


@dataclass
class Scene:
    rig: PrivateContainerd
    before: dict[bytes, dict[bytes, Node]]
    """Of root, state and logs, before anything was read: access times so old that any read would move them."""
    digests: dict[Path, str]


def database_digests(rig: PrivateContainerd) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in rig.root.rglob("*.db")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with PrivateContainerd(tmp_path_factory.mktemp("containerd") / "rig") as rig:
        build(rig)
        digests = database_digests(rig)
        before = {}
        for place in places(rig):
            nodes = survey(place, _ROOTFS)
            # What is mounted there is a layer, which has its turn in its own place.
            age_access_times(place, {path: node for path, node in nodes.items() if not path.endswith(b"/rootfs")})
            aged = survey(place, _ROOTFS, deep=False)
            before[place] = {path: replace(nodes[path], stat=node.stat) for path, node in aged.items()}
        yield Scene(rig, before, digests)


@pytest.fixture(scope="module")
def live(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    """Found by the arguments of the running daemon."""
    return acquire(Host(Mode.HOST), os.fsencode(scene.rig.root), tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def dead(scene: Scene, live: Acquired, tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    """Its tree as that of a mounted disk, where everything lies in its usual place."""
    host = Host(Mode.DEAD, os.fsencode(scene.rig.machine))
    return acquire(host, b"/var/lib/containerd", tmp_path_factory.mktemp("dead"))


def test_the_databases_are_locked_and_are_read(scene: Scene) -> None:
    """Nobody who asks for a lock would get an answer here."""
    path = scene.rig.root / "io.containerd.metadata.v1.bolt/meta.db"
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with open_file(Host(Mode.HOST), os.fsencode(path)) as source:
        reading = read(source, read_metadata)
    assert not reading.complaints
    told = {
        (namespace, container)
        for namespace in ("default", "k8s.io")
        for container in scene.rig.ctr("-n", namespace, "containers", "ls", "-q").split()
    }
    assert {(record.namespace, record.id) for record in reading.value.containers} == told
    records = {record.id: record for record in reading.value.containers}
    assert records["runs"].image == "docker.io/library/base:1"
    told_of = json.loads(scene.rig.ctr("containers", "info", "runs"))
    assert records["runs"].created.rstrip("0Z") == told_of["CreatedAt"].rstrip("0Z")
    assert records["runs"].snapshot_key == told_of["SnapshotKey"].encode()


def test_nothing_of_it_changed(scene: Scene, live: Acquired, dead: Acquired) -> None:
    assert live.items
    assert dead.items
    for place, before in scene.before.items():
        after = survey(place, _ROOTFS, deep=False)
        assert after.keys() == before.keys()
        moved = {
            path: (node.times, after[path].times) for path, node in before.items() if node.times != after[path].times
        }
        assert not moved
    assert database_digests(scene.rig) == scene.digests


@pytest.mark.parametrize("how", ["live", "dead"])
def test_there_is_no_gap(how: str, request: pytest.FixtureRequest) -> None:
    acquired: Acquired = request.getfixturevalue(how)
    assert not acquired.gaps


@pytest.mark.parametrize("how", ["live", "dead"])
def test_every_file_of_every_snapshot_comes_back(scene: Scene, how: str, request: pytest.FixtureRequest) -> None:
    acquired: Acquired = request.getfixturevalue(how)
    tree = acquired.extracted()
    base = tree / str(scene.rig.root).lstrip("/") if how == "live" else tree / "var/lib/containerd"
    source, copy = scene.before[os.fsencode(scene.rig.root)], survey(os.fsencode(base))
    for name in (b"overlayfs", b"native"):
        prefix = b"io.containerd.snapshotter.v1." + name + b"/"
        parts = [{path: node for path, node in one.items() if path.startswith(prefix)} for one in (source, copy)]
        assert len(parts[0]) > 20
        assert differences(*parts) == []
    meta = b"io.containerd.metadata.v1.bolt/meta.db"
    assert copy[meta].digest == source[meta].digest


def test_each_container_and_what_is_said_of_it(scene: Scene, live: Acquired, dead: Acquired) -> None:
    ids = {str(item.about["id"]) for item in live.items.values() if "id" in item.about}
    assert ids == {"runs", "exited", "never", "copied", SANDBOX, WEB}
    states = {one: live.items[live.container(one)].about["state"] for one in sorted(ids)}
    assert states == {
        "runs": "running", SANDBOX: "running", WEB: "running",
        "exited": "not running", "never": "not running", "copied": "not running",
    }  # fmt: skip
    for container, namespace in (("runs", "default"), ("exited", "default"), (WEB, "k8s.io")):
        upper = scene.rig.upper_of(container, namespace)
        rootfs = live.items[live.container(container)].about["rootfs"]
        assert isinstance(rootfs, dict)
        assert rootfs["upper"] == os.fsencode(upper)
        lowers = scene.rig.ctr("-n", namespace, "snapshots", "mounts", "/nowhere", container)
        assert b":".join(rootfs["lowers"]).decode() in lowers
        assert len(rootfs["lowers"]) == 2
        relative = os.fsencode(upper).removeprefix(os.fsencode(scene.rig.machine))
        dead_rootfs = dead.items[dead.container(container)].about["rootfs"]
        assert isinstance(dead_rootfs, dict)
        assert dead_rootfs["upper"] == relative
    copied = live.items[live.container("copied")].about["rootfs"]
    assert isinstance(copied, dict)
    assert copied["lowers"] == []
    assert (Path(os.fsdecode(copied["upper"])) / "copied").read_text() == "copied\n"
    layers = {item.about["path"] for item in live.items.values() if "path" in item.about}
    runs = live.items[live.container("runs")].about["rootfs"]
    assert isinstance(runs, dict)
    assert set(runs["lowers"]) <= layers
    assert live.items[live.container("runs")].about["pid"] == scene.rig.pid_of("runs")
    assert "TOKEN" not in repr([dict(item.about) for item in live.items.values()]), "the environment holds secrets"


def test_a_pod_from_its_disk(scene: Scene, dead: Acquired) -> None:
    web, sandbox = (dead.items[dead.container(one)] for one in (WEB, SANDBOX))
    namespace, pod, uid = POD
    assert (web.about["pod"], web.about["namespace"], web.about["pod_uid"]) == (pod, namespace, uid)
    assert (sandbox.about["kind"], web.about["kind"]) == ("sandbox", "container")
    assert web.path == f"containers/containerd/{WEB[:12]}-app.tar"
    logs = f"/var/log/pods/{namespace}_{pod}_{uid}/app".encode()
    assert web.about["logs"] == [logs + b"/0.log", logs + b"/0.log.20260102-030405.gz"]
    names = {member.path for member in dead.reports[web.path].members}
    assert {logs + b"/0.log", logs + b"/0.log.20260102-030405.gz"} <= names
    pods = b"/var/lib/kubelet/pods/" + uid.encode()
    members = dead.members
    assert pods + b"/containers/app/0a1b2c3d" in members
    assert pods + b"/volumes/kubernetes.io~empty-dir/work/file" in members
    assert pods + b"/volumes/kubernetes.io~csi/pvc/mount/file" not in members
    hosts = b"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/" + SANDBOX.encode() + b"/hosts"
    assert hosts in {member.path for member in dead.reports[sandbox.path].members}


def test_what_no_container_claims(scene: Scene, live: Acquired) -> None:
    unclaimed = {item.path: item for item in live.items.values() if "unclaimed" in item.about}
    keys = {
        item.about["key"].rpartition(b"/")[2] for item in unclaimed.values() if isinstance(item.about["key"], bytes)
    }
    assert keys == {b"lost", b""}
    evidence = [member for path, member in live.members.items() if path.endswith(b"/fs/evidence")]
    assert [member.sha256 for member in evidence] == [hashlib.sha256(b"evidence\n").digest()]
    for path in unclaimed:
        assert [flag.kind for flag in live.reports[path].flags] == [FlagKind.FINDING]


def test_a_deleted_container_is_carved(live: Acquired) -> None:
    lines = (live.directory / "containers/containerd/carved.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert any(record["key"] == "deleted-for-good" for record in records)
    assert all({"database", "page", "key", "value", "whole", "previous"} <= record.keys() for record in records)


def test_the_runtimes_own_files(scene: Scene, dead: Acquired) -> None:
    members = {member.path for member in dead.reports["containers/containerd/runtime.tar"].members}
    root = b"/var/lib/containerd/"
    assert root + b"io.containerd.metadata.v1.bolt/meta.db" in members
    for name in (b"overlayfs", b"native"):
        assert root + b"io.containerd.snapshotter.v1." + name + b"/metadata.db" in members
    assert b"/etc/containerd/config.toml" in members
    blobs = scene.rig.root / "io.containerd.content.v1.content/blobs/sha256"
    small = {os.fsencode(path.name) for path in blobs.iterdir() if path.stat().st_size < 100_000}
    assert small == {os.path.basename(path) for path in members if b"/blobs/sha256/" in path}


@pytest.mark.parametrize(
    ("selector", "ids"),
    [
        ("runs", {"runs"}),
        (WEB[:12], {WEB}),
        ("app", {WEB}),
        ("web-7d9f", {WEB, SANDBOX}),
        ("shop/web-7d9f", {WEB, SANDBOX}),
        ("shop/web-7d9f/app", {WEB}),
    ],
)
def test_one_container(scene: Scene, selector: str, ids: set[str], tmp_path: Path) -> None:
    host, scope = Host(Mode.DEAD, os.fsencode(scene.rig.machine)), Scope(containers=(selector,))
    available = Containerd().probe(host, scope)
    assert available.matched == {selector}
    assert {one.id for one in available.subjects if one.kind == "container" and one.selected} == ids
    items = list(Containerd().items(host, scope))
    assert {item.about["id"] for item in items if "id" in item.about} == ids
    assert not any("unclaimed" in item.about or item.about.get("carved") for item in items)
    assert sum("path" in item.about for item in items) == 2


def test_a_container_whose_id_is_a_name_is_found_where_it_runs(scene: Scene, tmp_path: Path) -> None:
    """Nothing in its control group or its mounts looks like an id."""
    _, recipient = keygen(tmp_path)
    asked = ["acquire", "--case", "C", "--to", str(tmp_path / "ev"), "-r", recipient, "--container", "runs"]
    asked += ["--only", "live.files", "--only", "memory.process"]
    done = subprocess.run([*agent_command(), *asked], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["verdict"] == "complete", done.stderr
    items = {json.loads(line).get("item", "") for line in done.stderr.splitlines() if line.startswith("{")}
    pid = scene.rig.pid_of("runs")
    assert {"live/runs-sleep.tar", f"memory/process/{pid}-sleep.core"} <= items


def test_names_for_others(scene: Scene) -> None:
    names = container_names(Host(Mode.DEAD, os.fsencode(scene.rig.machine)))
    assert set(names[WEB]) == {"app", "web-7d9f", "shop/web-7d9f", "shop/web-7d9f/app"}


_HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from acquirers.base import Scope
from acquirers.containers.containerd import Containerd
from acquirers.host import Host, Mode
class Nobody:
    def member(self, _): pass
    gap = flag = member
for item in Containerd().items(Host(Mode.DEAD, os.fsencode(sys.argv[2])), Scope()):
    for _ in item.read(Nobody()):
        for line in open("/proc/locks"):
            assert line.split()[4] != str(os.getpid()), line
"""


def test_no_lock_is_ever_held(scene: Scene) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLDER, str(Path(__file__).parents[2]), str(scene.rig.machine)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("small", [database.SMALL, 0], ids=["copied", "page by page"])
def test_reading_while_the_daemon_writes(
    scene: Scene, live: Acquired, dead: Acquired, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is called consistent is: no page is damaged, and nothing that nobody touches is missing."""
    monkeypatch.setattr(database, "SMALL", small)
    path = os.fsencode(scene.rig.root / "io.containerd.metadata.v1.bolt/meta.db")
    ended = threading.Event()

    def write() -> None:
        for number in range(12):
            scene.rig.ctr("containers", "label", "never", f"number={number}")
            scene.rig.ctr("containers", "create", IMAGE, "passing", "/bin/true")
            scene.rig.ctr("containers", "delete", "passing")
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    kept = {"runs", "exited", "never", "copied", SANDBOX, WEB}
    txids = set()
    with open_file(Host(Mode.HOST), path) as source:
        while not ended.is_set():
            reading = read(source, read_metadata)
            txids.add(reading.database.txid)
            if not reading.changed:
                assert not reading.database.faults
                assert {record.id for record in reading.value.containers} - {"passing"} == kept
    writer.join(timeout=60)
    assert len(txids) > 5


def test_after_the_daemon_was_killed(scene: Scene, live: Acquired, dead: Acquired, tmp_path: Path) -> None:
    """The last of this file: the daemon does not come back. Containers go on, and are found by what is mounted."""
    scene.rig.kill_daemon()
    again = acquire(Host(Mode.HOST), os.fsencode(scene.rig.root), tmp_path)
    assert not again.gaps
    # Snapshots of what came and went meanwhile are claimed by nobody any more.
    assert {item.about.get("id") or item.about.get("path") for item in again.items.values()} == {
        item.about.get("id") or item.about.get("path") for item in live.items.values()
    }
    assert again.items[again.container("runs")].about["state"] == "running"
    assert again.items[again.container("runs")].about["rootfs"] == live.items[live.container("runs")].about["rootfs"]
    # And without the records: what runs is found by what is mounted, all else is claimed by nobody.
    os.rename(scene.rig.root / "io.containerd.metadata.v1.bolt/meta.db", tmp_path / "gone")
    hidden = acquire(Host(Mode.HOST), os.fsencode(scene.rig.root), tmp_path / "hidden")
    assert {str(item.about["id"]) for item in hidden.items.values() if "id" in item.about} == {"runs", SANDBOX, WEB}
    runs = hidden.items[hidden.container("runs")]
    assert runs.about["rootfs"] == live.items[live.container("runs")].about["rootfs"]
    assert FlagKind.FINDING in {flag.kind for flag in hidden.reports[runs.path].flags}
    assert [gap.reason for gap in hidden.gaps] == [Reason.MALFORMED]
    assert any(path.endswith(b"/fs/evidence") for path in hidden.members)
