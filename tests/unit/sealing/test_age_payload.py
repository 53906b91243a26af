"""The age payload: chunks that cannot be cut, moved, repeated, dropped, changed or extended."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, IdentityError, UsageError
from agent.sealing import BytesSource, Stanza, X25519Identity, age, generate, header, open_bytes, seal_bytes
from agent.sealing.age import CHUNK_SIZE, SEALED_CHUNK_SIZE, AgeReader, AgeWriter

IDENTITY = generate()
SIZES = [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE + 5]


def seal(data: bytes, pieces: Sequence[int] = ()) -> bytes:
    """Seal in pieces of the given sizes, the rest at once."""
    sealed = bytearray()
    writer = AgeWriter([IDENTITY.recipient], sealed.extend)
    position = 0
    for piece in pieces:
        buffer = bytearray(data[position : position + piece])
        writer.write(buffer)
        buffer[:] = b"\xee" * len(buffer)  # the caller reuses its buffer
        position += piece
    writer.write(memoryview(data)[position:])
    writer.finish()
    return bytes(sealed)


def reader(sealed: bytes) -> AgeReader:
    return AgeReader(BytesSource(sealed), [IDENTITY])


def refuse(sealed: bytes, original: bytes) -> None:
    """The whole is refused, and what was yielded before is a true beginning."""
    got = bytearray()
    with pytest.raises((DamagedError, IdentityError)):
        collect(sealed, got)
    assert original.startswith(got)
    with pytest.raises((DamagedError, IdentityError)):
        read_at_once(sealed)


def collect(sealed: bytes, into: bytearray) -> None:
    for chunk in reader(sealed).stream():
        into += chunk


def read_at_once(sealed: bytes) -> bytes:
    opened = reader(sealed)
    return opened.read(0, opened.size)


@pytest.mark.parametrize("size", SIZES)
def test_it_comes_back_whole_by_stream_chunk_and_range(size: int) -> None:
    data = random.Random(size).randbytes(size)
    opened = reader(seal(data))
    assert b"".join(opened.stream()) == data
    assert b"".join(opened.read_chunk(i) for i in range(opened.chunk_count)) == data
    assert opened.size == size
    assert opened.read(0, size) == data
    assert opened.chunk_count == max(1, -(-size // CHUNK_SIZE))


@given(st.lists(st.integers(0, 3 * CHUNK_SIZE), max_size=6), st.integers(0, 10))
@settings(deadline=None, max_examples=40)
def test_how_it_is_cut_into_writes_makes_no_difference(pieces: list[int], rest: int) -> None:
    data = random.Random(7).randbytes(sum(pieces) + rest)
    assert b"".join(reader(seal(data, pieces)).stream()) == data


@given(st.integers(0, 3 * CHUNK_SIZE), st.data())
@settings(deadline=None, max_examples=40)
def test_ranges_are_slices(size: int, draw: st.DataObject) -> None:
    data = random.Random(size).randbytes(size)
    opened = reader(seal(data))
    for _ in range(4):  # one after the other, so that the kept chunk is used and replaced
        start = draw.draw(st.integers(0, size))
        length = draw.draw(st.integers(0, size - start))
        assert opened.read(start, length) == data[start : start + length]


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, 11), (10, 1), (11, 0)])
def test_a_range_outside_is_a_fault_of_the_caller(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not within 10"):
        reader(seal(bytes(10))).read(offset, length)


def test_a_chunk_outside_is_a_fault_of_the_caller() -> None:
    for number in (-1, 1):
        with pytest.raises(IndexError):
            reader(seal(b"x")).read_chunk(number)


def test_the_sink_gets_large_pieces_that_cannot_be_kept_or_changed() -> None:
    pieces: list[memoryview] = []
    sizes: list[int] = []

    def sink(piece: memoryview) -> None:
        assert piece.readonly
        pieces.append(piece)
        sizes.append(len(piece))

    writer = AgeWriter([IDENTITY.recipient], sink)
    assert not sizes
    for _ in range(5 * 1024):
        writer.write(bytes(1024))
    writer.finish()
    assert max(sizes) == 16 * SEALED_CHUNK_SIZE
    assert len(sizes) <= 7
    with pytest.raises(ValueError, match="released"):
        bytes(pieces[1])


def test_after_a_failure_of_the_sink_the_writer_refuses_to_go_on() -> None:
    def sink(piece: memoryview) -> None:
        raise OSError("the store is gone")

    writer = AgeWriter([IDENTITY.recipient], sink)
    with pytest.raises(OSError, match="gone"):
        writer.write(bytes(2 << 20))
    for call in (writer.finish, lambda: writer.write(b"x")):
        with pytest.raises(ValueError, match="failed"):
            call()


def test_after_the_end_the_writer_refuses_to_go_on() -> None:
    writer = AgeWriter([IDENTITY.recipient], len)
    writer.finish()
    for call in (writer.finish, lambda: writer.write(b"x")):
        with pytest.raises(ValueError, match="ended"):
            call()


def test_nobody_and_too_many_are_refused() -> None:
    with pytest.raises(UsageError, match="no recipient"):
        AgeWriter([], len)
    with pytest.raises(UsageError, match="1025 recipients"):
        AgeWriter([generate().recipient for _ in range(1025)], len)


def test_a_recipient_that_is_given_twice_has_one_stanza() -> None:
    sealed = seal_bytes(b"x", [IDENTITY.recipient, generate().recipient, IDENTITY.recipient])
    assert len(header.parse(sealed).stanzas) == 2


def test_any_one_of_several_opens_and_a_stranger_does_not() -> None:
    identities = [generate() for _ in range(3)]
    sealed = seal_bytes(b"evidence", [identity.recipient for identity in identities])
    for identity in identities:
        assert open_bytes(sealed, [identity]) == b"evidence"
        assert open_bytes(sealed, [generate(), identity]) == b"evidence"
    for strangers in ([], [generate()], [generate(), generate()]):
        with pytest.raises(IdentityError, match="none of the identities"):
            open_bytes(sealed, strangers)


def test_a_passphrase_is_refused_with_its_reason() -> None:
    scrypt = Stanza("scrypt", ("rF0/NwblUHHTpgQgRpe5CQ", "10"), bytes(32))
    with pytest.raises(IdentityError, match="passphrase"):
        open_bytes(header.render([scrypt], bytes(16)) + bytes(32), [IDENTITY])
    mixed = header.render([IDENTITY.recipient.wrap(bytes(16)), scrypt], bytes(16))
    with pytest.raises(DamagedError, match="mixes a passphrase"):
        open_bytes(mixed + bytes(32), [IDENTITY])


def test_two_seals_of_the_same_share_nothing() -> None:
    first, second = seal(bytes(100)), seal(bytes(100))
    assert first[-100:] != second[-100:]
    assert header.parse(first).covered != header.parse(second).covered


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, 2 * CHUNK_SIZE + 3])
def test_every_cut_near_a_boundary_is_refused(size: int) -> None:
    data = random.Random(size).randbytes(size)
    sealed = seal(data)
    start = header.parse(sealed).size
    near = {start + 16 + i * SEALED_CHUNK_SIZE for i in range(4)} | {0, start, len(sealed)}
    near |= {edge - 16 for edge in near}
    cuts = {edge + delta for edge in near for delta in range(-3, 4)}
    for cut in cuts:
        if 0 <= cut < len(sealed):
            refuse(sealed[:cut], data)


def test_every_cut_of_a_small_file_is_refused() -> None:
    sealed = seal(b"evidence")
    for cut in range(len(sealed)):
        refuse(sealed[:cut], b"evidence")


@pytest.mark.parametrize("size", [0, 5, CHUNK_SIZE, CHUNK_SIZE + 1])
@pytest.mark.parametrize("extra", [1, 15, 16, 17, SEALED_CHUNK_SIZE])
def test_every_extension_is_refused(size: int, extra: int) -> None:
    data = random.Random(size).randbytes(size)
    refuse(seal(data) + bytes(extra), data)


def test_every_bit_of_the_header_and_nonce_counts() -> None:
    sealed = seal(b"evidence")
    for at in range(header.parse(sealed).size + 16):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[at] ^= 1 << bit
            refuse(bytes(changed), b"")


@given(st.integers(0, 2 * CHUNK_SIZE + 2 + 3 * 16), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_any_bit_of_the_payload_counts(at: int, bit: int) -> None:
    changed = bytearray(FIXED)
    changed[FIXED_START + at] ^= 1 << bit
    refuse(bytes(changed), FIXED_DATA)


FIXED_DATA = random.Random(1).randbytes(2 * CHUNK_SIZE + 3)
FIXED = seal(FIXED_DATA)
FIXED_START = header.parse(FIXED).size + 16


def test_chunks_that_are_moved_repeated_dropped_or_from_another_file_are_refused() -> None:
    data = random.Random(2).randbytes(4 * CHUNK_SIZE)
    sealed = seal(data)
    start = header.parse(sealed).size + 16
    head, body = sealed[:start], sealed[start:]
    chunks = [body[i : i + SEALED_CHUNK_SIZE] for i in range(0, len(body), SEALED_CHUNK_SIZE)]
    other = seal(data)[-4 * SEALED_CHUNK_SIZE :]
    for order in ([1, 0, 2, 3], [0, 1, 3, 2], [0, 0, 1, 2, 3], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3, 3], [3, 1, 2, 0]):
        refuse(head + b"".join(chunks[i] for i in order), data)
    refuse(head + chunks[0] + other[SEALED_CHUNK_SIZE : 2 * SEALED_CHUNK_SIZE] + chunks[2] + chunks[3], data)
    refuse(head + other, data)


def test_a_short_read_of_the_source_is_damage() -> None:
    class Short(BytesSource):
        @property
        def size(self) -> int:
            return super().size + 10

    with pytest.raises(DamagedError, match="where"):
        list(AgeReader(Short(seal(bytes(100))), [IDENTITY]).stream())


def test_the_size_is_believed_only_after_the_last_chunk() -> None:
    sealed = bytearray(seal(bytes(3 * CHUNK_SIZE)))
    sealed[-1] ^= 1
    opened = reader(bytes(sealed))
    assert opened.read_chunk(0) == bytes(CHUNK_SIZE)
    with pytest.raises(DamagedError, match="chunk 2"):
        _ = opened.size
    with pytest.raises(DamagedError, match="chunk 2"):
        opened.read(0, 1)


def test_a_stream_reads_megabytes_and_a_range_reads_once() -> None:
    reads: list[int] = []

    class Counting(BytesSource):
        def read_at(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read_at(offset, length)

    opened = AgeReader(Counting(seal(bytes(9 << 20))), [IDENTITY])
    reads.clear()
    assert sum(len(chunk) for chunk in opened.stream()) == 9 << 20
    assert len(reads) == 3
    reads.clear()
    assert len(opened.read(CHUNK_SIZE - 1, 2 * CHUNK_SIZE)) == 2 * CHUNK_SIZE
    assert reads == [3 * SEALED_CHUNK_SIZE]
    reads.clear()
    assert len(opened.read(3 * CHUNK_SIZE - 1, 2)) == 2
    assert reads == [SEALED_CHUNK_SIZE]  # the chunk before it was kept


def test_an_older_cipher_without_encrypt_into_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "_ENCRYPTS_INTO", False)
    data = os.urandom(CHUNK_SIZE + 1)
    sealed = seal(data)
    monkeypatch.undo()
    assert b"".join(reader(sealed).stream()) == data
    assert age._ENCRYPTS_INTO is hasattr(ChaCha20Poly1305, "encrypt_into")


def test_a_file_key_of_one_object_opens_no_other() -> None:
    first, second = seal(b"first"), seal(b"second")
    size = header.parse(first).size
    assert header.parse(second).size == size
    refuse(first[:size] + second[size:], b"first")


def test_an_identity_reads_what_only_its_recipient_could_be_given() -> None:
    identity = X25519Identity(bytes(range(32)))
    assert open_bytes(seal_bytes(memoryview(b"evidence")[2:], [identity.recipient]), [identity]) == b"idence"
    assert open_bytes(bytearray(seal_bytes(b"", [identity.recipient])), [identity]) == b""
