"""P-256 tag recipients: strict points, stanzas that only their holder opens, and an HPKE that is everybody's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hpke as other_hpke
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, UsageError
from agent.sealing import P256TagIdentity, P256TagRecipient, Stanza, bech32, generate, hpke, parse_recipient, rawbase64
from agent.sealing.p256tag import ENC_SIZE, INFO, MAX_TRIES, dump_point, load_point
from tests.support.tagkeys import exchange, tag_identity

SPEC_RECIPIENT = "age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e"
FILE_KEY = bytes(range(16))

# RFC 9180, A.5.1: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode
RFC_INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
RFC_PRIVATE = 0xA4D1C55836AA30F9B3FBB6AC98D338C877C2867DD3A77396D13F68D3AB150D3B
RFC_ENC = bytes.fromhex(
    "04c07836a0206e04e31d8ae99bfd549380b072a1b1b82e563c935c095827824fc1559eac6fb9e3c70cd3193968994e7fe9781aa103f5b50e934b5b"
    "2f387e381291"
)
RFC_SECRET = bytes.fromhex("806520f82ef0b03c823b7fc524b6b55a088f566b9751b89551c170f4113bd850")
RFC_KEY = bytes.fromhex("a8f45490a92a3b04d1dbf6cf2c3939ad8bfc9bfcb97c04bffe116730c9dfe3fc")
RFC_NONCE = bytes.fromhex("726b4390ed2209809f58c693")


def test_the_recipient_of_the_specification_is_read_and_written_back() -> None:
    recipient = parse_recipient(SPEC_RECIPIENT)
    assert isinstance(recipient, P256TagRecipient)
    assert recipient.text == SPEC_RECIPIENT
    assert not recipient.post_quantum


def test_hpke_computes_what_the_rfc_prints() -> None:
    key = ec.derive_private_key(RFC_PRIVATE, ec.SECP256R1())
    dh = exchange(key)(RFC_ENC)
    assert hpke.dhkem_secret(hpke.DHKEM_P256, dh, RFC_ENC, dump_point(key.public_key())) == RFC_SECRET
    assert hpke._schedule(hpke.DHKEM_P256, RFC_SECRET, RFC_INFO) == (RFC_KEY, RFC_NONCE)


def test_another_hpke_opens_our_stanza_and_we_open_its() -> None:
    """`cryptography` has HPKE of its own, for private keys that it holds itself."""
    suite = other_hpke.Suite(other_hpke.KEM.P256, other_hpke.KDF.HKDF_SHA256, other_hpke.AEAD.CHACHA20_POLY1305)
    key = ec.generate_private_key(ec.SECP256R1())
    identity = tag_identity(key)
    stanza = identity.recipient.wrap(FILE_KEY)
    enc = rawbase64.decode(stanza.args[1].encode())
    assert suite.decrypt(enc + stanza.body, key, INFO) == FILE_KEY
    sealed = suite.encrypt(FILE_KEY, key.public_key(), INFO)
    enc, body = sealed[:ENC_SIZE], sealed[ENC_SIZE:]
    assert identity.unwrap([stanza_of(identity.recipient.tag(enc), enc, body)]) == FILE_KEY


def stanza_of(*arguments: bytes) -> Stanza:
    *values, body = arguments
    return Stanza("p256tag", tuple(rawbase64.encode(value).decode() for value in values), body)


def test_each_stanza_is_new_and_only_the_holder_opens_it() -> None:
    mine, other = tag_identity(), tag_identity()
    first, second = mine.recipient.wrap(FILE_KEY), mine.recipient.wrap(FILE_KEY)
    assert first.args != second.args
    assert first.body != second.body
    assert mine.unwrap([generate().recipient.wrap(b"x" * 16), other.recipient.wrap(b"o" * 16), first]) == FILE_KEY
    assert other.unwrap([first]) is None
    assert mine.unwrap([]) is None


def test_the_holder_is_asked_for_the_own_stanza_only() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    asked: list[bytes] = []

    def note(point: bytes) -> bytes:
        asked.append(point)
        return exchange(key)(point)

    identity = P256TagIdentity(tag_identity(key).recipient, note)
    mine = identity.recipient.wrap(FILE_KEY)
    assert identity.unwrap([tag_identity().recipient.wrap(FILE_KEY) for _ in range(20)]) is None
    assert asked == []
    assert identity.unwrap([mine, identity.recipient.wrap(FILE_KEY)]) == FILE_KEY
    assert asked == [rawbase64.decode(mine.args[1].encode())]


def uncompressed(point: bytes) -> bytes:
    return dump_point(load_point(point))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (bytes(33), "not a point"),
        (bytes(32), "32 bytes"),
        (b"\x00", "1 bytes"),
        (uncompressed(tag_identity().recipient.point), "65 bytes"),
        (b"\x04" + tag_identity().recipient.point[1:], "form"),
        (b"\x05" + tag_identity().recipient.point[1:], "form"),
        (b"\x02" + (0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF).to_bytes(32, "big"), "P-256"),
        (b"\x02" + b"\xff" * 32, "P-256"),
        (b"\x02" + (5).to_bytes(32, "big"), ""),
        (b"\x02" + (7).to_bytes(32, "big"), "P-256"),
    ],
)
def test_what_is_no_compressed_point_of_the_curve_is_refused(data: bytes, reason: str) -> None:
    text = bech32.encode("age1tag", data)
    if not reason:
        assert parse_recipient(text).text == text
        return
    with pytest.raises(UsageError, match=reason):
        parse_recipient(text)


def test_a_malformed_stanza_of_the_own_type_is_damage_even_after_a_good_one() -> None:
    identity = tag_identity()
    good = identity.recipient.wrap(FILE_KEY)
    tag, enc = good.args
    for bad in [
        Stanza("p256tag", (), good.body),
        Stanza("p256tag", (tag,), good.body),
        Stanza("p256tag", (tag, enc, enc), good.body),
        Stanza("p256tag", (enc, tag), good.body),
        Stanza("p256tag", (tag + "=", enc), good.body),
        Stanza("p256tag", (tag[:-1], enc), good.body),
        Stanza("p256tag", (tag, enc + "A"), good.body),
        Stanza("p256tag", (tag, enc[:-2]), good.body),
        Stanza("p256tag", (tag, enc), good.body[:-1]),
        Stanza("p256tag", (tag, enc), good.body + b"\x00"),
        Stanza("p256tag", (tag, enc), b""),
    ]:
        with pytest.raises(DamagedError, match="p256tag stanza"):
            identity.unwrap([good, bad])
    assert identity.unwrap([Stanza("P256TAG", (), b""), good]) == FILE_KEY


def test_a_point_that_is_not_on_the_curve_never_reaches_the_holder() -> None:
    def never(point: bytes) -> bytes:
        raise AssertionError

    identity = P256TagIdentity(tag_identity().recipient, never)
    for enc in (bytes(65), b"\x04" + bytes(64), b"\x04" + b"\xff" * 64, b"\x06" + b"\x01" * 64):
        with pytest.raises(DamagedError, match="not on the curve"):
            identity.unwrap([stanza_of(identity.recipient.tag(enc), enc, bytes(32))])


def test_a_stanza_that_names_our_key_and_does_not_open_is_damage() -> None:
    identity = tag_identity()
    good = identity.recipient.wrap(FILE_KEY)
    with pytest.raises(DamagedError, match="does not open"):
        identity.unwrap([Stanza(good.type, good.args, bytes(32))])
    assert identity.unwrap([Stanza(good.type, good.args, bytes(32)), good]) == FILE_KEY


def test_a_header_cannot_make_the_holder_work_without_end() -> None:
    asked = 0

    def count(point: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return bytes(32)

    identity = P256TagIdentity(tag_identity().recipient, count)
    with pytest.raises(DamagedError, match="more than"):
        identity.unwrap([identity.recipient.wrap(FILE_KEY) for _ in range(MAX_TRIES + 1)])
    assert asked == 0


@given(st.binary(max_size=70), st.binary(max_size=130), st.binary(max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_stanza(tag: bytes, enc: bytes, body: bytes) -> None:
    identity = IDENTITY
    for given_tag in (tag, identity.recipient.tag(enc)):
        message = ""
        try:
            assert identity.unwrap([stanza_of(given_tag, enc, body)]) is None
        except DamagedError as error:
            message = str(error)
        assert "\n" not in message


IDENTITY = tag_identity()


@given(st.binary(min_size=33, max_size=33))
@settings(deadline=None, max_examples=300)
def test_any_33_bytes_as_a_recipient_are_refused_or_sealed_to(data: bytes) -> None:
    try:
        recipient = P256TagRecipient(data)
    except ValueError:
        return
    assert len(recipient.wrap(FILE_KEY).body) == 32
    assert parse_recipient(recipient.text) == recipient
