"""The two primitives from which every age key is made (C2SP `age.md`, "Conventions" and the recipient types).

Names: the *file key* is 16 random bytes, one for each file; a *wrap key* is what a recipient and an identity agree on,
and wraps the file key; HKDF-SHA-256 derives every 32-byte key from a secret, a salt and an info string.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FILE_KEY_SIZE = 16
WRAPPED_SIZE = FILE_KEY_SIZE + 16
"""Bytes of a wrapped file key: the key and the Poly1305 tag."""

# A wrap key wraps one file key and nothing else, which is why the nonce can be fixed.
_ZERO_NONCE = bytes(12)


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256, 32 bytes."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def wrap(wrap_key: bytes, file_key: bytes) -> bytes:
    """Encrypt a file key: 16 bytes of ciphertext and 16 of tag."""
    return ChaCha20Poly1305(wrap_key).encrypt(_ZERO_NONCE, file_key, None)


def unwrap(wrap_key: bytes, wrapped: bytes) -> bytes | None:
    """Decrypt a file key; `None` where the wrap key is another one. `wrapped` must have `WRAPPED_SIZE` bytes.

    The length is checked before the key is tried, so that no one body can be made to open under several keys
    (partitioning oracles).
    """
    if len(wrapped) != WRAPPED_SIZE:
        raise ValueError(f"a wrapped file key has {WRAPPED_SIZE} bytes, not {len(wrapped)}")
    try:
        return ChaCha20Poly1305(wrap_key).decrypt(_ZERO_NONCE, wrapped, None)
    except InvalidTag:
        return None
