"""Who can open what was sealed: private keys, and the file in which `age-keygen` keeps them.

An X25519 identity is `AGE-SECRET-KEY-1…`, Bech32 of 32 random bytes (C2SP `age.md`, "The X25519 recipient type").
An identity file is text: comments that begin with `#`, blank lines, and one identity a line. Nothing here ever puts an
identity into a message, a `repr` or a log; `X25519Identity.secret_text` and `render_identity_file` alone give it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.errors import DamagedError, UsageError
from agent.sealing import bech32, keywrap, rawbase64
from agent.sealing.recipients import POINT_SIZE, X25519_INFO, X25519_TYPE, Stanza, X25519Recipient

_PREFIX = "AGE-SECRET-KEY-"
_WANTED = "Give the file with the line AGE-SECRET-KEY-1…, as `impound keygen` and `age-keygen` write it"


class Identity(Protocol):
    """A private key, or something that can use one."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key, or `None` where no stanza is for this identity. Raises `DamagedError` for a malformed one."""
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

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Try every X25519 stanza. All of them are checked first: a header with a malformed one is opened by no one."""
        for share, body in [_parse_stanza(stanza) for stanza in stanzas if stanza.type == X25519_TYPE]:
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


def parse_identity_file(text: str) -> list[X25519Identity]:
    """Read an identity file. Raises `UsageError` with the number of the line, and for a file that holds no identity."""
    identities: list[X25519Identity] = []
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
    return identities


def render_identity_file(identity: X25519Identity, created: datetime) -> str:
    """The file as `age-keygen` writes it. `created` must have a time zone; RFC 3339 is written to the second.

    # created: 2026-01-02T03:04:05+01:00
    # public key: age1…
    AGE-SECRET-KEY-1…
    """
    if created.tzinfo is None:
        raise ValueError("a time without a time zone says nothing")
    stamp = created.isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"# created: {stamp}\n# public key: {identity.recipient.text}\n{identity.secret_text()}\n"


def _parse(text: str) -> X25519Identity:
    """Parse, or raise `ValueError` with a reason that holds nothing of `text`."""
    kind = text.upper()
    if kind.startswith("AGE-PLUGIN-"):
        raise ValueError("it belongs to an age plugin: open the object with `age -d` and that plugin")
    if kind.startswith("AGE-SECRET-KEY-PQ-"):
        raise ValueError("this version cannot use post-quantum identities: open the object with `age -d`")
    if kind.startswith("AGE1"):
        raise ValueError("it is a public key, and opening needs the private one")
    if text.startswith(("age-encryption.org/", "-----BEGIN AGE ENCRYPTED FILE")):
        raise ValueError("the identity is protected by a passphrase: open it with `age -d` first")
    if text.startswith(("-----BEGIN", "ssh-")):
        raise ValueError("it is an SSH or PEM key, which this version cannot use")
    if not kind.startswith(_PREFIX):
        raise ValueError("it is not an age identity")
    hrp, secret = bech32.decode(text)
    if hrp != _PREFIX:
        raise ValueError("it is not an X25519 identity in upper case")
    return X25519Identity(secret)


def _parse_stanza(stanza: Stanza) -> tuple[bytes, bytes]:
    """The ephemeral share and the body of an X25519 stanza."""
    if len(stanza.args) != 1:
        raise DamagedError(f"the sealed header has an X25519 stanza with {len(stanza.args)} arguments, not one")
    try:
        share = rawbase64.decode(stanza.args[0].encode("ascii"))
    except ValueError as error:
        raise DamagedError(f"the sealed header has an X25519 share that is {error}") from None
    if len(share) != POINT_SIZE or len(stanza.body) != keywrap.WRAPPED_SIZE:
        raise DamagedError("the sealed header has an X25519 stanza of the wrong length")
    return share, stanza.body
