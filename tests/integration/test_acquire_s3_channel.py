"""`acquire --job - --channel`: the agent under a controller, as a process with no right but what it is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, agent_command, impound
from tests.support.s3_runs import BUCKET, TO, Field, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    make_disk(root, containers=2, files=4, size=4_000_000)  # archives of 16 MB: two parts each
    return root


@pytest.fixture
def field(strict_s3_tls: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Field.make(strict_s3_tls, tmp_path, monkeypatch)


def deploy_options(field: Field, authority: str) -> list[str]:
    found = ["--case", "C", "--to", TO, "-r", field.recipient, *field.options]
    if authority == "broker":
        return found
    role = field.server.add_role(
        "uploader", {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    )
    return [*found, "--authority", "session", "--role", role.arn]


def on_host(*environment: str) -> list[str]:
    """The agent as a program that is started on a host which has no credentials at all."""
    kept = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return ["env", "-i", *kept, *environment, *agent_command()]


@pytest.mark.parametrize("authority", ["broker", "session"])
def test_a_controller_gives_the_right_and_the_run_is_whole(field: Field, disk: Path, authority: str) -> None:
    options = deploy_options(field, authority)
    code, result, error = impound("deploy", "command", *options, "--root", disk, "--", *on_host())
    assert code == 0, (result, error)
    run = field.run
    assert set(field.names(run).values()) == {1}
    code, verdict, error = field.verify(run, "--signer", str(result["signer"]))
    assert (code, verdict["outcome"], verdict["items"]) == (0, "complete", 4), error
    names = [name for name in field.names(run) if name.startswith("containers/")]
    assert len(names) == 4
    log = [json.loads(line) for line in (field.open(run, "out") / "attempt-1/custody.jsonl").read_text().splitlines()]
    assert [line["data"]["when"] for line in log if line["event"] == "clock"] == ["start", "end"]


def test_a_session_without_a_controller_is_completed_later(field: Field, disk: Path) -> None:
    """The job and a session come on standard input, which then ends: the host can add parts, and complete nothing."""
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"}]}
    session = field.server.add_session("host", session_policy=policy, seconds=3600)
    s3 = {
        "endpoint_url": field.server.endpoint_url,
        "region": field.server.region,
        "ca_bundle": field.server.ca_pem,
        "authority": "session",
    }
    job = {"case": "C", "to": TO, "recipients": [field.recipient], "s3": s3, "where": {"root": str(disk)}}
    credentials = {
        "access_key": session.access_key,
        "secret_key": session.secret_key,
        "token": session.token,
        "expires": time.time() + 3600,
    }
    done = subprocess.run(
        [*agent_command(), "acquire", "--job", "-", "--channel"],
        input=json.dumps({"say": "start", "job": job, "credentials": credentials}).encode() + b"\n",
        capture_output=True, env=ENVIRONMENT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["result"]
    run = result["store"]
    assert result["to_finish"] == f"impound finish {run}"
    assert f"impound finish {run} --receipt-sha256 {result['receipt_sha256']}" in done.stderr.decode()
    assert session.secret_key.encode() not in done.stdout + done.stderr
    assert field.server.keys(BUCKET) == []
    code, verdict, error = impound("finish", run, "--receipt-sha256", result["receipt_sha256"], *field.options)
    assert code == 0, (verdict, error)
    code, verdict, error = field.verify(run, "--signer", result["signer"])
    assert (code, verdict["verdict"], verdict["items"]) == (0, "intact", 4), error


def test_nothing_but_messages_goes_over_standard_output(field: Field) -> None:
    """A job that is refused: one message, the result; and one line on standard error."""
    job = {"case": "C", "to": TO, "recipients": ["nonsense"], "s3": {"authority": "broker"}}
    start = json.dumps({"say": "start", "job": job}).encode() + b"\n"
    done = subprocess.run(
        [*agent_command(), "acquire", "--job", "-", "--channel"],
        input=start, capture_output=True, env=ENVIRONMENT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    [line] = done.stdout.splitlines()
    message = json.loads(line)
    assert (message["say"], message["result"]["verdict"], message["result"]["exit"]) == ("result", "refused", 2)
    assert "recipient" in message["result"]["error"]
    assert len(done.stderr.splitlines()) == 1


def test_credentials_on_the_host_are_of_no_use_without_a_word(field: Field, disk: Path) -> None:
    """The host has credentials that may do everything: by broker none of them is used."""
    given = [f"AWS_ACCESS_KEY_ID={field.host.access_key}", f"AWS_SECRET_ACCESS_KEY={field.host.secret_key}"]
    options = deploy_options(field, "broker")
    assert impound("deploy", "command", *options, "--root", disk, "--", *on_host(*given))[0] == 0
    assert {one.principal for one in field.server.requests() if one.principal} != set()
    assert not [
        one for one in field.server.requests() if field.host.access_key in str(one.headers.get("authorization"))
    ]


def test_sigterm_on_the_host_ends_the_run_in_order_and_the_controller_hears_it(field: Field, disk: Path) -> None:
    held = field.hold("UploadPart", seconds=2)
    own = deploy_options(field, "broker")
    controller = subprocess.Popen(
        [*agent_command(), "deploy", "command", *own, "--root", str(disk), "--state", str(field.directory / "s"),
         "--", *on_host()],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("AWS_")},
    )  # fmt: skip
    wait_for(held, controller)
    [host] = children_of(controller.pid)
    os.kill(host, signal.SIGTERM)
    out, _ = controller.communicate(timeout=90)
    result = json.loads(out.splitlines()[-1])
    assert controller.returncode == 3, result
    code, verdict, error = field.verify(field.run)
    assert (code, verdict["verdict"]) == (4, "partial"), error
    assert "attempt-1/receipt.json" in field.names(field.run)


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    until = time.monotonic() + 10
    while not found and time.monotonic() < until:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                        fields = file.read().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == pid:
                    found.append(int(entry))
    return found


def test_a_controller_that_dies_leaves_a_partial_run(field: Field, disk: Path) -> None:
    held = field.hold("UploadPart", seconds=2)
    own = deploy_options(field, "broker")
    controller = subprocess.Popen(
        [*agent_command(), "deploy", "command", *own, "--root", str(disk), "--state", str(field.directory / "s"),
         "--", *on_host()],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("AWS_")},
    )  # fmt: skip
    wait_for(held, controller)
    [host] = children_of(controller.pid)
    controller.kill()
    controller.wait(timeout=30)
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{host}") and not _is_dead(host) and time.monotonic() < until:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{host}") or _is_dead(host), "the host goes on without its controller"
    assert field.verify(field.run)[1]["verdict"] == "partial"
    code, result, error = field.resume(field.run)
    assert (code, result["verdict"]) == (0, "complete"), error
    assert field.verify(field.run)[0] == 0
    assert BUCKET in field.run


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True
