"""Whether a run could be stored in a bucket: asked before anything is read, and without leaving anything there."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
from typing import TYPE_CHECKING

from agent.errors import AuthorityError, StoreError, UsageError
from agent.stores.base import Part
from agent.stores.s3.authority import SignedRequest
from agent.stores.s3.retry import document, judge_part
from agent.stores.s3.store import endpoint_of, open_wire
from agent.stores.s3.wire import Answer, Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.job import S3
    from agent.stores.s3.authority import Authority
    from agent.stores.s3.place import Place

ANSWERS_S = 20.0
PAUSES_S = (0.2, 0.5, 1.0)
"""Before each further try, where it may pass by itself: one bad moment of S3 is no reason to acquire nothing."""
_PASSES = {500, 502, 503, 504}
_RESETS = (
    ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError, http.client.IncompleteRead,
)  # fmt: skip
_PROBE = "probe"
_NOT_THEIRS = {
    "SignatureDoesNotMatch": "the secret key is wrong: it is not the one of this access key",
    "InvalidAccessKeyId": "the access key is wrong: S3 knows none of that name",
}
"""Whose credentials these are is the question, not what they may."""


def check_bucket(s3: S3, place: Place, authority: Authority) -> None:
    """Asks the endpoint for the bucket, by nobody's right; then, by its own, for a part of an upload that there is not.

    That S3 knows no such upload is said only to who may add parts. A broker is not asked: it signs what it began.
    Raises `UsageError` with what to do.
    """
    wire = open_wire(s3)
    try:
        _look(_answer(wire, s3, SignedRequest("HEAD", endpoint_of(s3) + place.bucket, {})), s3, place)
        if authority.kind == "broker":
            return
        body = _PROBE.encode("ascii")
        sha256 = hashlib.sha256(body).digest()
        request = authority.sign(_PROBE, _PROBE, 1, Part(len(body), sha256))
        answer = _answer(wire, s3, request, [memoryview(body)])
        what = f"nothing can be stored in {place}"
        verdict = judge_part(answer.status, answer.headers, answer.body, what=what, sha256=sha256, region=s3.region)
        code = document(answer.body)[0]
        if code in _NOT_THEIRS:
            raise UsageError(f"{what}: {_NOT_THEIRS[code]} ({code})")
        if code != "NoSuchUpload":
            raise verdict.error or StoreError(f"{what}: the server takes parts of an upload that there is not")
    except AuthorityError as error:
        whose = f", and the bucket must be of {s3.bucket_owner}" if s3.bucket_owner else ""
        raise UsageError(f"{error}: the credentials need s3:PutObject below {place}{whose}") from error
    except StoreError as error:
        raise UsageError(str(error)) from error
    finally:
        wire.close()


def _answer(wire: Wire, s3: S3, request: SignedRequest, body: Sequence[memoryview] = ()) -> Answer:
    for pause in PAUSES_S:
        try:
            answer = wire.exchange(request, body, seconds=ANSWERS_S)
            if answer.status not in _PASSES:
                return answer
        except WireError as error:
            if not (error.stale or isinstance(error.__cause__, _RESETS)):
                raise _unreached(s3, error) from error
        time.sleep(pause)
    try:
        return wire.exchange(request, body, seconds=ANSWERS_S)
    except WireError as error:
        raise _unreached(s3, error) from error


def _unreached(s3: S3, error: WireError) -> UsageError:
    host = endpoint_of(s3).split("/")[2]
    if error.trust:
        return UsageError(f"{host}: {error}: if it is yours, give the certificate of who signed it with --ca-bundle")
    return UsageError(
        f"{host} does not answer: {error}: is there a way to S3 from here, or should it be --endpoint-url?"
    )


def _look(answer: Answer, s3: S3, place: Place) -> None:
    there = answer.headers.get("x-amz-bucket-region", "")[:40]
    named = there.isascii() and there.replace("-", "").isalnum()
    if answer.status == 404:
        raise UsageError(f"there is no bucket {place.bucket} at {endpoint_of(s3)}: create it, or correct the place")
    if 300 <= answer.status < 400 or (named and s3.region and there != s3.region):
        if named:
            ours = f", not {s3.region}" if s3.region else ""
            raise UsageError(f"the bucket {place.bucket} is in the region {there}{ours}: give it with --region {there}")
        raise UsageError(f"the bucket {place.bucket} is in another region: give it with --region")
