"""What an answer of S3 means for a part, and how long to wait before it is tried again.

Codes: Amazon S3 API Reference, "Error responses". Waiting: full jitter (M. Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import base64
import random
import re
from enum import Enum
from html import unescape
from typing import TYPE_CHECKING

import msgspec

from agent.errors import StoreError
from agent.stores.s3.control import store_error

if TYPE_CHECKING:
    from collections.abc import Mapping

PAUSE_S = 0.2
MAX_PAUSE_S = 20.0
MAX_RETRY_AFTER_S = 120.0
MAX_DOCUMENT = 64 << 10

REFUSED_TRIES, DIGEST_TRIES, ODD_TRIES, EXPIRED_TRIES = 2, 3, 3, 4


class Meaning(Enum):
    """What to do next."""

    DONE = "done"
    AGAIN = "again"
    """It passes by itself."""
    SLOWER = "slower"
    """S3 wants less at a time."""
    RENEW = "renew"
    """What it was signed with has expired."""
    REFUSED = "refused"
    """A right is missing. Rights may take a moment to spread, so once more."""
    DIGEST = "digest"
    """Other bytes came than were sent."""
    ODD = "odd"
    """No answer of S3's."""
    NEVER = "never"
    """The same question gets the same answer."""


TRIES = {
    Meaning.REFUSED: REFUSED_TRIES,
    Meaning.DIGEST: DIGEST_TRIES,
    Meaning.ODD: ODD_TRIES,
    Meaning.RENEW: EXPIRED_TRIES,
    Meaning.NEVER: 1,
}
"""How often a part meets it before it is given up; the others for as long as the store is patient."""

_SLOWER = {"SlowDown", "ServiceUnavailable", "TooManyRequestsException", "Throttling", "ThrottlingException", "Busy"}
_AGAIN = {"RequestTimeout", "InternalError", "OperationAborted", "IncompleteBody", "ConditionalRequestConflict"}
_RENEW = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_DIGEST = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"}
_NEVER = {"RequestTimeTooSkewed", "NoSuchUpload", "NoSuchBucket", "AuthorizationHeaderMalformed"}


class Verdict(msgspec.Struct, frozen=True):
    """What an answer means. `error` is what to raise where it is given up."""

    meaning: Meaning
    error: StoreError | None = None
    retry_after: float = 0.0
    etag: str = ""


def judge_part(
    status: int, headers: Mapping[str, str], body: bytes, *, what: str, sha256: bytes, region: str = ""
) -> Verdict:
    """What the answer to an `UploadPart` means. `what` begins the line for a person, `sha256` is that of the part."""
    if status == 200:
        etag, checksum = headers.get("etag", ""), headers.get("x-amz-checksum-sha256", "")
        if not _ETAG.fullmatch(etag):
            return Verdict(Meaning.ODD, StoreError(f"{what}: the server takes it and gives no ETag: it is not S3"))
        if checksum and checksum != base64.b64encode(sha256).decode("ascii"):
            return Verdict(
                Meaning.DIGEST, StoreError(f"{what}: the server has another checksum of it than it was sent")
            )
        return Verdict(Meaning.DONE, etag=etag)
    code, message = document(body)
    if 300 <= status < 400 or code in {"AuthorizationHeaderMalformed", "PermanentRedirect"}:
        return Verdict(Meaning.NEVER, _elsewhere(what, headers, body, region))
    error = store_error(what, code, message, status)
    if code in _RENEW or (status == 403 and message == "Request has expired"):
        return Verdict(Meaning.RENEW, error)
    if code in _SLOWER or status in {429, 503}:
        return Verdict(Meaning.SLOWER, error, retry_after(headers))
    if code in _DIGEST:
        return Verdict(
            Meaning.DIGEST, StoreError(f"{what}: S3 received other bytes than were sent, each time ({code})")
        )
    if code in _AGAIN or status in {408, 500, 502, 504}:
        return Verdict(Meaning.AGAIN, error, retry_after(headers))
    if code in _NEVER or status < 400:
        return Verdict(Meaning.NEVER, error)
    if status == 403:
        return Verdict(Meaning.REFUSED, error)
    return Verdict(Meaning.NEVER if code else Meaning.ODD, error)


_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,128}"')
"""With both quotes: an answer that was cut short must not pass for a whole one."""


def _elsewhere(what: str, headers: Mapping[str, str], body: bytes, region: str) -> StoreError:
    there = headers.get("x-amz-bucket-region", "") or _element(body, b"Region")
    if re.fullmatch(r"[a-z0-9-]{1,40}", there):
        return StoreError(f"{what}: the bucket is in the region {there}, not {region or 'the one asked'}: use --region")
    return StoreError(f"{what}: the bucket is elsewhere, and the server does not say where: give its --region")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 0 where it does not (dates are not read: S3 sends none)."""
    said = headers.get("retry-after", "")
    return min(float(said), MAX_RETRY_AFTER_S) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0


def document(body: bytes) -> tuple[str, str]:
    """Code and message of an error document, printable and bounded; "" where it has none. Never raises.

    Two elements are all that is wanted of it, so no XML parser sees what a hostile server sends.
    """
    return _element(body, b"Code")[:100], _element(body, b"Message")[:300]


def _element(body: bytes, name: bytes) -> str:
    found = re.search(rb"<" + name + rb">([^<]{0,2000})</" + name + rb">", body[:MAX_DOCUMENT])
    if not found:
        return ""
    text = unescape(found[1].decode("utf-8", "replace"))
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def pause(attempt: int, least: float = 0.0) -> float:
    """Seconds to wait after attempt `attempt` (from 1), at least `least`."""
    ceiling = min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(attempt, 16))
    return least + random.uniform(0, ceiling)  # noqa: S311 - jitter
