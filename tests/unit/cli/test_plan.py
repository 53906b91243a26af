"""What `plan` says of the ways to read memory: which of them work, and why the others are not used."""

from __future__ import annotations

import json

import pytest

from acquirers import registry
from acquirers.memory.physical import Physical
from acquirers.memory.ranges import Ranges
from acquirers.memory.source import Candidate, Survey
from tests.support.memory_sources import MIB, Fake

RAM = Ranges([(0, 64 * MIB)])


@pytest.fixture(autouse=True)
def _two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = (
        Candidate("kcore", Fake("kcore", RAM), "does not give 8 bytes"),
        Candidate("bpf", None, "eBPF needs CAP_BPF", "run as root"),
        Candidate("devmem", None, "never read"),
    )
    monkeypatch.setattr(registry, "acquirers", lambda: [Physical(lambda _host: Survey(RAM, b"", candidates))])


def test_each_source_says_that_it_works_or_why_it_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    from agent.cli import main

    assert main(["plan", "--only", "memory.physical"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "memory.physical available 64.0 MiB kcore: does not give 8 bytes" in rows
    assert "source kcore works" in rows
    assert "source bpf not used eBPF needs CAP_BPF; run as root" in rows
    assert "source devmem not used never read" in rows


def test_the_same_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    from agent.cli import main

    assert main(["plan", "--only", "memory.physical", "--json"]) == 0
    (record,) = (json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1])
    found = [(one["id"], one["state"], one["selected"]) for one in record["subjects"]]
    assert found == [
        ("kcore", "works", True), ("bpf", "eBPF needs CAP_BPF; run as root", False), ("devmem", "never read", False),
    ]  # fmt: skip
