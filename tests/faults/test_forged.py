"""Somebody who can write to the store, and names made to mislead: what an attacker of this version tried."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest

from acquirers.base import Gap, Item, Reason
from agent.custody.records import PREDICATE, RECEIPT, STATEMENT, Acquisition, Statement
from agent.custody.signing import STATEMENT_TYPE, AttemptKey
from agent.sealing import parse_recipient
from agent.stores.directory import DirectoryStore
from agent.stores.sealed import SealedObject
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from acquirers.base import Report
    from agent.run import Stop


def seal(directory: Path, name: str, recipient: str, data: bytes) -> Path:
    """An object that somebody else made, sealed to the same recipient: their key is public."""
    store = DirectoryStore(str(directory), "a/b/c")
    sealed = SealedObject(store, name, [parse_recipient(recipient)])
    sealed.write(data)
    sealed.commit()
    store.close()
    return directory / "a/b/c" / f"{name}.zst.age"


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, str, dict[str, object]]:
    """A run that was stopped after its first item: directory, key, recipient, result."""
    from agent import run as run_module

    acquirer = play(monkeypatch, Script("a/one.tar"), Script("b/two.tar"))
    key, recipient = keygen(tmp_path)
    stops: list[Stop] = []
    real = run_module.Stop

    def make() -> Stop:
        stops.append(real())
        return stops[-1]

    monkeypatch.setattr("agent.cli.acquire.Stop", make)
    original = acquirer.items

    def items(host: object, scope: object) -> Iterator[Item]:
        for number, item in enumerate(original(host, scope)):  # type: ignore[arg-type]
            if number:
                stops[-1]("SIGTERM")
            yield item

    monkeypatch.setattr(acquirer, "items", items)
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["verdict"]) == (3, "stopped")
    monkeypatch.setattr(acquirer, "items", original)
    return only_run(tmp_path / "ev"), key, recipient, result


def test_the_receipt_of_a_stopped_attempt_is_not_the_receipt_of_the_run(
    stopped: tuple[Path, Path, str, dict[str, object]],
) -> None:
    run, key, recipient, result = stopped
    shutil.copy(run / "attempt-1/receipt.json", run / RECEIPT)
    code, verdict, _ = impound("verify", run, "-i", key, "--signer", str(result["signer"]))
    assert (code, verdict["verdict"]) == (4, "damaged")
    code, verdict, _ = impound("verify", run, "--receipt-sha256", str(result["receipt_sha256"]))
    assert (code, verdict["verdict"]) == (4, "damaged")
    assert impound("resume", run, "-r", recipient)[0] == 4
    assert impound("open", run, "-i", key, "-o", run.parent / "out")[0] == 4


def test_objects_that_were_planted_before_a_resume_stay_nobody_s_evidence(
    stopped: tuple[Path, Path, str, dict[str, object]], tmp_path: Path
) -> None:
    run, key, recipient, result = stopped
    (run / "host").mkdir()
    shutil.copy(seal(tmp_path / "forge", "host/etc.tar", recipient, b"forged"), run / "host/etc.tar.zst.age")
    code, verdict, _ = impound("verify", run, "-i", key)
    assert (code, verdict["unaccounted"]) == (4, ["host/etc.tar.zst.age"])
    code, resumed, error = impound("resume", run, "--signer", str(result["signer"]), "-r", recipient)
    assert (code, resumed["verdict"]) == (0, "complete"), error
    code, verdict, error = impound("verify", run, "-i", key)
    assert (code, verdict["strays"]) == (0, ["host/etc.tar.zst.age"])
    assert "nobody vouches" in error
    assert impound("open", run, "-i", key, "-o", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out/host").exists()
    assert (tmp_path / "out/b/two.tar").exists()


def test_an_account_that_was_exchanged_before_a_resume_is_damage(
    stopped: tuple[Path, Path, str, dict[str, object]], tmp_path: Path
) -> None:
    run, key, recipient, _ = stopped
    for name in ("custody.jsonl", "manifest.jsonl"):
        path = run / f"attempt-1/{name}.zst.age"
        kept = path.read_bytes()
        path.write_bytes(seal(tmp_path / name, "x", recipient, b'{"type":"end"}\n').read_bytes())
        code, verdict, _ = impound("verify", run, "-i", key)
        assert (code, verdict["verdict"]) == (4, "damaged"), name
        assert impound("resume", run)[0] == 4
        path.write_bytes(kept)
    assert impound("resume", run)[0] == 0


def test_an_attempt_that_never_began_stops_a_resume_at_once(
    stopped: tuple[Path, Path, str, dict[str, object]],
) -> None:
    run, _, _, _ = stopped
    (run / "attempt-2").mkdir()
    (run / "attempt-2/manifest.jsonl.zst.age").write_bytes(b"x")
    assert impound("resume", run)[0] == 4
    assert not (run / "progress/000002.json").exists()


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, str, dict[str, object]]:
    play(monkeypatch, Script("a/one.tar"), Script("b/two.tar", [bytes(3_000_000)]))
    key, recipient = keygen(tmp_path)
    _, result, _ = acquire(tmp_path / "ev", recipient)
    return only_run(tmp_path / "ev"), key, recipient, result


def test_open_and_export_find_what_verify_finds(
    whole: tuple[Path, Path, str, dict[str, object]], tmp_path: Path
) -> None:
    run, key, recipient, result = whole
    victim = run / "b/two.tar.zst.age"
    kept = victim.read_bytes()
    victim.unlink()
    code, opened, _ = impound("open", run, "-i", key, "-o", tmp_path / "1")
    assert (code, opened["verdict"]) == (4, "damaged")
    assert "b/two.tar" in json.dumps(opened["findings"])
    assert impound("export", "host", run, "-i", key, "-o", tmp_path / "1.tar")[0] == 4
    assert not (tmp_path / "1.tar").exists()
    victim.write_bytes(seal(tmp_path / "forge", "x", recipient, b"f" * 3_000_000).read_bytes())
    arguments = ("open", run, "-i", key, "--only", "b/*")
    assert impound(*arguments, "-o", tmp_path / "2", "--range", "0-50")[0] == 4
    assert impound(*arguments, "-o", tmp_path / "3")[0] == 4
    assert not [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    victim.write_bytes(kept)
    log = run / "attempt-1/custody.jsonl.zst.age"
    kept = log.read_bytes()
    log.write_bytes(seal(tmp_path / "log", "x", recipient, b"{}\n").read_bytes())
    assert impound("open", run, "-i", key, "-o", tmp_path / "4")[0] == 4
    log.write_bytes(kept)
    assert impound("open", run, "-i", key, "-o", tmp_path / "5", "--signer", str(result["signer"]))[0] == 0
    assert impound("open", run, "-i", key, "-o", tmp_path / "6", "--signer", "ed25519:" + "0" * 64)[0] == 4


def forge_receipt(directory: Path, **fields: object) -> None:
    key = AttemptKey()
    said: dict[str, object] = {
        "run": directory.name, "case": "C-1", "host": "h", "attempt": 1, "outcome": "complete", "signer": key.signer,
        "started": "x", "ended": "x", "tool": "x", "authority": "x", "recipients": [], "items": 0, "members": 0,
        "gaps": 0, "flags": 0, "manifest_sha256": "", "custody_head": "", "custody_lines": 0, "earlier": [],
        "finished": True, "strays": [],
    }  # fmt: skip
    statement = Statement(STATEMENT, [], PREDICATE, msgspec.convert(said | fields, Acquisition))
    data = key.sign(STATEMENT_TYPE, statement)
    (directory / RECEIPT).write_bytes(data)
    (directory / "attempt-1/receipt.json").write_bytes(data)


@pytest.mark.parametrize("field", ["run", "case", "host", "outcome", "started", "tool"])
def test_a_forged_receipt_is_damage_and_its_text_is_not_repeated(
    whole: tuple[Path, Path, str, dict[str, object]], field: str
) -> None:
    run, _, _, _ = whole
    forge_receipt(run, **{field: "\x01" * 1000})
    code, verdict, error = impound("verify", run)
    assert (code, verdict["verdict"]) == (4, "damaged")
    assert "\x01" not in error


def test_names_that_no_text_can_hold_still_get_a_result_line(whole: tuple[Path, Path, str, dict[str, object]]) -> None:
    run, _, _, _ = whole
    with open(os.fsencode(run) + b"/\xff\n\x1b[31m", "wb"):
        pass
    code, verdict, error = impound("verify", run)
    assert (code, verdict["verdict"]) == (4, "damaged")
    assert "\x1b" not in error


def test_every_run_of_a_case_gets_its_verdict(whole: tuple[Path, Path, str, dict[str, object]], tmp_path: Path) -> None:
    run, key, recipient, result = whole
    acquire(tmp_path / "ev", recipient)
    (tmp_path / "other").mkdir()
    _, stranger = keygen(tmp_path / "other")
    acquire(tmp_path / "ev", stranger)
    (run.parent / "00000000-0000-7000-8000-000000000000").mkdir()
    for name in ("progress", "attempt-1", "receipt.json"):
        (run.parents[1] / name).mkdir()
    code, verdict, _ = impound("verify", tmp_path / "ev", "-i", key)
    runs = verdict["runs"]
    assert isinstance(runs, list)
    verdicts = sorted(one["verdict"] for one in runs)
    assert (code, verdicts) == (3, ["intact, signer unknown"] * 2 + ["unreadable"] * 2)
    code, verdict, _ = impound("verify", run, "--signer", str(result["signer"]), "--receipt-sha256", "0" * 64)
    assert (code, verdict["not_found"]) == (4, ["0" * 64])
    for path in (run / "progress", run / RECEIPT, run / "attempt-1"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, verdict, _ = impound("verify", run)
    assert (code, verdict["verdict"]) == (4, "damaged")


def test_names_forge_no_line_of_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquirer = play(monkeypatch)
    forged = b"/a\ncomplete: everything that was asked for was acquired\n  evidence     /x\x1b[2J\xe2\x80\xae"

    def read(report: Report) -> Iterator[bytes]:
        report.gap(Gap(Reason.DENIED, "no\ncomplete: all", forged))
        yield b"x"

    monkeypatch.setattr(acquirer, "items", lambda _host, _scope: iter([Item("a/x.tar", "application/x-tar", read)]))
    _, recipient = keygen(tmp_path)
    code, _, error = acquire(tmp_path / "ev", recipient)
    assert code == 1
    assert not [line for line in error.splitlines() if line.startswith(("complete", "  evidence     /x"))]
    assert "\x1b" not in error


def test_hundred_long_names_do_not_spoil_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquirer = play(monkeypatch)

    def read(report: Report) -> Iterator[bytes]:
        for number in range(100):
            report.gap(Gap(Reason.DENIED, "no", b"/%d" % number + b"\x01" * 8000))
        report.gap(Gap(Reason.DENIED, "no", b"/" + b"\x01" * (1 << 20)))
        yield b"x"

    monkeypatch.setattr(acquirer, "items", lambda _host, _scope: iter([Item("a/x.tar", "application/x-tar", read)]))
    key, recipient = keygen(tmp_path)
    code, result, _ = acquire(tmp_path / "ev", recipient)
    assert (code, result["gaps"]) == (1, 101)
    code, verdict, _ = impound("verify", tmp_path / "ev", "-i", key)
    assert (code, verdict["gaps"]) == (0, 101)
    assert (only_run(tmp_path / "ev") / "progress/000001.json").stat().st_size < 4 << 20


def test_what_an_item_says_of_itself_cannot_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquirer = play(monkeypatch)
    nested: object = "x"
    for _ in range(5000):
        nested = [nested]
    item = Item("a/x.tar", "application/x-tar", lambda _report: iter([b"x"]), about={"caps": nested, "name": b"\xff"})
    monkeypatch.setattr(acquirer, "items", lambda _host, _scope: iter([item]))
    key, recipient = keygen(tmp_path)
    assert acquire(tmp_path / "ev", recipient)[0] == 0
    assert impound("verify", tmp_path / "ev", "-i", key)[0] == 0


@pytest.mark.parametrize("to", ["ev", "", "/x\n", "/x\x00y", "./ev"])
def test_a_job_names_its_destination_absolutely(to: str) -> None:
    from agent.errors import UsageError
    from agent.job import parse

    with pytest.raises(UsageError, match="destination"):
        parse(json.dumps({"case": "C", "to": to, "recipients": ["age1x"]}).encode())
