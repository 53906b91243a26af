"""Promise 5 in a bucket: killed anywhere, what is whole verifies, the verdict is partial, and `resume` completes it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.docker_disk import make_disk
from tests.support.s3_runs import Field, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rigs.s3_faults import Asked
    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    make_disk(root, containers=3, files=6, size=2_000_000)  # archives of 12 MB: two parts each
    return root


@pytest.fixture
def field(strict_s3_tls: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    field = Field.make(strict_s3_tls, tmp_path, monkeypatch)
    yield field
    field.server.faults.clear()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.tar"))}


@pytest.fixture(scope="module")
def reference(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run gives."""
    from tests.support.runs import acquire, impound, keygen

    directory = tmp_path_factory.mktemp("reference")
    key, recipient = keygen(directory)
    assert acquire(directory / "ev", recipient, "--root", str(disk))[0] == 0
    assert impound("open", directory / "ev", "-i", key, "-o", directory / "out")[0] == 0
    return contents(directory / "out")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=30)


def check_that_it_resumes(field: Field, reference: dict[str, bytes]) -> None:
    """A run that was cut off: partial, then completed, and what was whole is neither taken again nor put again."""
    run = field.run
    before = field.names(run)
    code, verdict, error = field.verify(run)
    assert (code, verdict["verdict"]) == (4, "partial"), error
    code, result, error = field.resume(run)
    assert (code, result["verdict"], result["authority"]) == (0, "complete", "ambient"), (result, error)
    after = field.names(run)
    assert before.items() <= after.items()
    assert set(after.values()) == {1}, "something was put twice"
    whole = set(before) - set(map(str, verdict.get("unaccounted", [])))  # type: ignore[call-overload]
    taken_again = {name for name in after if name.removesuffix(".tar.zst.age").endswith("-2")}
    assert not {name.replace("-2.tar", ".tar") for name in taken_again} & whole
    code, verdict, error = field.verify(run, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"], verdict["attempt"]) == (0, "intact", 2), error
    opened = contents(field.open(run, "out"))
    assert sorted(map(hash, opened.values())) == sorted(map(hash, reference.values()))


PHASES = {
    "a part": ("UploadPart", "", False),
    "a part that arrived": ("UploadPart", "", True),
    "an object": ("CompleteMultipartUpload", "", False),
    "an object that appeared": ("CompleteMultipartUpload", "", True),
    "a small object": ("PutObject", "runtime.tar.zst.age", False),
    "a record": ("PutObject", "progress/000002.json", False),
    "a record that was stored": ("PutObject", "progress/000002.json", True),
    "the manifest": ("PutObject", "manifest.jsonl.zst.age", False),
    "the custody log": ("PutObject", "custody.jsonl.zst.age", True),
    "the receipt of the attempt": ("PutObject", "attempt-1/receipt.json", False),
    "the receipt of the run": ("PutObject", "attempt-1/receipt.json", True),
}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_while_it_stores(field: Field, disk: Path, reference: dict[str, bytes], phase: str) -> None:
    operation, name, done = PHASES[phase]
    held = field.hold(operation, name, done=done)
    process = field.start("--root", disk)
    wait_for(held, process)
    end(process)
    field.server.faults.remove(held)
    check_that_it_resumes(field, reference)


def test_killed_before_anything_is_stored_leaves_nothing(field: Field, disk: Path) -> None:
    held = field.hold("PutObject", "progress/000000.json")
    process = field.start("--root", disk)
    wait_for(held, process)
    end(process)
    assert field.server.keys("evidence") == []


def test_killed_after_the_last_word_is_whole(field: Field, disk: Path) -> None:
    def last(asked: Asked) -> bool:
        return asked.key.endswith("/receipt.json") and "/attempt-" not in asked.key

    held = field.server.faults.stall(3600, where=last, at="answer")
    process = field.start("--root", disk)
    wait_for(held, process)
    end(process)
    code, verdict, error = field.verify(field.run)
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), error


def test_killed_at_any_moment(field: Field, disk: Path, reference: dict[str, bytes]) -> None:
    began = time.monotonic()
    assert field.acquire("--root", disk, to="s3://evidence/first")[0] == 0
    length = time.monotonic() - began
    generator = random.Random(20261123)
    partial = 0
    for number in range(16):
        process = field.start("--root", disk, to=f"s3://evidence/{number}")
        time.sleep(generator.uniform(0.3, 1.0) * length)
        end(process)
        runs = [one for one in field.runs() if one.startswith(f"s3://evidence/{number}/")]
        if not runs:
            length *= 1.15  # the first run is no measure of the others: the machine may be busier, or less
        for run in runs:
            code, verdict, error = field.verify(run)
            if verdict["verdict"] == "intact, signer unknown":
                length *= 0.85
                continue
            assert (code, verdict["verdict"]) == (4, "partial"), error
            partial += 1
            code, result, error = field.resume(run)
            assert (code, result["verdict"]) == (0, "complete"), (result, error)
            assert field.verify(run)[0] == 0
            opened = contents(field.open(run, f"out{number}"))
            assert sorted(map(hash, opened.values())) == sorted(map(hash, reference.values()))
        if partial >= 3:
            break
    assert partial


def test_sigterm_ends_a_run_in_order_although_a_part_does_not_go_through(
    field: Field, disk: Path, reference: dict[str, bytes]
) -> None:
    """The object is given up; the account is stored, since for that the bucket answers."""
    held = field.hold("UploadPart")
    process = field.start("--root", disk)
    wait_for(held, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["verdict"]) == (3, "stopped"), result
    assert "SIGTERM" in str(result["error"])
    assert time.monotonic() - began < 15
    assert "attempt-1/receipt.json" in field.names(field.run)
    code, verdict, error = field.verify(field.run, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"], verdict["signer_known"]) == (4, "partial", True), error
    check_that_it_resumes(field, reference)


@pytest.mark.parametrize("phase", ["an object that appeared", "a record", "a record that was stored"])
def test_sigterm_while_the_bucket_is_slow_to_answer(
    field: Field, disk: Path, reference: dict[str, bytes], phase: str
) -> None:
    operation, name, done = PHASES[phase]
    held = field.hold(operation, name, done=done, seconds=6)
    process = field.start("--root", disk)
    wait_for(held, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["verdict"]) == (3, "stopped"), result
    assert "attempt-1/receipt.json" in field.names(field.run)
    check_that_it_resumes(field, reference)


def test_a_record_of_which_nobody_knows_whether_it_was_stored_leaves_no_contradiction(
    field: Field, disk: Path, reference: dict[str, bytes]
) -> None:
    """It is stored, the answer is lost, and the bucket does not let the host look: no account then says otherwise."""
    lost = field.server.faults.cut(1, before_answer=True, where=_second_record)
    blind = field.server.faults.refuse(100, status=403, code="AccessDenied", where="HeadObject")
    code, result = field.acquire("--root", disk)
    assert (code, result["verdict"]) == (3, "failed"), result
    assert lost.hits == 1
    assert blind.hits
    field.server.faults.clear()
    names = field.names(field.run)
    assert "progress/000002.json" in names
    assert not [name for name in names if name.startswith("attempt-")]
    check_that_it_resumes(field, reference)


def _second_record(asked: Asked) -> bool:
    return asked.operation == "PutObject" and asked.key.endswith("progress/000002.json")
