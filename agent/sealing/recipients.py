"""To whom evidence is sealed: public keys, and the stanza that each of them puts into an age header.

An X25519 recipient is `age1…`, Bech32 of the 32-byte u-coordinate with the prefix `age`. Its stanza
(C2SP `age.md`, "X25519 recipient stanza"), with a new ephemeral secret for every stanza:

    -> X25519 <base64 of the ephemeral share, 32 bytes>
    <base64 of the wrapped file key, 32 bytes>

    shared secret = X25519(ephemeral secret, recipient)
    wrap key      = HKDF-SHA-256(shared secret, salt = ephemeral share || recipient,
                                 info = "age-encryption.org/v1/X25519")

What a person gives as a recipient is checked before anything is read: evidence that was sealed to a key which nobody
can use is lost. A private key that was given by mistake is refused without being shown again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.errors import UsageError
from agent.sealing import bech32, keywrap, rawbase64

X25519_TYPE = "X25519"
X25519_INFO = b"age-encryption.org/v1/X25519"
POINT_SIZE = 32

_PRIME = 2**255 - 19
_SECRET = re.compile(r"AGE-?SECRET-?KEY|AGE-?PLUGIN|PRIVATE KEY", re.IGNORECASE)
_SSH = re.compile(r"(sk-)?(ssh|ecdsa)-")
_WANTED = "Give a public key that begins with age1, as `impound keygen` and `age-keygen -y` print it"


@dataclass(frozen=True, slots=True)
class Stanza:
    """One recipient's part of an age header: its first argument, the others, and the decoded body."""

    type: str
    args: tuple[str, ...]
    body: bytes


class Recipient(Protocol):
    """A public key to which a file key can be wrapped."""

    @property
    def text(self) -> str:
        """How a person writes this recipient; two recipients of one text are the same."""
        ...

    def wrap(self, file_key: bytes) -> Stanza:
        """The stanza that lets the holder of the private half have `file_key`."""
        ...


@dataclass(frozen=True, slots=True)
class X25519Recipient:
    """An X25519 public key. Raises `ValueError` for a point that is no one's public key."""

    point: bytes
    """The u-coordinate, 32 bytes, little-endian."""

    def __post_init__(self) -> None:
        if len(self.point) != POINT_SIZE:
            raise ValueError(f"it holds {len(self.point)} bytes where a key has {POINT_SIZE}")
        # Another spelling of a point wraps without an error and can never be unwrapped: the holder computes the
        # canonical one, and it is part of the salt.
        if int.from_bytes(self.point, "little") >= _PRIME:
            raise ValueError("it is not a key that any private key has")
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(self.point))
        except ValueError:
            raise ValueError("it is a point of low order, to which nothing can be kept secret") from None

    @property
    def text(self) -> str:
        """The `age1…` form."""
        return bech32.encode("age", self.point)

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap a file key under a new ephemeral secret."""
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.point))
        body = keywrap.wrap(keywrap.derive(secret, share + self.point, X25519_INFO), file_key)
        return Stanza(X25519_TYPE, (rawbase64.encode(share).decode("ascii"),), body)


def parse_recipient(text: str) -> Recipient:
    """Read one recipient as a person gives it. Raises `UsageError` with the reason and what to do."""
    try:
        return _parse(text.strip())
    except ValueError as error:
        raise UsageError(f"the recipient cannot be used: {error}. {_WANTED}") from None


def parse_recipients_file(text: str) -> list[Recipient]:
    """Read a recipients file: one a line; blank lines and lines that begin with `#` are left out, duplicates too.

    Raises `UsageError` with the number of the line, and for a file that names no one.
    """
    recipients: list[Recipient] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            recipients.append(_parse(entry))
        except ValueError as error:
            raise UsageError(f"line {number} of the recipients file cannot be used: {error}. {_WANTED}") from None
    if not recipients:
        raise UsageError(f"the recipients file names no recipient. {_WANTED}")
    return distinct(recipients)


def distinct(recipients: Iterable[Recipient]) -> list[Recipient]:
    """The recipients in their order, each once."""
    return list({recipient.text: recipient for recipient in recipients}.values())


def _parse(text: str) -> Recipient:
    """Parse, or raise `ValueError` with a reason that holds nothing of `text` but the name of a public kind of key."""
    if not text:
        raise ValueError("it is empty")
    if _SECRET.search(text):
        raise ValueError(
            "it is a private key, which has to stay where it was made and is not shown here; "
            "treat it as disclosed if this command line was recorded"
        )
    if _SSH.match(text):
        raise ValueError("it is an SSH key, and this version cannot seal to SSH keys")
    if not text.lower().startswith("age1"):
        raise ValueError("it does not begin with age1")
    hrp, data = bech32.decode(text)
    if hrp != hrp.lower():
        raise ValueError("it is in upper case, and public keys are written in lower case")
    if hrp == "age1pq":
        raise ValueError("this version cannot seal to post-quantum recipients (age1pq1…)")
    if hrp in {"age1tag", "age1tagpq"}:
        raise ValueError(f"this version cannot seal to tag recipients ({hrp}1…)")
    if hrp != "age":
        raise ValueError("it belongs to an age plugin, and this version cannot seal through plugins")
    return X25519Recipient(data)
