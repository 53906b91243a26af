"""Rotated logs that unpack to more than any log: how far, and what is said of it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from agent.analysis.logs import inflate, timeline
from agent.analysis.logs.inflate import MAX_INFLATED, Inflated, allowed
from agent.analysis.opening import new_output
from tests.support.log_files import START, Said, items, json_file

if TYPE_CHECKING:
    import pytest

WEB = "a1" * 32
LOG = f"[root]/var/lib/docker/containers/{WEB}/{WEB}-json.log"
RECORD = json_file(Said(START, "stdout", b"x" * 60))[0]


def packed(megabytes: int, unit: bytes = RECORD) -> bytes:
    """That much of the same record, again and again: about a thousandth of it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = (unit * ((1 << 20) // len(unit) + 1))[: (1 << 20) // len(unit) * len(unit)]
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def test_what_a_file_may_become_grows_with_its_size_and_has_an_end() -> None:
    assert allowed(0) == allowed(100_000) == 64 << 20
    assert allowed(1 << 20) == 200 << 20
    assert allowed(10 << 20) == 1 << 30
    assert allowed(100 << 20) == 50 * (100 << 20), "a log of 5 GiB that was packed as logs are"
    assert allowed(1 << 40) == MAX_INFLATED
    sizes = [allowed(size) for size in range(0, 1 << 32, 1 << 22)]
    assert sizes == sorted(sizes)


def test_a_bomb_ends_at_what_its_size_allows() -> None:
    bomb = packed(300)
    assert len(bomb) < (300 << 20) // 250
    total = 0
    found = Inflated([(0, bomb)])
    for _, piece in found:
        assert len(piece) <= 1 << 20
        total += len(piece)
    assert total <= allowed(len(bomb)) < 300 << 20
    assert found.damage is not None
    assert f"of {len(bomb)} packed ones: not unpacked further" in found.damage.why


def test_a_log_that_repeats_itself_is_read_whole() -> None:
    found = Inflated([(0, packed(40))])
    assert sum(len(piece) for _, piece in found) == (1 << 20) // len(RECORD) * len(RECORD) * 40
    assert found.damage is None


def test_the_timeline_says_so_and_has_what_came_before_and_all_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflate, "SMALL", 2 << 20)
    monkeypatch.setattr(inflate, "WELL", 1)
    monkeypatch.setattr(inflate, "ORDINARY", 1)
    youngest = json_file(Said(START + 10**12, "stdout", b"after it"))[0]
    run = items({f"containers/docker/{WEB[:12]}-web.tar": {f"{LOG}.1.gz": packed(8), LOG: youngest}})
    with new_output(str(tmp_path / "out")) as fd:
        summary = timeline.export(run, fd, [])
    (path,) = (tmp_path / "out").iterdir()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    damaged = [line for line in lines if "damaged" in line]
    assert len(damaged) == 1
    assert "not unpacked further" in json.dumps(damaged[0])
    assert damaged[0]["source"] == f"{LOG}.1.gz"
    assert summary.counts.damaged == 1
    assert lines[-1]["line"] == "after it"
    assert 1000 < len(lines) < (8 << 20) // len(RECORD)


def test_many_small_members_are_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound for each member would be none."""
    monkeypatch.setattr(inflate, "SMALL", 1 << 20)
    monkeypatch.setattr(inflate, "WELL", 1)
    monkeypatch.setattr(inflate, "ORDINARY", 1)
    member = gzip.compress(bytes(200_000))

    def pieces() -> Iterator[tuple[int, bytes]]:
        for number in range(50):
            yield number * len(member), member

    found = Inflated(pieces())
    assert sum(len(piece) for _, piece in found) <= 1 << 20
    assert found.damage is not None


def test_a_bound_that_is_given_counts_alone() -> None:
    with mock.patch.object(inflate, "allowed", side_effect=AssertionError):
        found = Inflated([(0, gzip.compress(bytes(100)))], limit=50)
        assert sum(len(piece) for _, piece in found) <= 50
    assert found.damage is not None
