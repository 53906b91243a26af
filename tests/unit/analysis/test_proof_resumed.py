"""A run that was cut off and resumed: its receipt signs the frames of what attempts before left, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.run import Stop
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from acquirers.base import Item


@pytest.mark.parametrize("killed", [True, False])
def test_what_was_whole_before_can_be_shown_in_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: bool
) -> None:
    key, recipient = keygen(tmp_path)
    acquirer = play(monkeypatch, Script("a/one.tar", [b"one" * 500]), Script("b/two.tar", [b"two" * 500]))
    stops: list[Stop] = []

    def make() -> Stop:
        stops.append(Stop())
        return stops[-1]

    monkeypatch.setattr("agent.cli.acquire.Stop", make)
    original = acquirer.items

    def items(host: object, scope: object) -> Iterator[Item]:
        for number, item in enumerate(original(host, scope)):  # type: ignore[arg-type]
            if number:
                stops[-1]("SIGTERM")
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(acquirer, "items", items)
        assert acquire(tmp_path / "ev", recipient)[1]["verdict"] == "stopped"
    run = only_run(tmp_path / "ev")
    if killed:
        for path in (run / "attempt-1").iterdir():
            path.unlink()
    assert impound("resume", run)[1]["verdict"] == "complete"
    assert impound("verify", run, "-i", key)[0] == 0
    receipt = impound("verify", run)[1]["receipt_sha256"]
    for name in ("a/one.tar", "b/two.tar", *(() if killed else ("attempt-1/manifest.jsonl",))):
        proof = tmp_path / name.replace("/", "-")
        code, _, error = impound("export", "proof", run, "-i", key, "--only", name, "--range", "1-9", "-o", proof)
        assert code == 0, error
        assert impound("verify", proof, "--receipt-sha256", str(receipt))[1]["verdict"] == "intact"
