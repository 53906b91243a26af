"""`kill -9` of either side at any moment: what is complete is whole, the chain holds, and nobody says it is all."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.delivery.ledger import LEDGER, Ledger
from tests.rigs.strict_s3 import StrictS3
from tests.unit.delivery.deploys import ALLOW, BUCKET, Deploys


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[StrictS3]:
    with StrictS3(tmp_path) as server:
        server.make_bucket(BUCKET, lock=True)
        server.limit(8_000_000, "127.0.0.1")
        yield server


def gone(pid: int) -> bool:
    """Within a few seconds, by itself."""
    for _ in range(150):
        try:
            state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def check(s3: StrictS3, deploys: Deploys) -> None:
    """Each ledger holds, and of each run there is nothing in the bucket that its ledger does not know by digest."""
    for path in deploys.state.glob(f"*/{LEDGER}"):
        state, _, _ = Ledger.load(str(path))
        below = f"cases/C-1/{state.host}/{state.run}/"
        keys = [key for key in s3.keys(BUCKET) if f"/{state.run}/" in key]
        assert all(key.startswith(below) for key in keys)
        assert {key.removeprefix(below) for key in keys} <= set(state.objects)
        for key in keys:
            assert len(s3.read(BUCKET, key)) == state.objects[key.removeprefix(below)].size
        for upload in s3.uploads(BUCKET):
            if upload.key.startswith(below):
                signed = state.uploads[upload.key.removeprefix(below)].parts
                for number, (blob, _) in upload.parts.items():
                    assert signed[number].size == blob.size
        Ledger.reopen(str(deploys.state), path.parent.name).close()


@pytest.mark.parametrize("victim", ["host", "controller"])
def test_killed_at_any_moment(s3: StrictS3, tmp_path: Path, victim: str) -> None:
    deploys = Deploys(tmp_path, s3.endpoint_url, s3.region, s3.admin.access_key, s3.admin.secret_key)
    moments = random.Random(victim)
    verdicts = []
    for _ in range(4):
        process = deploys.start()
        assert process.stderr is not None
        for line in process.stderr:
            if b"run-started" in line:
                break
        [host] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        time.sleep(moments.uniform(0, 2.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(host) if victim == "host" else process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        if victim == "host":
            result = json.loads(out)
            verdicts.append(result["verdict"])
            assert process.returncode == {"complete": 0}.get(result["verdict"], 3)
        else:
            assert gone(int(host)), "the host does not find that its controller is gone"
        check(s3, deploys)
    if victim == "host":
        assert "partial" in verdicts
        assert set(verdicts) <= {"partial", "complete"}


@pytest.mark.parametrize("authority", ["broker", "session"])
def test_a_run_whose_host_was_killed_is_completed_by_the_same_controller(
    s3: StrictS3, tmp_path: Path, authority: str
) -> None:
    deploys = Deploys(tmp_path, s3.endpoint_url, s3.region, s3.admin.access_key, s3.admin.secret_key)
    more = ["--authority", "session", "--role", s3.add_role("uploader", ALLOW).arn] if authority == "session" else []
    cut = s3.faults.stall(600, 1, at="body", after_body=1_000_000, where="UploadPart")
    process = deploys.start(*more)
    for _ in range(600):
        if cut.hits:
            break
        time.sleep(0.05)
    [host] = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()]
    os.kill(host, signal.SIGKILL)
    s3.faults.clear()
    out, _ = process.communicate(timeout=120)
    first = json.loads(out.splitlines()[-1])
    assert (process.returncode, first["verdict"]) == (3, "partial")
    s3.limit(0, "127.0.0.1")
    before = {key: s3.read(BUCKET, key) for key in s3.keys(BUCKET)}
    command = [
        sys.executable, "-m", "agent", "deploy", "command", "--resume", first["store"], *deploys.reach,
        "--state", str(deploys.state), *more, "--", sys.executable, "-m", "agent",
    ]  # fmt: skip
    done = subprocess.run(command, env=deploys.environment, capture_output=True, timeout=240)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["verdict"], result["attempt"]) == (0, "complete", 2), done.stderr
    assert result["run"] == first["run"]
    assert {key: s3.read(BUCKET, key) for key in before} == before, "what was whole stays as it was"
    code, verdict = deploys.verify(result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")
    state, _, _ = Ledger.load(result["ledger"])
    assert (state.attempt, state.verdict) == (2, "complete")
