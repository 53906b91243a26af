"""The limit of CPU time holds, and costs nothing where there is none."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.sealing import Sealer, generate
from agent.sealing.governor import Governor
from agent.sealing.pipeline import Pipeline

SEAL = """
import random, sys, time
from agent.sealing import Sealer, generate
from agent.sealing.governor import Governor
from agent.sealing.pipeline import Pipeline

limit, workers, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
block = random.randbytes(1 << 20)
recipients = [generate().recipient]
with Pipeline(workers, Governor(limit)) as pipeline:
    sealer = Sealer(recipients, len, pipeline=pipeline)
    started, used = time.monotonic(), time.process_time()
    while time.monotonic() < started + seconds:
        sealer.write(block)
    sealer.finish()
    print((time.process_time() - used) / (time.monotonic() - started) * 100, sealer.plaintext_size)
"""


@pytest.mark.parametrize(("limit", "workers"), [(30, 0), (30, 2), (100, 4)])
def test_the_share_of_cpu_is_kept(limit: int, workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEAL, str(limit), str(workers), "3"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    share, size = map(float, done.stdout.split())
    # Below, only where the machine has no more to give.
    assert limit / 3 < share < limit * 4 / 3
    assert size > 0


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        hashlib.sha256(bytes(10_000)).digest()


def test_who_does_nothing_else_is_not_made_to_wait() -> None:
    governor = Governor(20)
    burn(0.02)
    governor.pause()
    time.sleep(0.3)
    started = time.monotonic()
    for _ in range(100):
        governor.pause()
    assert time.monotonic() - started < 0.05


def test_time_that_was_not_used_cannot_be_saved_up() -> None:
    governor = Governor(20)
    time.sleep(1)
    governor.pause()
    started, used = time.monotonic(), time.process_time()
    while time.monotonic() < started + 1:
        burn(0.005)
        governor.pause()
    assert time.process_time() - used < 0.4


def test_no_single_pause_is_longer_than_the_window() -> None:
    governor = Governor(1)
    burn(0.2)  # 20 s at that rate
    started = time.monotonic()
    governor.pause()
    assert 0.5 < time.monotonic() - started < 1.5


def test_it_sleeps_and_does_not_spin() -> None:
    governor = Governor(1)
    burn(0.1)
    used = time.thread_time()
    governor.pause()
    assert time.thread_time() - used < 0.02


def test_without_a_limit_nothing_is_measured() -> None:
    governor = Governor(None)
    assert not governor.limits
    burn(0.05)
    started = time.monotonic()
    for _ in range(1000):
        governor.pause()
    assert time.monotonic() - started < 0.1


def test_a_limit_below_one_percent_is_refused() -> None:
    with pytest.raises(ValueError, match="1 percent"):
        Governor(0)


def test_an_object_that_is_aborted_under_a_limit_is_aborted_soon() -> None:
    with Pipeline(2, Governor(5)) as pipeline:
        sealer = Sealer([generate().recipient], len, pipeline=pipeline)
        for _ in range(4):
            sealer.write(bytes(1 << 20))
        started = time.monotonic()
        sealer.abort()
        assert time.monotonic() - started < 1
