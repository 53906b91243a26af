"""Range proofs: they give the bytes, an independent reader of the RFC agrees, and nothing else is proved by them."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.analysis.proof import check
from agent.errors import DamagedError, UsageError
from agent.sealing import BytesSource, Unsealed
from agent.sealing.merkle import Tree
from tests.unit.analysis.proofs import IDENTITY, MIB, prove, run_of, seal, sign, subject

if TYPE_CHECKING:
    from agent.custody.stored import StoredRun


def data_of(size: int, seed: int) -> bytes:
    """Bytes of which some compress, some do not, and some are zeros."""
    generator = random.Random(seed)
    parts: list[bytes] = []
    left = size
    while left:
        count = min(left, generator.randrange(1, 700_000))
        kind = generator.randrange(3)
        text = b"evidence %d " % generator.randrange(1000)
        parts.append([generator.randbytes(count), bytes(count), (text * (count // len(text) + 1))[:count]][kind])
        left -= count
    return b"".join(parts)


ONE, TWO = data_of(5 * MIB + 77, 1), data_of(5 * MIB + 77, 2)


@cache
def the_run() -> StoredRun:
    return run_of({"a/one.tar": ONE, "a/two.tar": TWO, "none.bin": b""})


def independent(document: dict[str, Any]) -> bytes:
    """RFC 6962, 2.1.1, backwards, with nothing of impound: the bytes of the range."""

    def node(left: bytes, right: bytes) -> bytes:
        return hashlib.sha256(b"\1" + left + right).digest()

    def root(index: int, size: int, leaf: bytes, path: list[bytes]) -> bytes:
        if size == 1:
            assert not path
            return leaf
        k = 1
        while k * 2 < size:
            k *= 2
        if index < k:
            return node(root(index, k, leaf, path[:-1]), path[-1])
        return node(path[-1], root(index - k, size - k, leaf, path[:-1]))

    statement = json.loads(base64.b64decode(json.loads(base64.b64decode(document["receipt"]))["payload"]))
    [said] = [one["annotations"] for one in statement["subject"] if one["name"] == document["object"]]
    found = b""
    for one in document["frames"]:
        frame = base64.b64decode(one["frame"])
        leaf = hashlib.sha256(b"\0" + bytes.fromhex(one["salt"]) + frame).digest()
        path = [bytes.fromhex(text) for text in one["path"]]
        assert root(one["index"], said["frames"], leaf, path).hex() == said["tree"]
        data = zstandard.decompress(frame)
        assert len(data) == MIB or one["index"] == said["frames"] - 1
        found += data
    begins = document["frames"][0]["index"] * MIB
    return found[document["first"] - begins : document["last"] + 1 - begins]


@given(st.integers(1, 3 * MIB + 9), st.integers(0), st.integers(0), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_any_range_of_any_data(size: int, one: int, other: int, seed: int) -> None:
    data = data_of(size, seed)
    first, last = sorted((one % size, other % size))
    proof = prove(run_of({"x": data}), "x", first, last)
    proved = check(proof)
    assert b"".join(proved.plaintext()) == data[first : last + 1] == independent(json.loads(proof))
    assert proved.proof.sha256 == hashlib.sha256(data[first : last + 1]).hexdigest()
    assert (proved.name, proved.words) == (f"x.{first}-{last}", "intact, signer unknown")


@given(st.integers(0, len(ONE) - 1), st.integers(0, len(ONE) - 1))
@settings(deadline=None, max_examples=25)
def test_any_range_of_several_frames(one: int, other: int) -> None:
    first, last = sorted((one, other))
    proof = prove(the_run(), "a/one.tar", first, last)
    assert b"".join(check(proof).plaintext()) == ONE[first : last + 1] == independent(json.loads(proof))


@pytest.mark.parametrize(
    ("first", "last", "indexes"),
    [
        (0, 0, [0]),
        (0, MIB - 1, [0]),
        (MIB - 1, MIB, [0, 1]),
        (MIB, 2 * MIB - 1, [1]),
        (5 * MIB, len(ONE) - 1, [5]),
        (0, len(ONE) - 1, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_only_the_frames_that_hold_the_range_are_shown(first: int, last: int, indexes: list[int]) -> None:
    document = json.loads(prove(the_run(), "a/one.tar", first, last))
    assert [one["index"] for one in document["frames"]] == indexes
    assert [one["offset"] for one in document["frames"]] == [index * MIB for index in indexes]
    assert sum(one["size"] for one in document["frames"]) == len(ONE[indexes[0] * MIB : (indexes[-1] + 1) * MIB])


def test_what_cannot_be_proved() -> None:
    run = the_run()
    with pytest.raises(UsageError, match="ends beyond the end"):
        prove(run, "a/one.tar", 0, len(ONE))
    with pytest.raises(UsageError, match="ends beyond the end"):
        prove(run, "none.bin", 0, 0)
    with pytest.raises(UsageError, match="2 match"):
        prove(run, "a/*", 0, 0)
    with pytest.raises(UsageError, match="0 match"):
        prove(run, "b", 0, 0)
    with pytest.raises(UsageError, match="at most 256 MiB"):
        prove(run, "a/one.tar", 0, 256 * MIB)
    old = run_of({"x": b"old"})
    assert old.receipt is not None
    old.receipt.subject[0] = subject("x.zst.age", seal(b"other")[0])
    with pytest.raises(DamagedError, match="not those of the tree that was signed"):
        prove(old, "x", 0, 0)
    old.receipt = None
    old.progress.digests["x.zst.age"] = 1, ""  # a record vouches for it, and no receipt
    with pytest.raises(UsageError, match="without a receipt"):
        prove(old, "x", 0, 0)


def test_who_signed_it_is_as_given_or_it_is_damage() -> None:
    run = the_run()
    assert run.receipt is not None
    proof = prove(run, "a/two.tar", 5, 10)
    signer = run.receipt.predicate.signer
    assert check(proof, signers=[signer]).words == "intact"
    assert check(proof, receipts=[run.receipt_sha256]).words == "intact"
    assert check(proof, signers=["ed25519:" + "0" * 64], receipts=[run.receipt_sha256]).words == "intact"
    with pytest.raises(DamagedError, match="not as given"):
        check(proof, signers=["ed25519:" + "0" * 64])
    with pytest.raises(DamagedError, match="not as given"):
        check(proof, receipts=["0" * 64])


def test_the_signed_root_tells_nothing_of_the_plaintext() -> None:
    """Who guesses the plaintext right cannot tell: of the same bytes, root and path are others each time."""
    run = run_of({"one": ONE, "same": ONE})
    assert run.receipt is not None
    one, same = (one.annotations for one in run.receipt.subject)
    assert (one.frames, same.frames) == (6, 6)
    assert one.tree != same.tree
    shown = [json.loads(prove(run, name, 0, 0))["frames"][0] for name in ("one", "same")]
    assert shown[0]["frame"] == shown[1]["frame"]
    assert shown[0]["salt"] != shown[1]["salt"]
    assert not set(shown[0]["path"]) & set(shown[1]["path"])


def test_an_empty_object_has_one_frame() -> None:
    run = the_run()
    assert run.receipt is not None
    [said] = [one.annotations for one in run.receipt.subject if one.name == "none.bin.zst.age"]
    assert said.frames == 1
    tree = Tree()
    sealed = run.source.open("none.bin.zst.age")
    assert not list(Unsealed(sealed, [IDENTITY]).stream(tree))
    assert (tree.size, tree.root().hex()) == (1, said.tree)


def test_a_stray_is_not_proved() -> None:
    run = run_of({"x": b"stray"})
    assert run.receipt is not None
    run.receipt, _ = sign(list(run.receipt.subject), strays=["x.zst.age"])
    with pytest.raises(UsageError, match="0 match"):
        prove(run, "x", 0, 0)


def test_the_sealed_object_is_what_the_tree_is_of() -> None:
    sealed, data = seal(ONE)
    tree = Tree()
    assert b"".join(Unsealed(BytesSource(data), [IDENTITY]).stream(tree)) == ONE
    assert (tree.size, tree.root()) == (sealed.frames, sealed.tree_root)
