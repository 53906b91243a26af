"""Promise 5: after `kill -9` what is whole verifies, the verdict is partial, and `resume` completes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen, only_run


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    make_disk(root, containers=4, files=12, size=2_000_000)
    return root


def start(to: Path, disk: Path, recipient: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*agent_command(), "acquire", "--case", "C", "--to", to, "-r", recipient, "--root", disk],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )


def whole_time(tmp_path: Path, disk: Path, recipient: str) -> float:
    began = time.monotonic()
    process = start(tmp_path / "first", disk, recipient)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return time.monotonic() - began


def contents(directory: Path) -> dict[str, bytes]:
    """Every archive that was opened, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.tar"))}


def test_a_killed_run_is_partial_and_is_completed(tmp_path: Path, disk: Path) -> None:
    key, recipient = keygen(tmp_path)
    length = whole_time(tmp_path, disk, recipient)
    assert impound("open", tmp_path / "first", "-i", key, "-o", tmp_path / "reference")[0] == 0
    reference = contents(tmp_path / "reference")
    assert len(reference) >= 5
    generator = random.Random(20261122)
    seen = set()
    for number in range(12):
        to = tmp_path / f"ev{number}"
        process = start(to, disk, recipient)
        time.sleep(generator.uniform(0.1, 1.0) * length)
        process.kill()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
        if not to.exists() or not list(to.glob("*/*/*/progress/000000.json")):
            continue  # killed before anything was stored
        run = only_run(to)
        finished = (run / "receipt.json").exists()
        code, result, error = impound("verify", run, "-i", key)
        assert (code, result["verdict"]) == ((0, "intact, signer unknown") if finished else (4, "partial")), error
        seen.add(finished)
        if finished:
            continue
        assert "receipt.json" in json.dumps(result["missing"])
        before = {path: path.stat().st_ino for path in run.rglob("*.zst.age")}
        code, result, error = impound("resume", run)
        assert (code, result["verdict"]) == (0, "complete"), (result, error)
        after = {path: path.stat().st_ino for path in run.rglob("*.zst.age")}
        assert before.items() <= after.items()  # nothing that was whole was taken again
        code, result, error = impound("verify", run, "-i", key, "--signer", str(result["signer"]))
        assert (code, result["verdict"], result["attempt"]) == (0, "intact", 2), error
        out = tmp_path / f"out{number}"
        assert impound("open", run, "-i", key, "-o", out)[0] == 0
        assert set(reference.values()) <= set(contents(out).values())
    assert False in seen


def test_sigterm_ends_a_run_cleanly_and_resume_completes_it(tmp_path: Path, disk: Path) -> None:
    key, recipient = keygen(tmp_path)
    process = start(tmp_path / "ev", disk, recipient)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "ev").glob("*/*/*/progress/000001.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["verdict"]) == (3, "stopped")
    assert "SIGTERM" in result["error"]
    run = only_run(tmp_path / "ev")
    assert (run / "attempt-1/receipt.json").exists()
    assert not (run / "receipt.json").exists()
    code, verdict, _ = impound("verify", run, "-i", key, "--signer", result["signer"])
    assert (code, verdict["verdict"], verdict["signer_known"]) == (4, "partial", True)
    code, verdict, _ = impound("verify", run, "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"], verdict.get("not_found"), verdict.get("findings")) == (4, "partial", None, None)
    code, resumed, error = impound("resume", run, "--signer", result["signer"], "-r", recipient)
    assert (code, resumed["verdict"]) == (0, "complete"), error
    assert impound("verify", run, "-i", key)[0] == 0
    assert impound("resume", run)[0] == 2  # finished


def test_an_object_that_no_record_names_is_kept_and_its_item_is_taken_again(tmp_path: Path, disk: Path) -> None:
    """Killed between the object and its progress record."""
    key, recipient = keygen(tmp_path)
    process = start(tmp_path / "ev", disk, recipient)
    process.communicate(timeout=120)
    run = only_run(tmp_path / "ev")
    last = max((run / "progress").iterdir())
    for path in (run / "receipt.json", *(run / "attempt-1").iterdir(), last):
        path.unlink()
    code, verdict, _ = impound("verify", run)
    assert (code, verdict["verdict"], len(verdict["unaccounted"])) == (4, "partial", 1)  # type: ignore[arg-type]
    assert impound("resume", run)[0] == 0
    code, verdict, error = impound("verify", run, "-i", key)
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), error
    assert len(list(run.rglob("*-2.tar.zst.age"))) == 1


def test_resume_does_not_add_to_what_is_damaged_or_foreign(tmp_path: Path, disk: Path) -> None:
    key, recipient = keygen(tmp_path)
    (tmp_path / "o").mkdir()
    _, other = keygen(tmp_path / "o")
    process = start(tmp_path / "ev", disk, recipient)
    process.communicate(timeout=120)
    run = only_run(tmp_path / "ev")
    (run / "receipt.json").unlink()
    assert impound("resume", run, "--signer", "ed25519:" + "0" * 64)[0] == 4
    assert impound("resume", run, "-r", other)[0] == 2
    name = (disk / "etc/machine-id").read_text()
    (disk / "etc/machine-id").write_text("f" * 32 + "\n")
    try:
        assert impound("resume", run)[0] == 2  # another machine
    finally:
        (disk / "etc/machine-id").write_text(name)
    moved = tmp_path / "moved"
    run.rename(moved)
    assert impound("resume", moved)[0] == 2
    moved.rename(run)
    sealed = next(run.rglob("containers/docker/*.tar.zst.age"))
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(sealed, 0o600)
    sealed.write_bytes(data)
    assert impound("resume", run)[0] == 4
    assert not list(run.glob("attempt-2/*"))
    assert impound("verify", run, "-i", key)[0] == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small filesystem")
def test_a_full_destination_fails_clearly_and_verifies_as_partial(tmp_path: Path, disk: Path) -> None:
    key, recipient = keygen(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m,mode=700", "t", small], check=True)
    try:
        process = start(small / "ev", disk, recipient)
        out, _ = process.communicate(timeout=120)
        result = json.loads(out.splitlines()[-1])
        assert (process.returncode, result["verdict"]) == (3, "failed")
        assert "full" in result["error"]
        run = only_run(small / "ev")
        code, verdict, _ = impound("verify", run, "-i", key)
        assert (code, verdict["verdict"]) == (4, "partial")
        assert int(str(verdict["items"])) >= 1
        subprocess.run(["mount", "-o", "remount,size=300m", small], check=True)
        assert impound("resume", run)[0] == 0
        assert impound("verify", run, "-i", key)[0] == 0
    finally:
        subprocess.run(["umount", small], check=True)
