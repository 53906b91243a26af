"""HPKE (RFC 9180), base mode, one message: what age's tagged and post-quantum recipients are wrapped with.

A KEM makes a shared secret that both sides have; the key schedule (section 5.1) derives a key and a nonce from it and
from `info`; one message is encrypted with them. KDF and AEAD are always HKDF-SHA-256 and ChaCha20-Poly1305, the AAD is
empty.

Written out here, and not taken from a library, because the private half can be in a key service that gives out nothing
but the raw result of ECDH: libraries want the private key itself.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

DHKEM_P256 = 0x0010
MLKEM768_P256 = 0x0050
MLKEM768_X25519 = 0x647A

_KDF = 0x0001
_AEAD = 0x0003
_VERSION = b"HPKE-v1"
_MODE_BASE = b"\x00"
_KEY_SIZE = 32
_NONCE_SIZE = 12
_SECRET_SIZE = 32


def dhkem_secret(kem: int, dh: bytes, enc: bytes, public: bytes) -> bytes:
    """The shared secret of a DHKEM (section 4.1): from the ECDH result, the encapsulated key and the public key."""
    suite = b"KEM" + kem.to_bytes(2, "big")
    return _expand(suite, _extract(suite, b"", b"eae_prk", dh), b"shared_secret", enc + public, _SECRET_SIZE)


def seal(kem: int, secret: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Encrypt the one message under a KEM's shared secret: as long as the plaintext, and 16 bytes."""
    key, nonce = _schedule(kem, secret, info)
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, None)


def unseal(kem: int, secret: bytes, info: bytes, ciphertext: bytes) -> bytes | None:
    """Decrypt the one message; `None` where the secret is another one."""
    key, nonce = _schedule(kem, secret, info)
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, None)
    except InvalidTag:
        return None


def extract(salt: bytes, material: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869, 2.2), 32 bytes."""
    return hmac.digest(salt or bytes(32), material, hashlib.sha256)


def _schedule(kem: int, secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the first message (section 5.1, `KeySchedule` with an empty PSK)."""
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (kem, _KDF, _AEAD))
    context = _MODE_BASE + _extract(suite, b"", b"psk_id_hash", b"") + _extract(suite, b"", b"info_hash", info)
    prk = _extract(suite, secret, b"secret", b"")
    return _expand(suite, prk, b"key", context, _KEY_SIZE), _expand(suite, prk, b"base_nonce", context, _NONCE_SIZE)


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    """LabeledExtract (section 4)."""
    return extract(salt, _VERSION + suite + label + material)


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand (section 4)."""
    labeled = length.to_bytes(2, "big") + _VERSION + suite + label + info
    return HKDFExpand(algorithm=SHA256(), length=length, info=labeled).derive(prk)
