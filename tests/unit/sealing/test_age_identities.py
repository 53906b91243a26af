"""Identities: the file that age-keygen writes, and a private key that is never shown."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agent.errors import DamagedError, UsageError
from agent.sealing import Stanza, X25519Identity, bech32, generate, parse_identity_file, rawbase64, render_identity_file

SPEC_RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
SPEC_IDENTITY = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"


def test_the_identity_of_the_specification_is_read_and_written_back() -> None:
    (identity,) = parse_identity_file(SPEC_IDENTITY)
    assert isinstance(identity, X25519Identity)
    assert identity.recipient.text == SPEC_RECIPIENT
    assert identity.secret_text() == SPEC_IDENTITY


def test_the_file_is_written_as_age_keygen_writes_it() -> None:
    identity = X25519Identity(b"B" * 32)
    created = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    assert render_identity_file(identity, created) == (
        f"# created: 2026-01-02T03:04:05-03:30\n# public key: {SPEC_RECIPIENT}\n{SPEC_IDENTITY}\n"
    )
    assert "# created: 2026-01-02T06:34:05Z\n" in render_identity_file(identity, created.astimezone(UTC))
    with pytest.raises(ValueError, match="time zone"):
        render_identity_file(identity, datetime(2026, 1, 2))  # noqa: DTZ001


def test_several_identities_are_read_in_their_order() -> None:
    identities = [generate() for _ in range(3)]
    text = "".join(render_identity_file(identity, datetime.now(UTC)) for identity in identities)
    read = parse_identity_file("\ufeff" + text.replace("\n", "\r\n"))
    assert [identity.recipient for identity in read] == [identity.recipient for identity in identities]


def test_nothing_shows_the_private_key() -> None:
    identity = X25519Identity(b"B" * 32)
    assert repr(identity) == str(identity) == f"X25519Identity(recipient={SPEC_RECIPIENT!r})"
    with pytest.raises(TypeError):
        pickle.dumps(identity)
    assert copy.copy(identity).recipient == identity.recipient


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no identity"),
        ("# created: today\n", "holds no identity"),
        ("hello", "not an age identity"),
        (SPEC_RECIPIENT, "public key"),
        (SPEC_IDENTITY.lower(), "upper case"),
        (SPEC_IDENTITY[:-1], "checksum"),
        (SPEC_IDENTITY[:40] + "q" + SPEC_IDENTITY[41:], "mixes"),
        ("AGE-PLUGIN-YUBIKEY-1Q9Z0VYQCQQQQ", "plugin"),
        ("AGE-PLUGIN-IMPOUNDKMS-1QYPNVUCU03DV7ZK2RZ28GK5J6F6ZYP5L", "checksum"),
        (bech32.encode("age-secret-key-pq-", bytes(31)).upper(), "31 bytes"),
        (bech32.encode("age-secret-key-pq-", bytes(32)), "upper case"),
        ("age-encryption.org/v1\n-> scrypt", "passphrase"),
        ("-----BEGIN AGE ENCRYPTED FILE-----", "passphrase"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH or PEM"),
        (bech32.encode("age-secret-key-", bytes(31)).upper(), "31 bytes"),
    ],
)
def test_what_is_no_identity_says_why_and_is_not_shown(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse_identity_file(text)
    message = str(caught.value)
    assert "\n" not in message
    assert "AGE-SECRET-KEY-1…" in message
    for part in ("GFPYY", "gfpyy", "XX76J", "Q9Z0V", "ZVKYG", "zvkyg"):
        assert part not in message


def test_the_line_of_a_broken_identity_is_named() -> None:
    with pytest.raises(UsageError, match="line 3 of the identity file"):
        parse_identity_file(f"# one\n{SPEC_IDENTITY}\n{SPEC_IDENTITY[:-1]}\n")


def test_only_the_own_stanza_is_unwrapped() -> None:
    mine, other = generate(), generate()
    foreign = Stanza("example.com/kms", ("x", "y"), b"anything")
    stanzas = [foreign, other.recipient.wrap(b"o" * 16), mine.recipient.wrap(b"m" * 16)]
    assert mine.unwrap(stanzas) == b"m" * 16
    assert other.unwrap(stanzas) == b"o" * 16
    assert generate().unwrap(stanzas) is None
    assert mine.unwrap([foreign]) is None
    assert mine.unwrap([]) is None


def test_a_malformed_stanza_of_the_own_type_is_damage_even_after_a_good_one() -> None:
    identity = generate()
    good = identity.recipient.wrap(b"k" * 16)
    share = good.args[0]
    low_order = rawbase64.encode(bytes(32)).decode()
    for bad in [
        Stanza("X25519", (), good.body),
        Stanza("X25519", (share, share), good.body),
        Stanza("X25519", (share + "=",), good.body),
        Stanza("X25519", (share[:-1] + ("B" if share[-1] != "B" else "C"),), good.body),
        Stanza("X25519", (share[:-2],), good.body),
        Stanza("X25519", (share,), good.body[:-1]),
        Stanza("X25519", (share,), good.body + b"\x00"),
        Stanza("X25519", (share,), b""),
    ]:
        with pytest.raises(DamagedError):
            identity.unwrap([good, bad])
    with pytest.raises(DamagedError, match="low order"):
        identity.unwrap([Stanza("X25519", (low_order,), good.body)])
    # Stanza types are case-sensitive: another case is another type.
    assert identity.unwrap([Stanza("x25519", (), b"")]) is None
