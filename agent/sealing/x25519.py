"""Points of Curve25519 (RFC 7748): which ones a public key may be."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

POINT_SIZE = 32

_PRIME = 2**255 - 19


def check_point(point: bytes) -> None:
    """`point` is a u-coordinate, 32 bytes little-endian. Raises `ValueError` for one that is no one's public key."""
    if len(point) != POINT_SIZE:
        raise ValueError(f"it holds {len(point)} bytes where a key has {POINT_SIZE}")
    # Another spelling of a point wraps without an error and can never be unwrapped: the holder computes the
    # canonical one, and it is part of what the wrap key is derived from.
    if int.from_bytes(point, "little") >= _PRIME:
        raise ValueError("it is not a key that any private key has")
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        raise ValueError("it is a point of low order, to which nothing can be kept secret") from None
