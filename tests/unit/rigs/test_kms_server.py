"""The fake KMS against boto3: what it gives, and what it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

if TYPE_CHECKING:
    from tests.rigs.kms_server import KmsServer

pytest_plugins = ["tests.rigs.s3_fixtures"]


def spki(public: Any) -> bytes:
    der: bytes = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der


def code_of(act: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        act()
    return str(caught.value.response["Error"]["Code"])


def derive(client: Any, key: str, public: bytes) -> bytes:
    answer = client.derive_shared_secret(KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=public)
    return bytes(answer["SharedSecret"])


def test_a_shared_secret_is_the_raw_x_coordinate(kms_server: KmsServer) -> None:
    key = kms_server.create_key("KEY_AGREEMENT", alias="case")
    client = kms_server.client()
    answer = client.get_public_key(KeyId=key.arn)
    assert (answer["KeySpec"], answer["KeyUsage"]) == ("ECC_NIST_P256", "KEY_AGREEMENT")
    public = serialization.load_der_public_key(answer["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    ours = ec.generate_private_key(ec.SECP256R1())
    expected = ours.exchange(ec.ECDH(), public)
    for name in (key.arn, key.key_id, "alias/case"):
        assert derive(client, name, spki(ours.public_key())) == expected
    assert client.describe_key(KeyId=key.key_id)["KeyMetadata"]["Arn"] == key.arn


def test_wrong_keys_and_points_are_refused(kms_server: KmsServer) -> None:
    agree, sign = kms_server.create_key("KEY_AGREEMENT"), kms_server.create_key("SIGN_VERIFY")
    client = kms_server.client()
    good = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert code_of(lambda: derive(client, sign.arn, good)) == "InvalidKeyUsageException"
    assert code_of(lambda: derive(client, agree.arn, good[:-1] + bytes([good[-1] ^ 1]))) == "ValidationException"
    other = spki(ec.generate_private_key(ec.SECP384R1()).public_key())
    assert code_of(lambda: derive(client, agree.arn, other)) == "ValidationException"
    assert code_of(lambda: derive(client, agree.arn[:-1], good)) == "NotFoundException"
    agree.state = "Disabled"
    assert code_of(lambda: derive(client, agree.arn, good)) == "DisabledException"


def test_signatures_verify(kms_server: KmsServer) -> None:
    key = kms_server.create_key("SIGN_VERIFY")
    client = kms_server.client()
    public = key.private.public_key()
    about = {"KeyId": key.arn, "SigningAlgorithm": "ECDSA_SHA_256"}
    digest = hashlib.sha256(b"message").digest()
    signature = client.sign(**about, Message=digest, MessageType="DIGEST")["Signature"]
    public.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    signature = client.sign(**about, Message=bytes(4096))["Signature"]
    public.verify(signature, bytes(4096), ec.ECDSA(hashes.SHA256()))
    assert code_of(lambda: client.sign(**about, Message=b"short", MessageType="DIGEST")) == "ValidationException"
    longer = {**about, "MessageType": "RAW"}
    with pytest.raises(Exception, match=r"4096|ValidationException"):
        client.sign(**longer, Message=bytes(4097))


def test_ml_kem_is_decapsulated(kms_server: KmsServer) -> None:
    try:
        key = kms_server.create_key("ENCAPSULATE_DECAPSULATE")
    except (ImportError, UnsupportedAlgorithm):
        pytest.skip("needs ML-KEM in cryptography")
    secret, ciphertext = key.private.public_key().encapsulate()
    client = kms_server.client()
    about = {"KeyId": key.arn, "EncapsulationAlgorithm": "ML_KEM"}
    assert client.decapsulate(**about, SharedSecretCiphertextBlob=ciphertext)["SharedSecret"] == secret
    wrong = client.decapsulate(**about, SharedSecretCiphertextBlob=bytes(1088))["SharedSecret"]
    assert len(wrong) == 32, "implicit rejection: a wrong ciphertext gives another secret, and no error"
    assert wrong != secret


def test_only_who_may_and_who_signed(kms_server: KmsServer) -> None:
    import dataclasses

    key, other = kms_server.create_key("KEY_AGREEMENT"), kms_server.create_key("KEY_AGREEMENT")
    one = {"Effect": "Allow", "Action": "kms:GetPublicKey", "Resource": key.arn}
    analyst = kms_server.client(kms_server.add_user("analyst", {"Version": "2012-10-17", "Statement": [one]}))
    analyst.get_public_key(KeyId=key.arn)
    assert code_of(lambda: analyst.get_public_key(KeyId=other.arn)) == "AccessDeniedException"
    public = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert code_of(lambda: derive(analyst, key.arn, public)) == "AccessDeniedException"
    forger = kms_server.client(dataclasses.replace(kms_server.admin, secret_key="x" * 40))
    assert code_of(lambda: forger.get_public_key(KeyId=key.arn)) == "InvalidSignatureException"


def test_faults(kms_server: KmsServer) -> None:
    key = kms_server.create_key("SIGN_VERIFY")
    kms_server.faults.refuse(1, status=400, code="ThrottlingException", where="GetPublicKey")
    client = kms_server.client()
    assert code_of(lambda: client.get_public_key(KeyId=key.arn)) == "ThrottlingException"
    client.get_public_key(KeyId=key.arn)
    assert [entry.status for entry in kms_server.requests("GetPublicKey")] == [400, 200]
