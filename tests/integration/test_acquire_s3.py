"""`acquire` into a bucket, by the right of the machine and by that of a controller: from the command line to bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent.custody.manifest import records
from agent.stores.s3.parts import MIB, Schedule
from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, Script, agent_command, impound, play
from tests.support.s3_reading import log_in
from tests.support.s3_runs import BUCKET, TO, Field, is_evidence, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    make_disk(root, containers=2, files=5, size=5_000_000)  # archives of 25 MB
    return root


@pytest.fixture
def field(strict_s3_tls: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    return Field.make(strict_s3_tls, tmp_path, monkeypatch)


def log_of(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "attempt-1/custody.jsonl").read_text().splitlines()]


def as_host(field: Field, monkeypatch: pytest.MonkeyPatch, *more: str | Path) -> tuple[int, dict[str, object], str]:
    """`acquire` in this process, with the credentials of the examined machine."""
    with monkeypatch.context() as patch:
        log_in(patch, field.host)
        own = ("--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient", *field.options)
        return impound("acquire", *own, *more)


def test_a_run_is_stored_verified_and_opened_in_place(field: Field, disk: Path) -> None:
    code, result = field.acquire("--root", disk)
    assert (code, result["verdict"], result["authority"]) == (0, "complete", "ambient"), result
    assert result["store"] == field.run
    assert set(field.names(field.run).values()) == {1}
    assert field.server.uploads(BUCKET) == []
    code, verdict, error = field.verify(field.run, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"], verdict["items"]) == (0, "intact", result["items"]), error
    out = field.open(field.run, "out")
    [first, *_] = records([(out / "attempt-1/manifest.jsonl").read_bytes()], "manifest")
    assert first["store"] == {
        "kind": "s3",
        "location": field.run,
        "authority": "ambient",
        "endpoint": field.server.endpoint_url,
        "bucket_owner": "",
    }
    receipt = json.loads(field.server.read(BUCKET, f"{field.run.removeprefix(f's3://{BUCKET}/')}/receipt.json"))
    assert receipt["payloadType"] == "application/vnd.in-toto+json"


def test_no_secret_of_the_machine_stands_anywhere(field: Field, disk: Path) -> None:
    process = subprocess.run(
        [*agent_command(), "acquire", "--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient",
         *field.options, "--root", disk],
        capture_output=True, env=field.environment, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0
    out = field.open(field.run, "out")
    told = [process.stdout, process.stderr, *(path.read_bytes() for path in out.glob("attempt-*/*"))]
    told += [field.server.read(BUCKET, key) for key in field.server.keys(BUCKET) if key.endswith(".json")]
    assert len(told) >= 9
    for data in told:
        assert field.host.secret_key.encode() not in data
        assert field.host.access_key.encode() not in data


def test_the_clock_of_the_store_is_noted_at_the_start_and_at_the_end(field: Field, disk: Path) -> None:
    field.server.clock_offset = 600
    assert field.acquire("--root", disk)[0] == 0
    clocks = [line["data"] for line in log_of(field.open(field.run, "out")) if line["event"] == "clock"]
    assert [clock["when"] for clock in clocks] == ["start", "end"]  # type: ignore[index]
    for clock in clocks:
        assert isinstance(clock, dict)
        assert clock["store_date"].endswith(" GMT")
        assert -601 < clock["ahead_s"] < -598
        assert 0 < clock["round_trip_ns"] < 5_000_000_000
        assert abs(clock["wall_ns"] - time.time_ns()) < 120e9


def test_what_the_bucket_is_told_of_owner_and_key(field: Field, disk: Path) -> None:
    owner = field.server.account
    key = f"arn:aws:kms:{field.server.region}:{owner}:key/11111111-2222-3333-4444-555555555555"
    code, result = field.acquire("--root", disk, "--bucket-owner", owner, "--sse-kms-key", key)
    assert code == 0, result
    begun = field.server.requests("CreateMultipartUpload")
    assert begun
    assert {one.headers.get("x-amz-server-side-encryption-aws-kms-key-id") for one in begun} == {key}
    stored = [one for name in ("UploadPart", "PutObject") for one in field.server.requests(name)]
    assert {one.headers.get("x-amz-expected-bucket-owner") for one in stored} == {owner}


# -- refused before anything is read or made --------------------------------------------------------------------------


def refused(field: Field, disk: Path, *more: str, to: str = TO) -> str:
    code, _ = field.acquire("--root", disk, *more, to=to)
    assert code == 2
    assert field.server.keys(BUCKET) == []
    assert field.server.uploads(BUCKET) == []
    done = subprocess.run(
        [*agent_command(), "acquire", "--case", "C", "--to", to, "-r", field.recipient, "--authority", "ambient",
         *field.options, "--root", disk, *more],
        capture_output=True, env=field.environment, timeout=120, text=True,
    )  # fmt: skip
    [line] = done.stderr.splitlines()
    return line


def test_a_bucket_that_is_not_there(field: Field, disk: Path) -> None:
    assert "no such bucket" in refused(field, disk, to="s3://nowhere/x")


def test_a_bucket_of_somebody_else(field: Field, disk: Path) -> None:
    assert "999999999999" in refused(field, disk, "--bucket-owner", "999999999999")


def test_a_region_that_is_not_the_buckets(field: Field, disk: Path) -> None:
    assert field.server.region in refused(field, disk, "--region", "us-west-2")


def test_a_role_that_may_not_store(field: Field, disk: Path) -> None:
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}]}
    field.host = field.server.add_user("weak", policy=policy)
    assert "s3:PutObject" in refused(field, disk)


def test_credentials_that_are_not_there(field: Field, disk: Path) -> None:
    assert field.server.requests("PutObject") == []
    environment = {name: value for name, value in field.environment.items() if not name.startswith("AWS_A")}
    done = subprocess.run(
        [*agent_command(), "acquire", "--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient",
         *field.options, "--root", disk],
        capture_output=True, env=environment, timeout=120, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no AWS credentials" in done.stderr


def test_an_endpoint_that_nobody_answers_at(field: Field, disk: Path) -> None:
    endpoint = ["--endpoint-url", "http://127.0.0.1:9"]
    assert "127.0.0.1:9" in refused(field, disk, *endpoint)


# -- trouble on the way -----------------------------------------------------------------------------------------------


def test_a_storm_and_cut_connections_lose_nothing(field: Field, disk: Path) -> None:
    faults = field.server.faults
    faults.refuse(4, where=lambda asked: is_evidence(asked, "UploadPart"))
    faults.refuse(2, where="PutObject")
    faults.cut(2, after_body=1_000_000, where=lambda asked: is_evidence(asked, "UploadPart"))
    faults.cut(1, before_answer=True, where="CompleteMultipartUpload")
    faults.cut(1, before_answer=True, where=lambda asked: asked.key.endswith("progress/000002.json"))
    code, result = field.acquire("--root", disk)
    assert (code, result["verdict"]) == (0, "complete"), result
    code, verdict, error = field.verify(field.run)
    assert (code, verdict["verdict"]) == (0, "intact, signer unknown"), error


def test_a_bucket_that_is_gone_in_the_middle_leaves_a_partial_run(field: Field, disk: Path) -> None:
    held = field.hold("UploadPart", seconds=1)
    process = field.start("--root", disk)
    wait_for(held, process)
    field.server.vanish(BUCKET)
    out, _ = process.communicate(timeout=120)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["verdict"]) == (3, "failed"), result
    assert "no such bucket" in str(result["error"])
    field.server.vanish(BUCKET, back=True)
    assert field.verify(field.run)[1]["verdict"] == "partial"
    assert field.resume(field.run)[0] == 0
    assert field.verify(field.run)[0] == 0


def test_an_item_that_an_upload_cannot_hold_goes_on_in_the_next(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(1 << 20) * 23
    play(monkeypatch, Script("memory/physical.lime", [data[at : at + 700_000] for at in range(0, len(data), 700_000)]))
    (field.directory / "disk/etc").mkdir(parents=True)
    monkeypatch.setattr("agent.stores.s3.store.schedule", lambda *_: Schedule(((2, 5 * MIB),)))
    code, result, error = as_host(field, monkeypatch, "--root", field.directory / "disk")
    assert (code, result["items"]) == (0, 1), error
    objects = sorted(name for name in field.names(field.run) if name.startswith("memory/"))
    assert objects == [f"memory/physical.lime{number}.zst.age" for number in (".0002", ".0003", "")]
    assert field.verify(field.run)[0] == 0
    opened = field.open(field.run, "out") / "memory/physical.lime"
    assert hashlib.sha256(opened.read_bytes()).digest() == hashlib.sha256(data).digest()
    part = field.open(field.run, "part", "--only", "memory/physical.lime", "--range", "9000000-12000000")
    assert (part / "memory/physical.lime.9000000-12000000").read_bytes() == data[9_000_000:12_000_001]


def test_it_is_told_that_the_bucket_takes_nothing(field: Field, disk: Path) -> None:
    field.server.faults.stall(9, 100, where=lambda asked: is_evidence(asked, "UploadPart"))
    process = subprocess.Popen(
        [*agent_command(), "acquire", "--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient",
         *field.options, "--root", disk],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=field.environment, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "store-waiting":
            seen.append(event["seconds"])
            field.server.faults.clear()
            if event["seconds"] == 0:
                break
    process.kill()
    process.communicate(timeout=30)
    assert 4.5 < seen[0] < 10
    assert seen[-1] == 0


# -- limits -----------------------------------------------------------------------------------------------------------


def test_bandwidth_is_capped(field: Field, disk: Path) -> None:
    code, result = field.acquire("--root", disk, "--max-mbit", "80")
    assert code == 0
    assert float(str(result["seconds"])) > int(str(result["stored_bytes"])) * 8 / 80e6 * 0.9


MEASURED = """
import os, sys
from functools import partial
from acquirers import registry
from tests.support.runs import Script, Scripted
from agent.cli import main

class Chunks(list):
    def __iter__(self):
        block = os.urandom(1 << 20)
        return (number.to_bytes(8, "big") + block[8:] for number in range(int(sys.argv[1])))

registry.acquirers = lambda: [Scripted([Script("memory/physical.lime", Chunks())])]
code = main(sys.argv[2:])
status = open("/proc/self/status").read()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("ceiling", [0, 151])
def test_memory_stays_below_its_ceiling_although_the_bucket_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ceiling: int
) -> None:
    """Slower than what is read, so that everything that may wait for it waits."""
    from tests.rigs.strict_s3 import StrictS3

    with StrictS3(tmp_path, keep_bodies=False) as server:
        field = Field.make(server, tmp_path, monkeypatch)
        server.limit(60_000_000)
        (tmp_path / "disk/etc").mkdir(parents=True)
        own = ["--case", "C", "--to", TO, "-r", field.recipient, "--authority", "ambient", *field.options]
        more = ["--max-memory", str(ceiling)] if ceiling else []
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "600", "acquire", *own, "--root", str(tmp_path / "disk"), *more],
            capture_output=True, env=field.environment | ENVIRONMENT, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        resident = int(done.stderr.splitlines()[-1]) >> 10
        assert resident < (ceiling or 256), f"{resident} MiB"
        assert resident > (ceiling or 256) * 0.6, f"{resident} MiB: it could be faster"
