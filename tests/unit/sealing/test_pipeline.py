"""The pipeline: whatever threads do, the object is the one that a single thread makes."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError
from agent.sealing import BytesSource, Sealed, Sealer, Unsealed, generate, header, open_bytes
from agent.sealing.age import NONCE_SIZE, SEALED_CHUNK_SIZE
from agent.sealing.merkle import Tree
from agent.sealing.pipeline import (
    BLOCK_MEMORY,
    COMPRESSOR_MEMORY,
    OBJECT_MEMORY,
    OPEN_OBJECTS,
    Pipeline,
    blocks_of,
)

IDENTITY = generate()
MIB = 1 << 20


def mixture(size: int, seed: int = 1) -> bytes:
    """Random, zero and text blocks of uneven sizes, so that frames are large, tiny and between."""
    generator = random.Random(seed)
    parts: list[bytes] = []
    left = size
    while left > 0:
        count = min(left, generator.randrange(1, 3 * MIB))
        kind = generator.randrange(3)
        if kind == 0:
            parts.append(generator.randbytes(count))
        elif kind == 1:
            parts.append(bytes(count))
        else:
            parts.append((b"evidence %d " % generator.randrange(99) * (count // 11 + 1))[:count])
        left -= count
    return b"".join(parts)


MIXTURE = mixture(9 * MIB)


def seal(pieces: list[bytes], pipeline: Pipeline | None) -> tuple[Sealed, bytes]:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend, pipeline=pipeline)
    for piece in pieces:
        buffer = bytearray(piece)
        sealer.write(buffer)
        buffer[:] = b"\xee" * len(buffer)  # the caller reuses its buffer
    return sealer.finish(), bytes(sealed)


def check(data: bytes, result: Sealed, sealed: bytes) -> None:
    tree = Tree()
    assert b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream(tree)) == data
    digests = hashlib.sha256(data).digest(), hashlib.sha256(sealed).digest()
    assert result == Sealed(len(data), digests[0], len(sealed), digests[1], tree.size, tree.root())
    assert tree.size == max(1, -(-len(data) // MIB))


@pytest.fixture(params=[0, 1, 2, 4])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with Pipeline(request.param) as pipeline:
        yield pipeline
        # Every block is free again, whatever the test did.
        assert pipeline._under_way == 0
    assert not any(thread.name.startswith("sealing-") for thread in threading.enumerate())


@given(st.lists(st.integers(0, 3 * MIB), max_size=5), st.integers(0, 6 * MIB), st.integers(0, 4), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_it_is_the_object_of_a_single_thread(sizes: list[int], start: int, workers: int, blocks: int) -> None:
    data = MIXTURE[start : start + sum(sizes)]
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    with Pipeline(workers, blocks=blocks) as pipeline:
        result, sealed = seal(pieces, pipeline)
    check(data, result, sealed)
    assert open_bytes(sealed, [IDENTITY]) == open_bytes(seal([data], None)[1], [IDENTITY])


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1])
def test_the_edges(size: int, pipeline: Pipeline) -> None:
    for data in (random.Random(size).randbytes(size), bytes(size)):
        check(data, *seal([data], pipeline))


def test_the_pieces_are_about_a_mebibyte_in_order_and_one_at_a_time(pipeline: Pipeline) -> None:
    busy = threading.Lock()
    pieces: list[bytes] = []

    def sink(piece: memoryview) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.002)
        pieces.append(bytes(piece))
        busy.release()

    data = random.Random(3).randbytes(12 * MIB)
    sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)
    sealer.write(data)
    check(data, sealer.finish(), b"".join(pieces))
    _, *whole, _ = pieces  # the header stands alone
    assert {len(piece) for piece in whole} == {16 * SEALED_CHUNK_SIZE}


def test_objects_that_are_open_at_once_share_it(pipeline: Pipeline) -> None:
    """One thread writes an item and, between its chunks, the lines of a manifest and a log."""
    sealed = [bytearray() for _ in range(3)]
    sealers = [Sealer([IDENTITY.recipient], one.extend, pipeline=pipeline) for one in sealed]
    written = [bytearray() for _ in range(3)]
    for number in range(12):
        item = random.Random(number).randbytes(700_000)
        manifest = b"".join(b'{"member": %d}\n' % line for line in range(9_000))
        for sealer, text, data in zip(sealers, written, (item, manifest, b"line\n"), strict=True):
            sealer.write(data)
            text.extend(data)
    for sealer, text, one in zip(sealers, written, sealed, strict=True):
        check(bytes(text), sealer.finish(), bytes(one))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_object_gets_on_though_another_has_all_the_blocks(workers: int) -> None:
    """What another object has handed over is done by the workers, also by the one that was to leave room for us."""
    with Pipeline(workers, blocks=3) as pipeline:
        first, second = bytearray(), bytearray()
        one = Sealer([IDENTITY.recipient], first.extend, pipeline=pipeline)
        two = Sealer([IDENTITY.recipient], second.extend, pipeline=pipeline)
        one.write(MIXTURE[: 3 * MIB])
        two.write(MIXTURE[: 2 * MIB])
        one.write(MIXTURE[3 * MIB : 5 * MIB])
        check(MIXTURE[: 2 * MIB], two.finish(), bytes(second))
        check(MIXTURE[: 5 * MIB], one.finish(), bytes(first))


def test_many_threads_may_write_their_objects_through_it(pipeline: Pipeline) -> None:
    wrong: list[int] = []

    def one(number: int) -> None:
        data = mixture(3 * MIB + number, number)
        result, sealed = seal([data[:MIB], data[MIB:]], pipeline)
        if result.plaintext_sha256 != hashlib.sha256(data).digest() or len(sealed) != result.ciphertext_size:
            wrong.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_small_objects_wake_no_thread_and_start_none(pipeline: Pipeline) -> None:
    before = threading.active_count()
    callers: set[int] = set()
    for number in range(200):
        sealer = Sealer([IDENTITY.recipient], lambda _: callers.add(threading.get_ident()), pipeline=pipeline)
        sealer.write(b"x" * number)
        sealer.finish()
    assert callers == {threading.get_ident()}
    assert threading.active_count() == before
    assert pipeline.buffers._blocks  # and their memory is used again
    assert len(pipeline.buffers._blocks) == 1


def test_the_reader_is_never_more_than_the_blocks_ahead() -> None:
    """A store that does not take anything stops the reader."""
    release = threading.Event()
    data = random.Random(5).randbytes(MIB)

    def sink(piece: memoryview) -> None:
        release.wait(30)

    with Pipeline(2, blocks=4) as pipeline:
        sealer = Sealer([IDENTITY.recipient], sink, pipeline=pipeline)

        def write() -> None:
            for _ in range(30):
                sealer.write(data)

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.5)
        # 4 under way, 3 as ciphertext, one that is being filled.
        assert 3 * MIB <= sealer.plaintext_size <= 9 * MIB
        assert thread.is_alive()
        release.set()
        thread.join(30)
        assert sealer.finish().plaintext_size == 30 * MIB


def test_after_the_pipeline_is_closed_who_writes_does_the_work() -> None:
    pipeline = Pipeline(2)
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend, pipeline=pipeline)
    sealer.write(MIXTURE[: 5 * MIB])
    pipeline.close()
    pipeline.close()
    sealer.write(MIXTURE[5 * MIB :])
    check(MIXTURE, sealer.finish(), bytes(sealed))


def test_the_blocks_follow_from_the_memory_and_back() -> None:
    assert Pipeline(0).blocks == 2
    with Pipeline(2) as pipeline:
        assert (pipeline.workers, pipeline.blocks) == (2, 6)
    for workers in (0, 1, 8):
        fixed = OPEN_OBJECTS * OBJECT_MEMORY + (workers + 1) * COMPRESSOR_MEMORY
        assert blocks_of(fixed + 10 * BLOCK_MEMORY, workers) == 10
        assert blocks_of(fixed + 11 * BLOCK_MEMORY - 1, workers) == 10
        assert blocks_of(0, workers) == 1
    with Pipeline(1, memory=32 << 20) as pipeline:
        assert pipeline.blocks == blocks_of(32 << 20, 1) > 4
    with pytest.raises(ValueError, match="workers"):
        Pipeline(-1)
    with pytest.raises(ValueError, match="block"):
        Pipeline(1, blocks=0)


def test_every_truncation_at_the_edges_of_chunks_is_refused() -> None:
    data = random.Random(8).randbytes(300_000) + bytes(2 * MIB)
    with Pipeline(2) as pipeline:
        result, sealed = seal([data], pipeline)
    check(data, result, sealed)
    start = header.parse(sealed).size + NONCE_SIZE
    edges = {0, header.parse(sealed).size, len(sealed), *range(start, len(sealed), SEALED_CHUNK_SIZE)}
    cuts = sorted({edge + delta for edge in edges for delta in (-1, 0, 1) if 0 <= edge + delta < len(sealed)})
    assert len(cuts) > 15
    for cut in cuts:
        got = bytearray()
        with pytest.raises(DamagedError):
            collect(sealed[:cut], got)
        assert data.startswith(got)


def collect(sealed: bytes, into: bytearray) -> None:
    for piece in Unsealed(BytesSource(sealed), [IDENTITY]).stream():
        into += piece
