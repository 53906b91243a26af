"""From a mounted disk to a timeline: acquired, sealed, opened and decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from acquirers import registry
from acquirers.containers.docker import Docker
from acquirers.logs import RuntimeLogs, SessionLogs
from agent.cli import options
from agent.cli.log_exports import export_logs
from tests.support.docker_disk import make_disk
from tests.support.runs import acquire, keygen, only_run

if TYPE_CHECKING:
    import pytest


def test_a_sealed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    first, _ = make_disk(disk, containers=2, files=1, size=100)
    pod = disk / "var/log/pods/shop_web_0123/c"
    pod.mkdir(parents=True)
    (pod / "0.log").write_bytes(b"2026-01-02T03:04:05Z stdout F \x1b[2J\n")
    session = disk / "var/log/ecs/exec/0123abcd/web/session.log"
    session.parent.mkdir(parents=True)
    session.write_text("what was typed\n")
    key, recipient = keygen(tmp_path)
    sessions = SessionLogs()
    chosen = [sessions, Docker(), RuntimeLogs(sessions=sessions)]
    with mock.patch.object(registry, "select", return_value=chosen):
        assert acquire(tmp_path / "ev", recipient, "--root", str(disk))[0] == 0
    run = only_run(tmp_path / "ev")
    assert sorted(path.name for path in (run / "logs").iterdir()) == ["kubernetes.tar.zst.age", "sessions.tar.zst.age"]
    keys = options.read_identities((str(key),))
    output = tmp_path / "out"
    capsys.readouterr()
    result = export_logs(
        str(run), keys, str(output), containers=[], signers=(), receipts=(), s3=None, quiet=False
    )  # fmt: skip
    assert "\x1b" not in capsys.readouterr().err
    assert (result["timelines"], result["lines"], result["damaged"]) == (3, 3, 0)
    (line,) = (output / "shop_web_c.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.000000000Z", "stream": "stdout", "line": "\x1b[2J", "partial_joined": 1,
        "source": "[root]/var/log/pods/shop_web_0123/c/0.log", "offset": 0, "container": "shop/web/c",
    }  # fmt: skip
    assert json.loads((output / f"{first[:12]}-c0.jsonl").read_bytes())["line"] == "x"
