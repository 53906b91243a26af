r"""Post-quantum recipients: `age1pq1…`, ML-KEM-768 beside X25519 (C2SP `age.md`, "The ML-KEM-768 + X25519 recipient
type"). What is sealed to them stays closed to whoever records it now and has a quantum computer later.

A recipient is the ML-KEM key (1,184 bytes) and the X25519 point (32), in Bech32 with the prefix `age1pq`; an identity
is a seed of 32 bytes, `AGE-SECRET-KEY-PQ-1…`, from which SHAKE-256 makes the ML-KEM seed (64) and the X25519 key (32).

    -> mlkem768x25519 <base64 of enc, 1,120 bytes>
    <base64 of the wrapped file key, 32 bytes>

`enc` is the ML-KEM ciphertext (1,088) and the ephemeral X25519 point (32). The body is HPKE (`hpke.py`) with the hybrid
secret of `mlkem.py`, label `\.//^\`, and the info `age-encryption.org/mlkem768x25519`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.errors import DamagedError
from agent.sealing import bech32, hpke, mlkem, rawbase64, stanzas, x25519
from agent.sealing.stanzas import Stanza

TYPE = "mlkem768x25519"
HRP = "age1pq"
PREFIX = "AGE-SECRET-KEY-PQ-"
INFO = b"age-encryption.org/mlkem768x25519"
SEED_SIZE = 32

_LABEL = b"\\.//^\\"
_SIZE = mlkem.PUBLIC_SIZE + x25519.POINT_SIZE
_ENC_SIZE = mlkem.CIPHERTEXT_SIZE + x25519.POINT_SIZE


class PostQuantumRecipient(msgspec.Struct, frozen=True):
    """Raises `ValueError` for what is no such key, `UsageError` where there is no ML-KEM."""

    key: bytes
    """1,216 bytes: the ML-KEM key and the X25519 point."""

    def __post_init__(self) -> None:
        if len(self.key) != _SIZE:
            raise ValueError(f"it holds {len(self.key)} bytes where a post-quantum key has {_SIZE}")
        mlkem.public_key(self.key[: mlkem.PUBLIC_SIZE])
        x25519.check_point(self.point)

    @property
    def point(self) -> bytes:
        """The X25519 half."""
        return self.key[mlkem.PUBLIC_SIZE :]

    @property
    def text(self) -> str:
        """The `age1pq1…` form, 1,959 characters."""
        return bech32.encode(HRP, self.key)

    @property
    def post_quantum(self) -> bool:
        return True

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap a file key under new ephemeral keys."""
        pq, ciphertext = mlkem.public_key(self.key[: mlkem.PUBLIC_SIZE]).encapsulate()
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        dh = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.point))
        secret = mlkem.combine(pq, dh, share, self.point, _LABEL)
        body = hpke.seal(hpke.MLKEM768_X25519, secret, INFO, file_key)
        return Stanza(TYPE, (rawbase64.encode(ciphertext + share).decode("ascii"),), body)


class PostQuantumIdentity:
    """Both private keys, made from one seed. Neither `repr` nor pickling shows it."""

    __slots__ = ("_mlkem", "_seed", "_x25519", "recipient")

    def __init__(self, seed: bytes) -> None:
        """`seed` is 32 random bytes. Raises `ValueError` for another length, `UsageError` where there is no ML-KEM."""
        if len(seed) != SEED_SIZE:
            raise ValueError(f"it holds {len(seed)} bytes where a private key has {SEED_SIZE}")
        expanded = hashlib.shake_256(seed).digest(mlkem.SEED_SIZE + x25519.POINT_SIZE)
        self._seed = seed
        self._mlkem = mlkem.private_key(expanded[: mlkem.SEED_SIZE])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[mlkem.SEED_SIZE :])
        self.recipient = PostQuantumRecipient(
            self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        )

    def __repr__(self) -> str:
        return f"PostQuantumIdentity(recipient={self.recipient.text[:20] + '…'!r})"

    def secret_text(self) -> str:
        """The `AGE-SECRET-KEY-PQ-1…` form: the private key itself."""
        return bech32.encode(PREFIX.lower(), self._seed).upper()

    def unwrap(self, stanzas_of_file: Sequence[Stanza]) -> bytes | None:
        """Try every stanza of this type. All are checked first, as `X25519Identity.unwrap` does."""
        parsed = [
            (*stanzas.values(stanza, _ENC_SIZE), stanza.body) for stanza in stanzas_of_file if stanza.type == TYPE
        ]
        for enc, body in parsed:
            ciphertext, share = enc[: mlkem.CIPHERTEXT_SIZE], enc[mlkem.CIPHERTEXT_SIZE :]
            try:
                dh = self._x25519.exchange(X25519PublicKey.from_public_bytes(share))
            except ValueError:
                raise DamagedError(f"the sealed header has an X25519 share of low order in a {TYPE} stanza") from None
            secret = mlkem.combine(self._mlkem.decapsulate(ciphertext), dh, share, self.recipient.point, _LABEL)
            file_key = hpke.unseal(hpke.MLKEM768_X25519, secret, INFO, body)
            if file_key is not None:
                return file_key
        return None


def generate_post_quantum() -> PostQuantumIdentity:
    """A new identity from the system's random source. Raises `UsageError` where there is no ML-KEM."""
    return PostQuantumIdentity(os.urandom(SEED_SIZE))
