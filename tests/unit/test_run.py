"""One run: what acquirers tell becomes manifest, counts and exit codes, and no acquirer ends a run."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from acquirers.base import Item, Kind, Member, Reason, Report
from agent.errors import StoreFullError
from agent.stores.directory import DirectoryUpload
from tests.support.runs import STAT, AcquirerError, Script, Scripted, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def manifest(directory: Path, attempt: int = 1) -> list[dict[str, object]]:
    lines = (directory / f"attempt-{attempt}/manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def opened(tmp_path: Path, source: Path, name: str = "out") -> Path:
    code, _, error = impound("open", source, "-i", tmp_path / "case.key", "-o", tmp_path / name)
    assert code == 0, error
    return tmp_path / name


@pytest.fixture
def recipient(tmp_path: Path) -> str:
    return keygen(tmp_path)[1]


def test_a_run_without_gaps_is_complete(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script(flags=3))
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["verdict"], result["gaps"], result["flags"]) == (0, "complete", 0, 3)
    out = opened(tmp_path, tmp_path / "ev")
    assert (out / "containers/docker/one.tar").read_bytes() == b"hello" + b"world" * 1000
    records = manifest(out)
    assert [record["type"] for record in records] == [
        "run", "acquirer", "item", "member", "flag", "flag", "flag", "stored", "footprint", "end",
    ]  # fmt: skip
    assert records[3]["path"] == "/etc/pass\\xffwd"
    assert records[3]["path_b64"] == "L2V0Yy9wYXNz/3dk"


def test_modes_in_the_store_are_private(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    acquire(tmp_path / "ev", recipient)
    for path in (tmp_path / "ev").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_gap_makes_the_run_exit_1_and_is_named(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script(gaps=7))
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["verdict"], result["gaps"], result["gap_reasons"]) == (1, "gaps", 7, {"denied": 7})
    assert impound("verify", tmp_path / "ev", "-i", tmp_path / "case.key")[1]["gaps"] == 7


@pytest.mark.parametrize("error", [AcquirerError(Reason.VANISHED, "gone"), ValueError("a bug"), RecursionError()])
def test_an_item_that_raises_is_a_gap_and_what_was_read_stays(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    play(monkeypatch, Script("a/one.tar", error=error), Script("a/two.tar"))
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["items"], result["gaps"]) == (1, 2, 1)
    out = opened(tmp_path, tmp_path / "ev")
    assert (out / "a/one.tar").read_bytes() == (out / "a/two.tar").read_bytes()


def test_an_acquirer_that_raises_between_items_is_a_gap(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script()).broken = ValueError("a bug")
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["items"], result["gap_reasons"]) == (1, 1, {"internal": 1})


@pytest.mark.parametrize("path", ["../out.tar", "/etc/x", "a/../../b", "a//b", ".hidden", "a\nb", ""])
def test_an_item_name_that_climbs_is_a_gap_not_a_path(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, Script(path))
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["gap_reasons"]) == (1, {"internal": 1})


def test_two_items_of_one_name_are_two_objects(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script("a/x.tar"), Script("a/x.tar", [b"other"]))
    assert acquire(tmp_path / "ev", recipient)[0] == 0
    out = opened(tmp_path, tmp_path / "ev")
    assert (out / "a/x-2.tar").read_bytes() == b"other"


def test_a_deadline_leaves_gaps(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.taking.PROGRESS_EVERY_S", -1)
    play(monkeypatch, Script("a/x.tar"), Script("a/y.tar"))
    monkeypatch.setattr("agent.taking.Watch.late", lambda _self: True)
    code, result, _ = acquire(tmp_path / "ev", recipient, "--deadline", "1s")
    assert (code, result["gap_reasons"]) == (1, {"limit": 1})


def test_stock_tools_open_every_object(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script(chunks=[bytes(70_000), b"abc" * 500_000]))
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    out = opened(tmp_path, tmp_path / "ev")
    for sealed in run.rglob("*.zst.age"):
        age = subprocess.run(
            ["age", "-d", "-i", tmp_path / "case.key", sealed], capture_output=True, check=True, timeout=60
        )
        plain = subprocess.run(["zstd", "-d", "-c"], input=age.stdout, capture_output=True, check=True, timeout=60)
        name = str(sealed.relative_to(run)).removesuffix(".zst.age")
        assert plain.stdout == (out / name).read_bytes()


def test_a_range_is_opened_without_the_rest(tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 20_000
    play(monkeypatch, Script(chunks=[data]))
    acquire(tmp_path / "ev", recipient)
    code, _, _ = impound(
        "open", tmp_path / "ev", "-i", tmp_path / "case.key", "-o", tmp_path / "out",
        "--only", "containers/*", "--range", "2097150-2097160",
    )  # fmt: skip
    assert code == 0
    part = tmp_path / "out/containers/docker/one.tar.2097150-2097160"
    assert part.read_bytes() == data[2097150:2097161]


def test_the_result_line_stays_short_whatever_happens(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [Script(f"a/{number:03d}-{'n' * 90}.tar", gaps=30) for number in range(40)]
    play(monkeypatch, *scripts)
    code, result, _ = acquire(tmp_path / "ev", recipient)  # impound() asserts the length
    assert (code, result["gaps"]) == (1, 1200)


def test_a_manifest_that_cannot_be_stored_ends_the_run_and_is_no_gap(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in the midst of an acquirer, which tells it of a member: the reason is the store's, and is told."""

    def members(report: Report) -> Iterator[bytes]:
        for number in range(20_000):
            report.member(Member(b"/%d" % number + os.urandom(100), Kind.FILE, STAT, sha256=os.urandom(32), size=5))
        yield b"data"

    def items(_self: Scripted, _host: object, _scope: object) -> Iterator[Item]:
        yield Item("a/one.tar", "application/x-tar", members)

    play(monkeypatch)
    monkeypatch.setattr(Scripted, "items", items)
    write = DirectoryUpload.write

    def refuse(upload: DirectoryUpload, data: bytes) -> None:
        if "manifest" in upload._name:
            raise StoreFullError("the destination is full")
        write(upload, data)

    monkeypatch.setattr(DirectoryUpload, "write", refuse)
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["verdict"]) == (3, "failed")
    assert "the destination is full" in str(result["error"])
    assert impound("verify", tmp_path / "ev", "-i", tmp_path / "case.key")[1]["verdict"] == "partial"
