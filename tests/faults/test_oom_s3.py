"""Promise 5 when memory runs out: killed by the kernel, or refused every allocation, the run is partial and resumes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.rigs.oom import MemoryGroup
from tests.support.docker_disk import make_disk
from tests.support.runs import agent_command
from tests.support.s3_runs import TO, Field, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]

MIB = 1 << 20

PHASES = {
    "the snapshot": ("PutObject", "snapshot/processes.jsonl.zst.age"),
    "a big item": ("UploadPart", ""),
    "closing the manifest": ("PutObject", "manifest.jsonl.zst.age"),
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    make_disk(root, containers=1, files=10, size=4_000_000)
    return root


@pytest.fixture
def field(strict_s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    field = Field.make(strict_s3, tmp_path, monkeypatch)
    yield field
    field.server.faults.clear()


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    if os.geteuid():
        pytest.skip("needs root to make a memory cgroup")
    with MemoryGroup(400 * MIB) as group:
        yield group


def selection(phase: str, disk: Path) -> list[str]:
    return ["--only", "snapshot.processes"] if phase == "the snapshot" else ["--root", str(disk)]


def start(field: Field, group: MemoryGroup | None, more: list[str]) -> subprocess.Popen[bytes]:
    own = ["--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient", *field.options]
    return subprocess.Popen(
        [*agent_command(), "acquire", *own, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=field.environment,
        preexec_fn=group.join if group is not None else None,  # noqa: PLW1509 - no thread of ours holds what it takes
    )


def check_that_it_resumes(field: Field, left_gaps: bool) -> None:
    run = field.run
    before = field.names(run)
    code, verdict, error = field.verify(run)
    assert (code, verdict["verdict"]) == (4, "partial"), error
    code, result, error = field.resume(run)
    assert code in ({0, 1} if left_gaps else {0}), (result, error)
    after = field.names(run)
    assert before.items() <= after.items()
    assert set(after.values()) == {1}
    code, verdict, error = field.verify(run, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"], verdict["attempt"]) == (0, "intact", 2), error


@pytest.mark.parametrize("phase", PHASES)
def test_killed_by_the_kernel(field: Field, disk: Path, group: MemoryGroup, phase: str) -> None:
    operation, name = PHASES[phase]
    held = field.hold(operation, name)
    process = start(field, group, selection(phase, disk))
    wait_for(held, process)
    assert group.strike(process) == -9
    process.communicate()
    field.server.faults.clear()
    assert "receipt.json" not in field.names(field.run)
    check_that_it_resumes(field, left_gaps=phase == "the snapshot")


@pytest.mark.parametrize("phase", PHASES)
def test_memory_that_is_refused(field: Field, disk: Path, phase: str) -> None:
    """As under `ulimit -v`, from one moment on: what fails then is raised in the agent, wherever it happens to be."""
    operation, name = PHASES[phase]
    held = field.hold(operation, name, seconds=3)
    process = start(field, None, selection(phase, disk))
    wait_for(held, process)
    with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (now, now))
    process.communicate(timeout=120)
    field.server.faults.clear()
    if process.returncode in {0, 1}:  # it did without
        assert field.verify(field.run)[0] == 0
        return
    check_that_it_resumes(field, left_gaps=phase == "the snapshot")
