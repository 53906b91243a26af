"""`live.files` on real containers: what comes out is what is seen in them, from the host and from inside."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acquirers.base import Item, Scope, State
from acquirers.host import Host, Mode
from acquirers.live import LiveFiles
from acquirers.memory.freezer import Freezer
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.faithful import Node, age_access_times, differences, survey
from tests.rigs.trees import REPOSITORY, Recorder
from tests.unit.live.helpers import Read, read

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

VIEWS = frozenset({b"proc", b"sys", b"pts", b"mqueue"})
"""Directories of the kernel, and nothing that anybody stored."""

FILL = r"""
set -e
echo volume > /data/file; ln /data/file /data/hard
echo scratch > /scratch/file
mkdir /dev/shm/deep; echo shared > /dev/shm/deep/file
ln -s /etc/shadow /opt/absolute; ln -s ../../../../etc/passwd /opt/upwards; ln -s loop /opt/loop
printf x > "/opt/a
line"; mkfifo /opt/fifo; mknod /opt/device c 1 3
dd if=/dev/zero of=/opt/sparse bs=1 count=1 seek=20000000 2>/dev/null
rm /etc/motd; echo changed > /opt/config/app.conf; chmod 4755 /opt/config/app.conf
"""
HOLD = "echo removed > /tmp/gone; exec 3< /tmp/gone; rm /tmp/gone; exec sleep 1000"


@dataclass
class Scene:
    docker: PrivateDocker
    ids: dict[str, str]

    def names(self, _: Host) -> dict[str, tuple[str, ...]]:
        return {container: (f"/{name}",) for name, container in self.ids.items()}

    def items(self, *selected: str) -> list[Read]:
        live = LiveFiles(names=self.names)
        wanted = selected or tuple(self.ids)
        return [read(item) for item in live.items(Host(Mode.HOST), Scope(containers=wanted))]

    def item(self, name: str) -> Read:
        (found,) = self.items(name)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with PrivateDocker(tmp_path_factory.mktemp("docker") / "rig") as docker:
        docker.import_base()
        shared = ["--volume", "shared:/data"]
        ids = {
            "web": docker.run("web", "base:1", "sh", "-c", HOLD, options=[*shared, "--tmpfs", "/scratch"]),
            "closed": docker.run("closed", "base:1", "sleep", "1000", options=[*shared, "--read-only"]),
            "nosy": docker.run(
                "nosy", "base:1", "sleep", "1000",
                options=["--volume", "/:/host", "--volume", f"{docker.data}:/docker"],
            ),
            "ended": docker.run("ended", "base:1", "true"),
        }  # fmt: skip
        docker.exec("web", "sh", "-c", FILL)
        docker.wait("ended")
        yield Scene(docker, ids)


def seen(scene: Scene, name: str, *, deep: bool = True) -> dict[bytes, Node]:
    return survey(os.fsencode(scene.docker.root_of(name)) + b"/.", VIEWS, deep=deep)


def unpacked(found: Read, directory: Path) -> dict[bytes, Node]:
    """What GNU tar makes of it."""
    directory.mkdir()
    archive = directory / "archive.tar"
    archive.write_bytes(found.data)
    how = "--numeric-owner --same-permissions --delay-directory-restore --xattrs --xattrs-include=*".split()
    quiet = "--warning=no-unknown-keyword --warning=no-timestamp".split()
    subprocess.run(["tar", *how, *quiet, "-C", directory, "-xf", archive], check=True, capture_output=True)
    return survey(os.fsencode(directory / "[root]"))


def test_it_is_what_is_seen_in_there_and_nothing_moved(scene: Scene, tmp_path: Path) -> None:
    root = os.fsencode(scene.docker.root_of("web")) + b"/."
    ordinary = {
        path: node
        for path, node in seen(scene, "web", deep=False).items()
        if not path.startswith((b"proc", b"sys", b"dev"))
    }
    age_access_times(root, ordinary)
    inside = scene.docker.exec("web", "cat", "/proc/self/mountinfo")
    machine = Path("/proc/self/mountinfo").read_text()
    before = seen(scene, "web", deep=False)
    found = scene.item("web")
    after = seen(scene, "web", deep=False)
    assert {path: node.times for path, node in after.items()} == {path: node.times for path, node in before.items()}
    assert scene.docker.exec("web", "cat", "/proc/self/mountinfo") == inside
    mine = str(scene.docker.directory)
    assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mine in line] == [
        line for line in machine.splitlines() if mine in line
    ]
    assert found.gaps == []
    views = (b"proc/", b"sys/")  # what the runtime has mounted over parts of them is in the copy
    copy = {path: node for path, node in unpacked(found, tmp_path / "out").items() if not path.startswith(views)}
    source = seen(scene, "web")
    assert differences(source, copy) == []
    assert {b"data/hard", b"scratch/file", b"dev/shm/deep/file", b"etc/hosts", b"opt/a\nline"} <= copy.keys()
    assert copy[b"opt/absolute"].target == b"/etc/shadow"


def test_its_names_are_those_that_the_container_lists(scene: Scene) -> None:
    prune = "find . \\( -path ./proc -o -path ./sys -o -path ./dev/pts -o -path ./dev/mqueue \\) -prune -o -print0"
    listed = scene.docker.exec("web", "sh", "-c", f"cd /; {prune}")
    names = {name.removeprefix(".") or "/" for name in listed.split("\0") if name}
    views = {"/proc", "/sys", "/dev/pts", "/dev/mqueue"}
    found = {name for name in scene.item("web").names if not name.startswith(("/proc/", "/sys/"))}
    assert found == names | views


def test_what_it_only_holds_open(scene: Scene) -> None:
    found = scene.item("web")
    pid = scene.docker.pid_of("web")
    lines = [json.loads(line) for line in found.content(f"deleted/index-{pid}.jsonl").splitlines()]
    (line,) = [line for line in lines if line["path"] == "/tmp/gone"]
    assert found.content(line["member"]) == b"removed\n"


def test_a_volume_of_two_containers_is_stored_once(scene: Scene) -> None:
    web, closed = scene.items("web", "closed")
    assert web.content("[root]/data/file") == b"volume\n"
    assert "/data/file" not in closed.names
    assert closed.flagged("elsewhere") == [b"/data"]
    assert closed.gaps == []
    assert {"/data", "/etc/hosts", "/etc/motd"} <= closed.names
    assert closed.files["[root]/etc/hosts"].size > 0


def test_a_container_that_sees_the_machine_does_not_bring_it_along(scene: Scene) -> None:
    found = scene.item("nosy")
    assert set(found.flagged("left-out")) == {b"/host", b"/docker"}
    assert not [name for name in found.names if name.startswith(("/host/", "/docker/"))]
    assert "/etc/motd" in found.names
    assert found.gaps == []


def test_one_that_has_ended_is_not_live(scene: Scene) -> None:
    found = LiveFiles(names=scene.names).probe(Host(Mode.HOST), Scope(containers=("ended", "web")))
    assert found.state is State.AVAILABLE
    assert found.matched == {"web"}
    short = scene.ids["web"][:12]
    assert scene.item("web").item.path == f"live/{short}-web.tar"


def test_it_needs_no_daemon(tmp_path: Path) -> None:
    with PrivateDocker(tmp_path / "rig") as docker:
        docker.import_base()
        container = docker.run("lone", "base:1", "sleep", "1000")
        docker.kill_daemon()
        live = LiveFiles()
        (item,) = live.items(Host(Mode.HOST), Scope(containers=(container[:12],)))
        found = read(item)
    assert item.path == f"live/{container[:12]}-sleep.tar"
    assert "/etc/motd" in found.names
    assert found.gaps == []


def test_frozen_while_its_mounts_are_cloned_and_never_longer(scene: Scene) -> None:
    pid = scene.docker.pid_of("web")
    live = LiveFiles(names=scene.names, freezer=Freezer)
    (item,) = live.items(Host(Mode.HOST), Scope(containers=("web",), freeze=True))
    found = read(item)
    window = json.loads(found.content("kernel/freeze.jsonl"))
    assert (window["pid"], window["container"]) == (pid, scene.ids["web"])
    assert window["held_ms"] < 5000
    assert f"deleted/index-{pid}.jsonl" in found.files
    assert scene.docker.exec("web", "echo", "runs on") == "runs on"
    assert found.gaps == []


# -- from inside ------------------------------------------------------------------------------------------------------

AGENT = """
import json, os, sys
from acquirers.base import Scope
from acquirers.host import Host, Mode
from acquirers.live import LiveFiles
sys.path.insert(0, sys.argv[1])
from tests.rigs.trees import Recorder
exclude = frozenset((found.st_dev, found.st_ino) for found in map(os.stat, sys.argv[2:]))
host, scope = Host(Mode.INSIDE), Scope(exclude=exclude)
live = LiveFiles()
probed = live.probe(host, scope)
told = {"state": probed.state, "reason": probed.reason, "items": []}
for item in live.items(host, scope):
    report = Recorder()
    size = 0
    for chunk in item.read(report):
        size += sys.stdout.buffer.write(chunk)
    told["items"].append({
        "path": item.path,
        "size": size,
        "gaps": [[gap.reason, os.fsdecode(gap.where), gap.detail] for gap in report.gaps],
        "flags": [[flag.kind, os.fsdecode(flag.where)] for flag in report.flags],
    })
sys.stderr.write(json.dumps(told))
"""


@dataclass
class Inside:
    path: str
    state: str
    reason: str
    gaps: list[list[str]]
    flags: list[list[str]]
    found: Read


def inside(docker: PrivateDocker, *options: str, prepare: str = "true", remove: bool = True) -> list[Inside]:
    """Runs the agent's acquirer in a container that has what Python needs mounted, and takes nothing of that."""
    options = (*options, *(["--rm"] if remove else []))
    runtime = [sys.base_prefix, str(REPOSITORY), "/usr/lib"]
    volumes = [part for path in runtime for part in ("--volume", f"{path}:{path}:ro")]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    agent = [os.path.realpath(sys.executable), "-c", AGENT, str(REPOSITORY), *runtime]
    script = f'{prepare}; exec "$@"'
    done = subprocess.run(
        [
            "docker", "-H", f"unix://{docker.socket}", "run", "--network", "none", "--hostname", "inner",
            "--env", f"PYTHONPATH={REPOSITORY}:{packages}", "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "SECRET=1",
            *volumes, *options, "runtime:1", "sh", "-c", script, "sh", *agent,
        ],
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr)
    items, start = [], 0
    for item in told["items"]:
        end = start + item["size"]
        found = Read(Item(item["path"], "", lambda _: iter(())), Recorder(), done.stdout[start:end])
        items.append(Inside(item["path"], told["state"], told["reason"], item["gaps"], item["flags"], found))
        start = end
    return items


@pytest.fixture(scope="module")
def runtime(scene: Scene) -> PrivateDocker:
    """An image in which a Python of the machine can run, once that is mounted into it."""
    script = (
        "RUN ln -s usr/lib /lib && ln -s usr/lib64 /lib64 && mkdir -p /usr && ln -s lib/x86_64-linux-gnu /usr/lib64"
    )
    scene.docker.build("runtime:1", f"FROM base:1\n{script}\n", {})
    return scene.docker


def test_inside_as_root(runtime: PrivateDocker) -> None:
    prepare = "echo mine > /opt/mine; echo shared > /dev/shm/note; echo volume > /data/file"
    (told,) = inside(runtime, "--volume", "inner:/data", prepare=prepare)
    assert told.path == "live/self-inner.tar"
    assert told.state == "available"
    assert told.gaps == []
    names = told.found.names
    assert {"/opt/mine", "/dev/shm/note", "/data/file", "/etc/shadow", "/etc/hosts"} <= names
    assert told.found.content("[root]/dev/shm/note") == b"shared\n"
    assert b"SECRET=1\0" in told.found.content("kernel/proc/1/environ")
    assert not [name for name in names if name.startswith(("/proc/1", "/sys/class"))]
    assert ["no-clone", "/"] in told.flags, "without CAP_SYS_ADMIN"


def test_inside_as_nobody_read_only(runtime: PrivateDocker) -> None:
    (told,) = inside(runtime, "--user", "65534:65534", "--read-only", "--security-opt", "no-new-privileges")
    assert told.state == "available"
    assert "65534" in told.reason
    assert ["denied", "/etc/shadow"] in [gap[:2] for gap in told.gaps]
    assert {reason for reason, _, _ in told.gaps} == {"denied"}
    assert {"/etc/passwd", "/opt/config/app.conf"} <= told.found.names


def test_inside_with_rights_the_machine_is_not_taken(runtime: PrivateDocker) -> None:
    rights = ("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined", "--security-opt", "seccomp=unconfined")
    (told,) = inside(runtime, *rights, "--volume", "/:/host", "--volume", f"{runtime.data}:/docker")
    assert told.gaps == []
    assert {where for kind, where in told.flags if kind == "left-out"} >= {"/host", "/docker"}
    assert not [name for name in told.found.names if name.startswith(("/host/", "/docker/"))]
    assert not [flag for flag in told.flags if flag[0] == "no-clone"]


def test_inside_nothing_is_written(runtime: PrivateDocker) -> None:
    try:
        (told,) = inside(runtime, "--name", "quiet", remove=False)
        assert told.gaps == []
        upper = survey(os.fsencode(runtime.upper_of("quiet") / "diff"))
        # Directories are what the runtime made to mount on.
        assert [path for path, node in upper.items() if not stat.S_ISDIR(node.stat.st_mode)] == []
    finally:
        runtime.rm("quiet")


def test_beside_a_container_whose_processes_are_seen_its_files_are_read(runtime: PrivateDocker) -> None:
    """`kubectl debug --target`: an ephemeral container in the pid namespace of the one that is looked at."""
    target = runtime.run("target", "base:1", "sh", "-c", "echo theirs > /opt/theirs; exec sleep 1000")
    try:
        rights = ("--cap-add", "SYS_PTRACE", "--security-opt", "apparmor=unconfined")
        told = inside(runtime, "--pid", f"container:{target}", *rights)
    finally:
        runtime.rm("target")
    own, theirs = sorted(told, key=lambda one: not one.path.startswith("live/self-"))
    assert own.path == "live/self-inner.tar"
    assert target[:12] in theirs.path
    assert theirs.found.content("[root]/opt/theirs") == b"theirs\n"
    assert theirs.gaps == []
