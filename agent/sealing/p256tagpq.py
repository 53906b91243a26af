"""Post-quantum tag recipients: `age1tagpq1…`, ML-KEM-768 beside P-256, whose private halves can be in hardware or a key
service (C2SP `age.md`, "mlkem768p256tag recipient stanza").

A recipient is the ML-KEM key (1,184 bytes) and the P-256 point, here *not* compressed (65), in Bech32 with the prefix
`age1tagpq`. Its stanza:

    -> mlkem768p256tag <base64 of the tag, 4 bytes> <base64 of enc, 1,153 bytes>
    <base64 of the wrapped file key, 32 bytes>

`enc` is the ML-KEM ciphertext (1,088) and the ephemeral point (65). The body is HPKE (`hpke.py`) with the hybrid secret
of `mlkem.py`, label `MLKEM768-P256`, and the info `age-encryption.org/mlkem768p256tag`. The tag is that of
`p256tag.py`, with this info and over the point alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from agent.sealing import bech32, hpke, mlkem, p256tag

if TYPE_CHECKING:
    from agent.sealing.stanzas import Stanza

TYPE = "mlkem768p256tag"
HRP = "age1tagpq"
INFO = b"age-encryption.org/mlkem768p256tag"

SIZE = mlkem.PUBLIC_SIZE + p256tag.ENC_SIZE
_LABEL = b"MLKEM768-P256"
_ENC_SIZE = mlkem.CIPHERTEXT_SIZE + p256tag.ENC_SIZE

Decapsulate = Callable[[bytes], bytes]
"""The ML-KEM private half: from a ciphertext (1,088 bytes) to the shared secret (32)."""


class P256TagPQRecipient(msgspec.Struct, frozen=True):
    """Raises `ValueError` for what is no such key, `UsageError` where there is no ML-KEM."""

    key: bytes
    """1,249 bytes: the ML-KEM key and the point of P-256, not compressed."""

    def __post_init__(self) -> None:
        if len(self.key) != SIZE:
            raise ValueError(f"it holds {len(self.key)} bytes where a post-quantum tag key has {SIZE}")
        mlkem.public_key(self.key[: mlkem.PUBLIC_SIZE])
        p256tag.load_point(self.point)

    @property
    def point(self) -> bytes:
        """The P-256 half, 65 bytes."""
        return self.key[mlkem.PUBLIC_SIZE :]

    @property
    def text(self) -> str:
        """The `age1tagpq1…` form, 2,015 characters."""
        return bech32.encode(HRP, self.key)

    @property
    def post_quantum(self) -> bool:
        return True

    def tag(self, enc: bytes) -> bytes:
        """The four bytes by which the holder knows a stanza."""
        return p256tag.tag_of(INFO, enc, self.point)

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap a file key under new ephemeral keys."""
        pq, ciphertext = mlkem.public_key(self.key[: mlkem.PUBLIC_SIZE]).encapsulate()
        share, dh = p256tag.encapsulate(p256tag.load_point(self.point))
        secret = mlkem.combine(pq, dh, share, self.point, _LABEL)
        enc = ciphertext + share
        return p256tag.tag_stanza(TYPE, self.tag(enc), enc, hpke.seal(hpke.MLKEM768_P256, secret, INFO, file_key))


class P256TagPQIdentity:
    """The holder of both private halves, wherever they are: each is asked once for each stanza that bears the tag."""

    __slots__ = ("_decapsulate", "_exchange", "recipient")

    def __init__(self, recipient: P256TagPQRecipient, decapsulate: Decapsulate, exchange: p256tag.Exchange) -> None:
        self.recipient = recipient
        self._decapsulate = decapsulate
        self._exchange = exchange

    def __repr__(self) -> str:
        return f"P256TagPQIdentity(recipient={self.recipient.text[:20] + '…'!r})"

    def unwrap(self, stanzas_of_file: Sequence[Stanza]) -> bytes | None:
        """The file key, or `None` where no stanza bears our tag. Raises as `P256TagIdentity.unwrap` does."""
        return p256tag.unwrap_tagged(stanzas_of_file, TYPE, _ENC_SIZE, self.recipient.tag, self._open)

    def _open(self, enc: bytes, body: bytes) -> bytes | None:
        ciphertext, share = enc[: mlkem.CIPHERTEXT_SIZE], enc[mlkem.CIPHERTEXT_SIZE :]
        p256tag.check_enc(TYPE, share)
        pq, dh = self._decapsulate(ciphertext), self._exchange(share)
        secret = mlkem.combine(pq, dh, share, self.recipient.point, _LABEL)
        return hpke.unseal(hpke.MLKEM768_P256, secret, INFO, body)
