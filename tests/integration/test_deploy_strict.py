"""`impound deploy command -- impound` against the strict fake: both authorities, over TLS, whole and provable."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.custody.countersign import parse_countersignature
from agent.delivery.ledger import Ledger
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import impound
from tests.unit.delivery.deploys import ALLOW, BUCKET, Deploys

KMS_KEY = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-3333-4444-555555555555"


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[StrictS3]:
    with StrictS3(tmp_path, tls=True) as server:
        server.make_bucket(BUCKET, lock=True, retention=("COMPLIANCE", 1))
        yield server


@pytest.fixture
def deploys(s3: StrictS3, tmp_path: Path) -> Deploys:
    assert s3.certificates is not None
    options = ["--ca-bundle", str(s3.certificates.ca_file), "--bucket-owner", s3.account]
    return Deploys(tmp_path, s3.endpoint_url, s3.region, s3.admin.access_key, s3.admin.secret_key, s3_options=options)


@pytest.mark.parametrize("authority", ["broker", "session"])
def test_a_run_is_whole_and_verifies(s3: StrictS3, deploys: Deploys, authority: str) -> None:
    role = s3.add_role("uploader", ALLOW)
    more = ["--authority", "session", "--role", role.arn, "--sse-kms-key", KMS_KEY] if authority == "session" else []
    code, result, stderr = deploys.run(*more)
    assert (code, result["verdict"], result["authority"]) == (0, "complete", authority), stderr
    assert result["unfinished"] == 0
    assert "findings" not in result
    assert '"event":"item-done"' in stderr
    code, verdict = deploys.verify(result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact"), verdict
    state, head, _ = Ledger.load(result["ledger"])
    assert head == result["ledger_head"]
    assert (state.run, state.verdict, state.signer) == (result["run"], "complete", result["signer"])
    assert state.custody == result["custody"] != ""
    below = f"cases/C-1/{result['host']}/{result['run']}/"
    assert {below + name for name, one in state.objects.items() if one.sure} == set(s3.keys(BUCKET))
    assert all(one.checked in {"sha256", "whole"} for one in state.objects.values())
    noted = Path(result["ledger"]).read_text("utf-8") + stderr + json.dumps(result)
    secrets = {s3.admin.secret_key} | {asked.headers.get("x-amz-security-token", "") for asked in s3.requests()} - {""}
    assert len(secrets) == (2 if authority == "session" else 1)
    assert not any(secret in noted for secret in secrets)


def test_a_finished_run_is_countersigned_by_who_held_the_authority(
    s3: StrictS3, deploys: Deploys, tmp_path: Path
) -> None:
    code, made, _ = impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    assert code == 0
    code, result, stderr = deploys.run("--countersign-key", str(tmp_path / "ir.sign"))
    assert (code, result["countersigner"]) == (0, made["signer"]), stderr
    code, verdict = deploys.verify(result["store"], "--signer", str(made["signer"]))
    assert (code, verdict["verdict"], verdict["countersigner"]) == (0, "intact", made["signer"])
    key = f"{result['store'].removeprefix(f's3://{BUCKET}/')}/countersignature.json"
    said, _ = parse_countersignature(s3.read(BUCKET, key))
    assert said.told["ledger_head"] == result["ledger_head"]
    assert said.compared == "bytes"


def test_a_person_reads_one_summary_and_a_program_one_object(deploys: Deploys) -> None:
    code, result, stderr = deploys.run()
    assert code == 0, stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    for label in ("complete: ", "  evidence ", "  items ", "  signer ", "  receipt ", "  ledger ", "  next "):
        assert sum(line.startswith(label) for line in lines) == 1, lines
    assert not [line for line in lines if line.startswith("host:")]
    assert f"impound verify {result['store']} --receipt-sha256 {result['receipt_sha256']}" in stderr
    code, result, stderr = deploys.run("--json", case="C-2")
    assert (code, result["exit"]) == (0, 0)
    assert not [line for line in stderr.splitlines() if not line.startswith("{")]


def test_what_the_program_says_of_itself_is_shown_where_no_result_came(deploys: Deploys) -> None:
    """An agent that is killed by what runs it: its last words are all that there is."""
    wrapper = (
        "import subprocess, sys\n"
        "agent = subprocess.Popen([sys.executable, '-m', 'agent', *sys.argv[1:]], stdout=subprocess.PIPE, bufsize=0)\n"
        "for line in agent.stdout:\n"
        "    sys.stdout.buffer.write(line)\n"
        "    sys.stdout.buffer.flush()\n"
        "    if b'RunStarted' in line:\n"
        "        print('out of memory', file=sys.stderr, flush=True)\n"
        "        agent.kill()\n"
        "        break\n"
    )
    code, result, stderr = deploys.run(argv=[sys.executable, "-c", wrapper])
    assert (code, result["verdict"]) == (3, "partial"), stderr
    assert "host: out of memory" in stderr


def test_the_host_of_a_broker_needs_no_aws(s3: StrictS3, deploys: Deploys) -> None:
    """Neither credentials nor boto3, and it says nothing to the bucket that was not signed for it."""
    code = (
        "import os, sys\n"
        "for name in list(os.environ):\n"
        "    if name.startswith('AWS_'):\n"
        "        del os.environ[name]\n"
        "from agent.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "found = [name for name in sys.modules if name.partition('.')[0] in ('boto3', 'botocore')]\n"
        "sys.exit(code if not found else 77)\n"
    )
    exit_code, result, stderr = deploys.run(argv=[sys.executable, "-c", code])
    assert (exit_code, result["verdict"]) == (0, "complete"), stderr
    assert "ended with 77" not in stderr
    assert {asked.operation for asked in s3.requests() if "X-Amz-Signature" in asked.query} == {"UploadPart"}


def test_session_credentials_that_end_are_renewed(s3: StrictS3, deploys: Deploys) -> None:
    role = s3.add_role("uploader", ALLOW)
    s3.sts.lifetime_s = 2.0
    s3.limit(6_000_000, "127.0.0.1")
    code, result, stderr = deploys.run("--authority", "session", "--role", role.arn)
    assert (code, result["verdict"]) == (0, "complete"), stderr
    assert Path(result["ledger"]).read_text("utf-8").count('"event":"minted"') >= 2


def test_a_stop_is_passed_on_to_the_host(s3: StrictS3, deploys: Deploys) -> None:
    s3.limit(1_500_000, "127.0.0.1")
    process = deploys.start()
    assert process.stderr is not None
    for line in process.stderr:
        if b"item-started" in line:
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)
    result = json.loads(out)
    assert (process.returncode, result["verdict"]) == (3, "stopped"), result
    assert "SIGINT" in result["error"]
    assert time.monotonic() - began < 32
    code, verdict = deploys.verify(result["store"])
    assert (code, verdict["verdict"]) == (4, "partial")


@pytest.mark.parametrize(
    ("argv", "code", "verdict"),
    [
        (["cat"], 3, "failed"),
        (["true"], 3, "failed"),
        (["sh", "-c", "echo Welcome; sleep 30"], 3, "failed"),
        (["sh", "-c", "cat >/dev/null & exit 2"], 2, "refused"),
        (["/there/is/no/such/program"], 2, ""),
    ],
)
def test_a_program_that_is_no_agent(s3: StrictS3, deploys: Deploys, argv: list[str], code: int, verdict: str) -> None:
    exit_code, result, stderr = deploys.run("--json", argv=argv)
    assert exit_code == code, stderr
    assert result["verdict"] == (verdict or "refused")
    assert s3.keys(BUCKET) == []


def test_what_the_program_says_is_shown_and_escaped(deploys: Deploys) -> None:
    _, _, stderr = deploys.run(argv=["sh", "-c", "printf 'ssh: \\033[31mno route\\033[0m\\n' >&2"])
    assert "host: ssh: \\x1b[31mno route\\x1b[0m" in stderr
    assert "\x1b" not in stderr


def test_a_job_that_the_host_refuses(s3: StrictS3, deploys: Deploys) -> None:
    code, result, _ = deploys.run("--container", "there-is-none")
    assert (code, result["verdict"]) == (2, "refused")
    assert "there-is-none" in result["error"]
    assert "findings" not in result
    assert s3.keys(BUCKET) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ["--to", "./directory"],
        ["--to", "s3://B"],
        ["--authority", "session"],
        ["--role", "arn:aws:iam::111122223333:role/x", "--authority", "broker"],
        ["--role", "no-arn"],
        ["--authority", "ambient"],
        ["--recipient", "age1nonsense"],
        ["--session-duration", "5m", "--role", "arn:aws:iam::111122223333:role/x"],
    ],
)
def test_a_wrong_command_starts_nothing(deploys: Deploys, tmp_path: Path, wrong: list[str]) -> None:
    code, _, _ = deploys.run(*wrong, argv=["touch", str(tmp_path / "started")])
    assert code == 2
    assert not (tmp_path / "started").exists()
    assert not deploys.state.exists()


def test_nothing_is_said_without_a_case(deploys: Deploys) -> None:
    import subprocess

    command = [sys.executable, "-m", "agent", "deploy", "command", "--", "true"]
    assert subprocess.run(command, env=deploys.environment, capture_output=True, timeout=60).returncode == 2
