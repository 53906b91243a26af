"""Control calls on one prefix of a bucket: begin, complete, list, small objects. boto3, one call each.

Every call names the owner that the bucket must have, where one is given. Nothing is ever overwritten: what makes an
object appear carries `If-None-Match: *`. What fails becomes a `StoreError` that tells a person what to do.
"""

from __future__ import annotations

import base64
import hashlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import msgspec

from agent.aws import EXCHANGE_S, SLOWEST, within
from agent.errors import AuthorityError, ObjectExistsError, StoreError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from agent.job import S3
    from agent.stores.base import Part
    from agent.stores.s3.place import Place

SETTLE_S = 1800.0
"""How long an object is waited for that the bucket may still be completing."""
SETTLE_EVERY_S = 2.0
MAX_PARTS = 10_000
"""Of one upload: S3's own limit."""
MAX_UPLOADS = 1_000_000
SIGNED_FOR_S = 3600
"""How long a signed request for one part lives. It is asked for anew at each attempt."""


class ListedPart(msgspec.Struct, frozen=True):
    """A part as the bucket has it. `sha256` is None where the server keeps no such checksum."""

    number: int
    size: int
    etag: str
    sha256: bytes | None


class ListedUpload(msgspec.Struct, frozen=True):
    """An upload that was begun and neither completed nor aborted."""

    name: str
    upload_id: str
    initiated: datetime
    initiator: str


class Control:
    """Calls on objects below one place. `name` is relative to it. Methods raise `StoreError`."""

    def __init__(self, client: Any, place: Place, s3: S3) -> None:
        self.client, self.place, self.s3 = client, place, s3
        self._owner = {"ExpectedBucketOwner": s3.bucket_owner} if s3.bucket_owner else {}
        self._sealed_by: dict[str, str] = (
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": s3.sse_kms_key} if s3.sse_kms_key else {}
        )

    def arguments(self, name: str) -> dict[str, Any]:
        """What every call on one object carries."""
        return {"Bucket": self.place.bucket, "Key": self.place.key(name), **self._owner}

    def begin(self, name: str) -> str:
        """Begins a multipart upload; gives its id."""
        with explained(f"{name} could not be begun"):
            answer = self.client.create_multipart_upload(
                **self.arguments(name), ChecksumAlgorithm="SHA256", **self._sealed_by
            )
        return str(answer["UploadId"])

    def presign_part(self, name: str, upload_id: str, number: int, part: Part) -> tuple[str, dict[str, str]]:
        """A URL that stores one part of this length and digest and no other, and the headers it must carry."""
        checksum = base64.b64encode(part.sha256).decode("ascii")
        with explained(f"part {number} of {name} could not be signed"):
            url = self.client.generate_presigned_url(
                "upload_part",
                Params={
                    **self.arguments(name),
                    "UploadId": upload_id,
                    "PartNumber": number,
                    "ContentLength": part.size,
                    "ChecksumSHA256": checksum,
                },
                ExpiresIn=SIGNED_FOR_S,
                HttpMethod="PUT",
            )
        headers = {"content-length": str(part.size), "x-amz-checksum-sha256": checksum}
        if self.s3.bucket_owner:
            headers["x-amz-expected-bucket-owner"] = self.s3.bucket_owner
        return str(url), headers

    def complete(self, name: str, upload_id: str, parts: Sequence[Part], etags: Sequence[str]) -> None:
        """Makes the object appear, where there is none of that name. Parts without a digest are named by ETag alone."""
        listed = [
            {"PartNumber": number, "ETag": etag}
            | ({"ChecksumSHA256": base64.b64encode(part.sha256).decode("ascii")} if part.sha256 else {})
            for number, (part, etag) in enumerate(zip(parts, etags, strict=True), 1)
        ]
        with explained(f"{name} could not be completed"):
            answer = self.client.complete_multipart_upload(
                **self.arguments(name), UploadId=upload_id, MultipartUpload={"Parts": listed}, IfNoneMatch="*"
            )
        composite = answer.get("ChecksumSHA256", "")
        if composite and composite.partition("-")[0] != composite_sha256(parts).partition("-")[0]:
            raise StoreError(f"{name} was completed, and the bucket says another checksum of it than its parts have")

    def put(self, name: str, data: bytes) -> None:
        """Stores a small object whole, where there is none of that name."""
        with explained(f"{name} could not be stored"):
            self.client.put_object(
                **self.arguments(name),
                Body=data,
                ChecksumSHA256=base64.b64encode(hashlib.sha256(data).digest()).decode("ascii"),
                IfNoneMatch="*",
                **self._sealed_by,
            )

    def put_part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        """Stores one small part; gives its ETag."""
        with explained(f"part {number} of {name} could not be stored"):
            answer = self.client.upload_part(
                **self.arguments(name),
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ChecksumSHA256=base64.b64encode(hashlib.sha256(data).digest()).decode("ascii"),
            )
        return str(answer["ETag"])

    def parts(self, name: str, upload_id: str) -> Iterator[ListedPart]:
        """The parts of an unfinished upload that the bucket has, in order."""
        marker = given = 0
        while True:
            with explained(f"the parts of {name} could not be listed"):
                answer = self.client.list_parts(**self.arguments(name), UploadId=upload_id, PartNumberMarker=marker)
            for part in answer.get("Parts", ()):
                given += 1
                if given > MAX_PARTS:
                    raise StoreError(f"{name} has more than {MAX_PARTS} parts, as the bucket lists them")
                checksum = part.get("ChecksumSHA256")
                yield ListedPart(
                    int(part["PartNumber"]),
                    int(part["Size"]),
                    str(part["ETag"]),
                    base64.b64decode(checksum) if checksum else None,
                )
            following = int(answer.get("NextPartNumberMarker") or 0)
            if not answer.get("IsTruncated"):
                return
            if following <= marker or not answer.get("Parts"):
                raise StoreError(f"the parts of {name} could not be listed: the bucket's list does not move on")
            marker = following

    def uploads(self) -> Iterator[ListedUpload]:
        """Every unfinished upload below the place."""
        prefix = f"{self.place.prefix}/" if self.place.prefix else ""
        marker: dict[str, str] = {}
        last, given = ("", ""), 0
        while True:
            with explained(f"the unfinished uploads below {self.place} could not be listed"):
                # Encoded: a key that holds what XML cannot would otherwise hide every other upload.
                answer = self.client.list_multipart_uploads(
                    Bucket=self.place.bucket, Prefix=prefix, EncodingType="url", **self._owner, **marker
                )
            for upload in answer.get("Uploads", ()):
                given += 1
                if given > MAX_UPLOADS:
                    raise StoreError(f"there are more than {MAX_UPLOADS} unfinished uploads below {self.place}")
                initiator = upload.get("Initiator") or {}
                yield ListedUpload(
                    unquote_plus(str(upload["Key"])).removeprefix(prefix),
                    str(upload["UploadId"]),
                    upload["Initiated"],
                    str(initiator.get("ID") or initiator.get("DisplayName") or ""),
                )
            if not answer.get("IsTruncated"):
                return
            following = unquote_plus(str(answer.get("NextKeyMarker", ""))), str(answer.get("NextUploadIdMarker", ""))
            # Uploads of one key come by time, so that their ids need not ascend; keys do.
            if following == last or following[0] < last[0] or not answer.get("Uploads"):
                raise StoreError(f"the unfinished uploads below {self.place} do not end: the list does not move on")
            last, marker = following, {"KeyMarker": following[0], "UploadIdMarker": following[1]}

    def get(self, name: str, limit: int) -> bytes:
        """A small object, whole. Raises `StoreError` where it is larger than `limit` bytes."""
        with explained(f"{name} could not be read"), within(EXCHANGE_S + limit / SLOWEST):
            body = self.client.get_object(**self.arguments(name))["Body"]
            try:
                data: bytes = body.read(limit + 1)
            finally:
                body.close()
        if len(data) > limit:
            raise StoreError(f"{name} is larger than anything that impound writes there")
        return data

    def checksum(self, name: str) -> tuple[int, str]:
        """Size of an object, and its SHA-256 as the bucket keeps it: base64, with `-N` of N parts, "" for none."""
        with explained(f"{name} could not be looked at"):
            answer = self.client.head_object(**self.arguments(name), ChecksumMode="ENABLED")
        return int(answer["ContentLength"]), str(answer.get("ChecksumSHA256") or "")

    def comes_to_be(self, name: str, wanted: tuple[int, str], *, patience_s: float = 0.0) -> bool:
        """Whether just this object is there: size, and checksum as `checksum` gives it.

        With patience, whether it comes to be: a bucket can take minutes to complete a large one, and says that it
        exists before it is whole. Raises `StoreError` where it cannot be told.
        """
        until = time.monotonic() + patience_s
        while True:
            late = time.monotonic() > until
            try:
                if self.checksum(name) == wanted:
                    return True
            except StoreError as error:
                if late or not (isinstance(error, UnreachableError) or code_of(error) in {"404", "NoSuchKey"}):
                    raise
            if late:
                return False
            time.sleep(SETTLE_EVERY_S)

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there."""
        from botocore.exceptions import ClientError

        with explained(f"{name} could not be looked for"):
            try:
                self.client.head_object(**self.arguments(name))
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return False
                raise
        return True


def one_sha256(digest: bytes) -> str:
    """The checksum that S3 gives an object that was put whole."""
    return base64.b64encode(digest).decode("ascii")


def composite_sha256(parts: Sequence[Part]) -> str:
    """The checksum that S3 gives an object of parts: base64 of SHA-256 over the parts' digests, `-`, their number."""
    digest = hashlib.sha256(b"".join(part.sha256 for part in parts)).digest()
    return f"{base64.b64encode(digest).decode('ascii')}-{len(parts)}"


class explained:  # noqa: N801 - reads as what it is, a context
    """Turns what boto3 raises into one line for a person. `what` is the beginning of the line."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, StoreError):
            return
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        if isinstance(error, ClientError):
            answer = error.response
            code = str(answer.get("Error", {}).get("Code", ""))
            message = str(answer.get("Error", {}).get("Message", ""))[:300]
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise store_error(self._what, code, message, status) from error
        if isinstance(error, NoCredentialsError):
            raise AuthorityError(f"{self._what}: there are no AWS credentials") from error
        if isinstance(error, BotoCoreError):
            raise UnreachableError(f"{self._what}: {str(error)[:300]}") from error


_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AllAccessDisabled", "403"}


def code_of(error: StoreError) -> str:
    """S3's own code behind an error of `explained`; "" where there is none."""
    answer = getattr(error.__cause__, "response", {})
    return str(answer.get("Error", {}).get("Code", ""))


def has_expired(error: StoreError) -> bool:
    """Whether S3 said that the credentials have expired. `error` is one of `explained`."""
    return code_of(error) in _EXPIRED


def store_error(what: str, code: str, message: str, status: int) -> StoreError:
    """The error for what S3 answered. `code` and `message` are S3's own."""
    if code in {"PreconditionFailed", "412"} or status == 412:
        return ObjectExistsError(f"{what}: there is an object of that name already, and it is not overwritten")
    if code in _EXPIRED:
        return AuthorityError(f"{what}: the credentials have expired")
    if code == "RequestTimeTooSkewed":
        return AuthorityError(f"{what}: the clock of this machine is more than 15 minutes off, and S3 refuses that")
    if code in _REFUSED or status == 403:
        return AuthorityError(f"{what}: S3 refuses it ({code or status}): {message or 'no reason given'}")
    if code == "NoSuchBucket":
        return StoreError(f"{what}: there is no such bucket")
    if code == "NoSuchUpload":
        return StoreError(f"{what}: the upload is gone, aborted by somebody or by the bucket's lifecycle")
    if code in {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"} or status >= 500:
        return UnreachableError(f"{what}: S3 answers {code or status} however often it is asked")
    return StoreError(f"{what}: S3 answers {code or status}: {message}")
