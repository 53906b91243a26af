"""`--max-mbit`: what goes out a second, into S3 and into a directory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.stores.directory import DirectoryStore
from agent.stores.throttle import Throttle


def test_many_threads_together_come_within_a_tenth_of_the_limit() -> None:
    throttle = Throttle(80)  # 10 MB/s
    sent: list[int] = []

    def send() -> None:
        while time.monotonic() < end:
            throttle.take(100_000)
            sent.append(100_000)

    began = time.monotonic()
    end = began + 2
    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sent) / (time.monotonic() - began) == pytest.approx(10e6, rel=0.1)


def test_what_was_not_used_is_not_saved_up() -> None:
    throttle = Throttle(8)  # 1 MB/s
    throttle.take(1)
    time.sleep(0.6)
    began = time.monotonic()
    throttle.take(250_000)
    assert time.monotonic() - began < 0.05
    throttle.take(250_000)
    assert time.monotonic() - began > 0.2


def test_a_wait_that_is_ended_early_is_told_as_it_was() -> None:
    throttle = Throttle(8)
    assert throttle.take(10_000_000, lambda _seconds: None) < 0.1


def test_pieces_are_small_where_the_limit_is() -> None:
    assert Throttle(0.001).piece == 16 << 10
    assert Throttle(10_000).piece == 1 << 20
    assert Throttle(8).piece == 250_000


def test_no_limit_is_no_throttle() -> None:
    with pytest.raises(ValueError, match="no limit"):
        Throttle(0)


def test_a_directory_is_written_to_as_slowly(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path), "case/host/run", throttle=Throttle(40))  # 5 MB/s
    upload = store.begin("a.bin")
    data = bytes(1 << 20)
    began = time.monotonic()
    for _ in range(8):
        upload.write(data)
    upload.write(b"")
    took = time.monotonic() - began
    upload.commit()
    store.close()
    assert (tmp_path / "case/host/run/a.bin").stat().st_size == 8 << 20
    assert (8 << 20) / took == pytest.approx(5e6, rel=0.1)
