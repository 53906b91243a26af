"""The containerd that a real dockerd starts for itself: found below its data root, and nothing of it taken twice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from acquirers.base import Scope
from acquirers.containers.containerd import Containerd, docker_snapshot
from acquirers.host import Host, Mode
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.trees import Recorder

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDocker]:
    with PrivateDocker(tmp_path_factory.mktemp("docker") / "rig") as rig:
        rig.import_base()
        yield rig


def test_containers_in_overlay2_belong_to_docker(docker: PrivateDocker) -> None:
    container = docker.run("web", "base:1", "sleep", "1000")
    root = os.fsencode(docker.data / "containerd/daemon")
    host = Host(Mode.HOST)
    items = [item for item in Containerd().items(host, Scope()) if item.about.get("root") == root]
    assert [item.path.rpartition("/")[2].partition(".")[0].partition("-")[0] for item in items] == ["runtime"]
    about = items[0].about
    assert (about["containers"], about["containers_of_docker"]) == (0, 1)
    report = Recorder()
    for _ in items[0].read(report):
        pass
    assert root + b"/io.containerd.metadata.v1.bolt/meta.db" in {member.path for member in report.members}
    assert not report.gaps
    assert docker_snapshot(host, container) is None
