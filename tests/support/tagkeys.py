"""Software keys that stand for hardware: the private halves of tag recipients, and those of the golden files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from agent.sealing import P256TagIdentity, P256TagPQIdentity, P256TagPQRecipient, P256TagRecipient, mlkem
from agent.sealing.p256tag import dump_point, load_point

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).resolve().parents[1] / "golden/age"
KEYS: dict[str, dict[str, str]] = json.loads((GOLDEN / "keys.json").read_text("utf-8"))


def exchange(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """The raw ECDH result, as `kms:DeriveSharedSecret` gives it."""
    return lambda point: key.exchange(ec.ECDH(), load_point(point))


def tag_identity(key: ec.EllipticCurvePrivateKey | None = None) -> P256TagIdentity:
    key = key or ec.generate_private_key(ec.SECP256R1())
    return P256TagIdentity(P256TagRecipient(dump_point(key.public_key(), compressed=True)), exchange(key))


def tagpq_identity(seed: bytes = bytes(range(64)), key: ec.EllipticCurvePrivateKey | None = None) -> P256TagPQIdentity:
    key = key or ec.generate_private_key(ec.SECP256R1())
    pq = mlkem.private_key(seed)
    recipient = P256TagPQRecipient(pq.public_key().public_bytes_raw() + dump_point(key.public_key()))
    return P256TagPQIdentity(recipient, pq.decapsulate, exchange(key))


def golden_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(KEYS[name]["private"], 16), ec.SECP256R1())
