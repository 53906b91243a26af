"""A strict fake of S3 and STS on loopback: what real S3 refuses and other servers let pass, it refuses.

    with StrictS3(tmp_path, tls=True) as s3:
        s3.make_bucket("evidence", lock=True)
        host = s3.add_user("host", policy={...})                    # a Credential; s3.admin may do everything
        client = s3.client("s3", host)                              # boto3, or use s3.endpoint_url and s3.ca_pem
        s3.faults.refuse(3, status=503, code="SlowDown", where="UploadPart", retry_after=1)

Signatures, checksums, conditions, locks, policies and sessions are checked; nothing is taken on trust. Where it knows
better than to be lenient, it is stricter than AWS: an ETag is never an MD5, and a completed upload is forgotten.
`keep_bodies=False` keeps digests of large bodies only, so that any amount can be sent.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs import s3_buckets, s3_objects
from tests.rigs.s3_bodies import Blob, Bodies
from tests.rigs.s3_calls import ACTIONS, Call, World, operation_of, split_path
from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_faults import Asked, Faults, Where
from tests.rigs.s3_http import BodyError, DroppedError, Request, Response, Server
from tests.rigs.s3_signature import Credential, Signed, Verifier, query_of
from tests.rigs.s3_state import MIN_PART, Bucket, Upload
from tests.rigs.s3_sts import Role, SecurityTokenService, error_document
from tests.rigs.strict_iam import check
from tests.rigs.tls import Certificates, make_certificates, server_context

ACCOUNT = "111122223333"
REGION = "eu-central-1"

_HANDLERS: dict[str, Callable[[Call], Response]] = {
    "AbortMultipartUpload": s3_objects.abort_upload,
    "CompleteMultipartUpload": s3_objects.complete_upload,
    "CopyObject": s3_objects.copy_object,
    "CreateBucket": s3_buckets.create_bucket,
    "CreateMultipartUpload": s3_objects.create_upload,
    "DeleteBucket": s3_buckets.delete_bucket,
    "DeleteObject": s3_objects.delete_object,
    "DeleteObjects": s3_objects.delete_objects,
    "GetBucketLocation": s3_buckets.get_location,
    "GetObject": s3_objects.get_object,
    "GetObjectLegalHold": s3_objects.get_legal_hold,
    "GetObjectRetention": s3_objects.get_retention,
    "HeadBucket": s3_buckets.head_bucket,
    "HeadObject": s3_objects.get_object,
    "ListBuckets": s3_buckets.list_buckets,
    "ListMultipartUploads": s3_buckets.list_uploads,
    "ListObjectVersions": s3_buckets.list_versions,
    "ListObjects": s3_buckets.list_objects,
    "ListObjectsV2": s3_buckets.list_objects,
    "ListParts": s3_objects.list_parts,
    "PutObject": s3_objects.put_object,
    "PutObjectLegalHold": s3_objects.put_legal_hold,
    "PutObjectRetention": s3_objects.put_retention,
    "UploadPart": s3_objects.upload_part,
}


class StrictS3:
    """The server. Everything on it may be changed while it runs, from any thread."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        tls: bool = False,
        certificates: Certificates | None = None,
        highest_tls: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
        lowest_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        keep_bodies: bool = True,
        min_part: int = MIN_PART,
        region: str = REGION,
    ) -> None:
        self._directory, self._tls, self._highest_tls = directory, tls, highest_tls
        self._lowest_tls = lowest_tls
        self._addresses, self._keep, self._min_part = addresses, keep_bodies, min_part
        self.certificates = certificates
        self.region, self.account = region, ACCOUNT
        self.clock_offset = 0.0
        """Seconds that the server's clock is ahead, in its answers and its checks."""
        self.faults = Faults()
        self._log: list[Asked] = []
        self._log_lock = threading.Lock()
        self._verifier = Verifier(self.now, region)
        self.sts = SecurityTokenService(self._verifier, ACCOUNT)
        self.admin = self.add_user("admin")
        self._closing = contextlib.ExitStack()
        self._request_ids = iter(range(1 << 62))

    def now(self) -> float:
        """The server's clock, seconds since 1970."""
        return time.time() + self.clock_offset

    # -- start and stop -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            temporary = tempfile.TemporaryDirectory(prefix="s3-", dir=self._directory, ignore_cleanup_errors=True)
            directory = Path(closing.enter_context(temporary))
            if self._tls and self.certificates is None:
                self.certificates = make_certificates(directory / "tls")
            bodies = Bodies(directory / "bodies", self._keep)
            bodies.directory.mkdir()
            self.world = World(self._verifier, bodies, self.region, ACCOUNT, self.now, self._min_part)
            context = None
            if self._tls and self.certificates:
                context = server_context(self.certificates, highest=self._highest_tls, lowest=self._lowest_tls)
            self.server = closing.enter_context(Server(self._answer, self._addresses, context))
            closing.callback(self.faults.stop)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._addresses[0]}:{self.port}"

    @property
    def ca_pem(self) -> str:
        """The authority that a client must trust; "" without TLS."""
        return self.certificates.ca_pem if self._tls and self.certificates else ""

    # -- what is on it ------------------------------------------------------------------------------------------------

    def make_bucket(
        self,
        name: str,
        *,
        lock: bool = False,
        versioning: bool = False,
        retention: tuple[str, int] | None = None,
        policy: dict[str, Any] | None = None,
        owner: str = ACCOUNT,
    ) -> Bucket:
        """A bucket; `retention` is a default such as ("COMPLIANCE", days), and `policy` its own policy."""
        with self.world.lock:
            bucket = s3_buckets.new_bucket(name, owner, self.region, self.now(), lock=lock or retention is not None)
            if versioning:
                bucket.versioning = "Enabled"
            if retention:
                bucket.default_mode, bucket.default_days = retention
            self.world.buckets[name] = bucket
        if policy is not None:
            self.set_policy(name, policy)
        return bucket

    def set_policy(self, bucket: str, policy: dict[str, Any] | None) -> None:
        """Sets the bucket's policy by the back door. Raises `PolicyError`."""
        if policy is not None:
            check(policy, of_resource=True)
        self.bucket(bucket).policy = policy

    def bucket(self, name: str) -> Bucket:
        return self.world.buckets[name]

    def vanish(self, name: str, *, back: bool = False) -> None:
        """From now on there is no such bucket; with `back` there is again."""
        self.bucket(name).vanished = not back

    def read(self, bucket: str, key: str) -> bytes:
        """The bytes of the current version. Raises `KeyError`."""
        version = self.bucket(bucket).current(key)
        if version is None:
            raise KeyError(key)
        return b"".join(version.read(0, version.size))

    def keys(self, bucket: str) -> list[str]:
        """Objects that are there, delete markers aside."""
        with self.world.lock:
            return sorted(key for key in self.bucket(bucket).objects if self.bucket(bucket).current(key))

    def uploads(self, bucket: str) -> list[Upload]:
        with self.world.lock:
            return list(self.bucket(bucket).uploads.values())

    def part(self, bucket: str, upload_id: str, number: int) -> Blob:
        return self.bucket(bucket).uploads[upload_id].parts[number][0]

    # -- who may do what ----------------------------------------------------------------------------------------------

    def add_user(
        self, name: str, policy: dict[str, Any] | None = None, *, account: str = ACCOUNT, role: bool = False
    ) -> Credential:
        """Lasting credentials. Without `policy` they may do everything in their account."""
        if policy is not None:
            check(policy)
        arn = f"arn:aws:iam::{account}:{'role' if role else 'user'}/{name}"
        made = Credential(f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30), arn, account, policy=policy)
        self._verifier.credentials[made.access_key] = made
        return made

    def add_session(
        self,
        name: str,
        *,
        policy: dict[str, Any] | None = None,
        session_policy: dict[str, Any] | None = None,
        seconds: float = 3600,
    ) -> Credential:
        """Temporary credentials, without the way over STS."""
        for document in (policy, session_policy):
            if document is not None:
                check(document)
        made = self.add_user(name, policy)
        made.arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session"
        made.token, made.session_policy = secrets.token_urlsafe(240), session_policy
        made.expires = self.now() + seconds
        return made

    def add_role(self, name: str, policy: dict[str, Any] | None = None) -> Role:
        """A role for AssumeRole; its ARN is in the answer."""
        if policy is not None:
            check(policy)
        role = Role(f"arn:aws:iam::{ACCOUNT}:role/{name}", policy)
        self.sts.roles[role.arn] = role
        return role

    def expire(self, access_key: str = "") -> None:
        """Ends these temporary credentials now, or all that there are."""
        for credential in list(self._verifier.credentials.values()):
            if credential.token and access_key in {"", credential.access_key}:
                credential.expires = self.now()

    def client(
        self, service: str = "s3", credential: Credential | None = None, *, address: str = "", **config: Any
    ) -> Any:
        """A boto3 client, with boto3's own defaults where `config` says nothing. It retries nothing."""
        import boto3
        from botocore.config import Config

        who = credential or self.admin
        session = boto3.Session(who.access_key, who.secret_key, who.token or None, self.region)
        settings = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}, **config}
        verify = str(self.certificates.ca_file) if self._tls and self.certificates else None
        url = self.endpoint_url.replace(self._addresses[0], address or self._addresses[0])
        made = session.client(service, endpoint_url=url, verify=verify, config=Config(**settings))
        self._closing.callback(made.close)
        return made

    # -- the net, and what came over it -------------------------------------------------------------------------------

    def limit(self, bytes_per_second: float, address: str = "") -> None:
        """Bounds what one address takes in, or every one; 0 is unbounded."""
        for listener in self.server.listeners:
            if address in {"", listener.address}:
                listener.rate = bytes_per_second

    def requests(self, where: Where = "") -> list[Asked]:
        """The log: requests in the order in which they began, by operation, key or what decides."""
        with self._log_lock:
            found = list(self._log)
        if callable(where):
            return [entry for entry in found if where(entry)]
        return [entry for entry in found if where in {"", entry.operation, entry.key}]

    def forget_requests(self) -> None:
        with self._log_lock:
            self._log.clear()

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        bucket, key = split_path(request.path)
        query = query_of(request)
        sts = not bucket and request.method == "POST"
        operation = "STS" if sts else operation_of(request.method, bucket, key, query, request.headers)
        asked = Asked(
            operation or request.method,
            request.method,
            request.path,
            bucket,
            key,
            query,
            request.headers,
            request.address,
            request.peer,
            request.secure,
        )
        with self._log_lock:
            self._log.append(asked)
            number = next(self._request_ids)
        try:
            met = self.faults.meet(asked, request)
            refused = self.faults.refusal(met, request)
            if refused and refused.refusal:
                response = self._refuse(request, refused.refusal, asked, sts=sts)
                response.close = refused.early
                if refused.retry_after is not None:
                    response.headers["Retry-After"] = str(refused.retry_after)
            else:
                response = self._do(request, asked, sts=sts)
            self.faults.before_answer(met, response)
        except (DroppedError, OSError):
            asked.status = -1
            raise
        finally:
            asked.received, asked.ended = request.body.received, time.monotonic()
        asked.status = response.status
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(self.now()))
        response.headers = {
            "Date": date,
            "Server": "AmazonS3",
            "x-amz-request-id": f"{number:016X}",
            "x-amz-id-2": secrets.token_urlsafe(30),
            **response.headers,
        }
        return response

    @staticmethod
    def _refuse(request: Request, error: S3Error, asked: Asked, *, sts: bool) -> Response:
        asked.code = error.code
        if sts:
            return error_document(error)
        headers = {"Content-Type": "application/xml"}
        if error.status == 304 or (error.code == "NoSuchKey" and request.method == "HEAD"):
            headers = {}
        return Response(error.status, headers, error.xml(request.path, secrets.token_hex(8).upper()))

    def _do(self, request: Request, asked: Asked, *, sts: bool) -> Response:
        try:
            if sts:
                asked.operation, asked.principal, response = self.sts.answer(request)
                return response
            signed = self._verifier.verify(request)
            return self._call(request, asked, signed)
        except BodyError as error:
            return self._refuse(request, S3Error("EntityTooLarge", str(error)), asked, sts=sts)
        except S3Error as error:
            return self._refuse(request, error, asked, sts=sts)

    def _call(self, request: Request, asked: Asked, signed: Signed) -> Response:
        call = Call(self.world, request, asked.operation, signed, asked.bucket, asked.key)
        asked.principal = call.principal
        words = {asked.operation[3:], asked.operation[6:]}
        if asked.operation not in _HANDLERS and not words & set(s3_buckets.DOCUMENTS):
            if asked.operation in ACTIONS:
                call.authorize(ACTIONS[asked.operation])
            raise S3Error("NotImplemented", "A header or query you provided implies functionality that is not "
                              "implemented")  # fmt: skip
        if asked.operation not in {"ListBuckets", "CreateBucket"}:
            expected = request.headers.get("x-amz-expected-bucket-owner")
            if expected is not None and expected != call.bucket.owner:
                raise S3Error("AccessDenied")
        if asked.operation in ACTIONS:
            call.authorize(ACTIONS[asked.operation])
        if asked.operation in _HANDLERS:
            return _HANDLERS[asked.operation](call)
        return self._document(call)

    @staticmethod
    def _document(call: Call) -> Response:
        verb, word = call.operation[:3], call.operation[3:]
        if verb == "Del":
            word = call.operation[6:]
        _, read, write, _ = s3_buckets.DOCUMENTS[word]
        if verb == "Get":
            call.authorize(read)
            return s3_buckets.get_document(call, word)
        call.authorize("s3:DeleteBucketPolicy" if (verb, word) == ("Del", "BucketPolicy") else write or read)
        if verb == "Del":
            return s3_buckets.delete_document(call, word)
        return s3_buckets.put_document(call, word)
