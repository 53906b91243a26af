"""Identities in AWS KMS, against a KMS on loopback: one call for each file key, and errors that say what to do."""

from __future__ import annotations

import copy
import pickle
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli.options import read_identities
from agent.errors import DamagedError, IdentityError, ImpoundError, UsageError
from agent.sealing import (
    KmsIdentity,
    P256TagRecipient,
    bech32,
    generate,
    kms,
    open_bytes,
    parse_identity_file,
    render_identity_file,
    seal_bytes,
)
from agent.sealing.kms import KeyArn, Kms
from agent.sealing.kmsidentity import PREFIX, parse_kms_identity
from tests.support.kms import REGION, KmsDouble, RefusedError, arn, environment, kms_double
from tests.support.tagkeys import tag_identity, tagpq_identity

POINT = tag_identity().recipient
PQ = tagpq_identity().recipient
ARN = KeyArn(arn(7))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsDouble]:
    with kms_double() as found:
        for name, value in environment(found.url).items():
            monkeypatch.setenv(name, value)
        yield found


def identity_of(key: str) -> KmsIdentity:
    return KmsIdentity(P256TagRecipient(Kms(REGION).public_half(key).key), [KeyArn(key)])


# -- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identity", [KmsIdentity(POINT, [ARN]), KmsIdentity(PQ, [ARN, KeyArn(arn(8, "us-gov-west-1"))])]
)
def test_the_line_is_read_and_written_back(identity: KmsIdentity) -> None:
    assert identity.text.startswith("AGE-PLUGIN-IMPOUNDKMS-1")
    text = render_identity_file(identity, datetime.now(UTC))
    assert f"# key: {ARN.text}\n" in text
    assert f"# public key: {identity.recipient.text}\n" in text
    (again,) = parse_identity_file(text)
    assert isinstance(again, KmsIdentity)
    assert (again.recipient, again.arns, again.text) == (identity.recipient, identity.arns, identity.text)


def line(data: bytes) -> str:
    return bech32.encode(PREFIX.lower(), data).upper()


GOOD = b"\x01" + POINT.point + ARN.text.encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line(GOOD).lower(), "upper case"),
        (line(b""), "later version"),
        (line(b"\x03" + GOOD[1:]), "later version"),
        (line(GOOD[:20]), "19 bytes"),
        (line(GOOD[:34]), "not an ARN"),
        (line(GOOD + b"\n"), "not an ARN"),
        (line(GOOD + b" "), "not an ARN"),
        (line(GOOD + b" " + ARN.text.encode()), "another number of keys"),
        (line(b"\x02" + PQ.key + ARN.text.encode()), "another number of keys"),
        (line(b"\x02" + GOOD[1:]), "bytes where a post-quantum tag key"),
        (line(GOOD[:34] + b"\xff"), "does not name"),
        (line(GOOD.replace(b":key/", b":alias/")), "alias"),
        (line(GOOD.replace(b":kms:", b":s3:")), "not an ARN"),
        (line(GOOD.replace(b"eu-central-1", b"evil.example/?")), "not an ARN"),
        (line(b"\x01" + b"\x02" + b"\xff" * 32 + ARN.text.encode()), "P-256"),
        (line(bytes(3000)), "too long"),
        (line(GOOD)[:-1], "checksum"),
    ],
)
def test_what_is_no_such_line_says_why(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"line 1 of the identity file cannot be used: .*{reason}"):
        parse_identity_file(text)


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda rest: GOOD[:34] + rest))
@settings(deadline=None, max_examples=300)
def test_any_line(data: bytes) -> None:
    try:
        identity = parse_kms_identity(line(data))
    except ValueError:
        return
    assert identity.text == line(data)


def test_keys_that_are_here_come_before_those_that_are_asked_for() -> None:
    here, there = generate(), KmsIdentity(POINT, [ARN])
    now = datetime.now(UTC)
    identities = parse_identity_file(render_identity_file(there, now) + render_identity_file(here, now))
    assert [type(identity) for identity in identities] == [type(here), type(there)]


# -- opening ----------------------------------------------------------------------------------------------------------


def test_keys_that_are_here_come_first_in_whatever_order_their_files_are_given(
    double: KmsDouble, tmp_path: Path
) -> None:
    here, there = generate(), identity_of(double.add())
    for name, identity in (("kms.key", there), ("case.key", here)):
        (tmp_path / name).write_text(render_identity_file(identity, datetime.now(UTC)))
    found = read_identities([str(tmp_path / "kms.key"), str(tmp_path / "case.key")])
    assert [type(one) for one in found] == [type(here), KmsIdentity]
    asked = double.count("DeriveSharedSecret")
    assert open_bytes(seal_bytes(b"evidence", [there.recipient, here.recipient]), found) == b"evidence"
    assert double.count("DeriveSharedSecret") == asked


def test_an_object_is_opened_with_one_call_and_again_with_none(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    objects = [seal_bytes(b"evidence", [generate().recipient, identity.recipient]) for _ in range(3)]
    for sealed in [*objects, *objects]:
        assert open_bytes(sealed, [identity]) == b"evidence"
    assert double.count("DeriveSharedSecret") == 3


def test_what_is_for_somebody_else_costs_no_call(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    with pytest.raises(IdentityError, match="none of the identities"):
        open_bytes(seal_bytes(b"", [generate().recipient, tag_identity().recipient]), [identity])
    assert double.count("DeriveSharedSecret") == 0


def test_threads_that_open_one_object_ask_once(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    double.delay = 0.05
    sealed = seal_bytes(b"evidence", [identity.recipient])
    opened: list[bytes] = []
    threads = [threading.Thread(target=lambda: opened.append(open_bytes(sealed, [identity]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [b"evidence"] * 8
    assert double.count("DeriveSharedSecret") == 1


def test_a_changed_header_is_damage_even_after_the_true_one_was_opened(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    sealed = seal_bytes(b"evidence", [identity.recipient])
    assert open_bytes(sealed, [identity]) == b"evidence"
    changed = sealed.replace(b"\n--- ", b"\n-> grease\n\n--- ", 1)
    with pytest.raises(DamagedError, match="MAC"):
        open_bytes(changed, [identity])


def test_the_region_is_that_of_the_arn(double: KmsDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    identity = KmsIdentity(POINT, [KeyArn(arn(1, "ap-south-1"))])
    with pytest.raises(IdentityError, match="KMS in ap-south-1 does not have the key"):
        identity.unwrap([POINT.wrap(bytes(16))])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "AccessDeniedException",
            "kms:DeriveSharedSecret on arn:aws:kms:.* is not allowed .* policy .* said: who are you",
        ),
        ("ExpiredTokenException", "renew"),
        ("UnrecognizedClientException", "does not accept these credentials"),
        ("NotFoundException", "does not have the key arn:aws:kms:"),
        ("DisabledException", "disabled"),
        ("KMSInvalidStateException", "deletion"),
        ("InvalidKeyUsageException", "KEY_AGREEMENT"),
        ("SomethingNewException", "SomethingNewException: who are you"),
    ],
)
def test_a_refusal_says_what_and_why_on_one_line(double: KmsDouble, code: str, words: str) -> None:
    identity = identity_of(double.add())
    double.refuse["DeriveSharedSecret"] = RefusedError(code, "who\n are\tyou" + "x" * 5000)
    with pytest.raises(IdentityError, match=words) as caught:
        identity.unwrap([identity.recipient.wrap(bytes(16))])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    double.refuse.clear()
    assert identity.unwrap([identity.recipient.wrap(bytes(16))]) == bytes(16)  # a refusal is not remembered


def test_no_credentials_is_said(double: KmsDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = identity_of(double.add())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(IdentityError, match="no AWS credentials"):
        identity.unwrap([identity.recipient.wrap(bytes(16))])
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(IdentityError, match="nobody"):
        identity_of_arn(identity).unwrap([identity.recipient.wrap(bytes(16))])


def identity_of_arn(identity: KmsIdentity) -> KmsIdentity:
    """The same key, with nothing asked yet."""
    return KmsIdentity(identity.recipient, identity.arns)


def test_nothing_listens_is_said_and_waiting_ends(double: KmsDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kms, "ATTEMPTS", 1)
    monkeypatch.setattr(kms, "READ_TIMEOUT_S", 0.3)
    identity = identity_of(double.add())
    stanza = identity.recipient.wrap(bytes(16))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(IdentityError, match="KMS in eu-central-1 does not answer kms:DeriveSharedSecret"):
            identity_of_arn(identity).unwrap([stanza])
        port = silent.getsockname()[1]
    with pytest.raises(IdentityError, match="does not answer"):
        identity_of_arn(identity).unwrap([stanza])
    assert str(port)  # the server is gone by now: nothing listens there


@pytest.mark.parametrize("raw", [b"", b"no json", b"[]", b"{}", b'{"SharedSecret":"AAAA"}', b'{"SharedSecret":7}'])
def test_a_nonsense_answer_is_refused(double: KmsDouble, raw: bytes) -> None:
    identity = identity_of(double.add())
    double.raw = raw
    with pytest.raises(IdentityError) as caught:
        identity.unwrap([identity.recipient.wrap(bytes(16))])
    assert "\n" not in str(caught.value)


def test_a_wrong_secret_opens_nothing(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    double.change["SharedSecret"] = "A" * 43 + "="
    with pytest.raises(DamagedError, match="does not open"):
        open_bytes(seal_bytes(b"evidence", [identity.recipient]), [identity])


def test_nothing_that_was_opened_is_shown_or_stored(double: KmsDouble) -> None:
    identity = identity_of(double.add())
    identity.unwrap([identity.recipient.wrap(b"YELLOW SUBMARINE")])
    assert repr(identity) == f"KmsIdentity({identity.arns[0].text})"
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copying(identity)


# -- public halves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "usage"),
    [
        (ec.SECP256R1(), "SIGN_VERIFY"),
        (ec.SECP384R1(), "KEY_AGREEMENT"),
        (ec.SECP256K1(), "SIGN_VERIFY"),
    ],
)
def test_a_key_of_another_kind_is_refused(double: KmsDouble, curve: ec.EllipticCurve, usage: str) -> None:
    with pytest.raises(UsageError, match=f"{usage}; evidence can be sealed to ECC_NIST_P256 for KEY_AGREEMENT"):
        Kms(REGION).public_half(double.add(curve, usage))


@pytest.mark.parametrize("spki", ["", "AAAA", "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE", "A" * 20000])
@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ML_KEM_768"])
def test_a_public_key_that_is_none_is_refused(double: KmsDouble, spki: str, spec: str) -> None:
    key = double.add() if spec == "ECC_NIST_P256" else double.add_ml_kem()
    double.change["PublicKey"] = spki
    with pytest.raises(ImpoundError, match="something else than a public key"):
        Kms(REGION).public_half(key)


def test_a_key_that_cannot_be_asked_does_not_stand_in_the_way_of_another() -> None:
    own = generate()

    class Unreachable:
        def unwrap(self, stanzas: object) -> bytes | None:
            raise IdentityError("KMS does not answer")

    sealed = seal_bytes(b"evidence", [own.recipient])
    assert open_bytes(sealed, [Unreachable(), own]) == b"evidence"
    with pytest.raises(IdentityError, match="KMS does not answer"):
        open_bytes(sealed, [Unreachable(), generate()])
