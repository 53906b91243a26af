"""What an answer to a part means, and how long to wait."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import AuthorityError, ObjectExistsError, StoreError, UnreachableError
from agent.stores.s3.pace import Pace, deadline_s
from agent.stores.s3.retry import MAX_PAUSE_S, Meaning, Verdict, document, judge_part, pause, retry_after

SHA = bytes(range(32))


def judge(status: int, code: str = "", message: str = "m", **headers: str) -> Verdict:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge_part(status, named, body if code else b"", what="part 1", sha256=SHA, region="eu-west-1")


@pytest.mark.parametrize(
    ("status", "code", "meaning", "error"),
    [
        (503, "SlowDown", Meaning.SLOWER, UnreachableError),
        (503, "", Meaning.SLOWER, UnreachableError),
        (429, "", Meaning.SLOWER, StoreError),
        (500, "InternalError", Meaning.AGAIN, UnreachableError),
        (502, "", Meaning.AGAIN, UnreachableError),
        (400, "RequestTimeout", Meaning.AGAIN, UnreachableError),
        (400, "IncompleteBody", Meaning.AGAIN, StoreError),
        (400, "ExpiredToken", Meaning.RENEW, AuthorityError),
        (403, "AccessDenied", Meaning.REFUSED, AuthorityError),
        (403, "", Meaning.REFUSED, AuthorityError),
        (403, "SignatureDoesNotMatch", Meaning.REFUSED, AuthorityError),
        (403, "RequestTimeTooSkewed", Meaning.NEVER, AuthorityError),
        (404, "NoSuchUpload", Meaning.NEVER, StoreError),
        (404, "NoSuchBucket", Meaning.NEVER, StoreError),
        (400, "BadDigest", Meaning.DIGEST, StoreError),
        (400, "XAmzContentSHA256Mismatch", Meaning.DIGEST, StoreError),
        (412, "PreconditionFailed", Meaning.NEVER, ObjectExistsError),
        (400, "", Meaning.ODD, StoreError),
        (204, "", Meaning.NEVER, StoreError),
    ],
)
def test_what_an_answer_means(status: int, code: str, meaning: Meaning, error: type[StoreError]) -> None:
    verdict = judge(status, code)
    assert verdict.meaning is meaning
    assert type(verdict.error) is error
    assert str(verdict.error).startswith("part 1: ")


def test_a_presigned_url_that_has_expired_is_asked_for_again() -> None:
    assert judge(403, "AccessDenied", "Request has expired").meaning is Meaning.RENEW


def test_a_part_is_stored_only_with_an_etag_and_the_right_checksum() -> None:
    checksum = base64.b64encode(SHA).decode()
    assert judge(200, etag='"0af3-1"').etag == '"0af3-1"'
    assert judge(200, etag='"0af3"', x_amz_checksum_sha256=checksum).meaning is Meaning.DONE
    assert judge(200, etag='"0af3"', x_amz_checksum_sha256="AAAA").meaning is Meaning.DIGEST
    assert judge(200).meaning is Meaning.ODD
    assert judge(200, etag='"a\x1bb"').meaning is Meaning.ODD
    assert judge(200, etag='"0af').meaning is Meaning.ODD  # headers that were cut short


def test_the_region_of_the_bucket_is_named() -> None:
    assert "region us-west-2, not eu-west-1" in str(
        judge(301, "PermanentRedirect", x_amz_bucket_region="us-west-2").error
    )
    assert "region us-west-2" in str(judge(307, x_amz_bucket_region="us-west-2").error)
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>ap-south-1</Region></Error>"
    assert "ap-south-1" in str(judge_part(400, {}, body, what="w", sha256=SHA).error)
    hostile = judge(301, x_amz_bucket_region="\x1b[2J" * 9)
    assert "\x1b" not in str(hostile.error)
    assert hostile.meaning is Meaning.NEVER


@pytest.mark.parametrize(
    ("said", "seconds"), [("3", 3.0), ("0", 0.0), ("999999", 120.0), ("-1", 0.0), ("inf", 0.0), ("", 0.0), ("1e9", 0.0)]
)
def test_retry_after_is_bounded(said: str, seconds: float) -> None:
    assert retry_after({"retry-after": said}) == seconds
    assert judge(503, "SlowDown", retry_after=said).retry_after == seconds


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: f"<Code>{text}</Code>".encode()))
def test_any_document_gives_short_printable_text(body: bytes) -> None:
    code, message = document(body)
    assert len(code) <= 100
    assert len(message) <= 300
    assert (code + message).isprintable()
    judge_part(418, {}, body, what="w", sha256=SHA)


def test_entities_are_not_expanded() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><Error><Code>&a;&a;</Code><Message>&lt;b&gt;</Message></Error>'
    assert document(bomb) == ("&a;&a;", "<b>")


def test_waiting_is_jittered_grows_and_is_bounded() -> None:
    assert max(pause(1) for _ in range(200)) <= 0.4
    long = [pause(40) for _ in range(400)]
    assert max(long) <= MAX_PAUSE_S
    assert max(long) > 0.8 * MAX_PAUSE_S
    assert min(long) < 0.2 * MAX_PAUSE_S
    assert min(pause(1, 7.0) for _ in range(50)) >= 7.0


def test_a_part_has_its_size_by_1_mb_a_second_and_half_a_minute_and_more_after_it_was_late() -> None:
    assert deadline_s(64_000_000) == 94
    assert deadline_s(0, 1) == 60
    assert deadline_s(0, 99) == 240


def test_the_pace_halves_when_s3_asks_for_less_and_grows_again() -> None:
    now = [0.0]
    pace = Pace(8, clock=lambda: now[0])
    for _ in range(20):
        pace.went(1, 40)
    assert pace.limit == 8
    pace.slower()
    pace.slower()  # within the same second: one storm, one step
    assert pace.limit == 4
    for _ in range(9):
        now[0] += 2
        pace.slower()
    assert pace.limit == 1
    pace.went(1, 40)
    assert pace.limit == 2


def test_the_pace_follows_a_thin_link() -> None:
    """Parts that take more than half of their time are too many at once; one at a time is always left."""
    pace = Pace(8)
    for _ in range(10):
        pace.went(30, 40)
    assert pace.limit == 1
    pace.went(15, 40)
    assert pace.limit == 1


def test_a_place_is_waited_for_and_given_up() -> None:
    pace = Pace(1)
    assert pace.enter(lambda: False)
    assert not pace.enter(lambda: True)
    pace.leave()
    assert pace.enter(lambda: True)
