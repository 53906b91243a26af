"""`impound watch`: what runs say of themselves, while they are under way and afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli import watch
from agent.custody import status
from agent.custody.status import status_of
from agent.custody.stored import read_run
from agent.errors import SourceError
from agent.stores.directory import DirectorySource
from agent.stores.remembered import Remembered
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import ENVIRONMENT, Script, acquire, agent_command, impound, keygen, only_run, play

if TYPE_CHECKING:
    from agent.stores.base import Blob


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    _, recipient = keygen(tmp_path)
    play(monkeypatch)
    return tmp_path / "evidence", recipient


def look(to: Path | str, *more: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The result, and each run as it was told."""
    code, result, error = impound("watch", to, "--once", "--json", *more)
    assert code == 0, error
    return result, [json.loads(line) for line in error.splitlines()]


def test_every_run_of_a_case_stands_there_with_its_state(
    case: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    play(monkeypatch, Script(gaps=3))
    assert acquire(to, recipient)[0] == 1
    _, third, _ = acquire(to, recipient)
    for name in ("receipt.json", "attempt-1/receipt.json"):
        Path(str(third["store"]), name).unlink()
    result, runs = look(to)
    assert (result["runs"], result["complete"], result["gaps"], result["running"]) == (3, 1, 1, 1)
    by_state = {one["state"]: one for one in runs}
    assert by_state["gaps"]["gaps"] == 3
    assert {one["case"] for one in runs} == {"C-1"}
    assert all(re.fullmatch("ed25519:[0-9a-f]{64}", str(one["signer"])) for one in runs)
    assert by_state["complete"]["size"] > 0  # type: ignore[operator]
    assert look(to / "C-1")[0] == result


def test_one_run_gives_what_is_to_be_written_down(case: tuple[Path, str]) -> None:
    to, recipient = case
    _, made, _ = acquire(to, recipient)
    result, _ = look(to)
    assert {name: result[name] for name in ("run", "host", "signer", "receipt_sha256")} == {
        name: made[name] for name in ("run", "host", "signer", "receipt_sha256")
    }
    code, _, error = impound("watch", to)
    assert code == 0
    assert error.startswith("complete  ")
    assert str(made["signer"]) in error


def test_what_contradicts_itself_is_damaged(case: tuple[Path, str]) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    run = only_run(to)
    os.rename(run / "progress/000001.json", run / "progress/000007.json")
    result, (one,) = look(to)
    assert (result["damaged"], one["state"]) == (1, "damaged")
    assert "progress/000001.json" in str(one["problem"])
    assert str(run) in str(result["problems"])


def test_a_run_under_way_becomes_silent_when_no_word_comes(case: tuple[Path, str]) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    run = only_run(to)
    for name in ("receipt.json", "attempt-1/receipt.json"):
        (run / name).unlink()
    source = DirectorySource(str(run))
    stored = read_run(source)
    began = datetime.fromisoformat(stored.progress.plans[0].started)
    assert status_of(stored, began + timedelta(seconds=status.SILENT_S - 1)).state == "running"
    later = began + timedelta(seconds=status.SILENT_S + 1)
    assert status_of(stored, later).state == "silent"
    # Whoever sees something new arrive knows better than the clock of that machine.
    assert status_of(stored, later, heard=later - timedelta(seconds=1)).state == "running"
    source.close()


def test_what_never_changes_is_read_once(case: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    asked: list[str] = []
    inner = DirectorySource(str(only_run(to)))
    opened = inner.open

    def asking(name: str) -> Blob:
        asked.append(name)
        return opened(name)

    monkeypatch.setattr(inner, "open", asking)
    source = Remembered(inner)
    first = read_run(source)
    assert source.fresh
    assert asked
    count, source.fresh = len(asked), False
    second = read_run(source)
    assert (len(asked), source.fresh) == (count, False)
    assert (first.receipt, first.progress) == (second.receipt, second.progress)
    inner.close()


def test_names_of_a_stranger_are_escaped(case: tuple[Path, str]) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    run = only_run(to)
    os.rename(run, run.parent / "\x1b[31mred")
    code, _, error = impound("watch", to)
    assert code == 0
    assert "\x1b" not in error


def test_where_nothing_is_it_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        code, _, error = impound("watch", place, "--once")
        assert code == 3
        assert "no evidence" in error


def test_it_follows_a_run_in_a_bucket_to_its_end(tmp_path: Path) -> None:
    """As two processes: one acquires slowly, the other sees it running, then complete, and ends by itself."""
    key, recipient = keygen(tmp_path)
    disk = tmp_path / "disk"
    for name in ("containers", "image", "overlay2", "volumes/unused/_data"):
        (disk / "var/lib/docker" / name).mkdir(parents=True)
    (disk / "var/lib/docker/volumes/unused/_data/big").write_bytes(os.urandom(12 << 20))
    with StrictS3(tmp_path) as s3:
        s3.make_bucket("evidence")
        reach = ["--endpoint-url", s3.endpoint_url, "--region", s3.region]
        environment = ENVIRONMENT | {
            "AWS_ACCESS_KEY_ID": s3.admin.access_key, "AWS_SECRET_ACCESS_KEY": s3.admin.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path),
        }  # fmt: skip
        run = subprocess.Popen(
            [*agent_command(), "acquire", "--case", "C-1", "--to", "s3://evidence/x", "-r", recipient, "--authority",
             "ambient", *reach, "--root", disk, "--max-mbit", "16"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seen: list[dict[str, object]] = []
        try:
            until(lambda: any("progress/000000.json" in name for name in s3.keys("evidence")))
            watcher = subprocess.Popen(
                [*agent_command(), "watch", "s3://evidence/x/C-1", "--every", "1", "--json", *reach],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            out, error = watcher.communicate(timeout=120)
            seen = [json.loads(line) for line in error.splitlines()]
            assert watcher.returncode == 0, error
        finally:
            run.communicate(timeout=120)
    assert (seen[0]["state"], seen[-1]["state"]) == ("running", "complete")
    assert json.loads(out)["complete"] == 1
    assert key.exists()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_it_in_order(case: tuple[Path, str]) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    run = only_run(to)
    for name in ("receipt.json", "attempt-1/receipt.json"):
        (run / name).unlink()
    process = subprocess.Popen(
        [*agent_command(), "watch", str(to), "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b'"state":"running"' in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, json.loads(out)["running"]) == (0, 1)


def test_a_person_sees_a_table(case: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0
    seen = io.StringIO()
    monkeypatch.setattr(watch, "is_terminal", lambda: True)
    with contextlib.redirect_stderr(seen), contextlib.redirect_stdout(io.StringIO()):
        code = watch.command.callback(  # type: ignore[misc]
            source=str(to),
            once=False,
            every=1,
            as_json=False,
            endpoint_url="",
            region="",
            ca_bundle="",
            bucket_owner="",
        )
    assert code == 0
    assert "complete" in seen.getvalue()
    assert threading.active_count() < 50


def test_a_run_that_goes_away_meanwhile_is_no_end_of_it(
    case: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to, recipient = case
    assert acquire(to, recipient)[0] == 0

    def gone(_source: object) -> None:
        raise SourceError("it is gone")

    monkeypatch.setattr(watch, "read_run", gone)
    result, (one,) = look(to)
    assert (one["state"], one["problem"]) == ("damaged", "it is gone")
    assert result["damaged"] == 1
