"""AWS KMS as the holder of a private key: the three calls that impound makes, with deadlines and plain errors.

    GetPublicKey        once, when a recipient is made
    DeriveSharedSecret  key of ECC_NIST_P256 for KEY_AGREEMENT: from a point to the raw ECDH result
    Decapsulate         key of ML_KEM_768 for ENCAPSULATE_DECAPSULATE: from a ciphertext to the shared secret

Only whoever opens evidence calls these, never the machine that is examined: sealing needs the public key alone.
Credentials, proxies and `AWS_ENDPOINT_URL_KMS` come from where any AWS tool takes them; the region is that of the ARN.
boto3 is imported with the first call.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from agent import aws
from agent.errors import IdentityError, ImpoundError, UsageError
from agent.sealing import mlkem
from agent.sealing.p256tag import dump_point, load_point

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 15
ATTEMPTS = 3
CALL_S = 1.0 * ATTEMPTS * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S)
"""A call as a whole, with its attempts and what fetches its credentials: the timeouts hold for single reads alone."""

DH_SIZE = 32
MAX_SPKI = 8192

_ARN = re.compile(
    r"arn:(aws[a-z-]{0,16}):kms:([a-z]{2}[a-z0-9-]{3,30}):([0-9]{12}):(key|alias)/([A-Za-z0-9/_-]{1,256})\Z"
)
_REGION = re.compile(r"[a-z]{2}[a-z0-9-]{3,30}\Z")
_KEY_ID = re.compile(r"(alias/)?[A-Za-z0-9/_-]{1,256}\Z")

# id-alg-ml-kem-768 (RFC 9935): SEQUENCE { SEQUENCE { OID 2.16.840.1.101.3.4.4.2 }, BIT STRING of 1,184 bytes }
_ML_KEM_768_SPKI = bytes.fromhex("308204b2300b0609608648016503040402038204a100")

_METHODS = {
    "GetPublicKey": "get_public_key",
    "DeriveSharedSecret": "derive_shared_secret",
    "Decapsulate": "decapsulate",
}
_STATES = {
    "DisabledException": "the key is disabled",
    "KMSInvalidStateException": "the key's state does not allow it, for example because its deletion is scheduled",
    "KeyUnavailableException": "the key is not available now: try again",
    "InvalidKeyUsageException": "the key is not made for it: ECC_NIST_P256 for KEY_AGREEMENT, or ML_KEM_768",
    "KMSInternalException": "KMS has an internal fault: try again",
    "DependencyTimeoutException": "KMS waits for something behind it: try again",
    "ThrottlingException": "KMS is asked too often: try again",
    "LimitExceededException": "a quota of KMS is reached",
    "UnsupportedOperationException": "KMS does not do that with this key",
}
_CREDENTIALS = frozenset(
    "ExpiredTokenException ExpiredToken UnrecognizedClientException InvalidClientTokenId InvalidSignatureException "
    "SignatureDoesNotMatch IncompleteSignature MissingAuthenticationToken RequestExpired".split()
)


class KeyArn(msgspec.Struct, frozen=True):
    """The name of a key. Raises `ValueError` for what is no KMS ARN."""

    text: str

    def __post_init__(self) -> None:
        if not _ARN.match(self.text):
            raise ValueError("it is not an ARN of a KMS key: arn:aws:kms:REGION:ACCOUNT:key/ID")

    @property
    def region(self) -> str:
        return self.text.split(":")[3]

    @property
    def account(self) -> str:
        return self.text.split(":")[4]

    @property
    def is_alias(self) -> bool:
        return self.text.split(":")[5].startswith("alias/")


class PublicHalf(msgspec.Struct, frozen=True):
    """What KMS says of a key."""

    arn: KeyArn
    spec: str
    usage: str
    key: bytes
    """A compressed point of P-256 (33 bytes), or an ML-KEM-768 key (1,184)."""


class Kms:
    """KMS in one region. Threads take turns: one client, one call at a time."""

    def __init__(self, region: str) -> None:
        if not _REGION.match(region):
            raise UsageError("a region is written like eu-central-1")
        self.region = region
        self._client: Any = None
        self._turn = threading.Lock()

    def derive_shared_secret(self, arn: KeyArn, point: bytes) -> bytes:
        """The raw ECDH result, 32 bytes. `point` is on the curve, 65 bytes. Raises `IdentityError`."""
        spki = load_point(point).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        asked = {"KeyId": arn.text, "KeyAgreementAlgorithm": "ECDH", "PublicKey": spki}
        return _secret(self._call(IdentityError, "DeriveSharedSecret", asked), arn, DH_SIZE)

    def decapsulate(self, arn: KeyArn, ciphertext: bytes) -> bytes:
        """The ML-KEM shared secret, 32 bytes; for another key's ciphertext some other. Raises `IdentityError`."""
        asked = {"KeyId": arn.text, "EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": ciphertext}
        return _secret(self._call(IdentityError, "Decapsulate", asked), arn, mlkem.SECRET_SIZE)

    def public_half(self, key_id: str) -> PublicHalf:
        """The public key that KMS has under an ARN, an id or an alias.

        Raises `UsageError` for a key of another kind, `ImpoundError` where KMS does not answer as it should.
        """
        answer = self._call(ImpoundError, "GetPublicKey", {"KeyId": key_id})
        try:
            arn = KeyArn(str(answer["KeyId"]))
            spec, usage, spki = str(answer["KeySpec"]), str(answer["KeyUsage"]), bytes(answer["PublicKey"])
        except (KeyError, TypeError, ValueError):
            raise ImpoundError(f"KMS answered GetPublicKey for {key_id} with no public key") from None
        if (spec, usage) == ("ECC_NIST_P256", "KEY_AGREEMENT"):
            return PublicHalf(arn, spec, usage, _p256(spki))
        if (spec, usage) == ("ML_KEM_768", "ENCAPSULATE_DECAPSULATE"):
            return PublicHalf(arn, spec, usage, _ml_kem(spki))
        raise UsageError(
            f"the key {arn.text} is {_short(spec)} for {_short(usage)}; evidence can be sealed to ECC_NIST_P256 for "
            "KEY_AGREEMENT (aws kms create-key --key-spec ECC_NIST_P256 --key-usage KEY_AGREEMENT)"
        )

    def _call(self, kind: type[ImpoundError], action: str, asked: Mapping[str, object]) -> dict[str, Any]:
        """One call, and what can go wrong with it in words."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise UsageError("keys in AWS KMS need boto3, which is not installed here") from None
        with self._turn:
            try:
                self._client = self._client or _client(self.region)
            except (BotoCoreError, ValueError, OSError) as error:
                raise kind(_failure(error, action, self.region)) from None
            call = getattr(self._client, _METHODS[action], None)
            if call is None:
                raise UsageError(f"the boto3 installed here does not know kms:{action}: install a later one")
            try:
                with aws.within(CALL_S):
                    answer = call(**asked)
            except ClientError as error:
                raise kind(_refusal(error.response, action, str(asked["KeyId"]), self.region)) from None
            except Exception as error:  # noqa: BLE001 - botocore raises anything on an answer that is not KMS's
                raise kind(_failure(error, action, self.region)) from None
        if not isinstance(answer, dict):
            raise kind(f"KMS answered {action} with something unexpected")
        return answer


def _client(region: str) -> Any:
    from botocore.config import Config

    return aws.session().client(
        "kms",
        region_name=region,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        ),
    )


def _secret(answer: dict[str, Any], arn: KeyArn, size: int) -> bytes:
    secret = answer.get("SharedSecret")
    if not isinstance(secret, bytes) or len(secret) != size:
        raise IdentityError(f"KMS gave no shared secret of {size} bytes for {arn.text}")
    return secret


def _p256(spki: bytes) -> bytes:
    try:
        key = load_der_public_key(spki) if len(spki) <= MAX_SPKI else None
    except Exception:  # noqa: BLE001 - several kinds, one meaning
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ImpoundError("KMS gave something else than a public key of P-256")
    return dump_point(key, compressed=True)


def _ml_kem(spki: bytes) -> bytes:
    key = spki.removeprefix(_ML_KEM_768_SPKI)
    if len(spki) != len(_ML_KEM_768_SPKI) + mlkem.PUBLIC_SIZE or len(key) != mlkem.PUBLIC_SIZE:
        raise ImpoundError("KMS gave something else than a public key of ML-KEM-768")
    return key


def _refusal(response: dict[str, Any], action: str, key: str, region: str) -> str:
    """What AWS says no to, and what would mend it."""
    details = response.get("Error", {})
    code, said = str(details.get("Code", "")), _short(str(details.get("Message", "")))
    if code in {"AccessDeniedException", "AccessDenied"}:
        return (
            f"AWS KMS refused: kms:{action} on {key} is not allowed to these credentials; the key's policy or IAM must "
            f"allow it. AWS said: {said or 'nothing more'}"
        )
    if code in _CREDENTIALS:
        return f"AWS does not accept these credentials ({_short(code)}): renew them, for example with `aws sso login`"
    if code in {"NotFoundException", "InvalidArnException"}:
        return f"AWS KMS in {region} does not have the key {key}: another region, another account, or it was deleted"
    return f"AWS KMS refused kms:{action} on {key}: {_STATES.get(code) or f'{_short(code)}: {said}'}"


def _failure(error: Exception, action: str, region: str) -> str:
    """What kept the question from being asked or answered."""
    from botocore import exceptions as known

    if isinstance(error, (known.NoCredentialsError, known.PartialCredentialsError, known.CredentialRetrievalError)):
        return "there are no AWS credentials: give them as for any AWS tool (AWS_PROFILE, a role, …)"
    if isinstance(error, (known.TokenRetrievalError, known.SSOError)):
        return "the AWS login has expired: renew it, for example with `aws sso login`"
    if isinstance(error, (known.HTTPClientError, known.ConnectionError, OSError)) or aws.is_overlong(error):
        return f"AWS KMS in {region} does not answer kms:{action} ({_short(str(error))})"
    if not isinstance(error, (known.BotoCoreError, ValueError)):
        return f"what answers kms:{action} for {region} is not AWS KMS ({type(error).__name__})"
    return f"AWS cannot be used as it is configured: {_short(str(error))}"


def _short(text: str, limit: int = 300) -> str:
    """One line of what somebody else says, bounded."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def check_key_id(text: str) -> str:
    """What may be asked of `Kms.public_half`: an ARN, an id or an alias. Raises `UsageError`."""
    if not _ARN.match(text) and not _KEY_ID.match(text):
        raise UsageError("a KMS key is named by its ARN (arn:aws:kms:REGION:ACCOUNT:key/ID), its id or alias/NAME")
    return text
