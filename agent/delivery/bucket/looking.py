"""Read-only questions to a bucket, and what an answer that is none means."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import msgspec

from agent.delivery.bucket.rows import UnseenError
from agent.errors import StoreError
from agent.stores.s3.control import explained, store_error

if TYPE_CHECKING:
    from agent.job import S3
    from agent.stores.s3.place import Place

DENIED = {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "403"}
_UNKNOWN_TO_SERVER = {"NotImplemented", "MethodNotAllowed", "501", "405", "UnsupportedOperation"}


class Looking(msgspec.Struct):
    """One bucket, seen with the responder's authority."""

    client: Any
    place: Place
    s3: S3
    partition: str = "aws"
    skew: tuple[float, float] | None = None
    """Seconds that S3's clock is ahead of ours, and how far off that may be. From the first answer."""
    seen: dict[str, Any] = msgspec.field(default_factory=dict)
    """Answers that several rows need."""

    def owner(self) -> dict[str, str]:
        return {"ExpectedBucketOwner": self.s3.bucket_owner} if self.s3.bucket_owner else {}

    def ask(self, operation: str, permission: str, *missing: str, **arguments: Any) -> dict[str, Any] | None:
        """The answer, or None where S3 says one of the codes `missing`.

        Raises `UnseenError` where it may not be looked at, `StoreError` where nothing can be looked at.
        """
        from botocore.exceptions import ClientError

        what = f"{permission.removeprefix('s3:')} of {self.place.bucket}"
        with explained(what):
            try:
                answer: dict[str, Any] = getattr(self.client, operation)(
                    Bucket=self.place.bucket, **self.owner(), **arguments
                )
            except ClientError as error:
                code, status, message = code_of(error)
                if code in missing:
                    return None
                if code in DENIED:
                    raise UnseenError(f"not allowed: {permission}", _allow(permission)) from error
                if code in _UNKNOWN_TO_SERVER or status == 501:
                    raise UnseenError(f"this server does not know it ({code or status})") from error
                raise store_error(what, code, message, status) from error
        return answer

    def first(self, *, owned: bool = True) -> dict[str, Any] | None:
        """One list of the prefix: proves that the bucket is there, and gives S3's clock and the bucket's region.

        None where it is refused. Not HeadBucket: its refusals have no body, and it is refused to who may list only a
        prefix. Raises `StoreError`, also for a clock that S3 refuses.
        """
        from botocore.exceptions import ClientError

        what, before = f"{self.place} could not be reached", time.time()
        arguments = {"Bucket": self.place.bucket, "Prefix": self.prefix(), "MaxKeys": 1}
        with explained(what):
            try:
                answer: dict[str, Any] = self.client.list_objects_v2(**arguments, **(self.owner() if owned else {}))
            except ClientError as error:
                self._clock(before, error.response)
                code, status, message = code_of(error)
                if code in DENIED:
                    return None
                if code == "RequestTimeTooSkewed" and self.skew is not None:
                    message = f"the clock of this machine is {-self.skew[0]:+.0f} s off S3's"
                    raise StoreError(f"{what}: {message}, and S3 refuses more than 15 minutes") from error
                raise store_error(what, code, message, status) from error
        self._clock(before, answer)
        return answer

    def _clock(self, before: float, answer: dict[str, Any]) -> None:
        after = time.time()
        text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
        try:
            date = parsedate_to_datetime(text).timestamp()
        except (TypeError, ValueError):
            return
        # The header has whole seconds: on average half a second is missing.
        self.skew = date + 0.5 - (before + after) / 2, 0.5 + (after - before) / 2

    def prefix(self) -> str:
        return f"{self.place.prefix}/" if self.place.prefix else ""


def code_of(error: Any) -> tuple[str, int, str]:
    """Code, HTTP status and message of what S3 answered."""
    answer = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    message = str(answer.get("Error", {}).get("Message", ""))[:300]
    return code, int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), message


def _allow(permission: str) -> str:
    return f"allow {permission} to whoever checks: `impound bucket policy --kind responder` has it"
