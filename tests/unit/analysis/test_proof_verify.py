"""`verify` with a key holds every object to the tree that was signed: a proof rests on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.sealing.merkle import Tree
from tests.support.runs import acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_tree_of_other_frames_is_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch)
    key, recipient = keygen(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Tree, "root", lambda _self: bytes(32))  # a signer who lies
        assert acquire(tmp_path / "ev", recipient)[0] == 0
    run = only_run(tmp_path / "ev")
    assert impound("verify", run)[0] == 0
    code, result, _ = impound("verify", run, "-i", key)
    assert (code, result["verdict"]) == (4, "damaged")
    findings = result["findings"]
    assert isinstance(findings, list)
    assert {one["name"] for one in findings} == {
        "attempt-1/manifest.jsonl.zst.age",
        "attempt-1/custody.jsonl.zst.age",
        "containers/docker/one.tar.zst.age",
    }
