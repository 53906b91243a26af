"""Range proofs that somebody made or changed: refused with `DamagedError`, at once and in little memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.analysis.proof import KIND, Proof, Shown, check, make
from agent.custody.records import Digest, Size, Subject
from agent.errors import DamagedError
from agent.sealing import BytesSource, Unsealed
from agent.sealing.age import AgeWriter
from agent.sealing.frames import Frame, FrameCompressor, FrameWriter
from agent.sealing.merkle import Tree, leaf_hash
from tests.unit.analysis.proofs import IDENTITY, MIB, prove, run_of, sign

DATA = random.Random(3).randbytes(2000)
BODY = b"evidence " * (3 * MIB // 9) + DATA  # four frames, of which three are small
OTHER = b"other evidence " * (3 * MIB // 15) + DATA

replace = msgspec.structs.replace


@cache
def proofs() -> tuple[bytes, bytes]:
    run = run_of({"one": BODY, "two": OTHER})
    return prove(run, "one", MIB + 5, 2 * MIB + 4), prove(run, "two", MIB + 5, 2 * MIB + 4)


def refused(data: bytes) -> None:
    with pytest.raises(DamagedError):
        check(data)


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_any_changed_byte(data: st.DataObject) -> None:
    proof = bytearray(proofs()[0])
    position = data.draw(st.integers(0, len(proof) - 1))
    proof[position] ^= data.draw(st.integers(1, 255))
    refused(bytes(proof))


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_any_cut_and_any_addition(data: st.DataObject) -> None:
    proof = proofs()[0]
    refused(proof[: data.draw(st.integers(0, len(proof) - 1))])
    refused(proof + data.draw(st.binary(min_size=1, max_size=5)))


def every(change: Callable[[Shown], Shown]) -> Callable[[Proof, Proof], Proof]:
    return lambda one, _other: replace(one, frames=[change(shown) for shown in one.frames])


def a_first(change: Callable[[Shown, Shown], Shown]) -> Callable[[Proof, Proof], Proof]:
    return lambda one, other: replace(one, frames=[change(one.frames[0], other.frames[0]), *one.frames[1:]])


CHANGES: dict[str, Callable[[Proof, Proof], Proof]] = {
    "another index": every(lambda shown: replace(shown, index=shown.index + 1)),
    "another index, offset and range": lambda one, _other: replace(
        one,
        first=one.first + MIB,
        last=one.last + MIB,
        frames=[replace(shown, index=shown.index + 1, offset=shown.offset + MIB) for shown in one.frames],
    ),
    "another offset": every(lambda shown: replace(shown, offset=shown.offset + 1)),
    "another size": every(lambda shown: replace(shown, size=shown.size - 1)),
    "another range": lambda one, _other: replace(one, first=one.first + 1),
    "a range that begins before": lambda one, _other: replace(one, first=5),
    "a range that ends behind": lambda one, _other: replace(one, last=3 * MIB),
    "a range that ends before it begins": lambda one, _other: replace(one, first=one.last, last=one.first),
    "another object": lambda one, other: replace(one, object=other.object),
    "an object that is none": lambda one, _other: replace(one, object="three.zst.age"),
    "another object's path": a_first(lambda one, other: replace(one, path=other.path)),
    "another object's frame": a_first(lambda one, other: replace(one, frame=other.frame)),
    "another object's frame and salt": a_first(lambda one, other: replace(one, frame=other.frame, salt=other.salt)),
    "another object's everything": lambda one, other: replace(one, frames=other.frames, sha256=other.sha256),
    "frames in another order": lambda one, _other: replace(one, frames=one.frames[::-1]),
    "a frame twice": lambda one, _other: replace(one, frames=[one.frames[0], one.frames[0]]),
    "a frame fewer": lambda one, _other: replace(one, frames=one.frames[:1]),
    "no frame": lambda one, _other: replace(one, frames=[]),
    "a shorter path": every(lambda shown: replace(shown, path=shown.path[:-1])),
    "a longer path": every(lambda shown: replace(shown, path=[*shown.path, "0" * 64])),
    "a path that is too long": every(lambda shown: replace(shown, path=["0" * 64] * 65)),
    "a node that is none": every(lambda shown: replace(shown, path=["x" * 64, *shown.path[1:]])),
    "no salt": every(lambda shown: replace(shown, salt="")),
    "salt and frame cut elsewhere": every(
        lambda shown: replace(shown, salt=shown.salt + shown.frame[:1].hex(), frame=shown.frame[1:])
    ),
    "another digest": lambda one, _other: replace(one, sha256=hashlib.sha256(b"").hexdigest()),
    "another kind": lambda one, _other: replace(one, kind=KIND[:-1] + "2"),
    "no receipt": lambda one, _other: replace(one, receipt=b""),
    "another run's receipt": lambda one, _other: replace(
        one, receipt=sign([Subject(one.object, Digest("0" * 64), Size(1000, tree="0" * 64, frames=4))])[1]
    ),
    "a receipt that says nothing of frames": lambda one, _other: replace(
        one, receipt=sign([Subject(one.object, Digest("0" * 64), Size(1000))])[1]
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_changed_meaning(change: Callable[[Proof, Proof], Proof]) -> None:
    one, other = (msgspec.json.decode(proof, type=Proof) for proof in proofs())
    changed = change(one, other)
    assert changed != one
    refused(msgspec.json.encode(changed))


def test_a_range_that_ends_beyond_the_object() -> None:
    proof = prove(run_of({"one": BODY}), "one", 3 * MIB, len(BODY) - 1)
    one = msgspec.json.decode(proof, type=Proof)
    assert b"".join(check(proof).plaintext()) == BODY[3 * MIB :]
    refused(msgspec.json.encode(replace(one, last=len(BODY))))


def test_nobody_vouches_for_a_stray() -> None:
    run = run_of({"one": BODY})
    assert run.receipt is not None
    one = msgspec.json.decode(prove(run, "one", 0, 9), type=Proof)
    for strays, right in (([], True), (["one.zst.age"], False)):
        proof = msgspec.json.encode(replace(one, receipt=sign(list(run.receipt.subject), strays=strays)[1]))
        if right:
            check(proof)
        else:
            refused(proof)


def test_another_range_of_the_same_frames_is_another_true_statement() -> None:
    one = msgspec.json.decode(proofs()[0], type=Proof)
    wanted = BODY[MIB + 7 : 2 * MIB + 2]
    changed = replace(one, first=MIB + 7, last=2 * MIB + 1, sha256=hashlib.sha256(wanted).hexdigest())
    assert b"".join(check(msgspec.json.encode(changed)).plaintext()) == wanted


def forged(frame: bytes, size: int, sha256: str = "") -> bytes:
    """A proof by a signer who lies as he likes: of one frame, the first of two."""
    tree = Tree()
    leaf = leaf_hash(bytes(32), frame)
    tree.add(leaf)
    tree.add(bytes(32))
    receipt = sign([Subject("x", Digest("0" * 64), Size(1000, tree=tree.root().hex(), frames=2))])[1]
    shown = Shown(index=0, offset=0, size=size, salt="00" * 32, path=["00" * 32], frame=frame)
    proof = Proof(kind=KIND, object="x", first=0, last=0, sha256=sha256, frames=[shown], receipt=receipt)
    return msgspec.json.encode(proof)


def stuffed(empty: int) -> bytes:
    """A frame of 1 MiB of zeros in raw blocks (RFC 8878, 3.1.1), behind so many that are empty."""
    block, count = 128 << 10, 8
    raw = [(block << 3 | (number == count - 1)).to_bytes(3, "little") + bytes(block) for number in range(count)]
    head = b"\x28\xb5\x2f\xfd\xa4" + MIB.to_bytes(4, "little")
    return head + bytes(3 * empty) + b"".join(raw) + compressed(bytes(MIB))[-4:]


def compressed(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(1, **({"write_checksum": True} | options)).compress(data)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (compressed(bytes(MIB - 1)), MIB - 1),  # too short for a frame that is not the last
        (compressed(bytes(MIB - 1)), MIB),
        (compressed(bytes(60 * MIB)), MIB),
        (compressed(bytes(60 * MIB)), 60 * MIB),
        (compressed(bytes(MIB), write_content_size=False), MIB),
        (compressed(bytes(MIB), write_checksum=False), MIB),
        (compressed(bytes(MIB)) + compressed(b"more"), MIB),
        (compressed(bytes(MIB))[:-1] + b"\0", MIB),
        (b"", MIB),
        (b"not a frame", MIB),
        (bytes(2 * MIB), MIB),
        (stuffed(100_000), MIB),
    ],
)
def test_a_signer_who_lies(frame: bytes, size: int) -> None:
    proof = forged(frame, size, sha256=hashlib.sha256(b"\0").hexdigest())
    tracemalloc.start()
    try:
        refused(proof)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB + 4 * len(proof)
    finally:
        tracemalloc.stop()


def test_the_forger_can_also_tell_the_truth() -> None:
    """So that the lies above are refused for what they are."""
    for frame in (compressed(bytes(MIB)), stuffed(100)):
        proof = forged(frame, MIB, sha256=hashlib.sha256(b"\0").hexdigest())
        assert b"".join(check(proof).plaintext()) == b"\0"


def test_numbers_beyond_all_bounds() -> None:
    for number in ("1" + "0" * 400, "-1", "1.5", "1e3", str(1 << 62)):
        for key in (b'"first":', b'"index":', b'"offset":', b'"size":'):
            refused(proofs()[0].replace(key, key + number.encode() + b",", 1))
            before, _, after = proofs()[0].partition(key)
            refused(before + key + number.encode() + after.lstrip(b"0123456789"))


WORDS = st.sampled_from([b'{"type":"' + KIND.encode() + b'","object":"', b'"frames":[', b"[", b"{", b'"', b",]}", b"0"])


@given(st.lists(st.one_of(WORDS, st.binary(max_size=20)), max_size=30).map(b"".join))
def test_any_bytes(data: bytes) -> None:
    refused(data)


def test_depth() -> None:
    refused(b"[" * 100_000)
    refused(b'{"type":' * 100_000)


def test_an_object_whose_frames_are_not_of_one_mib_is_not_proved() -> None:
    """A signer on a hostile machine may cut the frames as he likes: then an index says nothing of a place."""
    compressor = FrameCompressor()
    frames: list[Frame] = [compressor.compress(bytes(size)) for size in (MIB, MIB // 2, MIB)]
    sealed = bytearray()
    age = AgeWriter([IDENTITY.recipient], sealed.extend)
    writer = FrameWriter(age.write)
    for frame in frames:
        writer.append(frame)
    writer.finish()
    age.finish()
    assert len(b"".join(Unsealed(BytesSource(sealed), [IDENTITY]).stream())) == MIB * 5 // 2
    with pytest.raises(DamagedError, match="1 MiB each"):
        list(Unsealed(BytesSource(sealed), [IDENTITY]).stream(Tree()))
    run = run_of({"x": bytes(MIB)})
    memory: Any = run.source
    memory.objects["x.zst.age"] = bytes(sealed)
    with pytest.raises(DamagedError, match="1 MiB each"):
        make(run, ["x"], [IDENTITY], 0, 0)
