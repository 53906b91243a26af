"""Any bytes: the readers raise `DamagedError` or `IdentityError` and nothing else, at once and in little memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, IdentityError, UsageError
from agent.sealing import (
    BytesSource,
    Sealer,
    Unsealed,
    generate,
    header,
    open_bytes,
    parse_identity_file,
    parse_recipient,
    parse_recipients_file,
    seal_bytes,
)
from agent.sealing.frames import FrameCompressor, FrameDecompressor, read_frame
from agent.sealing.seek_table import SeekTableBuilder

IDENTITY = generate()
SEALED = seal_bytes(b"evidence " * 20, [IDENTITY.recipient, generate().recipient])
HEADER_SIZE = header.parse(SEALED).size

# The words of the format, so that what is made of them gets past the first check.
WORDS = st.sampled_from(
    [
        b"age-encryption.org/v1\n",
        b"-> ",
        b"X25519 ",
        b"scrypt ",
        b"--- ",
        b"---",
        b"\n",
        b" ",
        b"=",
        b"A" * 43,
        b"A" * 64,
        b"\x00",
        b"\xff" * 17,
        SEALED[22:HEADER_SIZE],
        SEALED[HEADER_SIZE:],
    ]
)
SOUP = st.lists(WORDS | st.binary(max_size=20), max_size=25).map(b"".join)


def survives(attempt: Callable[[], object]) -> None:
    message = ""
    try:
        attempt()
    except (DamagedError, IdentityError) as error:
        message = str(error)
    assert "\n" not in message


def read_all(data: bytes) -> None:
    unsealed = Unsealed(BytesSource(data), [IDENTITY])
    survives(lambda: sum(len(piece) for piece in unsealed.stream()))
    survives(lambda: sum(len(piece) for piece in unsealed.range(0, unsealed.size)))


@given(st.binary(max_size=400) | SOUP | SOUP.map(lambda soup: b"age-encryption.org/v1\n" + soup))
@settings(deadline=None, max_examples=600)
def test_any_bytes_as_a_file(data: bytes) -> None:
    survives(lambda: header.parse(data))
    survives(lambda: open_bytes(data, [IDENTITY]))
    survives(lambda: read_all(data))


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_good_file_with_a_piece_replaced(draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(SEALED)))
    end = draw.draw(st.integers(start, len(SEALED)))
    data = SEALED[:start] + draw.draw(SOUP) + SEALED[end:]
    survives(lambda: open_bytes(data, [IDENTITY]))
    survives(lambda: read_all(data))


FRAMES = [FrameCompressor().compress(block).data for block in (b"", b"first", bytes(5000), b"evidence " * 50)]


def _table(entries: list[tuple[int, int, int]]) -> bytes:
    builder = SeekTableBuilder()
    for entry in entries:
        builder.add(*entry)
    return b"".join(builder.pieces())


U32 = st.integers(0, 0xFFFFFFFF) | st.integers(0, 100)
TABLES = st.lists(st.tuples(U32, U32, U32), max_size=5).map(_table)
INNER = st.lists(
    st.sampled_from(FRAMES)
    | TABLES
    | st.binary(max_size=30)
    | st.sampled_from(FRAMES).flatmap(lambda frame: st.integers(0, len(frame)).map(lambda cut: frame[:cut]))
    | st.binary(max_size=40).map(lambda rest: b"\x28\xb5\x2f\xfd" + rest)
    | st.binary(max_size=40).map(lambda rest: b"\x28\xb5\x2f\xfd\xe4" + rest),
    max_size=6,
).map(b"".join)


@given(INNER)
@settings(deadline=None, max_examples=600)
def test_authentic_objects_of_any_content(inner: bytes) -> None:
    data = seal_bytes(inner, [IDENTITY.recipient])
    read_all(data)


@given(st.binary(max_size=100), st.integers(0, 255))
@settings(deadline=None, max_examples=600)
def test_any_bytes_as_a_frame(rest: bytes, descriptor: int) -> None:
    data = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + rest
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        position += count
        if position > len(data):
            raise DamagedError("no more")
        return data[position - count : position]

    try:
        frame = read_frame(take)
    except DamagedError:
        return
    assert frame is not None
    survives(lambda: FrameDecompressor().decompress(frame))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_an_authentic_object_with_changed_bytes_inside(draw: st.DataObject) -> None:
    inner = bytearray(INSIDE)
    for _ in range(draw.draw(st.integers(1, 4))):
        inner[draw.draw(st.integers(0, len(inner) - 1))] = draw.draw(st.integers(0, 255))
    read_all(seal_bytes(inner, [IDENTITY.recipient]))


def _inside() -> bytes:
    sealed = bytearray()
    sealer = Sealer([IDENTITY.recipient], sealed.extend)
    sealer.write(random.Random(1).randbytes(300) + bytes(300))
    sealer.finish()
    return open_bytes(sealed, [IDENTITY])


INSIDE = _inside()


def test_hostile_files_cost_little_memory() -> None:
    huge = 4 << 20
    files = [
        bytes(huge),
        b"age-encryption.org/v1\n" * (huge // 22),
        b"age-encryption.org/v1\n" + b"-> a\n\n" * (huge // 6),
        b"age-encryption.org/v1\n-> " + b"a " * (huge // 2),
        b"age-encryption.org/v1\n-> a\n" + (b"A" * 64 + b"\n") * (huge // 65),
        b"age-encryption.org/v1\n-> a\n" + b"\n--- " * (huge // 5),
        seal_bytes(_table([(0xFFFFFFFF, 64 << 20, 0)] * 10), [IDENTITY.recipient]),
        seal_bytes(b"\x28\xb5\x2f\xfd\xe4" + (64 << 20).to_bytes(8, "little") + bytes(1000), [IDENTITY.recipient]),
    ]
    for data in files:
        tracemalloc.start()
        try:
            survives(partial(read_all, data))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20


@given(st.text(max_size=100) | st.text("age1qpzry9x8gf2tvdwAGESECRTKY-\n# ", max_size=100))
@settings(deadline=None, max_examples=500)
def test_any_text_as_a_key(text: str) -> None:
    for parse in (parse_recipient, parse_recipients_file, parse_identity_file):
        message = ""
        try:
            parse(text)
        except UsageError as error:
            message = str(error)
        assert "\n" not in message
