"""ML-KEM-768 (FIPS 203), where the `cryptography` that is installed has it, and the hybrids that age makes with it.

A hybrid (draft-ietf-hpke-pq, also at filippo.io/hpke-pq) is as strong as the stronger of its halves:

    secret = SHA3-256(ML-KEM secret || ECDH secret || ECDH ciphertext || ECDH public key || label)

Sizes: public key 1,184 bytes, ciphertext 1,088, shared secret 32, seed of a private key 64.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from agent.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

PUBLIC_SIZE = 1184
CIPHERTEXT_SIZE = 1088
SECRET_SIZE = 32
SEED_SIZE = 64


def public_key(data: bytes) -> MLKEM768PublicKey:
    """Raises `ValueError` for bytes that are no key (FIPS 203, 7.2), `UsageError` where there is no ML-KEM."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

        return MLKEM768PublicKey.from_public_bytes(data)
    except (ImportError, UnsupportedAlgorithm):
        raise _missing() from None
    except ValueError:
        raise ValueError("its ML-KEM half is not a key that any private key has") from None


def private_key(seed: bytes) -> MLKEM768PrivateKey:
    """The key of a seed of 64 bytes. Raises `UsageError` where there is no ML-KEM."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

        return MLKEM768PrivateKey.from_seed_bytes(seed)
    except (ImportError, UnsupportedAlgorithm):
        raise _missing() from None


def combine(pq: bytes, dh: bytes, enc: bytes, public: bytes, label: bytes) -> bytes:
    """The hybrid's shared secret; `enc` and `public` are the ECDH halves, as they are written."""
    return hashlib.sha3_256(pq + dh + enc + public + label).digest()


def _missing() -> UsageError:
    import cryptography

    return UsageError(
        "post-quantum keys need ML-KEM, which the library `cryptography` that impound runs with does not have "
        f"(version {cryptography.__version__}): install a later one, or use a classic key (age1…, age1tag1…)"
    )
