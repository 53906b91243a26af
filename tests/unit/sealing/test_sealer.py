"""The sealer: digests of what went in and of what came out, whatever the size of the writes."""

from __future__ import annotations

import gc
import hashlib
import random
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.sealing import BytesSource, Sealed, Sealer, Unsealed, generate, open_bytes
from agent.sealing.frames import FRAME_SIZE, FrameDecompressor, read_frame
from agent.sealing.merkle import Tree
from agent.sealing.seek_table import SeekTable

IDENTITY = generate()
MIB = 1 << 20


def seal(data: bytes, step: int, *, level: int = 1) -> tuple[Sealed, bytes]:
    """Seal through one buffer that is used again and again, as an acquirer does."""
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend, level=level)
    buffer = bytearray(step)
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        buffer[: len(piece)] = piece
        sealer.write(memoryview(buffer)[: len(piece)])
    assert sealer.plaintext_size == len(data)
    result = sealer.finish()
    assert sealer.ciphertext_size == len(sealed)
    return result, bytes(sealed)


@pytest.mark.parametrize("size", [0, 1, 511, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
@pytest.mark.parametrize("step", [512, 70_001, MIB, 5 * MIB])
def test_the_result_says_what_went_in_and_what_came_out(size: int, step: int) -> None:
    data = random.Random(size).randbytes(size)
    result, sealed = seal(data, step)
    tree = Tree()
    assert b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream(tree)) == data
    digests = hashlib.sha256(data).digest(), hashlib.sha256(sealed).digest()
    assert result == Sealed(size, digests[0], len(sealed), digests[1], tree.size, tree.root())


@given(st.lists(st.integers(0, MIB + 600), max_size=6))
@settings(deadline=None, max_examples=25)
def test_how_it_is_cut_into_writes_makes_no_difference(sizes: list[int]) -> None:
    data = random.Random(9).randbytes(sum(sizes))
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend)
    position = 0
    for size in sizes:
        sealer.write(data[position : position + size])
        position += size
    assert sealer.finish().plaintext_sha256 == hashlib.sha256(data).digest()
    # The frames do not depend on the writes either: the same plaintext always compresses to the same bytes.
    assert open_bytes(sealed, [IDENTITY]) == open_bytes(seal(data, MIB)[1], [IDENTITY])


def test_every_frame_but_the_last_holds_one_mebibyte() -> None:
    _, sealed = seal(bytes(2 * MIB + 3), 100_000)
    inner = open_bytes(sealed, [IDENTITY])
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        position += count
        return inner[position - count : position]

    frames = []
    while (frame := read_frame(take)) is not None:
        frames.append(frame)
    assert [frame.size for frame in frames] == [FRAME_SIZE, FRAME_SIZE, 3]
    assert FrameDecompressor().decompress(frames[2]) == bytes(3)
    table = SeekTable(inner[position - 4 :], position - 4)
    assert [entry.checksum for entry in table.entries(0, table.size)] == [frame.checksum for frame in frames]


def test_nothing_at_all_is_one_empty_frame_and_its_table() -> None:
    result, sealed = seal(b"", 1)
    inner = open_bytes(sealed, [IDENTITY])
    assert len(inner) == 13 + 8 + 12 + 9
    assert result.plaintext_sha256 == hashlib.sha256().digest()


def test_the_level_is_that_of_zstd() -> None:
    generator = random.Random(2)
    words = [generator.randbytes(generator.randrange(3, 9)) for _ in range(2000)]
    data = b" ".join(generator.choices(words, k=200_000))
    assert seal(data, MIB, level=9)[0].ciphertext_size < seal(data, MIB)[0].ciphertext_size
    with pytest.raises(ValueError, match="level"):
        Sealer([IDENTITY.recipient], len, level=0)


def test_the_sink_is_not_called_before_something_is_written() -> None:
    calls: list[int] = []
    sealer = Sealer([IDENTITY.recipient], lambda piece: calls.append(len(piece)))
    assert not calls
    sealer.write(random.Random(1).randbytes(3 * MIB))
    assert calls
    assert sum(calls) == sealer.ciphertext_size


def test_without_recipients_nothing_is_sealed() -> None:
    with pytest.raises(UsageError, match="no recipient"):
        Sealer([], len)


def test_after_a_failure_of_the_sink_nothing_passes_as_whole() -> None:
    def sink(piece: memoryview) -> None:
        raise OSError("the store is gone")

    sealer = Sealer([IDENTITY.recipient], sink)
    with pytest.raises(OSError, match="gone"):
        sealer.write(random.Random(1).randbytes(3 * MIB))
    with pytest.raises(ValueError, match="failed"):
        sealer.write(b"x")
    with pytest.raises(ValueError, match="failed"):
        sealer.finish()


def test_a_sealer_that_is_done_leaves_no_key_and_no_buffer_behind() -> None:
    gc.disable()
    try:
        sealer = Sealer([IDENTITY.recipient], len)
        sealer.write(bytes(100))
        sealer.finish()
        gone = weakref.ref(sealer._lanes._age)
        del sealer
        assert gone() is None
    finally:
        gc.enable()


def test_after_the_end_nothing_more_is_taken() -> None:
    sealer = Sealer([IDENTITY.recipient], len)
    sealer.finish()
    with pytest.raises(ValueError, match="ended"):
        sealer.write(b"x")
    with pytest.raises(ValueError, match="ended"):
        sealer.finish()


def test_buffers_of_any_kind_and_shape_are_taken_as_bytes() -> None:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend)
    sealer.write(b"one ")
    sealer.write(bytearray(b"two "))
    sealer.write(memoryview(b"\x01\x00\x02\x00").cast("H"))
    sealer.write(b"")
    assert sealer.finish().plaintext_size == 12
    assert b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream()) == b"one two \x01\x00\x02\x00"
