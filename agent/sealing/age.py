"""age v1 files (C2SP `age.md`): a header that wraps the file key, and a payload that is encrypted with it.

    header        see `header.py`
    nonce         16 random bytes
    chunk 0…n-1   65,536 bytes of plaintext each, sealed: 65,552 bytes
    chunk n       1 to 65,536 bytes of plaintext, sealed; empty only where the whole payload is

Payload key: HKDF-SHA-256(file key, salt = nonce, info = "payload"). A chunk is ChaCha20-Poly1305 under a nonce of
twelve bytes: the chunk number, 11 bytes big-endian, and 01 for the last chunk, 00 for every other. So no chunk can be
moved, repeated, dropped or appended: the number and the end are part of what is authenticated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.errors import DamagedError, IdentityError, UsageError
from agent.sealing import header, keywrap
from agent.sealing.recipients import Recipient, distinct
from agent.sealing.streams import Buffer, RandomAccess, Sink, read_exactly

if TYPE_CHECKING:
    from agent.sealing.identities import Identity

CHUNK_SIZE = 64 << 10
TAG_SIZE = 16
SEALED_CHUNK_SIZE = CHUNK_SIZE + TAG_SIZE
NONCE_SIZE = 16

OUT_SIZE = 16 * SEALED_CHUNK_SIZE
"""What is encrypted before the sink is called: about 1 MiB."""

TREE_INFO = b"impound.dev/frame-tree/v1"
"""HKDF info of the secret that the leaves of the tree are salted with; age's own are "header" and "payload"."""

_READ_CHUNKS = 64
"""Chunks that a stream reads at once: about 4 MiB, so that a store far away is not asked for 64 KiB at a time."""

# Older versions of cryptography, which are supported, make a new object for every chunk.
_ENCRYPTS_INTO = hasattr(ChaCha20Poly1305, "encrypt_into")


class AgeEncrypter:
    """The header and the chunks of one age file, encrypted from whatever buffers into whatever buffers.

    It holds back at most one chunk of plaintext, because only when more arrives a full chunk is known not to be the
    last. It is of one thread at a time, and knows no sink: `AgeWriter` and the pipeline's lanes drive it.
    """

    __slots__ = ("__weakref__", "_cipher", "_held", "_held_size", "_number", "prefix", "salt")

    def __init__(self, recipients: Sequence[Recipient]) -> None:
        """Wrap a new file key. Raises `UsageError` without recipients."""
        to = distinct(recipients)
        if not to:
            raise UsageError("there is no recipient to seal to. Give at least one public key")
        if len(to) > header.MAX_STANZAS:
            raise UsageError(f"there are {len(to)} recipients, more than the {header.MAX_STANZAS} of one object")
        file_key = os.urandom(keywrap.FILE_KEY_SIZE)
        nonce = os.urandom(NONCE_SIZE)
        self.prefix = header.render([recipient.wrap(file_key) for recipient in to], file_key) + nonce
        """What stands before the first chunk: the header and the nonce."""
        self.salt = keywrap.derive(file_key, b"", TREE_INFO)
        """Of the tree over the frames (see `merkle.py`): secret, and known to whoever opens the file."""
        self._cipher = ChaCha20Poly1305(keywrap.derive(file_key, nonce, b"payload"))
        self._number = 0
        self._held = memoryview(bytearray(CHUNK_SIZE))
        self._held_size = 0

    def update(self, data: memoryview, out: memoryview) -> tuple[int, int]:
        """Encrypt `data`, bytes, into `out` until either ends: how much was taken of the one and put into the other.

        Not all of `data` is taken only where `out` has no room for another chunk. What was taken may be reused.
        """
        taken = made = 0
        room = len(out) - SEALED_CHUNK_SIZE
        size = len(data)
        if self._held_size and self._held_size + size > CHUNK_SIZE:
            if room < 0:
                return 0, 0
            taken = CHUNK_SIZE - self._held_size
            self._held[self._held_size :] = data[:taken]
            self._held_size = 0
            made = self._encrypt(self._held, out, last=False)
        while size - taken > CHUNK_SIZE:
            if made > room:
                return taken, made
            made += self._encrypt(data[taken : taken + CHUNK_SIZE], out[made:], last=False)
            taken += CHUNK_SIZE
        rest = size - taken
        self._held[self._held_size : self._held_size + rest] = data[taken:]
        self._held_size += rest
        return size, made

    def finish(self, out: memoryview) -> int:
        """Encrypt the last chunk into `out`, which has room for a sealed chunk: how much was put there."""
        return self._encrypt(self._held[: self._held_size], out, last=True)

    def _encrypt(self, chunk: memoryview, out: memoryview, *, last: bool) -> int:
        size = len(chunk) + TAG_SIZE
        nonce = _nonce(self._number, last=last)
        if _ENCRYPTS_INTO:
            self._cipher.encrypt_into(nonce, chunk, None, out[:size])
        else:
            out[:size] = self._cipher.encrypt(nonce, chunk, None)
        self._number += 1
        return size


class AgeWriter:
    """Encrypts a stream to recipients and pushes it into a sink, in pieces of about 1 MiB.

    Holds two buffers (one plaintext chunk, the output) that are used again and again. After an exception from the sink
    the writer refuses to go on: what was lost cannot be written again.
    """

    def __init__(self, recipients: Sequence[Recipient], sink: Sink) -> None:
        """Wrap a new file key. Nothing reaches the sink yet. Raises `UsageError` without recipients."""
        self._encrypter = AgeEncrypter(recipients)
        self._prefix = self._encrypter.prefix
        self._sink = sink
        self._out = memoryview(bytearray(OUT_SIZE))
        self._out_size = 0
        self._open = True

    def write(self, buffer: Buffer) -> None:
        """Encrypt `buffer`, which may be reused when this returns."""
        self._begin()
        view = memoryview(buffer).cast("B")
        while view:
            taken, made = self._encrypter.update(view, self._out[self._out_size :])
            self._out_size += made
            view = view[taken:]
            if self._out_size + SEALED_CHUNK_SIZE > len(self._out):
                self._flush()
        self._open = True

    def finish(self) -> None:
        """Write the last chunk. Without it the file is no age file, and every reader refuses it."""
        self._begin()
        self._out_size += self._encrypter.finish(self._out[self._out_size :])
        self._flush()

    def _begin(self) -> None:
        """Refuse to go on after the end or a failure, and stay closed until the call is through."""
        if not self._open:
            raise ValueError("the writer has ended or failed")
        self._open = False

    def _flush(self) -> None:
        if self._prefix:
            push(self._sink, memoryview(self._prefix))
            self._prefix = b""
        if self._out_size:
            push(self._sink, self._out[: self._out_size].toreadonly())
            self._out_size = 0


def push(sink: Sink, piece: memoryview) -> None:
    """Hand `piece` to a sink. Released afterwards: a sink that kept it would otherwise read the next in its place."""
    with piece:
        sink(piece)


class AgeReader:
    """Decrypts an age file that can be read anywhere.

    Every byte that it returns is authenticated. What it raises: `IdentityError` where no identity opens the file,
    `DamagedError` where a byte is not as it was sealed, and what the source raises.
    """

    def __init__(self, source: RandomAccess, identities: Sequence[Identity]) -> None:
        """Read the header, unwrap the file key and check the header's MAC."""
        parsed = header.read_header(source)
        file_key = _unwrap(parsed, identities)
        parsed.authenticate(file_key)
        self._source = source
        self._start = parsed.size + NONCE_SIZE
        self._body_size = source.size - self._start
        if self._body_size < 0:
            raise DamagedError("the sealed object ends before its payload")
        nonce = read_exactly(source, parsed.size, NONCE_SIZE)
        self._cipher = ChaCha20Poly1305(keywrap.derive(file_key, nonce, b"payload"))
        self.salt = keywrap.derive(file_key, b"", TREE_INFO)
        """As `AgeEncrypter.salt`."""
        self._size: int | None = None
        self._cached: tuple[int, bytes] = (-1, b"")

    @property
    def chunk_count(self) -> int:
        """Chunks that the size of the source stands for. Only `size` proves that it is the size that was sealed."""
        return max(1, -(-self._body_size // SEALED_CHUNK_SIZE))

    @property
    def size(self) -> int:
        """Bytes of plaintext. The last chunk is authenticated as the last before this is believed."""
        if self._size is None:
            last = self.chunk_count - 1
            self._size = last * CHUNK_SIZE + len(self.read_chunk(last))
        return self._size

    def read_chunk(self, number: int) -> bytes:
        """The plaintext of one chunk, from 0. Raises `IndexError` beyond `chunk_count`."""
        if not 0 <= number < self.chunk_count:
            raise IndexError(f"there is no chunk {number} of {self.chunk_count}")
        return next(self._chunks(number, 1))

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes of plaintext from `offset`, read with one call to the source.

        Raises `ValueError` beyond `size`, which is authenticated first. The last chunk that was read is kept, since
        reads that follow each other share it.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"bytes {offset} to {offset + length} are not within {self.size}")
        if not length:
            return b""
        first, skip = divmod(offset, CHUNK_SIZE)
        last = (offset + length - 1) // CHUNK_SIZE
        pieces: list[bytes] = []
        if self._cached[0] == first:
            pieces.append(self._cached[1])
        pieces.extend(self._chunks(first + len(pieces), last + 1 - first - len(pieces)))
        self._cached = (last, pieces[-1])
        pieces[-1] = pieces[-1][: offset + length - last * CHUNK_SIZE]
        pieces[0] = pieces[0][skip:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stream(self) -> Iterator[bytes]:
        """The plaintext in order, a chunk at a time.

        Where the file is damaged, what precedes the damage has been yielded when `DamagedError` is raised: it is
        authentic, and it is all that can be had.
        """
        number = 0
        while number < self.chunk_count:
            count = min(_READ_CHUNKS, self.chunk_count - number)
            for chunk in self._chunks(number, count):
                number += 1
                if number == self.chunk_count:
                    self._size = (number - 1) * CHUNK_SIZE + len(chunk)
                yield chunk

    def _chunks(self, first: int, count: int) -> Iterator[bytes]:
        """Decrypt `count` chunks that are read together.

        `decrypt`, not `decrypt_into`: nothing that has not been authenticated is to be seen in any buffer.
        """
        if not count:
            return
        start = first * SEALED_CHUNK_SIZE
        size = min(count * SEALED_CHUNK_SIZE, self._body_size - start)
        sealed = memoryview(read_exactly(self._source, self._start + start, size))
        for i in range(count):
            yield self._decrypt(first + i, sealed[i * SEALED_CHUNK_SIZE : (i + 1) * SEALED_CHUNK_SIZE])

    def _decrypt(self, number: int, sealed: memoryview) -> bytes:
        last = number == self.chunk_count - 1
        if len(sealed) < TAG_SIZE or (number and len(sealed) == TAG_SIZE):
            raise DamagedError(f"the sealed object is cut off in chunk {number}")
        try:
            return self._cipher.decrypt(_nonce(number, last=last), sealed, None)
        except InvalidTag:
            what = (
                "is not as it was sealed, or the object was cut off or extended" if last else "is not as it was sealed"
            )
            raise DamagedError(f"chunk {number} of the sealed object {what}") from None


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _unwrap(parsed: header.Header, identities: Sequence[Identity]) -> bytes:
    """The file key, from the first identity that has it. One that cannot be asked does not stand in another's way."""
    if any(stanza.type == "scrypt" for stanza in parsed.stanzas):
        if len(parsed.stanzas) > 1:
            raise DamagedError("the sealed header mixes a passphrase with other recipients, which age forbids")
        raise IdentityError("this is sealed with a passphrase, which impound never does; `age -d` opens it")
    refused: IdentityError | None = None
    for identity in identities:
        try:
            file_key = identity.unwrap(parsed.stanzas)
        except IdentityError as error:
            refused = refused or error
            continue
        if file_key is not None:
            return file_key
    raise refused or IdentityError("none of the identities opens this object: it was sealed to other recipients")
