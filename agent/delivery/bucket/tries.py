"""What the host's authority can do, proved by trying.

Nothing that exists is at risk, even where everything is allowed: objects, parts, holds and retentions are those of the
probe itself, below a prefix that nobody else has or at the probe object; what is asked to be deleted is not there; and
settings of the bucket are put as they are. Why each try is harmless stands beside it.

Refused is 403 (and 405: S3's word for a policy of somebody else's bucket). S3 looks at rights before it looks at
anything else, so every other answer means that the right is there.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from agent.delivery.bucket.looking import DENIED, code_of
from agent.delivery.bucket.rows import Row, State, UnseenError
from agent.errors import AuthorityError, ObjectExistsError
from agent.stores.s3.control import Control, explained, store_error

if TYPE_CHECKING:
    from agent.delivery.bucket.looking import Looking
    from agent.stores.s3.place import Place

BODY = b"impound bucket check: made to try what may be done here. Not evidence.\n"
PROBE_OBJECT = "impound-check/object"
"""One for all checks: whether something can be read is told only by something that is there, and it stays, locked."""
_OWN = re.compile(
    r"impound-check/object|impound-check-[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/"
    r"(?:absent|put|put-new|put-elsewhere|puts|complete|complete-new|completes)"
)

_CHECKSUM = base64.b64encode(hashlib.sha256(BODY).digest()).decode("ascii")
_ABSENT_VERSION = "null"
"""The version of a key in a bucket without versioning. Deleting it where it is not does nothing."""


def is_probe(name: str) -> bool:
    """Whether an object of that name, below the place that is checked, can be a probe's. Nothing else is let pass."""
    return _OWN.fullmatch(name) is not None


class Probe(msgspec.Struct, frozen=True):
    """The object that is tried to be read and overwritten. `until` is when its retention ends."""

    key: str
    version: str
    mode: str = ""
    until: datetime | None = None


def make_probe(look: Looking) -> Probe | None:
    """Makes the probe object by the responder's right, or finds that of an earlier check. None where it may not."""
    control = Control(look.client, look.place, look.s3)
    try:
        try:
            control.put(PROBE_OBJECT, BODY)
        except ObjectExistsError:
            pass  # of an earlier check
        with explained("the probe object could not be looked at"):
            answer = look.client.head_object(**control.arguments(PROBE_OBJECT))
    except AuthorityError:
        return None
    return Probe(
        look.place.key(PROBE_OBJECT),
        str(answer.get("VersionId") or ""),
        str(answer.get("ObjectLockMode") or ""),
        answer.get("ObjectLockRetainUntilDate"),
    )


class Stay(msgspec.Struct):
    """Uploads of the probes that could not be aborted."""

    count: int = 0
    below: dict[str, None] = msgspec.field(default_factory=dict)
    """Their prefixes."""
    failed: str = ""
    """Why, where it was not just that who checks may not abort."""

    def line(self) -> str:
        """All of them in one line; "" where there are none."""
        if not self.count:
            return ""
        what = "1 probe upload stays" if self.count == 1 else f"{self.count} probe uploads stay"
        failed = f" ({self.failed})"[:300] if self.failed else ""
        return f"{what} until the lifecycle takes them: {', '.join(f'{one}/…' for one in self.below)}{failed}"


class Trial(msgspec.Struct):
    """Tries with one authority. `completes`: it may complete and put, create-only (`ambient`)."""

    look: Looking
    client: Any
    who: str
    """Begins the name of each row."""
    run: Place
    """The prefix of the probe, below which it may write."""
    outside: Place | None
    """A place below which it may not; None where there is none."""
    probe: Probe | None
    completes: bool = False
    worst: State = State.GRAVE
    mend: str = ""
    left: list[str] = msgspec.field(default_factory=list)
    """What stays in the bucket, in words."""
    stay: Stay = msgspec.field(default_factory=Stay)
    _begun: list[tuple[Place, str, str]] = msgspec.field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """Every try, one after the other. Raises `StoreError` where the authority is no longer accepted."""
        try:
            yield from self._must_work()
            for name, why, call in self._must_not():
                yield self._refused(name, why, call)
        finally:
            self._clean_up()

    # -- what must work -----------------------------------------------------------------------------------------------

    def _must_work(self) -> Iterator[Row]:
        why = "a host that cannot do this stores no evidence"
        yield self._works("starts an upload", why, lambda: self._begin(self.client, self.run, "adds"))
        yield self._works("adds a part", why, lambda: self._part(self.client, *self._upload("adds")))
        if self.completes:
            yield self._works("completes, create-only", why, lambda: self._complete("completes", {"IfNoneMatch": "*"}))
            yield self._works(
                "puts a small object, create-only", why, lambda: self._put(self.run, "puts", {"IfNoneMatch": "*"})
            )

    def _works(self, name: str, why: str, call: Callable[[], object]) -> Row:
        name = f"{self.who} {name}"
        try:
            done, how = _tried(call)
        except UnseenError as error:
            return Row(name, State.UNKNOWN, str(error), why)
        if done is False:
            how = f"refused ({how})"
        good = how == "it worked"
        return Row(name, State.OK if good else State.FINDING, how, why, "" if good else self.mend)

    # -- what must not ------------------------------------------------------------------------------------------------

    def _must_not(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        reads = "who has taken the machine would read what was acquired, on this and on other machines"
        writes = "what appears in the bucket must be what the controller compared and completed"
        over = "evidence would be hidden below something else"
        removes = "evidence would be gone, or hidden"
        settings = "every protection could be switched off"
        # Reading: nothing changes.
        yield "reads an object", reads, self._read
        yield "reads a version of an object", reads, self._read_version
        yield "lists objects", reads, lambda: self._call("list_objects_v2", Prefix=self.look.prefix(), MaxKeys=1)
        yield "lists versions", reads, lambda: self._call("list_object_versions", Prefix=self.look.prefix(), MaxKeys=1)
        yield "lists uploads", reads, lambda: self._call(
            "list_multipart_uploads", Prefix=self.look.prefix(), MaxUploads=1
        )  # fmt: skip
        yield "lists parts", reads, self._list_parts
        # Below a prefix that is the probe's own.
        yield "puts an object", writes, lambda: self._put(self.run, "put", {})
        yield "completes its upload", writes, lambda: self._complete("complete", {})
        if not self.completes:
            yield "puts an object, create-only", writes, lambda: self._put(self.run, "put-new", {"IfNoneMatch": "*"})
            yield "completes its upload, create-only", writes, lambda: self._complete(
                "complete-new", {"IfNoneMatch": "*"}
            )  # fmt: skip
        # The object below is the probe's, and versioning keeps what it was.
        yield "overwrites an object", over, self._overwrite
        if self.outside is not None:
            outside = self.outside
            yield "starts an upload elsewhere", writes, lambda: self._begin(self.client, outside, "elsewhere")
            yield "puts an object elsewhere", writes, lambda: self._put(outside, "put-elsewhere", {"IfNoneMatch": "*"})
        # An upload of the probe's own.
        yield "aborts an upload", removes, self._abort
        # A name that is not there: at most a delete marker over nothing.
        yield "deletes an object", removes, self._delete
        # A version that is not there.
        yield "deletes a version", removes, lambda: self._call(
            "delete_object", Key=self.run.key("absent"), VersionId=_ABSENT_VERSION
        )  # fmt: skip
        # The probe object's retention, one second longer than it is; a hold that is off, off.
        yield "changes a retention", removes, self._retain
        yield "changes a legal hold", removes, self._hold
        # What stands there already, put again: nothing else can come of it.
        yield "puts the bucket's policy", settings, self._policy
        yield "puts the bucket's versioning", settings, self._versioning
        yield "puts the bucket's lifecycle", settings, self._lifecycle

    def _refused(self, name: str, why: str, call: Callable[[], object]) -> Row:
        name = f"{self.who} {name}"
        try:
            done, how = _tried(call)
        except UnseenError as error:
            return Row(name, State.UNKNOWN, str(error), why, error.mend)
        if done is False:
            return Row(name, State.OK, "refused", why)
        return Row(name, self.worst, f"NOT refused: {how}", why, self.mend)

    # -- the tries ----------------------------------------------------------------------------------------------------

    def _call(self, operation: str, **arguments: Any) -> Any:
        return getattr(self.client, operation)(Bucket=self.run.bucket, **self.look.owner(), **arguments)

    def _get(self, **arguments: Any) -> None:
        self._call("get_object", Range="bytes=0-0", **arguments)["Body"].close()

    def _read(self) -> None:
        self._get(Key=self._probe().key)

    def _read_version(self) -> None:
        probe = self._probe()
        if not probe.version:
            raise UnseenError("not tried: the probe object has no version")
        self._get(Key=probe.key, VersionId=probe.version)

    def _list_parts(self) -> None:
        place, name, upload_id = self._upload("adds")
        self._call("list_parts", Key=place.key(name), UploadId=upload_id)

    def _begin(self, client: Any, place: Place, name: str) -> tuple[Place, str, str]:
        # As a run does it, but what S3 answers is looked at, not explained.
        control = Control(client, place, self.look.s3)
        key = self.look.s3.sse_kms_key
        sealed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
        answer = client.create_multipart_upload(**control.arguments(name), ChecksumAlgorithm="SHA256", **sealed)
        upload = place, name, str(answer["UploadId"])
        self._begun.append(upload)
        return upload

    def _part(self, client: Any, place: Place, name: str, upload_id: str) -> str:
        answer = client.upload_part(
            Bucket=place.bucket, Key=place.key(name), UploadId=upload_id, PartNumber=1, Body=BODY,
            ChecksumSHA256=_CHECKSUM, **self.look.owner(),
        )  # fmt: skip
        return str(answer["ETag"])

    def _upload(self, name: str) -> tuple[Place, str, str]:
        """The upload of that name: begun before, by the host now, or by the responder where the host may not."""
        for upload in self._begun:
            if upload[1] == name:
                return upload
        for client in (self.client, self.look.client):
            try:
                return self._begin(client, self.run, name)
            except Exception as error:
                if not _is_refusal(error):
                    raise
        raise UnseenError("not tried: neither the host nor who checks may start an upload")

    def _complete(self, name: str, condition: dict[str, str]) -> None:
        upload = place, name, upload_id = self._upload(name)
        etag = ""
        for client in (self.client, self.look.client):
            try:
                etag = self._part(client, *upload)
                break
            except Exception as error:
                if not _is_refusal(error):
                    raise
        if not etag:
            raise UnseenError("not tried: neither the host nor who checks may add a part")
        parts = [{"PartNumber": 1, "ETag": etag, "ChecksumSHA256": _CHECKSUM}]
        key = place.key(name)
        self._call(
            "complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
        )
        self._begun.remove(upload)
        self.left.append(f"object {key}")

    def _put(self, place: Place, name: str, condition: dict[str, str]) -> None:
        self._call("put_object", Key=place.key(name), Body=BODY, ChecksumSHA256=_CHECKSUM, **condition)
        self.left.append(f"object {place.key(name)}")

    def _overwrite(self) -> None:
        key = self._probe().key
        answer = self._call("put_object", Key=key, Body=BODY, ChecksumSHA256=_CHECKSUM)
        self.left.append(f"version {answer.get('VersionId', '?')} of {key}")

    def _abort(self) -> None:
        upload = place, name, upload_id = self._upload("abort")
        self._call("abort_multipart_upload", Key=place.key(name), UploadId=upload_id)
        self._begun.remove(upload)

    def _delete(self) -> None:
        key = self.run.key("absent")
        answer = self._call("delete_object", Key=key)
        if answer.get("DeleteMarker"):
            self.left.append(f"delete marker {answer.get('VersionId', '?')} of {key}")

    def _retain(self) -> None:
        probe = self._probe()
        mode, until = probe.mode or "GOVERNANCE", (probe.until or datetime.now(UTC)) + timedelta(seconds=1)
        if probe.until is None:
            until += timedelta(minutes=1)  # S3 refuses what is past when it arrives
        version = {"VersionId": probe.version} if probe.version else {}
        self._call("put_object_retention", Key=probe.key, Retention={"Mode": mode, "RetainUntilDate": until}, **version)

    def _hold(self) -> None:
        self._call("put_object_legal_hold", Key=self._probe().key, LegalHold={"Status": "OFF"})

    def _policy(self) -> None:
        text = self.look.seen.get("policy_text")
        if not text:
            raise UnseenError(_nothing_to_put("policy"))
        self._call("put_bucket_policy", Policy=text)

    def _versioning(self) -> None:
        status = (self.look.seen.get("versioning") or {}).get("Status")
        if not status:
            raise UnseenError(_nothing_to_put("versioning"))
        self._call("put_bucket_versioning", VersioningConfiguration={"Status": status})

    def _lifecycle(self) -> None:
        answer = self.look.seen.get("lifecycle")
        if not answer or not answer.get("Rules"):
            raise UnseenError(_nothing_to_put("lifecycle"))
        least = answer.get("TransitionDefaultMinimumObjectSize")
        more = {"TransitionDefaultMinimumObjectSize": least} if least else {}
        self._call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": answer["Rules"]}, **more)

    def _probe(self) -> Probe:
        if self.probe is None:
            raise UnseenError(
                "not tried: who checks may not make an object to try it with",
                "check with the responder's role: `impound bucket policy --kind responder`",
            )
        return self.probe

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        for place, name, upload_id in self._begun:
            try:
                with explained("the probe's upload could not be aborted"):
                    self.look.client.abort_multipart_upload(
                        Bucket=place.bucket, Key=place.key(name), UploadId=upload_id, **self.look.owner()
                    )
            except Exception as error:  # noqa: BLE001 - whatever it is, what is left is named, and the rest goes on
                self.stay.count += 1
                self.stay.below[place.prefix] = None
                if not isinstance(error, AuthorityError):  # the responder's role may not abort: nothing failed
                    self.stay.failed = self.stay.failed or str(error)
        self._begun.clear()


def _nothing_to_put(what: str) -> str:
    return f"not tried: there is no {what} to put again as it is, or it could not be read; another would be a change"


_NOT_ACCEPTED = {
    # Of who asks, or where, not of what may be done there.
    "AuthorizationHeaderMalformed", "ExpiredToken", "IllegalLocationConstraintException", "InvalidAccessKeyId",
    "InvalidToken", "NoSuchBucket", "PermanentRedirect", "RequestTimeTooSkewed", "SignatureDoesNotMatch",
    "TemporaryRedirect", "TokenRefreshRequired",
}  # fmt: skip


def _is_refusal(error: Exception) -> bool:
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError) and code_of(error)[0] in DENIED | {"MethodNotAllowed", "405"}


def _tried(call: Callable[[], object]) -> tuple[bool, str]:
    """Whether it was let through, and how. Raises `UnseenError`, and `StoreError` where nothing can be told at all."""
    from botocore.exceptions import ClientError

    what = "the host's authority could not be tried"
    with explained(what):
        try:
            call()
        except ClientError as error:
            code, status, message = code_of(error)
            if _is_refusal(error):
                return False, code
            if status == 501 or code == "NotImplemented":
                raise UnseenError(f"this server does not know it ({code})") from error
            if code in _NOT_ACCEPTED or status >= 500:
                raise store_error(what, code, message, status) from error
            return True, f"S3 answers {code}, not AccessDenied: the right is there"
    return True, "it worked"
