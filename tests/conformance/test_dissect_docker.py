"""dissect.target opens the joined archives of a real Docker host and finds its containers as child targets."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import build_intruded
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]


def test_containers_are_child_targets(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from dissect.target import Target

    key, recipient = keygen(tmp_path)
    with PrivateDocker(tmp_path_factory.mktemp("d") / "d", as_default=True) as docker:
        scene = build_intruded(docker)
        command = [*agent_command(), "acquire", "--case", "C", "--to", str(tmp_path / "ev"), "-r", recipient]
        command += ["--skip", "memory"]
        done = subprocess.run(docker.command(command), capture_output=True, env=ENVIRONMENT, timeout=200, check=False)
        result = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode in {0, 1}, done.stderr[-2000:]
        assert result["items"] > 4
        changed = (docker.root_of("web") / "etc/passwd").read_bytes()
    code, _, error = impound("export", "host", tmp_path / "ev", "-i", key, "-o", tmp_path / "host.tar")
    assert code == 0, error
    target = Target.open(tmp_path / "host.tar")
    children = [child for _, child in target.list_children()]
    assert {child.type for child in children} == {"docker"}
    named = {str(child.name).strip("/"): child for child in children}
    assert set(scene.ids) <= set(named)
    web = target.open_child(named["web"].path)
    assert web.fs.path("/etc/passwd").read_bytes() == changed
    # The same from what `open` wrote.
    assert impound("open", tmp_path / "ev", "-i", key, "-o", tmp_path / "opened")[0] == 0
    assert impound("export", "host", tmp_path / "opened", "-o", tmp_path / "again.tar")[0] == 0
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "host.tar").read_bytes()
