"""A range of one object, shown to somebody who has nothing else of the run, and proved by the run's receipt.

A proof is one JSON document in the one spelling of `agent.custody.canonical`:

    type      "https://impound.dev/range-proof/v1"
    object    name of the object, as the receipt has it
    first     first and last byte of the range, in what the object opens to
    last
    sha256    of the bytes of the range
    frames    the zstd frames that hold it, in order, whole:
        index     number of the frame in the object, and of its leaf in the tree (`agent.sealing.merkle`)
        offset    where its plaintext begins: index * 1 MiB
        size      bytes of its plaintext: 1 MiB, of the last frame of the object what is left
        salt      of its leaf, hex
        path      the nodes beside the way from its leaf to the root, from the leaf up, hex
        frame     the frame, base64
    receipt   the very bytes of the receipt, base64

What it shows beyond the range: the rest of these frames, the names, sizes and ciphertext digests in the receipt. Of the
other frames it shows salted hashes, which tell nothing. Where in the plaintext a frame begins follows from its index
alone, because every frame but the last holds 1 MiB: of those that are shown this is checked here, of the others by
whoever has the key and runs `verify`.

A proof is hostile until it is checked: its size is bounded, and nothing is decompressed before its leaf leads to the
signed root.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, Annotated

import msgspec

from agent.analysis.opening import sealed_objects
from agent.custody.canonical import decode, encode
from agent.custody.records import RECEIPT
from agent.custody.stored import MAX_RECEIPT, parse_receipt, read_whole, receipt_name
from agent.errors import DamagedError, SourceError, UsageError
from agent.sealing import Unsealed
from agent.sealing.frames import FRAME_SIZE, Frame, FrameDecompressor
from agent.sealing.merkle import Leaves, Tree, leaf_hash, paths, root_of
from agent.sealing.seek_table import MAX_FRAMES, compress_bound
from agent.stores.sealed import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from agent.custody.records import Statement, Subject
    from agent.custody.stored import StoredRun
    from agent.sealing import Identity

KIND = "https://impound.dev/range-proof/v1"
MAX_SHOWN = 256
"""Frames of one proof: a range of 255 MiB always fits."""
MAX_PROOF = (MAX_SHOWN * (compress_bound(FRAME_SIZE) + 4096) + MAX_RECEIPT) * 4 // 3
"""Bytes. A proof is held in memory, about three times."""

_HEX = re.compile(r"[0-9a-f]{64}")
_Place = Annotated[int, msgspec.Meta(ge=0, lt=MAX_FRAMES * FRAME_SIZE)]


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One frame."""

    index: _Place
    offset: _Place
    size: _Place
    salt: str
    path: Annotated[list[str], msgspec.Meta(max_length=64)]
    frame: bytes


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document."""

    kind: str = msgspec.field(name="type")
    object: str = msgspec.field()
    first: _Place = msgspec.field()
    last: _Place = msgspec.field()
    sha256: str = msgspec.field()
    frames: Annotated[list[Shown], msgspec.Meta(min_length=1, max_length=MAX_SHOWN)] = msgspec.field()
    receipt: bytes = msgspec.field()


class Proved(msgspec.Struct, frozen=True):
    """A proof that holds."""

    proof: Proof
    statement: Statement
    signer: str
    receipt_sha256: str
    signer_known: bool
    """Whether the signer or the receipt is one that a person gave."""

    @property
    def name(self) -> str:
        """The range, as it is named where it is written."""
        return f"{self.proof.object.removesuffix(SUFFIX)}.{self.proof.first}-{self.proof.last}"

    @property
    def words(self) -> str:
        """The verdict as a person reads it."""
        return "intact" if self.signer_known else "intact, signer unknown"

    def plaintext(self) -> Iterator[bytes]:
        """The bytes of the range."""
        return _plaintext(self.proof)


def make(run: StoredRun, only: Sequence[str], identities: Sequence[Identity], first: int, last: int) -> bytes:
    """The proof of bytes `first` to `last` (both included) of the one object that matches `only`.

    Reads the object from its beginning to its end: every frame is part of the tree. Raises `UsageError`,
    `DamagedError`, `IdentityError`, `SourceError`.
    """
    there = sealed_objects(run)
    chosen = [name for plain, name in there.items() if any(fnmatch.fnmatchcase(plain, pattern) for pattern in only)]
    if len(chosen) != 1:
        raise UsageError(f"a proof is of one object, and {len(chosen)} match --only")
    [name] = chosen
    receipt, subject = _receipt_of(run, name)
    if last // FRAME_SIZE - first // FRAME_SIZE >= MAX_SHOWN:
        raise UsageError(f"one proof holds at most {MAX_SHOWN} MiB: take several, of a range each")
    blob = run.source.open(name)
    try:
        unsealed = Unsealed(blob, identities)
        if last >= unsealed.size:
            raise UsageError(f"--range ends beyond the end: {name.removesuffix(SUFFIX)} has {unsealed.size} bytes")
        shown, leaves, tree = [], Leaves(), Tree()
        for index, frame in enumerate(unsealed.frames(even=True)):
            leaf = leaf_hash(unsealed.salt_of(index), frame.data)
            leaves.append(leaf)
            tree.add(leaf)
            if first // FRAME_SIZE <= index <= last // FRAME_SIZE:
                shown.append((index, frame))
    finally:
        blob.close()
    if (tree.size, tree.root().hex()) != (subject.annotations.frames, subject.annotations.tree):
        raise DamagedError(f"{name}: its frames are not those of the tree that was signed")
    ways = paths(leaves, shown[0][0], shown[-1][0])
    frames = [
        Shown(
            index=index,
            offset=index * FRAME_SIZE,
            size=frame.size,
            salt=unsealed.salt_of(index).hex(),
            path=[node.hex() for node in way],
            frame=frame.data,
        )
        for (index, frame), way in zip(shown, ways, strict=True)
    ]
    proof = Proof(kind=KIND, object=name, first=first, last=last, sha256="", frames=frames, receipt=receipt)
    return encode(msgspec.structs.replace(proof, sha256=_digest(proof)))


def _receipt_of(run: StoredRun, name: str) -> tuple[bytes, Subject]:
    """The receipt that says what the tree over an object is: of the run, else of the last attempt that has one."""
    receipts = [(receipt_name(number), one, sha256) for number, (one, _, sha256) in sorted(run.receipts.items())]
    if run.receipt is not None:
        receipts.append((RECEIPT, run.receipt, run.receipt_sha256))
    for where, statement, sha256 in reversed(receipts):
        subject = _subject(statement, name)
        if subject is not None and subject.annotations.tree:
            data = read_whole(run.source, where, MAX_RECEIPT)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise DamagedError(f"{where}: changed while it was read")
            return data, subject
    if not receipts:
        raise UsageError("a run without a receipt proves nothing in part: `impound resume` finishes it")
    raise UsageError(f"no receipt signs the frames of {name}: it was taken by an attempt that did not end by itself")


def _subject(statement: Statement, name: str) -> Subject | None:
    if name in statement.predicate.strays:
        return None
    return next((one for one in statement.subject if one.name == name), None)


def _plaintext(proof: Proof) -> Iterator[bytes]:
    """The range, from frames that are proved. Raises `DamagedError`."""
    decompressor = FrameDecompressor()
    for one in proof.frames:
        data = decompressor.decompress(Frame(one.frame, one.size))
        yield data[max(0, proof.first - one.offset) : proof.last + 1 - one.offset]


def _digest(proof: Proof) -> str:
    state = hashlib.sha256()
    for data in _plaintext(proof):
        state.update(data)
    return state.hexdigest()


def is_proof(source: str) -> bool:
    """Whether SRC is taken for a proof: a run is a directory, or lies in a bucket."""
    return os.path.isfile(source)


def read(path: str) -> bytes:
    """A proof from a file. Raises `SourceError`, or `DamagedError` when it is larger than any."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path!r} is not a regular file")
            if status.st_size > MAX_PROOF:
                raise DamagedError(f"{path!r} is larger than any proof")
            return file.read(MAX_PROOF)
    except OSError as error:
        raise SourceError(f"{path!r} cannot be read: {error.strerror}") from error


def check(
    data: bytes, what: str = "the proof", *, signers: Collection[str] = (), receipts: Collection[str] = ()
) -> Proved:
    """What a proof proves, by one of the signers or receipts where they are given. Raises `DamagedError`.

    Needs no key, and nothing of the run.
    """
    proof = decode(data, Proof, what)
    if proof.kind != KIND:
        raise DamagedError(f"{what}: not a proof that this version reads")
    statement, signer = parse_receipt(proof.receipt, f"{what}: its receipt")
    receipt_sha256 = hashlib.sha256(proof.receipt).hexdigest()
    known = signer in signers or receipt_sha256 in receipts
    if (signers or receipts) and not known:
        raise DamagedError(f"{what}: its receipt is signed by {signer}, not as given")
    subject = _subject(statement, proof.object)
    if subject is None or not subject.annotations.tree:
        raise DamagedError(f"{what}: its receipt does not sign the frames of such an object")
    _check_frames(proof, subject.annotations.frames, bytes.fromhex(subject.annotations.tree), what)
    if _digest(proof) != proof.sha256:
        raise DamagedError(f"{what}: the range has another digest than it says")
    return Proved(proof, statement, signer, receipt_sha256, known)


def _check_frames(proof: Proof, total: int, root: bytes, what: str) -> None:
    """Whether the frames are the object's, at their places, and hold the range."""
    wanted = range(proof.first // FRAME_SIZE, proof.last // FRAME_SIZE + 1)
    if proof.first > proof.last or [one.index for one in proof.frames] != list(wanted[: MAX_SHOWN + 1]):
        raise DamagedError(f"{what}: its frames are not those that hold the range")
    for one in proof.frames:
        last = one.index == total - 1
        if one.offset != one.index * FRAME_SIZE or not (one.size == FRAME_SIZE or (last and one.size < FRAME_SIZE)):
            raise DamagedError(f"{what}: frame {one.index} is not where its number says, or not as large")
        if len(one.frame) > compress_bound(FRAME_SIZE):
            raise DamagedError(f"{what}: frame {one.index} is larger than its content can make it")
        if not all(_HEX.fullmatch(text) for text in (one.salt, *one.path)):
            raise DamagedError(f"{what}: frame {one.index} has a hash that is none")
        leaf = leaf_hash(bytes.fromhex(one.salt), one.frame)
        if root_of(leaf, one.index, total, [bytes.fromhex(node) for node in one.path]) != root:
            raise DamagedError(f"{what}: frame {one.index} is not that of the object")
    end = proof.frames[-1]
    if proof.last >= end.offset + end.size:
        raise DamagedError(f"{what}: the range ends beyond the object")
