"""Real daemons in other places than the usual one: found, read, and nothing left of the rig itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquirers.base import Reason, Scope
from acquirers.containers.docker import Docker
from acquirers.containers.docker.roots import DataRoot, find_roots
from acquirers.host import Host, Mode
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import Scene, build_intruded
from tests.rigs.trees import Recorder

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

REPOSITORY = Path(__file__).parents[2]

_INSIDE = """
import json
from acquirers.containers.docker.roots import find_roots
from acquirers.host import Host, Mode
print(json.dumps([[root.path.decode(), root.found_by, root.pids] for root in find_roots(Host(Mode.HOST)).roots]))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Its data root is /var/lib/docker, but only for itself."""
    with PrivateDocker(tmp_path_factory.mktemp("docker") / "rig", as_default=True) as docker:
        yield build_intruded(docker)


def root_of(docker: PrivateDocker) -> DataRoot:
    """Other daemons may run on this machine."""
    return next(root for root in find_roots(Host(Mode.HOST)).roots if root.path == os.fsencode(docker.data))


def test_a_daemon_in_its_own_mount_namespace_is_found_from_outside(scene: Scene) -> None:
    root = root_of(scene.docker)
    assert root.pids == [scene.docker.pid]
    found = find_roots(Host(Mode.HOST))
    assert not [gap for gap in found.gaps if str(scene.docker.pid) in gap.detail]


def test_and_from_inside_where_it_thinks_it_is(scene: Scene) -> None:
    command = scene.docker.command(["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", _INSIDE])
    done = subprocess.run(command, capture_output=True, check=True)
    roots = {path: (found_by, pids) for path, found_by, pids in json.loads(done.stdout)}
    found_by, pids = roots["/var/lib/docker"]
    assert found_by[0] == "default"
    assert pids == [scene.docker.pid]


def test_the_intrusion_is_in_the_archive(scene: Scene) -> None:
    docker = Docker()
    items = {item.about.get("id"): item for item in docker.items(Host(Mode.HOST), Scope())}
    states = {name: items[container].about["state"] for name, container in scene.ids.items()}
    assert states == {"web": "running", "job": "exited", "worker": "paused", "files": "running"}
    report = Recorder()
    for _ in items[scene.ids["web"]].read(report):
        pass
    assert not report.gaps
    names = {member.path.partition(b"/diff/")[2] for member in report.members}
    assert {
        b"usr/local/bin/backup.sh", b"etc/cron.d/sysupdate", b"var/tmp/.../authorized_keys", b"etc/passwd", b"etc/motd",
    } <= names  # fmt: skip


def test_logs_are_taken_where_the_files_cannot_be_found(tmp_path: Path) -> None:
    """Its record is there, and layerdb's is not."""
    with PrivateDocker(tmp_path / "rig", driver="vfs") as docker:
        docker.import_base()
        container = docker.run("web", "base:1", "sh", "-c", "echo hello")
        docker.wait("web")
        shutil.rmtree(docker.data / "image/vfs/layerdb/mounts" / container)
        item = next(item for item in Docker().items(Host(Mode.HOST), Scope()) if item.about.get("id") == container)
        report = Recorder()
        for _ in item.read(report):
            pass
    assert [gap.reason for gap in report.gaps] == [Reason.MALFORMED]
    assert "no writable layer was found" in report.gaps[0].detail
    log = os.fsencode(f"{docker.data}/containers/{container}/{container}-json.log")
    assert log in [member.path for member in report.members if member.size]


def test_the_script_leaves_nothing_behind(tmp_path: Path) -> None:
    script, directory = REPOSITORY / "scripts/private-docker", tmp_path / "demo"
    done = subprocess.run([script, "start", directory], capture_output=True, check=True, text=True)
    assert done.stdout == f"DOCKER_HOST=unix://{directory}/docker.sock\nDATA_ROOT={directory}/data\n"
    try:
        docker = PrivateDocker.attach(directory)
        ids = [path.name for path in (docker.data / "containers").iterdir()]
        assert len(ids) == 4
        assert subprocess.run([script, "start", directory], capture_output=True).returncode == 1
    finally:
        subprocess.run([script, "stop", directory], check=True)
    assert not directory.exists()
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_text(errors="replace") + (process / "cgroup").read_text()
            except OSError:
                continue
            assert str(directory) not in text
            assert not [container for container in ids if container in text]


def test_a_daemon_that_does_not_start_leaves_nothing_behind(tmp_path: Path) -> None:
    from tests.rigs.docker import RigError

    docker = PrivateDocker(tmp_path / "rig", driver="no-such-driver")
    with pytest.raises(RigError, match="did not become ready"):
        docker.start()
    assert not docker.directory.exists()
