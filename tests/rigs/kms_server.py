"""A small fake of AWS KMS on loopback: real P-256 and ML-KEM-768 keys, JSON 1.1, signatures checked.

    with KmsServer() as kms:
        key = kms.create_key("KEY_AGREEMENT")           # or SIGN_VERIFY, ENCAPSULATE_DECAPSULATE; key.arn
        client = kms.client()                           # boto3 as kms.admin
        z = client.derive_shared_secret(KeyId=key.arn, KeyAgreementAlgorithm="ECDH", PublicKey=spki)["SharedSecret"]
        kms.faults.refuse(1, status=400, code="ThrottlingException", where="DeriveSharedSecret")

https://docs.aws.amazon.com/kms/latest/APIReference/. DeriveSharedSecret answers the raw x coordinate, as AWS does.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import secrets
import ssl
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_faults import Asked, Faults
from tests.rigs.s3_http import BodyError, DroppedError, Request, Response, Server
from tests.rigs.s3_signature import Credential, Verifier
from tests.rigs.strict_iam import Asked as AskedOfPolicy
from tests.rigs.strict_iam import allowed, check

ACCOUNT = "111122223333"
REGION = "eu-central-1"
_MAX_MESSAGE = 4096
_SPECS = {
    "KEY_AGREEMENT": "ECC_NIST_P256",
    "SIGN_VERIFY": "ECC_NIST_P256",
    "ENCAPSULATE_DECAPSULATE": "ML_KEM_768",
}


@dataclass(slots=True, eq=False)
class Key:
    """One key. `state` is Enabled, Disabled or PendingDeletion; `policy` is the key's own policy."""

    arn: str
    usage: str
    private: Any = field(repr=False)
    state: str = "Enabled"
    policy: dict[str, Any] | None = None

    @property
    def key_id(self) -> str:
        return self.arn.rpartition("/")[2]

    def public_der(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        der: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return der


class KmsServer:
    """The server. `admin` may do everything; further credentials come with a policy."""

    def __init__(self, *, context: ssl.SSLContext | None = None, region: str = REGION) -> None:
        self.region, self._context = region, context
        self.clock_offset = 0.0
        self.faults = Faults()
        self.keys: dict[str, Key] = {}
        self.aliases: dict[str, str] = {}
        self.log: list[Asked] = []
        self.verifier = Verifier(lambda: time.time() + self.clock_offset, region)
        self.admin = self.add_user("admin")
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            self.server = closing.enter_context(Server(self._answer, context=self._context))
            closing.callback(self.faults.stop)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.server.port}"

    # -- what is on it ------------------------------------------------------------------------------------------------

    def create_key(self, usage: str, *, alias: str = "", policy: dict[str, Any] | None = None) -> Key:
        """A new key for one usage. Raises `UnsupportedAlgorithm` where ML-KEM is not to be had."""
        if policy is not None:
            check(policy, of_resource=True)
        private: Any
        if usage == "ENCAPSULATE_DECAPSULATE":
            from cryptography.hazmat.primitives.asymmetric import mlkem

            private = mlkem.MLKEM768PrivateKey.generate()
        elif usage in _SPECS:
            private = ec.generate_private_key(ec.SECP256R1())
        else:
            raise ValueError(usage)
        key = Key(f"arn:aws:kms:{self.region}:{ACCOUNT}:key/{uuid.uuid4()}", usage, private, policy=policy)
        self.keys[key.key_id] = key
        if alias:
            self.aliases[f"alias/{alias}"] = key.key_id
        return key

    def add_user(self, name: str, policy: dict[str, Any] | None = None) -> Credential:
        """Credentials; without `policy` they may do everything."""
        if policy is not None:
            check(policy)
        arn = f"arn:aws:iam::{ACCOUNT}:user/{name}"
        made = Credential(f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30), arn, ACCOUNT, policy=policy)
        self.verifier.credentials[made.access_key] = made
        return made

    def client(self, credential: Credential | None = None, **config: Any) -> Any:
        """A boto3 client that retries nothing."""
        import boto3
        from botocore.config import Config

        who = credential or self.admin
        session = boto3.Session(who.access_key, who.secret_key, who.token or None, self.region)
        settings = {"retries": {"total_max_attempts": 1}, **config}
        made = session.client("kms", endpoint_url=self.endpoint_url, config=Config(**settings))
        self._closing.callback(made.close)
        return made

    def requests(self, operation: str = "") -> list[Asked]:
        return [entry for entry in list(self.log) if operation in {"", entry.operation}]

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        operation = request.headers.get("x-amz-target", "").removeprefix("TrentService.")
        asked = Asked(
            operation, request.method, request.path, "", "", {}, request.headers, request.address, request.peer,
            request.secure,
        )  # fmt: skip
        self.log.append(asked)
        try:
            met = self.faults.meet(asked, request)
            try:
                refused = self.faults.refusal(met, request)
                if refused and refused.refusal:
                    raise refused.refusal
                document = self._do(request, operation, asked)
                response = Response(200, _TYPE, json.dumps(document).encode())
            except S3Error as error:
                asked.code = error.code
                body = json.dumps({"__type": error.code, "message": error.message}).encode()
                response = Response(error.status, _TYPE | {"x-amzn-ErrorType": error.code}, body)
            self.faults.before_answer(met, response)
        except (DroppedError, OSError):
            asked.status = -1
            raise
        asked.status, asked.received, asked.ended = response.status, request.body.received, time.monotonic()
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.verifier.now()))
        response.headers = {"Date": date, "x-amzn-RequestId": str(uuid.uuid4()), **response.headers}
        return response

    def _do(self, request: Request, operation: str, asked: Asked) -> dict[str, Any]:
        try:
            body = request.body.read(1 << 16)
        except BodyError as error:
            raise _refusal("ValidationException", str(error)) from None
        if request.method != "POST" or request.headers.get("content-type") != "application/x-amz-json-1.1":
            raise _refusal("UnknownOperationException", "JSON 1.1 over POST is expected")
        try:
            signed = self.verifier.verify(request, ("kms",), body)
        except S3Error as error:
            raise _refusal(_CODES.get(error.code, "IncompleteSignatureException"), error.message) from None
        if signed.credential is None:
            raise _refusal("MissingAuthenticationTokenException", "Request is missing Authentication Token")
        asked.principal = signed.credential.arn
        try:
            fields = json.loads(body)
        except ValueError:
            raise _refusal("SerializationException", "the body is not JSON") from None
        handlers = {
            "DescribeKey": self._describe,
            "GetPublicKey": self._public,
            "DeriveSharedSecret": self._derive,
            "Sign": self._sign,
            "Decapsulate": self._decapsulate,
        }
        if operation not in handlers or not isinstance(fields, dict):
            raise _refusal("UnknownOperationException", f"{operation} is not known here")
        key = self._key(str(fields.get("KeyId", "")))
        self._authorize(signed.credential, f"kms:{operation}", key)
        if operation != "DescribeKey" and key.state != "Enabled":
            code = "DisabledException" if key.state == "Disabled" else "KMSInvalidStateException"
            raise _refusal(code, f"{key.arn} is {key.state}.")
        return handlers[operation](key, fields)

    def _key(self, name: str) -> Key:
        name = name.rpartition(":")[2] if name.startswith("arn:") else name
        found = self.keys.get(self.aliases.get(name, name.removeprefix("key/")))
        if found is None:
            raise _refusal("NotFoundException", f"Key '{name}' does not exist")
        return found

    def _authorize(self, who: Credential, action: str, key: Key) -> None:
        asked = AskedOfPolicy(action, key.arn, who.arn, who.account, {"aws:PrincipalArn": who.arn})
        may = allowed(asked, identity=who.policy, session=who.session_policy, resource=key.policy, owner=ACCOUNT)
        if not may:
            message = f"User: {who.arn} is not authorized to perform: {action} on resource: {key.arn}"
            raise _refusal("AccessDeniedException", message)

    @staticmethod
    def _describe(key: Key, _: dict[str, Any]) -> dict[str, Any]:
        about = {
            "AWSAccountId": ACCOUNT,
            "KeyId": key.key_id,
            "Arn": key.arn,
            "Enabled": key.state == "Enabled",
            "KeyUsage": key.usage,
            "KeyState": key.state,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "KeySpec": _SPECS[key.usage],
            "MultiRegion": False,
        }
        return {"KeyMetadata": about | _algorithms(key)}

    @staticmethod
    def _public(key: Key, _: dict[str, Any]) -> dict[str, Any]:
        about = {"KeyId": key.arn, "KeyUsage": key.usage, "KeySpec": _SPECS[key.usage]}
        return about | _algorithms(key) | {"PublicKey": base64.b64encode(key.public_der()).decode()}

    @staticmethod
    def _derive(key: Key, fields: dict[str, Any]) -> dict[str, Any]:
        _needs(key, "KEY_AGREEMENT", "DeriveSharedSecret")
        _only(fields, "KeyAgreementAlgorithm", "ECDH")
        try:
            # Refuses points that are not on the curve.
            public = serialization.load_der_public_key(_bytes(fields, "PublicKey", 8192))
        except (ValueError, UnsupportedAlgorithm):
            raise _refusal("ValidationException", "The public key is not valid.") from None
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise _refusal("ValidationException", "The public key does not have the curve of the KMS key.")
        secret = key.private.exchange(ec.ECDH(), public)
        return {
            "KeyId": key.arn,
            "SharedSecret": base64.b64encode(secret).decode(),
            "KeyAgreementAlgorithm": "ECDH",
            "KeyOrigin": "AWS_KMS",
        }

    @staticmethod
    def _sign(key: Key, fields: dict[str, Any]) -> dict[str, Any]:
        _needs(key, "SIGN_VERIFY", "Sign")
        _only(fields, "SigningAlgorithm", "ECDSA_SHA_256")
        kind, message = fields.get("MessageType", "RAW"), _bytes(fields, "Message", _MAX_MESSAGE)
        if kind == "DIGEST":
            if len(message) != 32:
                raise _refusal("ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256.")
            signature = key.private.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))
        elif kind == "RAW":
            signature = key.private.sign(message, ec.ECDSA(hashes.SHA256()))
        else:
            raise _refusal("ValidationException", f"MessageType {kind} is not known here")
        encoded = base64.b64encode(signature).decode()
        return {"KeyId": key.arn, "Signature": encoded, "SigningAlgorithm": "ECDSA_SHA_256"}

    @staticmethod
    def _decapsulate(key: Key, fields: dict[str, Any]) -> dict[str, Any]:
        _needs(key, "ENCAPSULATE_DECAPSULATE", "Decapsulate")
        _only(fields, "EncapsulationAlgorithm", "ML_KEM")
        try:
            secret = key.private.decapsulate(_bytes(fields, "SharedSecretCiphertextBlob", 2048))
        except ValueError:
            raise _refusal("InvalidCiphertextException", "The ciphertext has the wrong length.") from None
        encoded = base64.b64encode(secret).decode()
        return {"KeyId": key.arn, "SharedSecret": encoded, "EncapsulationAlgorithm": "ML_KEM"}


_CODES = {
    "AccessDenied": "InvalidSignatureException",
    "ExpiredToken": "ExpiredTokenException",
    "InvalidAccessKeyId": "UnrecognizedClientException",
    "InvalidToken": "UnrecognizedClientException",
    "RequestTimeTooSkewed": "InvalidSignatureException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
}
"""What S3 says of a signature -> what KMS says. CommonErrors.html of both references."""
_TYPE = {"Content-Type": "application/x-amz-json-1.1"}


def _algorithms(key: Key) -> dict[str, list[str]]:
    return {
        "KEY_AGREEMENT": {"KeyAgreementAlgorithms": ["ECDH"]},
        "SIGN_VERIFY": {"SigningAlgorithms": ["ECDSA_SHA_256"]},
        "ENCAPSULATE_DECAPSULATE": {"EncapsulationAlgorithms": ["ML_KEM"]},
    }.get(key.usage, {})


def _needs(key: Key, usage: str, operation: str) -> None:
    if key.usage != usage:
        message = f"{key.arn} key usage is {key.usage} which is not valid for {operation}."
        raise _refusal("InvalidKeyUsageException", message)


def _only(fields: dict[str, Any], name: str, wanted: str) -> None:
    if fields.get(name) != wanted:
        raise _refusal("ValidationException", f"{name} must be {wanted}")


def _bytes(fields: dict[str, Any], name: str, longest: int) -> bytes:
    try:
        found = base64.b64decode(fields[name], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise _refusal("ValidationException", f"{name} must be base64") from None
    if not 1 <= len(found) <= longest:
        raise _refusal("ValidationException", f"{name} must have 1 to {longest} bytes")
    return found


def _refusal(code: str, message: str) -> S3Error:
    return S3Error(code, message, status=400)
