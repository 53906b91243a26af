"""Who can open what was sealed: private keys, and the file in which `age-keygen` keeps them.

An X25519 identity is `AGE-SECRET-KEY-1…`, Bech32 of 32 random bytes (C2SP `age.md`, "The X25519 recipient type").
`postquantum.py` has `AGE-SECRET-KEY-PQ-1…`, `kmsidentity.py` the private halves that AWS KMS holds.
An identity file is text: comments that begin with `#`, blank lines, and one identity a line. Nothing here ever puts an
identity into a message, a `repr` or a log; `secret_text` and `render_identity_file` alone give it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.errors import DamagedError, UsageError
from agent.sealing import bech32, keywrap, kmsidentity, postquantum, stanzas
from agent.sealing.kmsidentity import KmsIdentity, parse_kms_identity
from agent.sealing.postquantum import PostQuantumIdentity
from agent.sealing.recipients import X25519_INFO, X25519_TYPE, X25519Recipient
from agent.sealing.x25519 import POINT_SIZE

if TYPE_CHECKING:
    from agent.sealing.stanzas import Stanza

_PREFIX = "AGE-SECRET-KEY-"
_WANTED = (
    "Give the file with the line AGE-SECRET-KEY-1…, as `impound keygen` and `age-keygen` write it, "
    "or what `impound recipient from-kms` wrote"
)


class Identity(Protocol):
    """A private key, or something that can use one."""

    def unwrap(self, stanzas_of_file: Sequence[Stanza], /) -> bytes | None:
        """The file key, or `None` where no stanza is for this identity.

        Raises `DamagedError` for a malformed one, `IdentityError` where what holds the key does not help.
        """
        ...


class X25519Identity:
    """An X25519 private key. Neither `repr` nor pickling shows it."""

    __slots__ = ("_key", "recipient")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 random bytes. Raises `ValueError` for another length."""
        if len(secret) != POINT_SIZE:
            raise ValueError(f"it holds {len(secret)} bytes where a private key has {POINT_SIZE}")
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.recipient = X25519Recipient(self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"X25519Identity(recipient={self.recipient.text!r})"

    def secret_text(self) -> str:
        """The `AGE-SECRET-KEY-1…` form: the private key itself."""
        return bech32.encode(_PREFIX.lower(), self._key.private_bytes_raw()).upper()

    def unwrap(self, stanzas_of_file: Sequence[Stanza]) -> bytes | None:
        """Try every X25519 stanza. All of them are checked first: a header with a malformed one is opened by no one."""
        parsed = [
            (*stanzas.values(stanza, POINT_SIZE), stanza.body)
            for stanza in stanzas_of_file
            if stanza.type == X25519_TYPE
        ]
        for share, body in parsed:
            try:
                secret = self._key.exchange(X25519PublicKey.from_public_bytes(share))
            except ValueError:
                raise DamagedError("the sealed header has an X25519 share of low order") from None
            file_key = keywrap.unwrap(keywrap.derive(secret, share + self.recipient.point, X25519_INFO), body)
            if file_key is not None:
                return file_key
        return None


def generate() -> X25519Identity:
    """A new identity from the system's random source."""
    return X25519Identity(X25519PrivateKey.generate().private_bytes_raw())


KeyIdentity = X25519Identity | PostQuantumIdentity | KmsIdentity
"""What an identity file can hold. Each has its `recipient`."""


def parse_identity_file(text: str) -> list[KeyIdentity]:
    """Read an identity file. Raises `UsageError` with the number of the line, and for a file that holds no identity.

    Keys that are here come before those that a service is asked for, so that the service is asked only where needed.
    """
    identities: list[KeyIdentity] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            identities.append(_parse(entry))
        except ValueError as error:
            raise UsageError(f"line {number} of the identity file cannot be used: {error}. {_WANTED}") from None
    if not identities:
        raise UsageError(f"the identity file holds no identity. {_WANTED}")
    return sorted(identities, key=lambda identity: isinstance(identity, KmsIdentity))


def render_identity_file(identity: KeyIdentity, created: datetime) -> str:
    """The file as `age-keygen` writes it; for a key in KMS with its ARN.

    `created` must have a time zone; RFC 3339 is written to the second.

    # created: 2026-01-02T03:04:05+01:00
    # public key: age1…
    AGE-SECRET-KEY-1…
    """
    if created.tzinfo is None:
        raise ValueError("a time without a time zone says nothing")
    stamp = created.isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(identity, KmsIdentity):
        keys = "".join(f"# key: {arn.text}\n" for arn in identity.arns)
        return f"# created: {stamp}\n{keys}# public key: {identity.recipient.text}\n{identity.text}\n"
    return f"# created: {stamp}\n# public key: {identity.recipient.text}\n{identity.secret_text()}\n"


def _parse(text: str) -> KeyIdentity:
    """Parse, or raise `ValueError` with a reason that holds nothing of `text`."""
    kind = text.upper()
    if kind.startswith(kmsidentity.PREFIX):
        return parse_kms_identity(text)
    if kind.startswith("AGE-PLUGIN-"):
        raise ValueError("it belongs to another age plugin: open the object with `age -d` and that plugin")
    if kind.startswith("AGE1"):
        raise ValueError("it is a public key, and opening needs the private one")
    if text.startswith(("age-encryption.org/", "-----BEGIN AGE ENCRYPTED FILE")):
        raise ValueError("the identity is protected by a passphrase: open it with `age -d` first")
    if text.startswith(("-----BEGIN", "ssh-")):
        raise ValueError("it is an SSH or PEM key, which this version cannot use")
    if not kind.startswith(_PREFIX):
        raise ValueError("it is not an age identity")
    hrp, secret = bech32.decode(text)
    if hrp == postquantum.PREFIX:
        return PostQuantumIdentity(secret)
    if hrp != _PREFIX:
        raise ValueError("it is not an identity in upper case, as age writes them")
    return X25519Identity(secret)
