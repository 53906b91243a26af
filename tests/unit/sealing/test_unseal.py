"""Opening: whole or by range, and objects that are authentic and still lie."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, IdentityError, UsageError
from agent.sealing import BytesSource, Sealer, Unsealed, generate, header, open_bytes, seal_bytes
from agent.sealing.frames import FRAME_SIZE, Frame, FrameCompressor, FrameWriter
from agent.sealing.seek_table import SeekTableBuilder

IDENTITY = generate()
MIB = 1 << 20


def mixed(size: int) -> bytes:
    """Bytes of which half compresses."""
    generator = random.Random(size)
    pieces = (generator.randbytes(5000) + bytes(5000) for _ in range(size // 10_000 + 1))
    return b"".join(pieces)[:size]


def seal(data: bytes) -> bytes:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend)
    sealer.write(data)
    sealer.finish()
    return bytes(sealed)


def opened(sealed: bytes) -> Unsealed:
    return Unsealed(BytesSource(sealed), [IDENTITY])


def whole(sealed: bytes) -> bytes:
    return b"".join(opened(sealed).stream())


class Counting(BytesSource):
    """A source that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.bytes_read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.bytes_read += length
        return super().read_at(offset, length)


DATA = mixed(4 * MIB + 12345)
SEALED = seal(DATA)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_the_whole_comes_back_with_its_digest_and_size(size: int) -> None:
    data = mixed(size)
    unsealed = opened(seal(data))
    with pytest.raises(ValueError, match="read to its end"):
        _ = unsealed.plaintext_sha256
    pieces = list(unsealed.stream())
    assert b"".join(pieces) == data
    assert all(pieces)
    assert unsealed.plaintext_sha256 == hashlib.sha256(data).digest()
    assert unsealed.size == size
    assert b"".join(unsealed.range(0, size)) == data


def test_a_stream_that_was_not_read_to_its_end_gives_no_digest() -> None:
    unsealed = opened(SEALED)
    next(unsealed.stream())
    with pytest.raises(ValueError, match="read to its end"):
        _ = unsealed.plaintext_sha256


@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
@settings(deadline=None, max_examples=60)
def test_a_range_is_a_slice(one: int, other: int) -> None:
    start, end = sorted((one, other))
    assert b"".join(opened(SEALED).range(start, end)) == DATA[start:end]


@pytest.mark.parametrize("edge", [0, 1, FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1, 4 * FRAME_SIZE, len(DATA) - 1])
def test_ranges_at_the_edges_of_frames(edge: int) -> None:
    unsealed = opened(SEALED)
    for end in (edge, edge + 1, min(edge + FRAME_SIZE, len(DATA)), len(DATA)):
        assert b"".join(unsealed.range(edge, end)) == DATA[edge:end]


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 1), (0, len(DATA) + 1), (len(DATA) + 1, len(DATA) + 1)])
def test_a_range_outside_is_a_usage_error_at_once(start: int, end: int) -> None:
    with pytest.raises(UsageError, match=f"which has {len(DATA)} bytes"):
        opened(SEALED).range(start, end)


def test_a_range_reads_only_what_it_needs() -> None:
    data = random.Random(3).randbytes(16 * MIB)
    source = Counting(seal(data))
    unsealed = Unsealed(source, [IDENTITY])
    assert b"".join(unsealed.range(9 * MIB + 5, 9 * MIB + 10)) == data[9 * MIB + 5 : 9 * MIB + 10]
    assert source.bytes_read < 2 * MIB
    assert source.reads <= 8


def test_several_streams_of_one_object_do_not_disturb_each_other() -> None:
    unsealed = opened(SEALED)
    pairs = list(zip(unsealed.stream(), unsealed.stream(), strict=True))
    assert b"".join(first for first, _ in pairs) == b"".join(second for _, second in pairs) == DATA


def test_a_stranger_opens_nothing() -> None:
    with pytest.raises(IdentityError):
        Unsealed(BytesSource(SEALED), [generate()])


def test_every_cut_near_a_boundary_is_refused() -> None:
    data = mixed(2 * MIB)
    sealed = seal(data)
    start = header.parse(sealed).size + 16
    edges = {0, start, len(sealed)} | set(range(start, len(sealed), 65552))
    for cut in sorted({edge + delta for edge in edges for delta in (-17, -16, -1, 0, 1)}):
        if not 0 <= cut < len(sealed):
            continue
        with pytest.raises(DamagedError):
            whole(sealed[:cut])
        with pytest.raises(DamagedError):
            _ = opened(sealed[:cut]).size


def test_what_precedes_the_damage_can_still_be_had() -> None:
    got = bytearray()
    stream = opened(SEALED[: len(SEALED) * 3 // 4]).stream()
    with pytest.raises(DamagedError):
        exhaust(stream, got)
    assert DATA.startswith(got)
    assert len(got) >= 2 * MIB


def exhaust(stream: Iterator[bytes], into: bytearray) -> None:
    for piece in stream:
        into += piece


# Authentic and hostile: whoever sealed it was on the examined machine.


def frames(*blocks: bytes) -> list[Frame]:
    return [FrameCompressor().compress(block) for block in blocks]


def stream_of(written: list[Frame], table: list[tuple[int, int, int]] | None = None) -> bytes:
    """Frames and a table that may be another one."""
    builder = SeekTableBuilder()
    for entry in table if table is not None else [(len(f.data), f.size, f.checksum) for f in written]:
        builder.add(*entry)
    return b"".join(f.data for f in written) + b"".join(builder.pieces())


GOOD = frames(b"first", b"second", b"third")
ENTRIES = [(len(frame.data), frame.size, frame.checksum) for frame in GOOD]


def changed(number: int, field: int, by: int) -> bytes:
    entries = [list(entry) for entry in ENTRIES]
    entries[number][field] += by
    return stream_of(GOOD, [(entry[0], entry[1], entry[2] & 0xFFFFFFFF) for entry in entries])


def with_footer(count: int) -> bytes:
    return stream_of(GOOD)[:-9] + struct.pack("<IBI", count, 0x80, 0x8F92EAB1)


def test_frames_of_any_size_open() -> None:
    sealed = seal_bytes(stream_of(GOOD), [IDENTITY.recipient])
    assert whole(sealed) == b"firstsecondthird"
    assert b"".join(opened(sealed).range(3, 13)) == b"stsecondth"


BOTH: dict[str, bytes] = {
    "nothing": b"",
    "no table": b"".join(frame.data for frame in GOOD),
    "only a table of nothing": stream_of([]),
    "something after the table": stream_of(GOOD) + b"\x00",
    "two tables": stream_of(GOOD) + stream_of([]),
    "a second stream": stream_of(GOOD) + stream_of(GOOD),
    "a frame that the table does not have": stream_of(GOOD, ENTRIES[:2]),
    "a frame that only the table has": stream_of(GOOD, [*ENTRIES, (10, 5, 0)]),
    "a compressed size too small": changed(2, 0, -1),
    "a compressed size too large": changed(0, 0, 1),
    "a count too small": with_footer(2),
    "a count too large": with_footer(4),
    "a count beyond the object": with_footer(1000),
    "a count of everything": with_footer(0xFFFFFFFF),
    "an empty frame among others": stream_of([GOOD[0], *frames(b""), GOOD[1]]),
    "not compressed": b"evidence" * 100,
    "a tiny object": b"\x28\xb5\x2f",
}

# What only shows when the frames themselves are read: the table alone is consistent.
FRAMES: dict[str, bytes] = {
    "a size too small": changed(1, 1, -1),
    "a size too large": changed(1, 1, 1),
    "another checksum": changed(1, 2, 1),
    "sizes exchanged": stream_of(GOOD, [ENTRIES[1], ENTRIES[0], ENTRIES[2]]),
    "a flipped bit": stream_of(GOOD).replace(b"second", b"sekond"),
}


@pytest.mark.parametrize("name", BOTH | FRAMES)
def test_an_object_that_lies_about_itself_does_not_stream_to_its_end(name: str) -> None:
    sealed = seal_bytes((BOTH | FRAMES)[name], [IDENTITY.recipient])
    with pytest.raises(DamagedError):
        whole(sealed)


@pytest.mark.parametrize("name", BOTH)
def test_an_object_whose_table_lies_has_no_size(name: str) -> None:
    with pytest.raises(DamagedError):
        _ = opened(seal_bytes(BOTH[name], [IDENTITY.recipient])).size


@pytest.mark.parametrize("name", FRAMES)
def test_an_object_whose_frames_are_not_those_of_the_table_gives_no_range(name: str) -> None:
    unsealed = opened(seal_bytes(FRAMES[name], [IDENTITY.recipient]))
    with pytest.raises(DamagedError):
        list(unsealed.range(0, unsealed.size))


def test_a_range_does_not_read_the_gigabytes_that_a_table_claims() -> None:
    source = Counting(seal_bytes(stream_of(GOOD, [(0xFFFFFFFF, 64 * MIB, 0)]), [IDENTITY.recipient]))
    with pytest.raises(DamagedError):
        _ = Unsealed(source, [IDENTITY]).size
    assert source.bytes_read < 10_000


def test_what_the_writer_writes_the_readers_read() -> None:
    inner = bytearray()
    push: Callable[[bytes | bytearray | memoryview], object] = inner.extend
    writer = FrameWriter(push)
    for frame in GOOD:
        writer.append(frame)
    writer.finish()
    assert inner == stream_of(GOOD)


def test_small_things_are_plain_age() -> None:
    sealed = seal_bytes(b"a manifest line", [IDENTITY.recipient])
    assert open_bytes(sealed, [IDENTITY]) == b"a manifest line"
    with pytest.raises(DamagedError):
        open_bytes(sealed[:-1], [IDENTITY])
