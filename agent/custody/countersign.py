"""The countersignature: what the controller says of a finished run, under a key that no examined machine ever had.

An in-toto statement in a DSSE envelope, like the receipt, and an object of its own: `countersignature.json`. Its one
subject is the receipt, by its bytes; the predicate says what was compared, with what result, and what the controller
was told while the run went on. Whoever holds the countersigner's public key needs nothing else to know the receipt.

The key is Ed25519 in a file (PKCS#8, PEM, as `impound keygen --signing` and `openssl genpkey` make it), or an AWS KMS
key (ECC_NIST_P256, SIGN_VERIFY) that signs with ECDSA_SHA_256 and never leaves KMS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.custody.canonical import decode
from agent.custody.records import RECEIPT, STATEMENT, Digest, is_run_id
from agent.custody.signing import STATEMENT_TYPE, open_envelope, seal_envelope
from agent.errors import DamagedError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

COUNTERSIGNATURE = "countersignature.json"
PREDICATE = "https://impound.dev/countersignature/v1"
MAX_COUNTERSIGNATURE = 1 << 20
COMPARED = ("bytes", "parts")


class Countersigner(Protocol):
    """A key that countersigns. `sign` raises `ImpoundError`."""

    signer: str
    """`ed25519:` and 64 hex digits, or `p256:` and 66 (the compressed point)."""

    def sign(self, message: bytes) -> bytes: ...


class Countersigned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicate."""

    run: str
    case: str
    host: str
    signer: str
    """Who signed the receipt."""
    countersigner: str
    at: str
    tool: str
    compared: str
    """bytes: every object was read and digested. parts: the bucket's own checksums were compared with what was told."""
    objects: int
    bytes: int
    told: dict[str, str]
    """What the controller knew from elsewhere: the head of its own log, the last head of the custody log."""
    findings: list[str]
    """What was not as it should be, and did not make the run damaged."""


class _Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    digest: Digest


class CounterStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str = msgspec.field(name="_type")
    subject: list[_Subject] = msgspec.field()
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: Countersigned = msgspec.field()


class LocalCountersigner:
    """An Ed25519 key from a file."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.signer = "ed25519:" + key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"<LocalCountersigner {self.signer}>"

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def new_signing_key() -> tuple[str, str]:
    """A new private key (PKCS#8, PEM), and the name of its public half."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    return pem, LocalCountersigner(key).signer


def parse_signing_key(pem: bytes) -> LocalCountersigner:
    """Reads a private key file. Raises `UsageError` with nothing of the file in it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError("the signing key is no unencrypted private key in PEM: `impound keygen --signing`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("the signing key is no Ed25519 key: `impound keygen --signing` makes one")
    return LocalCountersigner(key)


def countersign(key: Countersigner, receipt_sha256: str, said: Countersigned) -> bytes:
    """The bytes of `countersignature.json`. Raises what the key raises."""
    subject = [_Subject(RECEIPT, Digest(receipt_sha256))]
    return seal_envelope(STATEMENT_TYPE, CounterStatement(STATEMENT, subject, PREDICATE, said), key.signer, key.sign)


def parse_countersignature(data: bytes) -> tuple[Countersigned, str]:
    """What a countersignature says and the SHA-256 of the receipt it is of. Its signature is right, whoever made it.

    Raises `DamagedError`.
    """
    body, signer = open_envelope(data, STATEMENT_TYPE, COUNTERSIGNATURE)
    statement = decode(body, CounterStatement, COUNTERSIGNATURE)
    said = statement.predicate
    texts = (said.case, said.host, said.at, said.tool, *said.told, *said.told.values(), *said.findings)
    right = (
        statement.kind == STATEMENT
        and statement.predicate_type == PREDICATE
        and len(statement.subject) == 1
        and statement.subject[0].name == RECEIPT
        and said.countersigner == signer
        and is_run_id(said.run)
        and said.compared in COMPARED
        and min(said.objects, said.bytes) >= 0
        and all(len(text) <= 1000 and text.isprintable() for text in texts)
    )
    if not right:
        raise DamagedError(f"{COUNTERSIGNATURE}: not one that impound wrote")
    return said, statement.subject[0].digest.sha256
