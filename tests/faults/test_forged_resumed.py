"""A resumed run whose first attempt left no receipt: what is in its chain is known by the last receipt alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from agent.custody.attempt import Attempt
from agent.custody.resuming import next_attempt
from agent.job import Job
from agent.sealing import parse_recipient
from agent.stores.directory import DirectorySource, DirectoryStore
from tests.support.runs import impound, keygen

if TYPE_CHECKING:
    from pathlib import Path

RUN = "01a203df-f4aa-7fe1-aa40-54dfdfcb8a21"
PLACE = f"C-1/h-1/{RUN}"


@pytest.fixture
def resumed(tmp_path: Path) -> tuple[Path, Path, str, str]:
    """The run, its key, its signer, the SHA-256 of its receipt."""
    key, recipient = keygen(tmp_path)
    job = Job(case="C-1", to=str(tmp_path / "ev"), recipients=[recipient])
    (tmp_path / "ev").mkdir()
    begin(tmp_path / "ev", job).abort()
    again = next_attempt(DirectorySource(str(tmp_path / "ev" / PLACE)), signers=(), recipients=())
    attempt = begin(tmp_path / "ev", again)
    receipt = attempt.close("complete", finished=True)
    return tmp_path / "ev" / PLACE, key, attempt.key.signer, receipt


def begin(to: Path, job: Job) -> Attempt:
    store = DirectoryStore(str(to), PLACE, resume=job.earlier is not None)
    recipients = [parse_recipient(text) for text in job.recipients]
    return Attempt(store, recipients, run=RUN, host="h-1", machine="0" * 64, job=job, asked=["containers.docker"])


def opened(run: Path, key: Path, *pins: str) -> tuple[int, str]:
    output = run.parents[3] / "out"
    shutil.rmtree(output, ignore_errors=True)
    code, _, error = impound("open", run, "-i", key, "-o", output, *pins)
    assert code == 0 or not output.exists()
    return code, error


def test_a_chain_that_somebody_else_put_there_is_not_opened(resumed: tuple[Path, Path, str, str]) -> None:
    run, key, signer, receipt = resumed
    assert opened(run, key, "--signer", signer)[0] == 0
    evil = run.parents[3] / "evil"
    evil.mkdir()
    recipient = str(impound("keygen", "-y", key)[1]["recipient"])
    begin(evil, Job(case="C-1", to=str(evil), recipients=[recipient])).abort()
    shutil.rmtree(run / "progress")
    shutil.copytree(evil / PLACE / "progress", run / "progress")
    assert impound("verify", run, "--signer", signer)[1]["verdict"] == "damaged"
    for pin in ("--signer", signer), ("--receipt-sha256", receipt), ():
        code, error = opened(run, key, *pin)
        assert (code, "is not of the last attempt" in error) == (4, True), error


def test_a_chain_that_was_cut_or_goes_on_is_not_opened(resumed: tuple[Path, Path, str, str]) -> None:
    run, key, signer, _ = resumed
    last = max((run / "progress").iterdir())
    data = last.read_bytes()
    assert json.loads(data)["payload"]
    last.unlink()
    code, error = opened(run, key, "--signer", signer)
    assert (code, f"progress/{last.name}: missing" in error or "not of the last attempt" in error) == (4, True), error
    last.write_bytes(data)
    assert opened(run, key, "--signer", signer)[0] == 0


def test_each_kind_of_pin_that_is_given_must_hold(resumed: tuple[Path, Path, str, str]) -> None:
    run, key, signer, receipt = resumed
    other = f"ed25519:{'0' * 63}1"
    assert opened(run, key, "--signer", signer, "--receipt-sha256", receipt)[0] == 0
    assert opened(run, key, "--signer", signer, "--signer", other, "--receipt-sha256", receipt)[0] == 0
    assert opened(run, key, "--signer", signer, "--receipt-sha256", "0" * 64)[0] == 4
    assert opened(run, key, "--signer", other, "--receipt-sha256", receipt)[0] == 4
