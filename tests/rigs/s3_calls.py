"""One call on the strict S3: which operation a request is, what it is called in policies, whether it is allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_http import Request, Response
from tests.rigs.s3_signature import Signed, Verifier, query_of
from tests.rigs.s3_state import MIN_PART, Bucket
from tests.rigs.strict_iam import Asked, allowed, role_of

if TYPE_CHECKING:
    from tests.rigs.s3_bodies import Bodies

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_DOCUMENT = 1 << 21

ACTIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CopyObject": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteBucket": "s3:DeleteBucket",
    "GetBucketLocation": "s3:GetBucketLocation",
    "GetObject": "s3:GetObject",
    "GetObjectAttributes": "s3:GetObjectAttributes",
    "GetObjectLegalHold": "s3:GetObjectLegalHold",
    "GetObjectRetention": "s3:GetObjectRetention",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutObject": "s3:PutObject",
    "PutObjectLegalHold": "s3:PutObjectLegalHold",
    "PutObjectRetention": "s3:PutObjectRetention",
    "UploadPart": "s3:PutObject",
    "UploadPartCopy": "s3:PutObject",
}
"""https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html. DeleteObject and DeleteObjects
depend on whether a version is named; the bucket's documents are in `s3_buckets.DOCUMENTS`."""

_SUBRESOURCES = {
    "versioning": "BucketVersioning",
    "object-lock": "ObjectLockConfiguration",
    "encryption": "BucketEncryption",
    "policy": "BucketPolicy",
    "policyStatus": "BucketPolicyStatus",
    "publicAccessBlock": "PublicAccessBlock",
    "ownershipControls": "BucketOwnershipControls",
    "lifecycle": "BucketLifecycleConfiguration",
    "logging": "BucketLogging",
    "tagging": "BucketTagging",
    "acl": "BucketAcl",
    "replication": "BucketReplication",
    "notification": "BucketNotificationConfiguration",
}
_KNOWN_OBJECT = {"retention": "ObjectRetention", "legal-hold": "ObjectLegalHold", "attributes": "ObjectAttributes"}


def split_path(path: str) -> tuple[str, str]:
    """Bucket and key of a path-style request."""
    bucket, _, key = unquote(path, errors="surrogateescape").removeprefix("/").partition("/")
    return bucket, key


def operation_of(method: str, bucket: str, key: str, query: dict[str, str], headers: dict[str, str]) -> str:
    """The operation's name in the API, or "" for what this server does not have."""
    if not bucket:
        return "ListBuckets" if method == "GET" else ""
    if not key:
        return _of_bucket(method, query)
    for name, word in _KNOWN_OBJECT.items():
        if name in query:
            return {"GET": f"Get{word}", "PUT": f"Put{word}"}.get(method, "")
    copies = "x-amz-copy-source" in headers
    if "uploadId" in query:
        if "partNumber" in query and method == "PUT":
            return "UploadPartCopy" if copies else "UploadPart"
        return {
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts",
        }.get(method, "")
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else ""
    if {"acl", "tagging", "restore", "select", "torrent"} & set(query):
        return ""
    put = "CopyObject" if copies else "PutObject"
    return {"PUT": put, "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, "")


def _of_bucket(method: str, query: dict[str, str]) -> str:
    for name, word in _SUBRESOURCES.items():
        if name in query:
            return {"GET": f"Get{word}", "PUT": f"Put{word}", "DELETE": f"Delete{word}"}.get(method, "")
    if method == "POST":
        return "DeleteObjects" if "delete" in query else ""
    if method == "GET":
        for name, word in (
            ("location", "GetBucketLocation"),
            ("uploads", "ListMultipartUploads"),
            ("versions", "ListObjectVersions"),
        ):
            if name in query:
                return word
        return "ListObjectsV2" if query.get("list-type") == "2" else "ListObjects"
    return {"PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}.get(method, "")


@dataclass(slots=True)
class World:
    """What all calls share. `lock` guards everything but bodies in flight."""

    verifier: Verifier
    bodies: Bodies
    region: str
    account: str
    now: Callable[[], float]
    min_part: int = MIN_PART
    source_vpce: str = ""
    """What `aws:SourceVpce` says of every request; "" is none."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(slots=True)
class Call:
    """One call, signed and looked up. `bucket` is there for all but ListBuckets and CreateBucket."""

    world: World
    request: Request
    operation: str
    signed: Signed
    bucket_name: str
    key: str
    query: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.query = query_of(self.request)

    @property
    def headers(self) -> dict[str, str]:
        return self.request.headers

    @property
    def bucket(self) -> Bucket:
        """Raises `S3Error` where there is none."""
        found = self.world.buckets.get(self.bucket_name)
        if found is None or found.vanished:
            raise S3Error("NoSuchBucket", more={"BucketName": self.bucket_name})
        return found

    @property
    def principal(self) -> str:
        return self.signed.credential.arn if self.signed.credential else ""

    # -- what may be done ---------------------------------------------------------------------------------------------

    def context(self) -> dict[str, str]:
        """The condition keys of this request."""
        request, signed = self.request, self.signed
        found = {
            "aws:SecureTransport": "true" if request.secure else "false",
            "aws:SourceIp": request.peer[0],
            "aws:CurrentTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.world.now())),
            "aws:EpochTime": str(int(self.world.now())),
            "s3:authType": signed.kind,
            "s3:signatureversion": "AWS4-HMAC-SHA256" if signed.kind else "",
            "s3:TlsVersion": request.tls_version,
            "aws:SourceVpce": self.world.source_vpce,
            "aws:PrincipalArn": "",
        }
        if signed.credential:
            found["aws:PrincipalArn"] = role_of(signed.credential.arn)
            found["aws:PrincipalAccount"] = signed.credential.account
        if signed.kind == "REST-QUERY-STRING":
            found["s3:signatureAge"] = str(int(signed.age_s * 1000))
        if self.bucket_name in self.world.buckets:
            found["aws:ResourceAccount"] = found["s3:ResourceAccount"] = self.world.buckets[self.bucket_name].owner
        if self.operation in ACTIONS and ACTIONS[self.operation] == "s3:PutObject":
            creates = self.operation in {"PutObject", "CopyObject", "CompleteMultipartUpload"}
            found["s3:ObjectCreationOperation"] = "true" if creates else "false"
        for name in (
            "if-none-match",
            "if-match",
            "x-amz-server-side-encryption",
            "x-amz-server-side-encryption-aws-kms-key-id",
            "x-amz-content-sha256",
            "x-amz-copy-source",
            "x-amz-storage-class",
            "x-amz-acl",
        ):
            found[f"s3:{name}"] = self.headers.get(name, "")
        found["s3:object-lock-mode"] = self.headers.get("x-amz-object-lock-mode", "")
        found["s3:prefix"] = self.query.get("prefix", "") if not self.key else ""
        found["s3:delimiter"] = self.query.get("delimiter", "") if not self.key else ""
        found["s3:max-keys"] = self.query.get("max-keys", "") if not self.key else ""
        found["s3:VersionId"] = self.query.get("versionId", "")
        empty_counts = {"s3:prefix"} if "prefix" in self.query and not self.key else set()
        return {name: value for name, value in found.items() if value or name in empty_counts}

    def may(self, action: str, resource: str = "", **more: str) -> bool:
        """Whether policies allow it, on this call's bucket or object unless another resource is named."""
        credential = self.signed.credential
        arn = resource or f"arn:aws:s3:::{self.bucket_name}{'/' if self.key else ''}{self.key}"
        bucket = self.world.buckets.get(self.bucket_name)
        of_bucket = bucket.policy if bucket and arn.startswith("arn:aws:s3:::") else None
        asked = Asked(
            action,
            arn,
            credential.arn if credential else "",
            credential.account if credential else "",
            {**self.context(), **more},
        )
        return allowed(
            asked,
            identity=credential.policy if credential else None,
            session=credential.session_policy if credential else None,
            resource=of_bucket,
            owner=bucket.owner if bucket else self.world.account,
        )

    def authorize(self, action: str, resource: str = "", **more: str) -> None:
        """Raises `S3Error` where it is not allowed."""
        if not self.may(action, resource, **more):
            who = self.principal or "anonymous"
            raise S3Error("AccessDenied", f"User: {who} is not authorized to perform: {action} on this resource")

    def authorize_key(self, sealed_by: dict[str, str], *actions: str) -> None:
        """SSE-KMS needs rights on the key, too; they are asked as S3 asks, by `kms:ViaService`."""
        key = sealed_by.get("x-amz-server-side-encryption-aws-kms-key-id", "")
        if not key:
            return
        arn = key if key.startswith("arn:") else f"arn:aws:kms:{self.world.region}:{self.world.account}:key/{key}"
        via = {"kms:ViaService": f"s3.{self.world.region}.amazonaws.com"}
        credential = self.signed.credential
        for action in actions:
            asked = Asked(action, arn, self.principal, credential.account if credential else "", via)
            identity = credential.policy if credential else None
            session = credential.session_policy if credential else None
            if not allowed(asked, identity=identity, session=session, resource=None, owner=asked.account):
                raise S3Error(
                    "AccessDenied",
                    f"User: {self.principal} is not authorized to perform: {action} on the resource associated with "
                    "this ciphertext",
                )

    def sealed_by(self) -> dict[str, str]:
        """The SSE headers that an object written by this call gets: its own, else the bucket's default."""
        way = self.headers.get("x-amz-server-side-encryption", "")
        key = self.headers.get("x-amz-server-side-encryption-aws-kms-key-id", "")
        if not way:
            document = self.bucket.documents.get("encryption")
            rule = ET.fromstring(document) if document else None  # noqa: S314 - from a test
            way = _text(rule, "SSEAlgorithm") or "AES256"
            key = _text(rule, "KMSMasterKeyID")
        elif way not in {"AES256", "aws:kms", "aws:kms:dsse"}:
            raise S3Error("InvalidArgument", "The encryption method specified is not supported")
        if key and not way.startswith("aws:kms"):
            raise S3Error("InvalidArgument", "Server Side Encryption with AWS KMS managed key requires HTTP header "
                          "x-amz-server-side-encryption : aws:kms")  # fmt: skip
        found = {"x-amz-server-side-encryption": way}
        if key:
            found["x-amz-server-side-encryption-aws-kms-key-id"] = key
        return found

    # -- small things -------------------------------------------------------------------------------------------------

    def document(self) -> bytes:
        """The body of a call that carries a small document, held against its digests. Raises `S3Error`."""
        blob = self.world.bodies.receive(self.request, self.signed.payload, random_etag=False)
        try:
            if blob.size > MAX_DOCUMENT:
                raise S3Error("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
            return b"".join(blob.read(0, blob.size))
        finally:
            blob.forget()

    def number(self, name: str, default: int, *, highest: int = 1000) -> int:
        text = self.query.get(name, "") or str(default)
        if not text.isdecimal() or len(text) > 9:
            raise S3Error("InvalidArgument", f"Provided {name} not an integer or within integer range")
        return min(int(text), highest)


def parse_xml(document: bytes) -> ET.Element:
    """A document without namespaces. Raises `S3Error`."""
    try:
        root = ET.fromstring(document)  # noqa: S314 - from a test
    except ET.ParseError:
        raise S3Error("MalformedXML", "The XML you provided was not well-formed") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(root: ET.Element | None, name: str) -> str:
    if root is None:
        return ""
    return next((element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == name), "")


def xml(root: str, fields: list[tuple[str, Any]], *, status: int = 200) -> Response:
    """A document; a field's value is text, or a list of fields within it."""

    def render(name: str, value: Any) -> str:
        inner = "".join(render(*item) for item in value) if isinstance(value, list) else escape(str(value))
        return f"<{name}>{inner}</{name}>"

    inner = "".join(render(name, value) for name, value in fields)
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{inner}</{root}>'
    return Response(status, {"Content-Type": "application/xml"}, body.encode())


def boolean(value: object) -> str:
    return "true" if value else "false"
