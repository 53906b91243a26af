"""Who signs: what a session does with its credentials, and where requests go."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable

import pytest

from agent.channel.messages import Credentials
from agent.errors import AuthorityError, StoreError, UnreachableError
from agent.job import S3
from agent.stores.base import Part
from agent.stores.s3.place import parse_place
from agent.stores.s3.session import Session, session
from agent.stores.s3.store import endpoint_of

PLACE = parse_place("s3://evidence/ir/INC-1/host/run")
PART = Part(5, bytes(32))


class Channel:
    """A controller that hands out credentials with ascending numbers."""

    def __init__(self, lasts: float = 3600) -> None:
        self.asked, self.lasts = 0, lasts
        self.away: StoreError | None = None

    def put(self, name: str, data: bytes, /) -> None:
        raise AssertionError

    def complete(self, name: str, upload_id: str, parts: object, /) -> None:
        raise AssertionError

    def renew(self) -> Credentials:
        if self.away:
            raise self.away
        self.asked += 1
        return Credentials(f"ASIA{self.asked}", "secret", "token", 10_000 + self.lasts)


def made(channel: Channel, clock: Callable[[], float] = lambda: 10_000.0) -> Session:
    return Session(PLACE, S3(region="eu-central-1"), None, channel, clock=clock)


def key_of(authority: Session) -> str:
    header = authority.sign("a/b", "up", 1, PART).headers["authorization"]
    return header.partition("Credential=")[2].partition("/")[0]


@pytest.mark.parametrize(
    ("s3", "bucket", "url"),
    [
        (S3(region="eu-central-1"), "evidence", "https://evidence.s3.eu-central-1.amazonaws.com/ir/a%20b/c"),
        (S3(region="us-east-1"), "evidence", "https://evidence.s3.us-east-1.amazonaws.com/ir/a%20b/c"),
        (S3(region="cn-north-1"), "evidence", "https://evidence.s3.cn-north-1.amazonaws.com.cn/ir/a%20b/c"),
        (S3(region="eu-west-1"), "ev.idence", "https://s3.eu-west-1.amazonaws.com/ev.idence/ir/a%20b/c"),
        (
            S3(region="eu-west-1", endpoint_url="https://minio:9000"),
            "evidence",
            "https://minio:9000/evidence/ir/a%20b/c",
        ),
    ],
)
def test_requests_go_where_botocore_would_send_them(s3: S3, bucket: str, url: str) -> None:
    authority = session(parse_place(f"s3://{bucket}/ir"), s3, Credentials("A", "s", "t", 4e9))
    signed = authority.sign("a b/c", "up/+=id", 7, PART)
    assert signed.url == f"{url}?partNumber=7&uploadId=up%2F%2B%3Did"
    assert signed.method == "PUT"
    assert signed.headers["x-amz-security-token"] == "t"
    authority.close()


def test_the_first_credentials_are_asked_for_and_kept() -> None:
    channel = Channel()
    authority = made(channel)
    assert [key_of(authority) for _ in range(3)] == ["ASIA1"] * 3
    with pytest.raises(AuthorityError, match="neither credentials nor a channel"):
        session(PLACE, S3(), None)


def test_they_are_renewed_before_they_end_and_not_at_each_part() -> None:
    channel = Channel(lasts=299)
    authority = made(channel)
    assert key_of(authority) == "ASIA2"
    assert key_of(authority) == "ASIA2"  # a clock that is wrong must not make it ask for every part


def test_a_channel_that_does_not_answer_costs_nothing_while_they_last() -> None:
    channel = Channel(lasts=299)
    authority = made(channel)
    channel.away = UnreachableError("away")
    assert key_of(authority) == "ASIA1"
    authority.expired(authority.sign("a", "up", 1, PART))
    with pytest.raises(UnreachableError):
        authority.sign("a", "up", 1, PART)
    channel.away = None
    assert key_of(authority) == "ASIA2"


def test_what_s3_calls_expired_is_renewed_once_however_many_parts_say_so() -> None:
    channel = Channel()
    authority = made(channel)
    old = [authority.sign("a", "up", number, PART) for number in range(1, 9)]
    authority.expired(old[0])
    assert key_of(authority) == "ASIA2"
    threads = [threading.Thread(target=authority.expired, args=(one,)) for one in old]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert key_of(authority) == "ASIA2"
    assert channel.asked == 2


def test_credentials_are_not_shown() -> None:
    authority = session(PLACE, S3(region="eu-central-1"), Credentials("AKIA", "very-secret", "very-token", 4e9))
    signed = authority.sign("a", "up", 1, PART)
    shown = repr(authority) + str(signed) + repr(vars(authority))
    assert "very-" not in shown
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(authority)


@pytest.mark.parametrize(
    ("s3", "url"),
    [
        (S3(), "https://s3.us-east-1.amazonaws.com/"),
        (S3(region="eu-west-3"), "https://s3.eu-west-3.amazonaws.com/"),
        (S3(region="cn-north-1"), "https://s3.cn-north-1.amazonaws.com.cn/"),
        (S3(region="x", endpoint_url="http://h:1/"), "http://h:1/"),
    ],
)
def test_where_the_clock_is_asked(s3: S3, url: str) -> None:
    assert endpoint_of(s3) == url
