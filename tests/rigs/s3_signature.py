"""Signature Version 4 as the server checks it, written from the specification and not with a client's code.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, sigv4-query-string-auth.html
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from tests.rigs.s3_errors import S3Error

if TYPE_CHECKING:
    from tests.rigs.s3_http import Request

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 900
UNSIGNED = "UNSIGNED-PAYLOAD"
TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_HEADER = re.compile(
    rf"{ALGORITHM}\s+Credential=(?P<credential>[^,\s]+),\s*SignedHeaders=(?P<headers>[^,\s]+),\s*"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(slots=True)
class Credential:
    """Somebody who may sign. Policies are JSON documents; without `policy` everything in the account is allowed."""

    access_key: str
    secret_key: str = field(repr=False)
    arn: str
    account: str = "111122223333"
    token: str = field(default="", repr=False)
    policy: dict[str, Any] | None = None
    session_policy: dict[str, Any] | None = None
    expires: float | None = None
    """Seconds since 1970 on the server's clock."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed a request, and how. `credential` is None for an anonymous one."""

    credential: Credential | None = None
    kind: str = ""
    """What `s3:authType` says: REST-HEADER or REST-QUERY-STRING."""
    payload: str = UNSIGNED
    """SHA-256 of the body in hex, or one of the words that stand for it."""
    age_s: float = 0.0
    service: str = ""
    region: str = ""


def _encode(raw: bytes, safe: str = "") -> str:
    return quote(raw, safe=f"-._~{safe}")


def canonical_query(query: str, *, without: str = "") -> str:
    """Every name and value decoded and encoded again, sorted."""
    pairs = []
    for item in query.split("&") if query else []:
        name, _, value = item.partition("=")
        if name != without:
            pairs.append((_encode(unquote_to_bytes(name)), _encode(unquote_to_bytes(value))))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def signature(
    request: Request, *, secret: str, scope: str, stamp: str, signed_headers: list[str], payload: str, query: str
) -> str:
    """The signature that the request should carry, in hex."""
    lines = [f"{name}:{re.sub(' +', ' ', request.headers[name].strip())}\n" for name in signed_headers]
    canonical = "\n".join(
        [
            request.method,
            _encode(unquote_to_bytes(request.path), "/") or "/",
            query,
            "".join(lines),
            ";".join(signed_headers),
            payload,
        ]
    )
    to_sign = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode("latin-1")).hexdigest()])
    key = f"AWS4{secret}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def query_of(request: Request) -> dict[str, str]:
    """The query, decoded; a name that is given twice counts once, the last."""
    pairs = (item.partition("=") for item in request.query.split("&")) if request.query else ()
    return {
        unquote_to_bytes(name).decode("utf-8", "replace"): unquote_to_bytes(value).decode("utf-8", "replace")
        for name, _, value in pairs
    }


class Verifier:
    """Checks signatures against the credentials that are registered."""

    def __init__(self, now: Callable[[], float], region: str) -> None:
        self.now, self.region = now, region
        self.credentials: dict[str, Credential] = {}

    def verify(self, request: Request, services: tuple[str, ...] = ("s3",), body: bytes = b"") -> Signed:
        """Who signed it. Raises `S3Error`.

        For S3 the body is not read: hold it against `payload` afterwards. Every other service signs the body itself.
        """
        query = query_of(request)
        by_query = "X-Amz-Signature" in query or "X-Amz-Algorithm" in query
        if "authorization" in request.headers:
            if by_query:
                raise S3Error("InvalidArgument", "Only one auth mechanism allowed; only the X-Amz-Algorithm query "
                              "parameter, Signature query string parameter or the Authorization header should be "
                              "specified")  # fmt: skip
            return self._by_header(request, services, body)
        return self._by_query(request, query, services) if by_query else Signed()

    def _by_header(self, request: Request, services: tuple[str, ...], body: bytes) -> Signed:
        found = _HEADER.fullmatch(request.headers["authorization"].strip())
        if not found:
            raise S3Error("AuthorizationHeaderMalformed", "The authorization header is malformed")
        stamp = request.headers.get("x-amz-date", "")
        signed_at = _time(stamp)
        if signed_at is None:
            raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
        access_key, scope, service, region = self._scope(
            found["credential"], stamp, services, "AuthorizationHeaderMalformed"
        )
        payload = request.headers.get("x-amz-content-sha256", "")
        if service == "s3":
            if not payload:
                raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
            if payload in {UNSIGNED, TRAILER} and not request.secure:
                raise S3Error("InvalidRequest", "An unsigned payload is accepted over HTTPS only")
        credential = self._credential(access_key, request.headers.get("x-amz-security-token", ""))
        names = self._signed_headers(request, found["headers"])
        if service != "s3":
            payload = hashlib.sha256(body).hexdigest()
        expected = signature(
            request,
            secret=credential.secret_key,
            scope=scope,
            stamp=stamp,
            signed_headers=names,
            payload=payload,
            query=canonical_query(request.query),
        )
        self._compare(expected, found["signature"])
        if abs(self.now() - signed_at) > MAX_SKEW_S:
            raise S3Error(
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                more={
                    "RequestTime": stamp,
                    "ServerTime": _iso(self.now()),
                    "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
                },
            )
        return Signed(credential, "REST-HEADER", payload, self.now() - signed_at, service, region)

    def _by_query(self, request: Request, query: dict[str, str], services: tuple[str, ...]) -> Signed:
        wrong = "AuthorizationQueryParametersError"
        needed = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
        if any(f"X-Amz-{name}" not in query for name in needed) or query["X-Amz-Algorithm"] != ALGORITHM:
            raise S3Error(wrong, f"Query-string authentication version 4 requires the {', '.join(needed)} parameters")
        signed_at = _time(query["X-Amz-Date"])
        expires = int(query["X-Amz-Expires"]) if re.fullmatch("[0-9]{1,9}", query["X-Amz-Expires"]) else -1
        if signed_at is None or not 1 <= expires <= 604_800:
            raise S3Error(wrong, "X-Amz-Expires must be less than a week (in seconds); X-Amz-Date must be a date")
        access_key, scope, service, region = self._scope(
            query["X-Amz-Credential"], query["X-Amz-Date"], services, wrong
        )
        if signed_at - self.now() > MAX_SKEW_S:
            raise S3Error("AccessDenied", "Request is not yet valid")
        if self.now() > signed_at + expires:
            more = {"X-Amz-Expires": str(expires), "Expires": _iso(signed_at + expires), "ServerTime": _iso(self.now())}
            raise S3Error("AccessDenied", "Request has expired", more=more)
        credential = self._credential(access_key, query.get("X-Amz-Security-Token", ""))
        names = self._signed_headers(request, query["X-Amz-SignedHeaders"])
        payload = query.get("X-Amz-Content-Sha256") or request.headers.get("x-amz-content-sha256") or UNSIGNED
        expected = signature(
            request,
            secret=credential.secret_key,
            scope=scope,
            stamp=query["X-Amz-Date"],
            signed_headers=names,
            payload=payload,
            query=canonical_query(request.query, without="X-Amz-Signature"),
        )
        self._compare(expected, query["X-Amz-Signature"])
        return Signed(credential, "REST-QUERY-STRING", payload, self.now() - signed_at, service, region)

    def _scope(self, text: str, stamp: str, services: tuple[str, ...], wrong: str) -> tuple[str, str, str, str]:
        words = text.split("/")
        if len(words) != 5 or words[4] != "aws4_request":
            raise S3Error(wrong, "the Credential is malformed; expecting <KEY>/YYYYMMDD/REGION/SERVICE/aws4_request")
        access_key, day, region, service, _ = words
        if day != stamp[:8]:
            raise S3Error(wrong, f"Invalid credential date {day}. This date is not the same as X-Amz-Date: {stamp[:8]}")
        if region != self.region:
            more = {"Region": self.region}
            raise S3Error(wrong, f"the region '{region}' is wrong; expecting '{self.region}'", more=more)
        if service not in services:
            raise S3Error(wrong, f"incorrect service '{service}'. This endpoint belongs to {services[0]}")
        return access_key, "/".join(words[1:]), service, region

    def _credential(self, access_key: str, token: str) -> Credential:
        credential = self.credentials.get(access_key)
        unknown = "The AWS Access Key Id you provided does not exist in our records."
        if credential is None or (credential.token and not token):
            raise S3Error("InvalidAccessKeyId", unknown, more={"AWSAccessKeyId": access_key})
        if not hmac.compare_digest(token.encode(), credential.token.encode()):
            raise S3Error("InvalidToken", "The provided token is malformed or otherwise invalid.")
        if credential.expires is not None and self.now() >= credential.expires:
            raise S3Error("ExpiredToken")
        return credential

    @staticmethod
    def _signed_headers(request: Request, text: str) -> list[str]:
        names = text.split(";")
        if names != sorted(set(names)) or text != text.lower():
            raise S3Error("SignatureDoesNotMatch", "SignedHeaders must be sorted, lower-case and unique")
        missing = [name for name in names if name not in request.headers]
        if missing:
            raise S3Error("SignatureDoesNotMatch", f"signed, and not sent: {', '.join(missing)}")
        must = [name for name in request.headers if name.startswith("x-amz-") or name in {"host", "content-md5"}]
        unsigned = sorted(set(must) - set(names))
        if unsigned or "host" not in names:
            more = {"HeadersNotSigned": ", ".join(unsigned or ["host"])}
            raise S3Error("AccessDenied", "There were headers present in the request which were not signed", more=more)
        return names

    @staticmethod
    def _compare(expected: str, given: str) -> None:
        if not hmac.compare_digest(expected, given):
            raise S3Error(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. Check your key and "
                "signing method.",
            )


def _time(stamp: str) -> float | None:
    try:
        parsed = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ")  # noqa: DTZ007 - the Z is in the format
    except ValueError:
        return None
    return parsed.replace(tzinfo=dt.UTC).timestamp()


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
