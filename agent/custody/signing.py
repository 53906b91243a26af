"""Signatures in DSSE envelopes: Ed25519, and ECDSA over P-256 with SHA-256 where the key lies in a KMS.

DSSE v1 (github.com/secure-systems-lab/dsse): the signature is over `DSSEv1 SP len(type) SP type SP len(body) SP body`;
payload and signature stand in the envelope as base64. A key is named by its public half: `ed25519:` and 64 hex digits,
or `p256:` and the 66 of the compressed point, whose signature is DER.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.custody.canonical import decode, decode_base64, encode, encode_base64
from agent.errors import DamagedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

STATEMENT_TYPE = "application/vnd.in-toto+json"
PROGRESS_TYPE = "application/vnd.impound.progress+json"
_SIGNER = re.compile(r"ed25519:[0-9a-f]{64}|p256:0[23][0-9a-f]{64}")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[Signature] = msgspec.field()


def _pae(payload_type: str, body: bytes) -> bytes:
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def parse_signer(text: str) -> str:
    """A signer as a person gives it. Raises `UsageError`."""
    signer = text.strip().lower()
    if not _SIGNER.fullmatch(signer):
        raise UsageError(
            "a signer is written ed25519: and 64 hex digits, or p256: and 66, as the result of `acquire` prints it"
        )
    return signer


class AttemptKey:
    """The signing key of one attempt. It exists in memory only, and ends with the attempt."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.signer = "ed25519:" + self._private.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"<AttemptKey {self.signer}>"

    def sign(self, payload_type: str, record: object) -> bytes:
        """The canonical envelope around the canonical bytes of `record`."""
        return seal_envelope(payload_type, record, self.signer, self._private.sign)


def seal_envelope(payload_type: str, record: object, signer: str, sign: Callable[[bytes], bytes]) -> bytes:
    """The canonical envelope around the canonical bytes of `record`, signed by `sign` under the name `signer`."""
    body = encode(record)
    return encode(
        Envelope(
            payload=encode_base64(body),
            payload_type=payload_type,
            signatures=[Signature(signer, encode_base64(sign(_pae(payload_type, body))))],
        )
    )


def open_envelope(data: bytes, payload_type: str, what: str) -> tuple[bytes, str]:
    """The body of an envelope whose one signature is right, and its signer. Raises `DamagedError` naming `what`.

    That a signature is right says only that the body is as its signer left it; who the signer is, the caller decides.
    """
    envelope = decode(data, Envelope, what)
    if envelope.payload_type != payload_type or len(envelope.signatures) != 1:
        raise DamagedError(f"{what}: not an envelope that impound wrote")
    signature = envelope.signatures[0]
    if not _SIGNER.fullmatch(signature.keyid):
        raise DamagedError(f"{what}: the name of its key is not one that impound writes")
    body = decode_base64(envelope.payload, what)
    try:
        verify(signature.keyid, decode_base64(signature.sig, what), _pae(payload_type, body))
    except (InvalidSignature, ValueError) as error:
        raise DamagedError(f"{what}: its signature is wrong") from error
    return body, signature.keyid


def verify(signer: str, signature: bytes, message: bytes) -> None:
    """Whether a bare signature is right. Raises `InvalidSignature`, or `ValueError` for a point that is none."""
    kind, _, public = signer.partition(":")
    if kind == "ed25519":
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
        return
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(public))
    key.verify(signature, message, ec.ECDSA(SHA256()))
