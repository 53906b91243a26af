"""What fails in the pipeline reaches who writes; nothing hangs, nothing is lost, nothing passes as whole."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.sealing import BytesSource, Sealer, Unsealed, generate
from agent.sealing.age import AgeEncrypter
from agent.sealing.frames import FrameCompressor
from agent.sealing.pipeline import Pipeline

IDENTITY = generate()
MIB = 1 << 20
DATA = random.Random(1).randbytes(MIB)
WORKERS = [0, 1, 2, 4]


class GoneError(Exception):
    pass


@pytest.fixture(params=WORKERS)
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with Pipeline(request.param) as pipeline:
        yield pipeline
        # Whatever failed before, the blocks are free and others can use them.
        assert pipeline._under_way == 0
        works(pipeline)


def works(pipeline: Pipeline) -> None:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend, pipeline=pipeline)
    for _ in range(pipeline.blocks + 2):
        sealer.write(DATA)
    sealer.finish()
    assert b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream()) == DATA * (pipeline.blocks + 2)


def write_all(sealer: Sealer, mebibytes: int) -> None:
    for _ in range(mebibytes):
        sealer.write(DATA)
    sealer.finish()


def is_refused(sealer: Sealer) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="failed"):
            sealer.write(b"x")
        with pytest.raises(ValueError, match="failed"):
            sealer.finish()


class FailingSink:
    def __init__(self, at: int) -> None:
        self.left = at
        self.calls_after = 0

    def __call__(self, piece: memoryview) -> None:
        self.left -= 1
        if self.left < 0:
            self.calls_after += 1
            raise GoneError(f"call {self.calls_after}")


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9, 10])
def test_a_sink_that_raises_at_any_call(at: int, pipeline: Pipeline) -> None:
    sink = FailingSink(at)
    sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)
    with pytest.raises(GoneError, match="call 1"):
        write_all(sealer, 10)
    assert sink.calls_after == 1
    is_refused(sealer)
    sealer.abort()


@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 7), st.lists(st.integers(1, 2 * MIB), max_size=5))
@settings(deadline=None, max_examples=40)
def test_wherever_it_raises_the_writer_hears_of_it(workers: int, blocks: int, at: int, sizes: list[int]) -> None:
    with Pipeline(workers, blocks=blocks) as pipeline:
        sink = FailingSink(at)
        sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)
        heard = False
        try:
            for size in sizes:
                sealer.write(bytearray(DATA + DATA)[:size])
            sealer.finish()
        except GoneError:
            heard = True
            is_refused(sealer)
        assert heard == bool(sink.calls_after)
        assert sink.calls_after <= 1
        assert pipeline._under_way == 0


@pytest.mark.parametrize("error", [GoneError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("stage", [(FrameCompressor, "compress"), (AgeEncrypter, "update"), (AgeEncrypter, "finish")])
def test_a_stage_that_raises(stage: tuple[type, str], error: type[BaseException], pipeline: Pipeline) -> None:
    sealer = Sealer([IDENTITY.recipient], len, pipeline=pipeline)
    with mock.patch.object(*stage, side_effect=error("here")), pytest.raises(error, match="here"):
        write_all(sealer, 9)
    is_refused(sealer)


def test_a_failure_of_one_object_is_none_of_another(pipeline: Pipeline) -> None:
    sealed = bytearray()
    good = Sealer([IDENTITY.recipient], sealed.extend, pipeline=pipeline)
    bad = Sealer([IDENTITY.recipient], FailingSink(2), pipeline=pipeline)
    for _ in range(8):
        good.write(DATA)
        with contextlib.suppress(GoneError, ValueError):
            bad.write(DATA)
    good.finish()
    with pytest.raises((GoneError, ValueError)):
        bad.finish()
    assert b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream()) == DATA * 8


def test_blocks_of_a_failed_object_are_free_before_its_writer_looks() -> None:
    """Another thread must not wait for blocks of an object that nobody touches any more."""
    with Pipeline(2, blocks=2) as pipeline:
        bad = Sealer([IDENTITY.recipient], FailingSink(0), pipeline=pipeline)
        bad.write(DATA)
        bad.write(DATA)
        works(pipeline)
        with pytest.raises(GoneError):
            bad.write(DATA)


def test_abort_gives_everything_back_and_the_sink_is_left_alone(pipeline: Pipeline) -> None:
    calls: list[float] = []

    def sink(piece: memoryview) -> None:
        time.sleep(0.01)
        calls.append(time.monotonic())

    for mebibytes in range(8):
        sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)
        for _ in range(mebibytes):
            sealer.write(DATA)
        sealer.write(b"rest")
        sealer.abort()
        aborted, count = time.monotonic(), len(calls)
        sealer.abort()
        is_refused(sealer)
        time.sleep(0.03)
        assert len(calls) == count
        assert not calls or calls[-1] <= aborted


def test_abort_waits_for_a_sink_that_blocks() -> None:
    inside, release, left = threading.Event(), threading.Event(), threading.Event()

    def sink(piece: memoryview) -> None:
        inside.set()
        release.wait(30)
        left.set()

    with Pipeline(2) as pipeline:
        sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)
        for _ in range(4):
            sealer.write(DATA)
        assert inside.wait(30)
        threading.Timer(0.2, release.set).start()
        sealer.abort()
        assert left.is_set()
        assert pipeline._under_way == 0
        works(pipeline)


def test_a_writer_that_waits_is_told_when_another_thread_aborts() -> None:
    release = threading.Event()
    told: list[BaseException] = []

    with Pipeline(2, blocks=2) as pipeline:
        sealer = Sealer([IDENTITY.recipient], lambda _: release.wait(30), pipeline=pipeline)

        def write() -> None:
            try:
                write_all(sealer, 30)
            except ValueError as error:
                told.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.3)
        threading.Timer(0.2, release.set).start()
        sealer.abort()
        thread.join(30)
        assert not thread.is_alive()
        assert len(told) == 1
        works(pipeline)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_interrupt_at_any_moment_leaves_nothing_hanging(workers: int) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        with Pipeline(workers) as pipeline:
            for number in range(25):
                sealer = Sealer([IDENTITY.recipient], len, pipeline=pipeline)
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.0007 * (number + 1))
                with pytest.raises(KeyboardInterrupt):
                    write_all(sealer, 10_000)
                sealer.abort()
                is_refused(sealer)
            works(pipeline)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
