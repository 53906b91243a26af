"""The tree of RFC 6962: its own definition as the judge, and the example tree of the RFC's reference implementation."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sealing.merkle import Leaves, Tree, leaf_hash, paths, root_of, salt_of

# Certificate Transparency's own test data (google/certificate-transparency, merkletree tests): eight leaves, and the
# roots of the trees over the first one, two, … of them.
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = """
6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d
fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77
d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4
76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c
5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328
""".split()


def defined(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + defined(leaves[:k]) + defined(leaves[k:])).digest()


def test_the_known_tree() -> None:
    tree = Tree()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        tree.add(leaf_hash(b"", bytes.fromhex(leaf)))
        assert tree.root().hex() == root


@given(st.lists(st.binary(max_size=5), max_size=70))
def test_the_root_is_as_defined(leaves: list[bytes]) -> None:
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf_hash(b"", leaf))
    assert (tree.root(), tree.size) == (defined(leaves), len(leaves))


@given(st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))), st.data())
def test_a_leaf_leads_to_the_root_and_no_other_does(size_index: tuple[int, int], data: st.DataObject) -> None:
    size, index = size_index
    leaves = [leaf_hash(b"", bytes([number])) for number in range(size)]
    root = defined([bytes([number]) for number in range(size)])
    [beside] = paths(leaves, index, index)
    assert root_of(leaves[index], index, size, beside) == root
    assert root_of(leaf_hash(b"", b"other"), index, size, beside) != root
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert root_of(leaves[index], other, size, beside) != root
    if beside:
        assert root_of(leaves[index], index, size, beside[:-1]) != root
    assert root_of(leaves[index], index, size, [*beside, bytes(32)]) != root


def test_paths_that_are_none() -> None:
    assert root_of(bytes(32), 0, 0, []) is None
    assert root_of(bytes(32), 3, 3, []) is None
    assert root_of(bytes(32), 0, 2, [b"short"]) is None
    with pytest.raises(IndexError):
        next(paths([bytes(32)], 1, 1))


@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1), st.integers(0, 39))))
def test_the_ways_of_a_range_are_those_of_its_leaves(size_first_more: tuple[int, int, int]) -> None:
    size, first, more = size_first_more
    last = min(size - 1, first + more)
    leaves = Leaves()
    tree = Tree()
    for number in range(size):
        leaf = leaf_hash(b"", bytes([number]))
        leaves.append(leaf)
        tree.add(leaf)
    for index, beside in enumerate(paths(leaves, first, last), first):
        assert root_of(leaves[index], index, size, beside) == tree.root()


def test_the_salt_of_a_frame_is_its_own() -> None:
    secret = bytes(range(32))
    assert salt_of(secret, 258) == hmac.new(secret, b"\0\0\0\0\0\0\1\2", "sha256").digest()
    assert leaf_hash(salt_of(secret, 1), b"frame") != leaf_hash(salt_of(secret, 2), b"frame")
    assert leaf_hash(b"salt", b"frame") == hashlib.sha256(b"\0saltframe").digest()
