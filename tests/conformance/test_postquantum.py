"""The post-quantum pair: everybody else's files and vectors open, ours are opened, and it is never mixed.

The age testkit's vectors of `mlkem768x25519` are in test_age_cctv.py.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives import hpke as other_hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.errors import DamagedError, IdentityError, UsageError
from agent.sealing import (
    KmsIdentity,
    P256TagPQRecipient,
    PostQuantumIdentity,
    Stanza,
    generate,
    generate_post_quantum,
    hpke,
    mlkem,
    open_bytes,
    p256tag,
    parse_identity_file,
    parse_recipient,
    postquantum,
    rawbase64,
    render_identity_file,
    seal_bytes,
)
from agent.sealing.kms import KeyArn, Kms
from tests.support.kms import REGION, environment, kms_double
from tests.support.runs import Script, impound, play
from tests.support.tagkeys import GOLDEN, KEYS, golden_key, tag_identity, tagpq_identity

FILE_KEY = bytes(range(16))
VECTORS = {(v["kem_id"], v["aead_id"]): v for v in json.loads((GOLDEN / "hpke-pq.json").read_text("utf-8"))}


def golden_tagpq() -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    return bytes.fromhex(KEYS["tagpq"]["seed"]), golden_key("tagpq")


def test_we_open_what_stock_age_sealed() -> None:
    """By age 1.3.1: tests/golden/age/README.md."""
    (identity,) = parse_identity_file(KEYS["pq"]["identity"])
    assert identity.recipient == parse_recipient(KEYS["pq"]["recipient"])
    assert open_bytes((GOLDEN / "made/pq.age").read_bytes(), [identity]) == b"sealed to pq\n"
    holder = tagpq_identity(*golden_tagpq())
    assert holder.recipient == parse_recipient(KEYS["tagpq"]["recipient"])
    assert open_bytes((GOLDEN / "made/tagpq.age").read_bytes(), [holder]) == b"sealed to tagpq\n"


def test_we_open_what_pyrage_seals() -> None:
    holder = tagpq_identity()
    sealed = pyrage.encrypt(b"evidence", [pyrage.tagpq.Recipient.from_str(holder.recipient.text)])
    assert open_bytes(sealed, [holder]) == b"evidence"


def test_another_hpke_opens_our_stanza_and_we_open_its() -> None:
    suite = other_hpke.Suite(
        other_hpke.KEM.MLKEM768_X25519, other_hpke.KDF.HKDF_SHA256, other_hpke.AEAD.CHACHA20_POLY1305
    )
    seed = bytes(range(32))
    identity = PostQuantumIdentity(seed)
    expanded = hashlib.shake_256(seed).digest(96)
    key = other_hpke.MLKEM768X25519PrivateKey(
        mlkem.private_key(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    )
    stanza = identity.recipient.wrap(FILE_KEY)
    enc = rawbase64.decode(stanza.args[0].encode())
    assert suite.decrypt(enc + stanza.body, key, postquantum.INFO) == FILE_KEY
    sealed = suite.encrypt(FILE_KEY, key.public_key(), postquantum.INFO)
    theirs = Stanza("mlkem768x25519", (rawbase64.encode(sealed[:1120]).decode(),), sealed[1120:])
    assert identity.unwrap([theirs]) == FILE_KEY


def test_the_hybrid_with_x25519_computes_what_the_draft_prints() -> None:
    vector = VECTORS[0x647A, 3]
    seed, enc = bytes.fromhex(vector["skRm"]), bytes.fromhex(vector["enc"])
    identity = PostQuantumIdentity(seed)
    assert identity.recipient.key.hex() == vector["pkRm"]
    secret = bytes.fromhex(vector["shared_secret"])
    schedule = hpke._schedule(hpke.MLKEM768_X25519, secret, bytes.fromhex(vector["info"]))
    assert [value.hex() for value in schedule] == [vector["key"], vector["base_nonce"]]
    body = hpke.seal(hpke.MLKEM768_X25519, secret, postquantum.INFO, FILE_KEY)
    assert identity.unwrap([Stanza("mlkem768x25519", (rawbase64.encode(enc).decode(),), body)]) == FILE_KEY


def test_the_hybrid_with_p256_computes_what_the_draft_prints() -> None:
    vector = VECTORS[0x0050, 1]
    expanded = hashlib.shake_256(bytes.fromhex(vector["skRm"])).digest(96)
    key = ec.derive_private_key(int.from_bytes(expanded[64:], "big"), ec.SECP256R1())
    holder = tagpq_identity(expanded[:64], key)
    assert holder.recipient.key.hex() == vector["pkRm"]
    enc, secret = bytes.fromhex(vector["enc"]), bytes.fromhex(vector["shared_secret"])
    info = b"age-encryption.org/mlkem768p256tag"
    body = hpke.seal(hpke.MLKEM768_P256, secret, info, FILE_KEY)
    stanza = p256tag.tag_stanza("mlkem768p256tag", holder.recipient.tag(enc), enc, body)
    assert holder.unwrap([stanza]) == FILE_KEY


def test_only_the_holder_opens_it() -> None:
    mine, other = generate_post_quantum(), generate_post_quantum()
    sealed = seal_bytes(b"evidence", [other.recipient, mine.recipient, tagpq_identity().recipient])
    assert open_bytes(sealed, [mine]) == open_bytes(sealed, [other]) == b"evidence"
    for stranger in (generate_post_quantum(), generate()):
        with pytest.raises(IdentityError):
            open_bytes(sealed, [stranger])
    tagged = seal_bytes(b"evidence", [tagpq_identity().recipient])
    with pytest.raises(IdentityError):
        open_bytes(tagged, [tagpq_identity()])


def test_a_malformed_stanza_is_damage() -> None:
    identity, holder = generate_post_quantum(), tagpq_identity()
    good = identity.recipient.wrap(FILE_KEY)
    (enc,) = good.args
    low_order = rawbase64.encode(rawbase64.decode(enc.encode())[:1088] + bytes(32)).decode()
    for bad in [
        Stanza(good.type, (), good.body),
        Stanza(good.type, (enc, enc), good.body),
        Stanza(good.type, (enc[:-3],), good.body),
        Stanza(good.type, (enc,), good.body[1:]),
        Stanza(good.type, (low_order,), good.body),
    ]:
        with pytest.raises(DamagedError, match="mlkem768x25519 stanza"):
            identity.unwrap([bad])
    tagged = holder.recipient.wrap(FILE_KEY)
    share = rawbase64.decode(tagged.args[1].encode())
    off = share[:1088] + b"\x04" + bytes(64)
    for bad in [
        Stanza(tagged.type, tagged.args[:1], tagged.body),
        Stanza(tagged.type, (tagged.args[0], tagged.args[1][:-4]), tagged.body),
        Stanza(tagged.type, tagged.args, bytes(32)),
        p256tag.tag_stanza(tagged.type, holder.recipient.tag(off), off, tagged.body),
    ]:
        with pytest.raises(DamagedError, match="mlkem768p256tag stanza"):
            holder.unwrap([bad])


def test_stock_age_leaves_alone_what_it_does_not_know(tmp_path: Path) -> None:
    """age 1.1.1 finds none for it, and says so; it does not stumble."""
    path = tmp_path / "case.key"
    path.write_text(render_identity_file(generate(), datetime.now(UTC)))
    sealed = seal_bytes(b"evidence", [generate_post_quantum().recipient, tagpq_identity().recipient])
    done = subprocess.run(["age", "-d", "-i", path], input=sealed, capture_output=True)
    assert done.returncode == 1
    assert b"no identity matched any of the recipients" in done.stderr


def test_keys_are_made_and_used_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Script())
    key, public = tmp_path / "pq.key", tmp_path / "pq.key.pub"
    code, result, _ = impound("keygen", "--post-quantum", "-o", key)
    assert (code, result["recipients_file"], result["identity"]) == (0, str(public), str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    (identity,) = parse_identity_file(key.read_text())
    assert isinstance(identity, PostQuantumIdentity)
    assert public.read_text() == f"{identity.recipient.text}\n"
    assert identity.secret_text() not in repr(identity)
    before = key.read_bytes()
    assert impound("keygen", "--post-quantum", "-o", key)[0] == 2
    assert key.read_bytes() == before
    code, result, error = impound("acquire", "--case", "C", "--to", tmp_path / "ev", "-R", public)
    assert code == 0, error
    code, result, error = impound("verify", tmp_path / "ev", "-i", key)
    assert code == 0, error
    mixed = impound("acquire", "--case", "C", "--to", tmp_path / "no", "-R", public, "-r", generate().recipient.text)
    assert mixed[0] == 2
    assert "cannot be mixed" in mixed[2]


def test_both_halves_can_be_in_kms(monkeypatch: pytest.MonkeyPatch) -> None:
    with kms_double() as double:
        for name, value in environment(double.url).items():
            monkeypatch.setenv(name, value)
        curve, pq = double.add(), double.add_ml_kem()
        service = Kms(REGION)
        public = service.public_half(pq).key + p256tag.dump_point(p256tag.load_point(service.public_half(curve).key))
        identity = KmsIdentity(P256TagPQRecipient(public), [KeyArn(curve), KeyArn(pq)])
        sealed = seal_bytes(b"evidence", [identity.recipient])
        for _ in range(2):
            assert open_bytes(sealed, parse_identity_file(identity.text)) == b"evidence"
            assert open_bytes(sealed, [identity]) == b"evidence"
        assert (double.count("Decapsulate"), double.count("DeriveSharedSecret")) == (3, 3)
        with pytest.raises(IdentityError):
            open_bytes(seal_bytes(b"", [tag_identity().recipient]), [identity])


def test_where_there_is_no_ml_kem_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = generate_post_quantum(), tagpq_identity().recipient.text
    secret = texts[0].secret_text()
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric.mlkem", None)
    for attempt in (
        generate_post_quantum,
        lambda: parse_recipient(texts[0].recipient.text),
        lambda: parse_recipient(texts[1]),
        lambda: parse_identity_file(secret),
    ):
        with pytest.raises(UsageError, match="ML-KEM, which the library `cryptography`"):
            attempt()
    sealed = seal_bytes(b"evidence", [generate().recipient])  # the classic ones do not need it
    assert sealed
