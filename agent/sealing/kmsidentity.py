"""Identities whose private half is in AWS KMS: the line that an identity file holds, and how it opens.

    AGE-PLUGIN-IMPOUNDKMS-1…     Bech32 (`bech32.py`), upper case; nothing in it is secret

    version 1     01, the compressed point of P-256 (33 bytes), the key's ARN in ASCII
    version 2     02, the ML-KEM-768 key and the point, not compressed (1,184 + 65 bytes), the ARN of the P-256 key,
                  a space, the ARN of the ML-KEM key

With the public half in it, the stanzas that are for this key are known before KMS is asked: each file key costs one
call (two for version 2), an object that was opened costs none, and one that is for somebody else costs none.
`age-plugin-impoundkms` (`ageplugin.py`) opens the same with stock age.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.sealing import bech32, p256tag, p256tagpq
from agent.sealing.kms import KeyArn, Kms
from agent.sealing.p256tag import P256TagIdentity, P256TagRecipient
from agent.sealing.p256tagpq import P256TagPQIdentity, P256TagPQRecipient

if TYPE_CHECKING:
    from agent.sealing.stanzas import Stanza

PLUGIN = "impoundkms"
PREFIX = "AGE-PLUGIN-IMPOUNDKMS-"
MAX_LINE = 4096

_CLASSIC, _POST_QUANTUM = 1, 2
_CACHED = 4096
_TYPES = frozenset({p256tag.TYPE, p256tagpq.TYPE})


class KmsIdentity:
    """A key in AWS KMS, or the two of a post-quantum recipient. Nothing is asked before something is to be opened."""

    def __init__(self, recipient: P256TagRecipient | P256TagPQRecipient, arns: Sequence[KeyArn]) -> None:
        """`arns`: the P-256 key's, and for a post-quantum recipient the ML-KEM key's. Raises `ValueError`."""
        if len(arns) != (2 if recipient.post_quantum else 1):
            raise ValueError("it names another number of keys than its kind has")
        if any(arn.is_alias for arn in arns):
            raise ValueError("it names an alias, which can come to mean another key: name the key itself")
        self.recipient = recipient
        self.arns = tuple(arns)
        services = {arn.region: Kms(arn.region) for arn in self.arns}
        curve, pq = self.arns[0], self.arns[-1]
        self._holder: P256TagIdentity | P256TagPQIdentity
        if isinstance(recipient, P256TagRecipient):
            self._holder = P256TagIdentity(
                recipient, lambda point: services[curve.region].derive_shared_secret(curve, point)
            )
        else:
            self._holder = P256TagPQIdentity(
                recipient,
                lambda ciphertext: services[pq.region].decapsulate(pq, ciphertext),
                lambda point: services[curve.region].derive_shared_secret(curve, point),
            )
        self._opened: OrderedDict[bytes, bytes] = OrderedDict()
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"KmsIdentity({', '.join(arn.text for arn in self.arns)})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("what it has opened is secret, and is not pickled")

    @property
    def text(self) -> str:
        """The `AGE-PLUGIN-IMPOUNDKMS-1…` line."""
        arns = " ".join(arn.text for arn in self.arns).encode("ascii")
        if isinstance(self.recipient, P256TagRecipient):
            data = bytes([_CLASSIC]) + self.recipient.point + arns
        else:
            data = bytes([_POST_QUANTUM]) + self.recipient.key + arns
        return bech32.encode(PREFIX.lower(), data).upper()

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key, from KMS or from what KMS said before; `None` where no stanza bears this key's tag.

        Raises `DamagedError` as `P256TagIdentity.unwrap` does, `IdentityError` where KMS does not help.
        """
        mine = tuple(stanza for stanza in stanzas if stanza.type in _TYPES)
        name = hashlib.sha256(repr(mine).encode()).digest()
        with self._turn:
            if name in self._opened:
                self._opened.move_to_end(name)
                return self._opened[name]
            file_key = self._holder.unwrap(mine)
            if file_key is not None:
                self._opened[name] = file_key
                if len(self._opened) > _CACHED:
                    self._opened.popitem(last=False)
            return file_key


def parse_kms_identity(text: str) -> KmsIdentity:
    """Read an identity line. Raises `ValueError` with a reason, `UsageError` where a post-quantum one needs ML-KEM."""
    if len(text) > MAX_LINE:
        raise ValueError("it is too long")
    hrp, data = bech32.decode(text)
    if hrp != PREFIX:
        raise ValueError(f"it is not {PREFIX}1… in upper case")
    recipient: P256TagRecipient | P256TagPQRecipient
    if data[:1] == bytes([_CLASSIC]):
        recipient, rest = P256TagRecipient(data[1 : 1 + p256tag.POINT_SIZE]), data[1 + p256tag.POINT_SIZE :]
    elif data[:1] == bytes([_POST_QUANTUM]):
        recipient, rest = P256TagPQRecipient(data[1 : 1 + p256tagpq.SIZE]), data[1 + p256tagpq.SIZE :]
    else:
        raise ValueError("it is of a later version of impound, or none")
    try:
        names = rest.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ValueError("it does not name a KMS key") from None
    return KmsIdentity(recipient, [KeyArn(name) for name in names])
