"""The tree over the frames of an object, so that a range can be proved without showing the rest (RFC 6962, 2.1).

    entry = salt || frame               the zstd frame as it lies in the object before age: RFC 8878, 1 MiB of plaintext
    leaf  = SHA-256(0x00 || entry)
    node  = SHA-256(0x01 || left || right)
    salt  = HMAC-SHA-256(HKDF-SHA-256(age file key, no salt, info = "impound.dev/frame-tree/v1"), index): 32 bytes, and
            the index of the frame is a u64, big-endian

Every data frame is an entry, in order, and so is the one empty frame of an object of nothing; the seek table is none.
The root and the number of leaves are signed with the object. Who holds one frame, its salt, and the nodes beside its
way to the root can show that this very frame is that object's, and where: `paths` makes the ways, `root_of` walks one.

Why there is a salt: the root is signed in the clear, and the nodes beside a way are hashes of what is not shown.
Without it, whoever can guess what a frame holds could try whether it does. Only who opens the object can make the
salts, and to tell that of one frame tells nothing of the others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.sealing.streams import Buffer

HASH_SIZE = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def salt_of(secret: bytes, index: int) -> bytes:
    """The salt of one frame, from the object's own secret (`AgeReader.salt`)."""
    return hmac.digest(secret, index.to_bytes(8, "big"), "sha256")


def leaf_hash(salt: bytes, frame: Buffer) -> bytes:
    """The hash of one leaf: of the entry that is the salt and the frame."""
    state = hashlib.sha256(b"\0" + salt)
    state.update(frame)
    return state.digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """Takes leaves in order and knows the root. Keeps one hash for each bit of their number."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self._peaks: list[bytes] = []  # of the perfect trees that the leaves so far make, the largest first
        self.size = 0

    def add(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        size = self.size
        while size & 1:
            leaf = _node(self._peaks.pop(), leaf)
            size >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The hash of the tree so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = _node(peak, root)
        return root


class Leaves(Sequence[bytes]):
    """The hashes of any number of leaves, 32 bytes of memory each: 16 MiB for 512 GiB of evidence."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes = bytearray()

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        self._hashes += leaf

    def __len__(self) -> int:
        return len(self._hashes) // HASH_SIZE

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bytes(self._hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])


def paths(leaves: Sequence[bytes], first: int, last: int) -> Iterator[list[bytes]]:
    """For each leaf from `first` to `last`: the nodes beside its way to the root, from the leaf up (RFC 6962, 2.1.1).

    Takes time for every leaf of the tree once, however many ways are asked for.
    """
    if not 0 <= first <= last < len(leaves):
        raise IndexError(f"there are no leaves {first} to {last} of {len(leaves)}")
    known: dict[tuple[int, int], bytes] = {}

    def root(start: int, end: int) -> bytes:
        if (start, end) not in known:
            tree = Tree()
            for number in range(start, end):
                tree.add(leaves[number])
            known[start, end] = tree.root()
        return known[start, end]

    for index in range(first, last + 1):
        beside: list[bytes] = []
        start, end = 0, len(leaves)
        while end - start > 1:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if index < middle:
                beside.append(root(middle, end))
                end = middle
            else:
                beside.append(root(start, middle))
                start = middle
        yield beside[::-1]


def root_of(leaf: bytes, index: int, size: int, beside: Sequence[bytes]) -> bytes | None:
    """The root that a leaf leads to by its path (RFC 9162, 2.1.3.2); `None` where no tree of `size` has such a path."""
    if not 0 <= index < size or any(len(one) != HASH_SIZE for one in beside):
        return None
    node, last, root = index, size - 1, leaf
    for one in beside:
        if not last:
            return None
        if node & 1 or node == last:
            root = _node(one, root)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            root = _node(root, one)
        node >>= 1
        last >>= 1
    return root if not last else None
