"""P-256 tag recipients: `age1tag1…`, whose private half can be in hardware or a key service (C2SP `age.md`, "The tagged
recipient types").

A recipient is a point of P-256 in its compressed form (SEC 1, 2.3.3: 02 or 03, and x in 32 bytes big-endian), in Bech32
with the prefix `age1tag`. Its stanza:

    -> p256tag <base64 of the tag, 4 bytes> <base64 of enc, 65 bytes>
    <base64 of the wrapped file key, 32 bytes>

`enc` is an ephemeral point, not compressed (04, x, y). The body is HPKE (`hpke.py`) with DHKEM(P-256, HKDF-SHA256) and
the info `age-encryption.org/p256tag`. The tag tells the holder which stanza is theirs before anything is asked of the
hardware, and tells everybody else nothing who does not have the public key:

    tag = HKDF-Extract-SHA-256(salt = info, enc || SHA-256(recipient)[:4])[:4]
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import DamagedError
from agent.sealing import bech32, hpke, rawbase64, stanzas
from agent.sealing.stanzas import Stanza

TYPE = "p256tag"
HRP = "age1tag"
INFO = b"age-encryption.org/p256tag"
POINT_SIZE = 33
ENC_SIZE = 65
TAG_SIZE = 4

MAX_TRIES = 4
"""Stanzas of one header that are tried at most. Another recipient's tag is ours once in four thousand million."""

Exchange = Callable[[bytes], bytes]
"""The private half: from a point (65 bytes, on the curve) to the x of the product, 32 bytes big-endian."""


class P256TagRecipient(msgspec.Struct, frozen=True):
    """A P-256 public key. Raises `ValueError` for what is no compressed point of the curve."""

    point: bytes
    """SEC 1, compressed: 33 bytes."""

    def __post_init__(self) -> None:
        if len(self.point) != POINT_SIZE:
            raise ValueError(f"it holds {len(self.point)} bytes where a compressed point has {POINT_SIZE}")
        load_point(self.point)

    @property
    def text(self) -> str:
        """The `age1tag1…` form."""
        return bech32.encode(HRP, self.point)

    @property
    def post_quantum(self) -> bool:
        return False

    @property
    def uncompressed(self) -> bytes:
        """The same point in 65 bytes."""
        return dump_point(load_point(self.point))

    def tag(self, enc: bytes) -> bytes:
        """The four bytes by which the holder knows a stanza."""
        return tag_of(INFO, enc, self.point)

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap a file key under a new ephemeral key."""
        enc, dh = encapsulate(load_point(self.point))
        secret = hpke.dhkem_secret(hpke.DHKEM_P256, dh, enc, self.uncompressed)
        return tag_stanza(TYPE, self.tag(enc), enc, hpke.seal(hpke.DHKEM_P256, secret, INFO, file_key))


class P256TagIdentity:
    """The holder of the private half, wherever it is: `exchange` is asked once for each stanza that bears the tag."""

    __slots__ = ("_exchange", "recipient")

    def __init__(self, recipient: P256TagRecipient, exchange: Exchange) -> None:
        self.recipient = recipient
        self._exchange = exchange

    def __repr__(self) -> str:
        return f"P256TagIdentity(recipient={self.recipient.text!r})"

    def unwrap(self, stanzas_of_file: Sequence[Stanza]) -> bytes | None:
        """The file key, or `None` where no stanza bears our tag.

        Raises `DamagedError` for a malformed stanza of this type, and where ours holds nothing that we can open.
        """
        return unwrap_tagged(stanzas_of_file, TYPE, ENC_SIZE, self.recipient.tag, self._open)

    def _open(self, enc: bytes, body: bytes) -> bytes | None:
        check_enc(TYPE, enc)
        secret = hpke.dhkem_secret(hpke.DHKEM_P256, self._exchange(enc), enc, self.recipient.uncompressed)
        return hpke.unseal(hpke.DHKEM_P256, secret, INFO, body)


def unwrap_tagged(
    stanzas_of_file: Sequence[Stanza],
    kind: str,
    enc_size: int,
    tag: Callable[[bytes], bytes],
    unseal: Callable[[bytes, bytes], bytes | None],
) -> bytes | None:
    """Find the stanzas of one tagged type that bear our tag, and open them. All of the type are checked first.

    Raises `DamagedError` as `P256TagIdentity.unwrap` does: a stanza that names our key was written for it, so one that
    it does not open was changed.
    """
    parsed = [
        (*stanzas.values(stanza, TAG_SIZE, enc_size), stanza.body) for stanza in stanzas_of_file if stanza.type == kind
    ]
    ours = [(enc, body) for given, enc, body in parsed if hmac.compare_digest(given, tag(enc))]
    if len(ours) > MAX_TRIES:
        raise DamagedError(f"the sealed header has {len(ours)} {kind} stanzas for one key, more than {MAX_TRIES}")
    for enc, body in ours:
        file_key = unseal(enc, body)
        if file_key is not None:
            return file_key
    if ours:
        raise DamagedError(
            f"the sealed header has a {kind} stanza for this key that the key does not open: the header was changed, "
            "or the identity's public half belongs to another key"
        )
    return None


def tag_of(info: bytes, enc: bytes, point: bytes) -> bytes:
    """The tag of a stanza; `point` in the form that the type hashes."""
    return hpke.extract(info, enc + hashlib.sha256(point).digest()[:4])[:TAG_SIZE]


def tag_stanza(kind: str, tag: bytes, enc: bytes, body: bytes) -> Stanza:
    return Stanza(kind, tuple(rawbase64.encode(value).decode("ascii") for value in (tag, enc)), body)


def encapsulate(public: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """A new ephemeral key's point (65 bytes), and the x that it has in common with `public` (32 bytes)."""
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    return dump_point(ephemeral.public_key()), ephemeral.exchange(ec.ECDH(), public)


def check_enc(kind: str, point: bytes) -> ec.EllipticCurvePublicKey:
    """The key of an ephemeral point. Raises `DamagedError` for one that is not on the curve: it would ask the private
    half for something else than it should.
    """
    try:
        return load_point(point)
    except ValueError:
        raise DamagedError(f"the sealed header has a {kind} stanza whose point is not on the curve") from None


def load_point(point: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a point in one of the two forms that age uses. Raises `ValueError`."""
    if (len(point), point[:1]) not in {(POINT_SIZE, b"\x02"), (POINT_SIZE, b"\x03"), (ENC_SIZE, b"\x04")}:
        raise ValueError("it is not a point in the form that age writes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ValueError("it is not a point of P-256, to which nobody has the private half") from None


def dump_point(public: ec.EllipticCurvePublicKey, *, compressed: bool = False) -> bytes:
    """SEC 1: 65 bytes, or 33 compressed."""
    form = PublicFormat.CompressedPoint if compressed else PublicFormat.UncompressedPoint
    return public.public_bytes(Encoding.X962, form)
