"""What signed records say is bounded, too: a signature does not make a number small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.custody import stored
from agent.custody.plaintext import Account, Stored
from agent.errors import DamagedError
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from pathlib import Path


def test_progress_records_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script("a.bin"), Script("b.bin"))
    _, recipient = keygen(tmp_path)
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    total = sum(path.stat().st_size for path in (run / "progress").iterdir())
    monkeypatch.setattr(stored, "MAX_CHAIN", total)
    assert impound("verify", run)[0] == 0
    monkeypatch.setattr(stored, "MAX_CHAIN", total - 1)
    code, result, _ = impound("verify", run)
    assert code == 4
    assert "more than impound writes" in str(result["findings"])


def test_a_number_of_pieces_is_held_against_those_that_are_there() -> None:
    account = Account({"a": Stored("a", 5, "00", item="x", pieces=1 << 62)})
    with pytest.raises(DamagedError, match="not all of them are recorded"):
        account.objects_of("a")
    two = {"a": Stored("a", 5, "00", item="x", pieces=2), "b": Stored("b", 1, "00", "x", piece=2, pieces=2, begins=5)}
    assert Account(two).objects_of("a") == ["a", "b"]
