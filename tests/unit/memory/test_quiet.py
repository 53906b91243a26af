"""This process takes and gives back as little as it can while memory is read."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys

import pytest

from acquirers.memory import footprint, quiet
from acquirers.memory.block import PAGE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: frame numbers")


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE


def test_the_collector_leaves_alone_what_is_there_and_only_for_so_long() -> None:
    gc.unfreeze()  # whatever ran before this test
    with quiet.quiet():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_what_is_freed_stays_here_while_memory_is_read() -> None:
    def move() -> int:
        pieces = [b"\1" * (4 << 20) for _ in range(16)]
        full = resident()
        del pieces
        return full - resident()

    with quiet.giving_back():
        assert move() > 48 << 20
    with quiet.quiet():
        assert move() < 16 << 20
        inside = resident()
    assert resident() < inside - (32 << 20)


def test_another_library_than_glibc_has_no_such_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with quiet.quiet():
        assert gc.get_freeze_count()
    assert gc.get_freeze_count() == 0


@needs_root
def test_frames_that_are_taken_meanwhile_are_told_once() -> None:
    """In a process of its own: what else this one holds, and what its threads do, is not small."""
    subprocess.run([sys.executable, "-c", TAKEN_MEANWHILE], check=True, timeout=60)


TAKEN_MEANWHILE = """
import mmap
from acquirers.memory import footprint
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges

def frames(lines):
    runs = [run for line in lines for run in line["runs"]]
    return Ranges((first, first + count) for first, count in runs)

during = footprint.During(0.0)
with mmap.mmap(-1, 4 << 20) as taken:
    taken.write(bytes([1]) * len(taken))
    first = frames(list(during.lines()))
    assert first.total * PAGE >= len(taken), first.total
    second = frames(list(during.lines()))
    assert second.total * PAGE < 1 << 20, second.total
    assert not second.intersect(first)
"""


def test_nothing_is_told_before_its_time() -> None:
    assert list(footprint.During(60.0).lines()) == []
