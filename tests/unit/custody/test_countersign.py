"""The countersignature: made over a run that is whole, refused over any other, and of no use to whoever forges it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.custody.countersign import COUNTERSIGNATURE, parse_countersignature, parse_signing_key
from agent.custody.signing import open_envelope, parse_signer, seal_envelope
from agent.errors import DamagedError, UsageError
from tests.support.runs import acquire, impound, keygen, only_run, play


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, object]]:
    play(monkeypatch)
    _, recipient = keygen(tmp_path)
    code, result, _ = acquire(tmp_path / "to", recipient)
    assert code == 0
    return only_run(tmp_path / "to"), result


def signing_key(path: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def test_a_run_is_countersigned_and_known_by_the_countersigner_alone(
    tmp_path: Path, run: tuple[Path, dict[str, object]]
) -> None:
    place, result = run
    key = signing_key(tmp_path / "ir.sign")
    code, finished, _ = impound(
        "finish", place, "--receipt-sha256", str(result["receipt_sha256"]), "--countersign-key", key
    )
    assert (code, finished["verdict"]) == (0, "intact")
    countersigner = str(finished["countersigner"])
    said, receipt = parse_countersignature((place / COUNTERSIGNATURE).read_bytes())
    assert (said.run, said.signer, receipt) == (result["run"], result["signer"], result["receipt_sha256"])
    assert impound("verify", place, "--signer", countersigner)[:1] == (0,)
    assert impound("verify", place, "--signer", countersigner)[1]["verdict"] == "intact"
    assert impound("verify", place)[1]["verdict"] == "intact, signer unknown"
    opened = impound("open", place, "-i", tmp_path / "case.key", "-o", tmp_path / "out", "--signer", countersigner)
    assert opened[0] == 0


def test_keygen_makes_a_key_that_countersigns(tmp_path: Path, run: tuple[Path, dict[str, object]]) -> None:
    place, result = run
    code, made, _ = impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    assert (code, (tmp_path / "ir.sign").stat().st_mode & 0o777) == (0, 0o600)
    done = impound("finish", place, "--signer", str(result["signer"]), "--countersign-key", tmp_path / "ir.sign")
    assert (done[0], done[1]["countersigner"]) == (0, made["signer"])


def test_a_key_that_openssl_made_is_as_good(tmp_path: Path, run: tuple[Path, dict[str, object]]) -> None:
    place, result = run
    key = tmp_path / "openssl.sign"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, timeout=30)
    code, _, _ = impound("finish", place, "--signer", str(result["signer"]), "--countersign-key", key)
    assert code == 0


def test_nothing_is_countersigned_that_is_known_from_the_store_alone(
    tmp_path: Path, run: tuple[Path, dict[str, object]]
) -> None:
    place, _ = run
    code, _, _ = impound("finish", place, "--countersign-key", signing_key(tmp_path / "ir.sign"))
    assert code == 2
    assert not (place / COUNTERSIGNATURE).exists()


def test_a_damaged_run_is_not_countersigned(tmp_path: Path, run: tuple[Path, dict[str, object]]) -> None:
    place, result = run
    victim = next(place.rglob("*.tar.zst.age"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    code, told, _ = impound(
        "finish", place, "--signer", str(result["signer"]), "--countersign-key", signing_key(tmp_path / "ir.sign")
    )
    assert code == 4
    assert told["countersigner"] == ""
    assert not (place / COUNTERSIGNATURE).exists()


def test_a_countersignature_of_another_run_is_damage(
    tmp_path: Path, run: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, result = run
    key = signing_key(tmp_path / "ir.sign")
    assert impound("finish", place, "--signer", str(result["signer"]), "--countersign-key", key)[0] == 0
    play(monkeypatch)
    (tmp_path / "other").mkdir()
    _, recipient = keygen(tmp_path / "other")
    acquire(tmp_path / "second", recipient)
    other = only_run(tmp_path / "second")
    (other / COUNTERSIGNATURE).write_bytes((place / COUNTERSIGNATURE).read_bytes())
    code, told, _ = impound("verify", other)
    assert code == 4
    assert told["findings"] == [{"name": COUNTERSIGNATURE, "problem": "is not of this receipt"}]


def test_every_byte_of_a_countersignature_counts(tmp_path: Path, run: tuple[Path, dict[str, object]]) -> None:
    place, result = run
    key = signing_key(tmp_path / "ir.sign")
    impound("finish", place, "--signer", str(result["signer"]), "--countersign-key", key)
    data = (place / COUNTERSIGNATURE).read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(DamagedError):
            parse_countersignature(bytes(changed))


def test_a_p256_key_signs_as_kms_does() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = "p256:" + key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()
    assert parse_signer(signer) == signer
    data = seal_envelope("text/x", {"a": 1}, signer, lambda message: key.sign(message, ec.ECDSA(SHA256())))
    assert open_envelope(data, "text/x", "it") == (b'{"a":1}', signer)
    other = (
        "p256:"
        + ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        .hex()
    )
    with pytest.raises(DamagedError):
        open_envelope(data.replace(signer.encode(), other.encode()), "text/x", "it")
    nowhere = "p256:02" + "ff" * 32
    with pytest.raises(DamagedError):
        open_envelope(data.replace(signer.encode(), nowhere.encode()), "text/x", "it")


def test_what_is_no_signing_key_is_refused_without_being_shown() -> None:
    for text in (b"", b"AGE-SECRET-KEY-1QQQQ", b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(UsageError) as caught:
            parse_signing_key(text)
        assert "QQQQ" not in str(caught.value)
        assert "c2Vj" not in str(caught.value)
