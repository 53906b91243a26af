"""To whom evidence is sealed: public keys, and the stanza that each of them puts into an age header.

An X25519 recipient is `age1…`, Bech32 of the 32-byte u-coordinate with the prefix `age`. Its stanza
(C2SP `age.md`, "X25519 recipient stanza"), with a new ephemeral secret for every stanza:

    -> X25519 <base64 of the ephemeral share, 32 bytes>
    <base64 of the wrapped file key, 32 bytes>

    shared secret = X25519(ephemeral secret, recipient)
    wrap key      = HKDF-SHA-256(shared secret, salt = ephemeral share || recipient,
                                 info = "age-encryption.org/v1/X25519")

The other kinds have files of their own: `p256tag.py` (`age1tag1…`), `postquantum.py` (`age1pq1…`), `p256tagpq.py`
(`age1tagpq1…`). Post-quantum recipients are never mixed with the others.

What a person gives as a recipient is checked before anything is read: evidence that was sealed to a key which nobody
can use is lost. A private key that was given by mistake is refused without being shown again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.errors import UsageError
from agent.sealing import bech32, keywrap, p256tag, p256tagpq, postquantum, rawbase64
from agent.sealing.stanzas import Stanza
from agent.sealing.x25519 import check_point

X25519_TYPE = "X25519"
X25519_INFO = b"age-encryption.org/v1/X25519"

_SECRET = re.compile(r"AGE-?SECRET-?KEY|AGE-?PLUGIN|PRIVATE KEY", re.IGNORECASE)
_SSH = re.compile(r"(sk-)?(ssh|ecdsa)-")
_WANTED = (
    "Give a public key that begins with age1, as `impound keygen`, `impound recipient from-kms` and `age-keygen -y` "
    "print it"
)


class Recipient(Protocol):
    """A public key to which a file key can be wrapped."""

    @property
    def text(self) -> str:
        """How a person writes this recipient; two recipients of one text are the same."""
        ...

    @property
    def post_quantum(self) -> bool:
        """Whether a quantum computer cannot open what is sealed to it alone."""
        ...

    def wrap(self, file_key: bytes) -> Stanza:
        """The stanza that lets the holder of the private half have `file_key`."""
        ...


class X25519Recipient(msgspec.Struct, frozen=True):
    """An X25519 public key. Raises `ValueError` for a point that is no one's public key."""

    point: bytes
    """The u-coordinate, 32 bytes, little-endian."""

    def __post_init__(self) -> None:
        check_point(self.point)

    @property
    def text(self) -> str:
        """The `age1…` form."""
        return bech32.encode("age", self.point)

    @property
    def post_quantum(self) -> bool:
        return False

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
    """The recipients in their order, each once. Raises `UsageError` for a mix (`check_recipients`)."""
    each = list({recipient.text: recipient for recipient in recipients}.values())
    check_recipients(each)
    return each


def check_recipients(recipients: Iterable[Recipient]) -> None:
    """Raises `UsageError` where post-quantum and classic recipients are mixed: the weakest of them rules."""
    kinds = {recipient.post_quantum: recipient.text for recipient in recipients}
    if len(kinds) > 1:
        raise UsageError(
            f"post-quantum recipients ({kinds[True][:16]}…) cannot be mixed with classic ones ({kinds[False][:16]}…): "
            "whoever breaks the classic one reads everything. Give only post-quantum recipients, or none"
        )


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
    kind = _KINDS.get(hrp)
    if kind is None:
        raise ValueError("it belongs to an age plugin, and this version cannot seal through plugins")
    return kind(data)


_KINDS: dict[str, Callable[[bytes], Recipient]] = {
    "age": X25519Recipient,
    p256tag.HRP: p256tag.P256TagRecipient,
    postquantum.HRP: postquantum.PostQuantumRecipient,
    p256tagpq.HRP: p256tagpq.P256TagPQRecipient,
}
