"""`--relay`: the sealed objects come back over the channel, and are stored here, in a directory or a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.delivery.ledger import Ledger
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import ENVIRONMENT, impound, keygen
from tests.unit.delivery.deploys import BUCKET, Deploys, make_disk


class Relays:
    """Runs that come back into a directory: no bucket, no AWS."""

    def __init__(self, directory: Path, size: int = 14 << 20) -> None:
        self.directory, self.to = directory, directory / "case"
        self.disk = make_disk(directory, size)
        self.key, self.recipient = keygen(directory)
        self.state = directory / "state"
        self.environment = ENVIRONMENT | {"HOME": str(directory)}

    def command(self, *more: str, argv: tuple[str, ...] = ()) -> list[str]:
        told = () if "--resume" in more else ("--case", "C-1", "--to", str(self.to), "-r", self.recipient)
        where = () if "--resume" in more else ("--root", str(self.disk))
        return [
            sys.executable, "-m", "agent", "deploy", "command", "--relay", *told, *where, "--state", str(self.state),
            *more, "--", *(argv or (sys.executable, "-m", "agent")),
        ]  # fmt: skip

    def run(self, *more: str, argv: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            self.command(*more, argv=argv), env=self.environment, capture_output=True, timeout=240, check=False
        )
        lines = done.stdout.splitlines()
        assert len(lines) <= 1, done.stdout
        return done.returncode, json.loads(lines[0]) if lines else {}, done.stderr.decode("utf-8", "replace")

    def start(self, *more: str, argv: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*more, argv=argv), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )


@pytest.fixture
def relays(tmp_path: Path) -> Relays:
    return Relays(tmp_path)


def stored(run: str) -> set[str]:
    return {str(path.relative_to(run)) for path in Path(run).rglob("*") if path.is_file()}


def test_a_run_comes_back_whole_and_every_object_is_known_to_the_ledger(relays: Relays, tmp_path: Path) -> None:
    code, result, stderr = relays.run()
    assert (code, result["verdict"], result["authority"]) == (0, "complete", "relay"), stderr
    assert result["store"].startswith(f"{relays.to}/C-1/")
    code, verdict, _ = impound("verify", result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")
    state, head, _ = Ledger.load(result["ledger"])
    assert (head, state.verdict, state.uploads) == (result["ledger_head"], "complete", {})
    assert {name for name, one in state.objects.items() if one.sure} == stored(result["store"])
    assert all(one.checked == "sha256" and one.sha256 for one in state.objects.values())
    code, _, error = impound("open", result["store"], "--identity", relays.key, "--output", tmp_path / "out")
    assert code == 0, error
    (manifest,) = (tmp_path / "out").glob("attempt-1/manifest.jsonl")
    first = json.loads(manifest.read_text().splitlines()[0])
    # Where the responder stores it is none of the host's business.
    assert (first["store"], first["job"]["to"]) == ({"kind": "relay", "location": "-", "authority": "relay"}, "-")
    (item,) = [path for path in (tmp_path / "out/containers/docker").glob("*.tar") if path.stat().st_size > 10 << 20]
    big = (relays.disk / "var/lib/docker/volumes/unused/_data/big").read_bytes()
    assert big in item.read_bytes()


def test_it_is_countersigned_after_every_byte_was_read_again(relays: Relays, tmp_path: Path) -> None:
    _, made, _ = impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    code, result, stderr = relays.run("--countersign-key", str(tmp_path / "ir.sign"))
    assert (code, result["countersigner"]) == (0, made["signer"]), stderr
    code, verdict, _ = impound("verify", result["store"], "--signer", str(made["signer"]))
    assert (code, verdict["verdict"], verdict["countersigner"]) == (0, "intact", made["signer"])


def test_into_a_bucket_by_the_right_of_the_responder(tmp_path: Path) -> None:
    with StrictS3(tmp_path, tls=True) as s3:
        s3.make_bucket(BUCKET, lock=True, retention=("COMPLIANCE", 1))
        assert s3.certificates is not None
        options = ["--ca-bundle", str(s3.certificates.ca_file), "--bucket-owner", s3.account]
        deploys = Deploys(
            tmp_path, s3.endpoint_url, s3.region, s3.admin.access_key, s3.admin.secret_key, s3_options=options
        )
        # The host has no way there: its environment holds nothing, and its proxy leads nowhere.
        host = [
            "env",
            "-i",
            "HTTPS_PROXY=http://127.0.0.1:1",
            f"PYTHONPATH={os.getcwd()}",
            sys.executable,
            "-m",
            "agent",
        ]
        code, result, stderr = deploys.run("--relay", argv=host)
        assert (code, result["verdict"], result["authority"]) == (0, "complete", "relay"), stderr
        code, verdict = deploys.verify(result["store"], "--receipt-sha256", result["receipt_sha256"])
        assert (code, verdict["verdict"]) == (0, "intact")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_run_in_order_and_it_goes_on_later(relays: Relays, number: signal.Signals) -> None:
    process = relays.start("--max-mbit", "40")
    assert process.stderr is not None
    for line in process.stderr:
        if b"item-started" in line:
            break
    process.send_signal(number)
    out, stderr = process.communicate(timeout=120)
    result = json.loads(out)
    assert (process.returncode, result["verdict"]) == (3, "stopped"), stderr
    assert impound("verify", result["store"], "--signer", result["signer"])[1]["verdict"] == "partial"
    code, whole, error = relays.run("--resume", result["store"])
    assert (code, whole["verdict"], whole["attempt"], whole["run"]) == (0, "complete", 2, result["run"]), error
    code, verdict, _ = impound("verify", whole["store"], "--receipt-sha256", whole["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact")


def test_a_host_that_dies_leaves_whole_objects_and_nothing_else(relays: Relays) -> None:
    process = relays.start("--max-mbit", "40")
    assert process.stderr is not None
    for line in process.stderr:
        if b"item-started" in line:
            break
    for pid in children(process.pid):
        os.kill(pid, signal.SIGKILL)
    out, stderr = process.communicate(timeout=120)
    result = json.loads(out)
    assert (process.returncode, result["verdict"]) == (3, "partial"), stderr
    assert all(not name.startswith(".partial") for name in stored(result["store"]))
    state, _, _ = Ledger.load(result["ledger"])
    assert {name for name, one in state.objects.items() if one.sure} == stored(result["store"])
    code, whole, error = relays.run("--resume", result["store"])
    assert (code, whole["verdict"]) == (0, "complete"), error


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def test_a_full_destination_is_said_by_both_ends(relays: Relays, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    relays.to.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", relays.to], check=True, timeout=30)
    try:
        code, result, stderr = relays.run()
        assert (code, result["verdict"]) == (3, "failed"), stderr
        assert "the destination is full" in stderr
        code, verdict, _ = impound("verify", result["store"], "--signer", result["signer"])
        assert (code, verdict["verdict"]) == (4, "partial")
    finally:
        subprocess.run(["umount", relays.to], check=True, timeout=30)


def test_what_does_not_go_with_it_is_said(relays: Relays, tmp_path: Path) -> None:
    for more, why in (
        (["--authority", "broker"], "--relay gives the host no right to store"),
        (["--role", "arn:aws:iam::111122223333:role/x"], "--relay gives the host no right to store"),
    ):
        code, _, stderr = relays.run(*more)
        assert code == 2
        assert why in stderr
    relays.to = tmp_path / "none/none"
    code, _, stderr = relays.run()
    assert code == 2
    assert "is not there, and neither is the directory above it" in stderr
    assert not relays.state.exists()


HOSTILE = """
import json, sys
out = sys.stdout.buffer
start = json.loads(sys.stdin.readline())
job, run = start["job"], start["run"]
def say(**message):
    out.write(json.dumps(message).encode() + b"\\n"); out.flush()
say(say="hello", version=1, tool="impound 0.1.0", run=run, case=job["case"], host="h", attempt=1,
    signer="ed25519:" + "0" * 64)
def answer():
    return json.loads(sys.stdin.readline())
"""


BEGIN = 'say(say="begin", id=1, name="live/a.tar.zst.age"); answer()\n'
DOES = {
    "data of nothing": (
        'say(say="data", name="live/a.tar.zst.age", size=4); out.write(b"abcd"); out.flush()',
        "not begun",
    ),
    "the end of another": (BEGIN + 'say(say="whole", id=2, name="live/b.tar.zst.age", size=0); answer()', ""),
    "a huge piece": (BEGIN + 'say(say="data", name="live/a.tar.zst.age", size=1 << 21)', "no message"),
    "half a piece": (
        BEGIN + 'say(say="data", name="live/a.tar.zst.age", size=9); out.write(b"short"); out.flush()',
        "in the middle",
    ),
    "a way out": ('say(say="begin", id=1, name="../../etc/cron.d/x"); answer()', ""),
    "what is the controller's": ('say(say="begin", id=1, name="countersignature.json"); answer()', ""),
    "a signature": (
        'say(say="sign", id=1, name="live/a", upload="x", number=1, part={"size": 1, "sha256": "0" * 64}); answer()',
        "",
    ),
    "too many": (
        'for number in range(70):\n    say(say="begin", id=number, name=f"live/{number}.tar.zst.age"); answer()',
        "",
    ),
}


@pytest.mark.parametrize(("does", "finding"), DOES.values(), ids=DOES)
def test_a_host_that_does_not_keep_to_it_gets_nothing(relays: Relays, does: str, finding: str) -> None:
    code, result, stderr = relays.run(argv=(sys.executable, "-c", HOSTILE + does))
    assert (code, result["verdict"]) == (3, "partial"), stderr
    if finding:
        assert any(finding in one for one in result["findings"]), result
    else:
        assert result["refused"] == (6 if "range(70)" in does else 1), result
    assert not list(relays.directory.rglob("cron.d"))
    run = Path(result["store"])
    assert not run.exists() or not stored(str(run))


def test_a_receipt_that_names_what_did_not_come_is_a_finding(relays: Relays, tmp_path: Path) -> None:
    """A host that seals and signs all by itself, and leaves one object out."""
    script = tmp_path / "liar.py"
    script.write_text(
        "import sys\n"
        "from agent.stores import relay\n"
        "whole = relay.RelayUpload.commit\n"
        "def commit(upload):\n"
        "    if upload._name.startswith('containers/'):\n"
        "        upload._end.drop(upload._name)\n"
        "        return ()\n"
        "    return whole(upload)\n"
        "relay.RelayUpload.commit = commit\n"
        "from agent.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    code, result, stderr = relays.run(argv=(sys.executable, str(script)))
    assert (code, result["verdict"], result["host_says"]) == (3, "doubtful", "complete"), stderr
    assert any("which did not come" in one for one in result["findings"])


def measured(path: Path) -> str:
    """A program that is impound, and writes down how much of it was resident at most, in KiB."""
    return (
        "import sys\n"
        "from agent.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "status = open('/proc/self/status').read()\n"
        f"out = open({str(path)!r}, 'w')\n"
        "out.write(next(line for line in status.splitlines() if line.startswith('VmHWM')).split()[1])\n"
        "out.close()\n"
        "sys.exit(code)\n"
    )


def test_memory_of_both_ends_stays_flat(tmp_path: Path) -> None:
    """Evidence of more than twice what the host may have resident."""
    large = Relays(tmp_path, 300 << 20)
    command = large.command(argv=(sys.executable, "-c", measured(tmp_path / "host")))
    assert command[1:3] == ["-m", "agent"]
    command[1:3] = ["-c", measured(tmp_path / "controller")]
    done = subprocess.run(command, env=large.environment, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [int((tmp_path / end).read_text()) for end in ("host", "controller")]
    assert max(peaks) < 128 << 10, peaks
