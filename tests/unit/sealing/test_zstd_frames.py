"""zstd frames: what is written, and what is refused although it was sealed by someone."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError
from agent.sealing.frames import (
    FRAME_SIZE,
    Frame,
    FrameCompressor,
    FrameDecompressor,
    FrameWriter,
    read_frame,
)
from agent.sealing.seek_table import MAX_FRAME_SIZE, compress_bound

MAGIC = b"\x28\xb5\x2f\xfd"
EMPTY = bytes.fromhex("28b52ffd240001000099e9d851")


def taker(data: bytes) -> Callable[[int], bytes]:
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        if position + count > len(data):
            raise DamagedError("no more")
        position += count
        return data[position - count : position]

    return take


def header(size: int) -> bytes:
    """A frame header with an 8-byte content size and a checksum, in one segment."""
    return MAGIC + b"\xe4" + struct.pack("<Q", size)


def block(kind: int, size: int, content: bytes, *, last: bool) -> bytes:
    return (int(last) | kind << 1 | size << 3).to_bytes(3, "little") + content


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, after the algorithm's description: the other implementation of this test."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5, mask = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, (1 << 64) - 1

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & mask

    def lane(accumulator: int, value: int) -> int:
        return rotate((accumulator + value * p2) & mask, 31) * p1 & mask

    position = 0
    if len(data) >= 32:
        lanes = [(p1 + p2) & mask, p2, 0, -p1 & mask]
        while position + 32 <= len(data):
            values = struct.unpack_from("<4Q", data, position)
            lanes = [lane(accumulator, value) for accumulator, value in zip(lanes, values, strict=True)]
            position += 32
        digest = sum(rotate(accumulator, by) for accumulator, by in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for accumulator in lanes:
            digest = ((digest ^ lane(0, accumulator)) * p1 + p4) & mask
    else:
        digest = p5
    digest = (digest + len(data)) & mask
    while position + 8 <= len(data):
        digest ^= lane(0, struct.unpack_from("<Q", data, position)[0])
        digest = (rotate(digest, 27) * p1 + p4) & mask
        position += 8
    if position + 4 <= len(data):
        digest ^= struct.unpack_from("<I", data, position)[0] * p1 & mask
        digest = (rotate(digest, 23) * p2 + p3) & mask
        position += 4
    for byte in data[position:]:
        digest = rotate(digest ^ byte * p5 & mask, 11) * p1 & mask
    for by, prime in ((33, p2), (29, p3)):
        digest = (digest ^ digest >> by) * prime & mask
    return digest ^ digest >> 32


@pytest.mark.parametrize("size", [1, 255, 256, 65791, 65792, FRAME_SIZE - 1, FRAME_SIZE])
@pytest.mark.parametrize("kind", ["zeros", "random", "text"])
def test_a_frame_declares_its_size_and_checksum_and_comes_back(size: int, kind: str) -> None:
    data = {"zeros": bytes(size), "random": random.Random(size).randbytes(size), "text": (b"evidence " * size)[:size]}
    frame = FrameCompressor().compress(memoryview(data[kind]))
    parameters = zstandard.get_frame_parameters(frame.data)
    assert (parameters.content_size, parameters.has_checksum, parameters.dict_id) == (size, True, 0)
    assert len(frame.data) <= compress_bound(size)
    assert FrameDecompressor().decompress(frame) == data[kind]
    assert read_frame(taker(frame.data + b"more")) == frame
    assert zstandard.ZstdDecompressor().decompress(frame.data) == data[kind]


def test_the_checksum_is_the_low_half_of_xxh64_as_the_seek_table_wants_it() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999
    for data in (b"a", b"evidence " * 100, bytes(1000), random.Random(3).randbytes(4099)):
        assert FrameCompressor().compress(data).checksum == xxh64(data) & 0xFFFFFFFF


def test_the_empty_frame_is_that_of_the_library() -> None:
    frame = FrameCompressor().compress(b"")
    assert frame == Frame(EMPTY, 0)
    assert zstandard.ZstdCompressor(write_checksum=True).compress(b"") == EMPTY
    assert read_frame(taker(EMPTY)) == frame
    assert FrameDecompressor().decompress(frame) == b""


@pytest.mark.parametrize("level", [0, -1, 20, 99])
def test_a_level_that_zstd_does_not_have_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="level"):
        FrameCompressor(level)


def test_a_block_beyond_what_is_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="at most"):
        FrameCompressor().compress(bytes(MAX_FRAME_SIZE + 1))


def test_an_empty_frame_is_not_written_among_others() -> None:
    writer = FrameWriter(len)
    with pytest.raises(ValueError, match="empty"):
        writer.append(FrameCompressor().compress(b""))


@given(st.binary(max_size=5000), st.integers(1, 19))
@settings(deadline=None, max_examples=60)
def test_any_block_at_any_level(data: bytes, level: int) -> None:
    frame = FrameCompressor(level).compress(data)
    assert read_frame(taker(frame.data)) == frame
    assert FrameDecompressor().decompress(frame) == data


def test_every_cut_of_a_frame_is_refused() -> None:
    frame = FrameCompressor().compress(random.Random(4).randbytes(300) + bytes(300))
    for cut in range(len(frame.data)):
        with pytest.raises(DamagedError):
            read_frame(taker(frame.data[:cut]))
        with pytest.raises(DamagedError):
            FrameDecompressor().decompress(Frame(frame.data[:cut], frame.size))
    with pytest.raises(DamagedError):
        FrameDecompressor().decompress(Frame(frame.data + b"\x00", frame.size))


def test_every_changed_bit_of_a_frame_is_refused() -> None:
    data = random.Random(5).randbytes(100) + b"evidence " * 20
    frame = FrameCompressor().compress(data)
    for at in range(len(frame.data) * 8):
        changed = bytearray(frame.data)
        changed[at // 8] ^= 1 << at % 8
        try:
            read = read_frame(taker(bytes(changed)))
            assert read is not None
            opened = FrameDecompressor().decompress(read)
        except DamagedError:
            continue
        # Bits that zstd leaves unused (RFC 8878, 3.1.1.1.1.3) change nothing.
        assert opened == data


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x1f\x8b\x08\x00\x00", "something else"),
        (b"\x50\x2a\x4d\x18\x00\x00\x00\x00", "something else"),  # a skippable frame that is no seek table
        (MAGIC + b"\x04\x58" + bytes(9), "no content size"),
        (header(MAX_FRAME_SIZE + 1), "more than"),
        (header(1 << 62), "more than"),
        (header((1 << 64) - 1), "content size"),
        (header((1 << 64) - 2), "content size"),
        (MAGIC + b"\x20\x01" + bytes(20), "no checksum"),
        (MAGIC + b"\x25\x01\x01" + bytes(20), "dictionary"),
        (MAGIC + b"\x2c\x01" + bytes(20), "malformed"),  # the reserved bit of the descriptor
        (header(10) + block(3, 0, b"", last=True), "no compressor"),
        (header(10) + block(0, (128 << 10) + 1, bytes(200 << 10), last=True), "no compressor"),
        (header(10) + block(0, 100 << 10, bytes(100 << 10), last=True), "larger than"),
        (header(10) + block(0, 0, b"", last=False) * 1000, "larger than"),
    ],
)
def test_a_hostile_frame_is_refused_before_it_is_decompressed(frame: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        read_frame(taker(frame))


def test_a_bomb_is_not_decompressed_beyond_what_it_declares() -> None:
    # 16 blocks of 128 KiB, each one repeated byte, in a frame that declares 10 bytes, 1 MiB, or nothing.
    blocks = b"".join(block(1, 128 << 10, b"x", last=i == 15) for i in range(16)) + bytes(4)
    with pytest.raises(DamagedError, match="larger than its 0 bytes"):
        read_frame(taker(header(0) + blocks))
    for declared in (100, 1 << 20):
        frame = read_frame(taker(header(declared) + blocks))
        assert frame is not None
        with pytest.raises(DamagedError, match="cannot be decompressed"):
            FrameDecompressor().decompress(frame)


def test_a_frame_that_declares_another_size_than_the_table_is_refused() -> None:
    frame = FrameCompressor().compress(b"evidence")
    for size in (0, 7, 9, MAX_FRAME_SIZE + 1):
        with pytest.raises(DamagedError, match="does not declare"):
            FrameDecompressor().decompress(Frame(frame.data, size))


def test_an_empty_frame_must_be_the_very_one() -> None:
    for data in (header(0) + block(0, 0, b"", last=True) + EMPTY[-4:], EMPTY[:-1] + b"\x00"):
        frame = read_frame(taker(data))
        assert frame is not None
        with pytest.raises(DamagedError, match="says it is empty"):
            FrameDecompressor().decompress(frame)


def test_the_magic_of_the_seek_table_ends_the_frames() -> None:
    assert read_frame(taker(b"\x5e\x2a\x4d\x18rest")) is None
