"""A KMS on loopback that boto3 is sent to with `AWS_ENDPOINT_URL_KMS`: real keys, real answers, and faults to order."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "eu-central-1"
ACCOUNT = "111122223333"


def arn(number: int, region: str = REGION) -> str:
    return f"arn:aws:kms:{region}:{ACCOUNT}:key/00000000-0000-0000-0000-{number:012d}"


class RefusedError(Exception):
    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(code)
        self.code, self.message = code, message


class KmsDouble:
    """Keys by ARN, every call that came, and what to answer instead."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey | MLKEM768PrivateKey] = {}
        self.usages: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.refuse: dict[str, RefusedError] = {}
        self.change: dict[str, Any] = {}
        """Fields of the answer that are something else."""
        self.delay = 0.0
        self.raw: bytes | None = None
        self.url = ""

    def add(self, curve: ec.EllipticCurve | None = None, usage: str = "KEY_AGREEMENT") -> str:
        name = arn(len(self.keys) + 1)
        self.keys[name] = ec.generate_private_key(curve or ec.SECP256R1())
        self.usages[name] = usage
        return name

    def add_ml_kem(self) -> str:
        name = arn(len(self.keys) + 1)
        self.keys[name] = MLKEM768PrivateKey.generate()
        self.usages[name] = "ENCAPSULATE_DECAPSULATE"
        return name

    def count(self, action: str) -> int:
        return sum(done == action for done, _ in self.calls)

    def answer(self, action: str, asked: dict[str, Any]) -> dict[str, Any]:
        name = self.aliases.get(asked["KeyId"], asked["KeyId"])
        self.calls.append((action, name))
        if action in self.refuse:
            raise self.refuse[action]
        if name not in self.keys:
            raise RefusedError("NotFoundException", f"Key '{name}' does not exist")
        key, usage = self.keys[name], self.usages[name]
        match action, key:
            case "GetPublicKey", _:
                spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
                spec = "ML_KEM_768" if isinstance(key, MLKEM768PrivateKey) else _spec(key.curve)
                found = {"KeySpec": spec, "KeyUsage": usage, "PublicKey": base64.b64encode(spki).decode()}
            case "DeriveSharedSecret", ec.EllipticCurvePrivateKey() if usage == "KEY_AGREEMENT":
                assert asked["KeyAgreementAlgorithm"] == "ECDH"
                public = load_der_public_key(base64.b64decode(asked["PublicKey"]))
                assert isinstance(public, ec.EllipticCurvePublicKey)
                found = {"SharedSecret": base64.b64encode(key.exchange(ec.ECDH(), public)).decode()}
            case "Decapsulate", MLKEM768PrivateKey():
                assert asked["EncapsulationAlgorithm"] == "ML_KEM"
                secret = key.decapsulate(base64.b64decode(asked["SharedSecretCiphertextBlob"]))
                found = {"SharedSecret": base64.b64encode(secret).decode()}
            case _:
                raise RefusedError("InvalidKeyUsageException")
        return {"KeyId": name, **found, **self.change}


def _spec(curve: ec.EllipticCurve) -> str:
    return {"secp256r1": "ECC_NIST_P256", "secp384r1": "ECC_NIST_P384", "secp256k1": "ECC_SECG_P256K1"}[curve.name]


@contextmanager
def kms_double() -> Iterator[KmsDouble]:
    double = KmsDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(double.delay)
            try:
                action = self.headers["X-Amz-Target"].removeprefix("TrentService.")
                status, found = 200, json.dumps(double.answer(action, asked)).encode()
            except RefusedError as error:
                status, found = 400, json.dumps({"__type": error.code, "message": error.message}).encode()
            if double.raw is not None:
                found = double.raw
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    double.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str) -> dict[str, str]:
    """What an analyst's machine has, and no configuration of this one."""
    return {
        "AWS_ENDPOINT_URL_KMS": url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
