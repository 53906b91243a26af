"""The controller's last act on a run: compare what is stored with what was signed and told, and countersign."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agent.custody.attempt import TOOL, now
from agent.custody.countersign import (
    COUNTERSIGNATURE,
    Countersigned,
    countersign,
    parse_countersignature,
    parse_signing_key,
)
from agent.custody.records import RECEIPT
from agent.custody.stored import read_run
from agent.custody.verify import Verdict, verify
from agent.errors import DamagedError, ImpoundError, UsageError
from agent.stores.base import Part
from agent.stores.directory import DirectoryStore
from agent.stores.s3.control import composite_sha256, one_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from agent.custody.countersign import Countersigner
    from agent.custody.stored import StoredRun
    from agent.custody.verify import RunVerdict
    from agent.job import S3
    from agent.stores.base import Source
    from agent.stores.s3.control import Control

KMS_PREFIX = "arn:"
BUCKET, BYTES = "bucket", "bytes"
LOOKS = 16
"""Objects that are looked at in the bucket at once."""


class KmsCountersigner:
    """A KMS key (ECC_NIST_P256, SIGN_VERIFY) that signs with ECDSA_SHA_256."""

    def __init__(self, client: Any, arn: str) -> None:
        """Asks for the public half. Raises `UsageError` for a key that cannot sign so."""
        from botocore.exceptions import BotoCoreError, ClientError
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

        self._client, self._arn = client, arn
        try:
            answer = client.get_public_key(KeyId=arn)
            key = load_der_public_key(answer["PublicKey"])
        except (BotoCoreError, ClientError, ValueError) as error:
            raise UsageError(f"the countersigning key {arn} cannot be used: {error}") from error
        if (
            answer.get("KeyUsage") != "SIGN_VERIFY"
            or not isinstance(key, ec.EllipticCurvePublicKey)
            or not isinstance(key.curve, ec.SECP256R1)
        ):
            raise UsageError(f"the countersigning key {arn} is not of the kind ECC_NIST_P256 with usage SIGN_VERIFY")
        self.signer = "p256:" + key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()

    def sign(self, message: bytes) -> bytes:
        """Raises `ImpoundError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.sign(
                KeyId=self._arn,
                Message=hashlib.sha256(message).digest(),
                MessageType="DIGEST",
                SigningAlgorithm="ECDSA_SHA_256",
            )
        except (BotoCoreError, ClientError) as error:
            raise ImpoundError(f"KMS did not sign with {self._arn}: {error}") from error
        signature: bytes = answer["Signature"]
        return signature


def read_countersigner(text: str, *, region: str = "") -> Countersigner:
    """A key file, or the ARN of a KMS key. Raises `UsageError`."""
    if text.startswith(KMS_PREFIX):
        from agent.job import S3
        from agent.stores.s3.client import standard

        fields = text.split(":")
        if len(fields) != 6 or fields[2] != "kms":
            raise UsageError(f"{text[:200]!r} is not the ARN of a KMS key")
        return KmsCountersigner(standard(S3(region=region or fields[3]), "kms"), text)
    try:
        with open(text, "rb") as file:
            pem = file.read(1 << 16)
    except OSError as error:
        raise UsageError(f"the countersigning key {text!r} cannot be read: {error.strerror}") from error
    return parse_signing_key(pem)


def compared_by_bucket(control: Control, run: StoredRun) -> set[str]:
    """The objects whose SHA-256, as the bucket itself computed it while it took them, is the one that was signed.

    Only those that were put whole or in one part: of several parts the bucket tells a digest of digests, and that the
    signed parts are those of the signed whole is only the signer's word. Raises `StoreError`.
    """
    signed = {
        name: {(size, one_sha256(bytes.fromhex(sha256))), (size, composite_sha256([Part(size, bytes.fromhex(sha256))]))}
        for name, (size, sha256) in run.listed().items()
    }
    there = sorted(name for name in signed if name in run.names)
    with ThreadPoolExecutor(LOOKS) as looks:
        found = looks.map(control.checksum, there)
        return {name for name, checksum in zip(there, found, strict=True) if checksum in signed[name]}


def differs_from_noted(run: StoredRun, noted: Mapping[str, tuple[int, str]]) -> list[str]:
    """The objects that are signed otherwise than they were noted when they were stored: size, and S3's checksum."""
    signed = _signed_checksums(run)
    return sorted(name for name, one in noted.items() if name in signed and one not in signed[name])


def _signed_checksums(run: StoredRun) -> dict[str, set[tuple[int, str]]]:
    """What S3 would say of each object if it is the one that was signed: size, and SHA-256 whole or over its parts."""
    parts = run.parts()
    found = {}
    for name, (size, sha256) in run.listed().items():
        digest = bytes.fromhex(sha256)
        found[name] = {(size, one_sha256(digest)), (size, composite_sha256(parts.get(name) or [Part(size, digest)]))}
    return found


def check_bucket_run(
    control: Control,
    s3: S3,
    *,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    compare: str = BUCKET,
    key: Countersigner | None = None,
    told: Mapping[str, str] | None = None,
    noted: Mapping[str, tuple[int, str]] | None = None,
    findings: Sequence[str] = (),
    on_note: Callable[[str], object] = lambda _note: None,
) -> RunVerdict:
    """Verifies a run where it lies, and countersigns it with `key` where it is intact and nobody has done so.

    `noted`: what the controller noted of objects when they were stored; a run that is signed otherwise is refused.
    `compare`: BUCKET believes the SHA-256 that the bucket computed of objects of one part, and reads larger ones; BYTES
    reads everything again. `on_note` is told what could not be looked at. Raises `ImpoundError`.
    """
    from agent.stores.s3.source import S3Source

    stored = S3Source(control.place, s3)
    try:
        run = read_run(stored)
        others = differs_from_noted(run, noted or {})
        if others:
            raise DamagedError(f"{len(others)} objects are signed otherwise than they were stored: {others[0]}")
        compared = compared_by_bucket(control, run) if compare == BUCKET else set()
        verdict = verify(stored, signers=signers, receipts=receipts, compared=compared)
        notes = [stored.note] if stored.note else []
    finally:
        stored.close()
    for note in notes:
        on_note(note)
    check_receipt(verdict, receipts)
    if key is not None and may_countersign(key, verdict):
        data = make_countersignature(key, verdict, compared=BYTES, told=told or {}, findings=[*findings, *notes])
        control.put(COUNTERSIGNATURE, data)
        verdict.countersigner = key.signer
    return verdict


def check_directory_run(
    stored: Source,
    *,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    key: Countersigner | None = None,
    told: Mapping[str, str] | None = None,
) -> RunVerdict:
    """Verifies a run in a directory, byte by byte, and countersigns it where it is known from elsewhere.

    Raises `ImpoundError`.
    """
    verdict = verify(stored, signers=signers, receipts=receipts)
    check_receipt(verdict, receipts)
    if key is not None and may_countersign(key, verdict):
        data = make_countersignature(key, verdict, compared=BYTES, told=told or {})
        above, _, run = stored.location.rstrip("/").rpartition("/")
        store = DirectoryStore(above, run, resume=True)
        try:
            upload = store.begin(COUNTERSIGNATURE)
            upload.write(data)
            upload.commit()
        finally:
            store.close()
        verdict.countersigner = key.signer
    return verdict


def check_receipt(verdict: RunVerdict, receipts: Collection[str]) -> None:
    """Each kind of pin holds by itself: a run by the right signer and with another receipt is another run."""
    if receipts and verdict.receipt_sha256 and verdict.receipt_sha256 not in receipts:
        verdict.damage(RECEIPT, "is not the receipt that was given by its SHA-256")


def may_countersign(key: Countersigner, verdict: RunVerdict) -> bool:
    """Whether there is something to countersign. Raises `DamagedError` where somebody else has done so."""
    if verdict.verdict is not Verdict.INTACT:
        return False
    if verdict.countersigner and verdict.countersigner != key.signer:
        raise DamagedError(f"the run is countersigned by {verdict.countersigner} already, which is not this key")
    return not verdict.countersigner


def make_countersignature(
    key: Countersigner,
    verdict: RunVerdict,
    *,
    compared: str,
    told: Mapping[str, str],
    findings: Sequence[str] = (),
) -> bytes:
    """The countersignature of a run that was verified. Raises `DamagedError`, `UsageError`, and what the key raises.

    The receipt must be known from elsewhere than the store: who countersigned what lies there, and nothing else, would
    say nothing.
    """
    if verdict.verdict is not Verdict.INTACT:
        raise DamagedError(f"the run {verdict.run} is {verdict.words} and is not countersigned")
    if not verdict.signer_known:
        raise UsageError("a countersignature needs --signer or --receipt-sha256, as the result of the run printed them")
    said = Countersigned(
        run=verdict.run,
        case=verdict.case,
        host=verdict.host,
        signer=verdict.signer,
        countersigner=key.signer,
        at=now(),
        tool=TOOL,
        compared=compared,
        objects=verdict.objects,
        bytes=verdict.bytes,
        told=dict(told),
        findings=list(findings),
    )
    data = countersign(key, verdict.receipt_sha256, said)
    try:
        parse_countersignature(data)  # what is stored stays: a key that signs wrongly must not leave its mark
    except DamagedError as error:
        raise ImpoundError(
            f"the key {key.signer} does not sign as its public half says, and nothing is stored"
        ) from error
    return data
