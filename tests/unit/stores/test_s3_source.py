"""A run in a bucket as a source: what is listed, which bytes are read, how much is asked for, what trouble says."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.errors import SourceError, UsageError
from agent.job import S3
from agent.stores.s3 import read_listing, read_ranges
from agent.stores.s3.read_ahead import BUDGET, PIECE, SMALL
from agent.stores.s3.source import S3Source
from tests.rigs.s3_state import Version
from tests.rigs.strict_s3 import StrictS3
from tests.support.s3_reading import BUCKET, Bucket, log_in

if TYPE_CHECKING:
    from tests.rigs.s3_http import Request, Response

MIB = 1 << 20
PLACE = f"s3://{BUCKET}/run"


class Liar(StrictS3):
    """The fake, with an answer that a test changes."""

    change: Callable[[Response], None] | None = None

    def _answer(self, request: Request) -> Response:
        response = super()._answer(request)
        if self.change is not None and response.status == 206:
            self.change(response)
        return response


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(read_ranges, "PAUSE_S", 0.001)
    with Liar(tmp_path) as server:
        server.make_bucket(BUCKET, versioning=True)
        log_in(monkeypatch, server.admin)
        yield Bucket(server, tmp_path, server.client("s3"))


def allow(*actions: str) -> dict[str, object]:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return {"Version": "2012-10-17", "Statement": [statement]}


def read(source: S3Source, name: str, step: int = MIB) -> bytes:
    blob = source.open(name)
    try:
        return b"".join(blob.read_at(offset, step) for offset in range(0, max(1, blob.size), step))
    finally:
        blob.close()


# -- what lies there --------------------------------------------------------------------------------------------------


def test_names_over_many_pages_are_all_there_with_their_sizes(bucket: Bucket) -> None:
    held = bucket.server.bucket(BUCKET)
    for number in range(2500):
        held.add(Version(f"run/d/{number:05d}", "", time.time(), etag="x"), time.time(), ("", 0.0, False))
    bucket.put("run/e", b"12345")
    bucket.put("running/not/of/this", b"")
    for _ in range(1100):
        # Versions of one key on both sides of the end of a page.
        held.add(Version("run/d/00999", "", time.time(), etag="y"), time.time(), ("", 0.0, False))
    with_problem = {}
    names = []
    source = bucket.source(PLACE)
    for one in source.names():
        names.append(one.name)
        if one.problem:
            with_problem[one.name] = one.problem
        assert one.size == (5 if one.name == "e" else 0)
    assert names == [f"d/{number:05d}" for number in range(2500)] + ["e"]
    assert list(with_problem) == ["d/00999"]
    assert with_problem["d/00999"].startswith("has 1101 versions: something was put over it on 20")
    assert not source.note
    source.close()


@pytest.mark.parametrize(
    "name", ["a//b", "../x", "./x", "dir/", "nul\x01l", "line\nbreak", "\u202egnp.exe", "\ud7ff\ufffd"]
)
def test_names_that_nobody_makes_paths_of_are_no_objects(bucket: Bucket, name: str) -> None:
    held = bucket.server.bucket(BUCKET)
    held.add(Version(f"run/{name}", "", time.time(), etag="x"), time.time(), ("", 0.0, False))
    bucket.put("run/ok", b"1")
    source = bucket.source(PLACE)
    assert {one.name: one.regular for one in source.names()} == {name: False, "ok": True}
    source.close()


def test_the_first_version_is_read_whatever_came_after(bucket: Bucket) -> None:
    bucket.put("run/a", b"evidence")
    bucket.put("run/a", b"forged!!")
    bucket.client.delete_object(Bucket=BUCKET, Key="run/a")
    bucket.client.delete_object(Bucket=BUCKET, Key="run/never")
    source = bucket.source(PLACE)
    listed = {one.name: one for one in source.names()}
    assert (listed["a"].size, listed["a"].regular) == (8, True)
    assert "has 2 versions" in listed["a"].problem
    assert "was marked deleted on 20" in listed["a"].problem
    assert not listed["never"].regular
    assert "nothing is left of it" in listed["never"].problem
    assert read(source, "a") == b"evidence"
    for name in ("never", "none", "../run/a", ""):
        with pytest.raises(SourceError, match="not there"):
            source.open(name)
    source.close()


def test_without_the_right_to_list_versions_it_reads_what_is_current_and_says_so(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("run/a", b"evidence")
    log_in(monkeypatch, bucket.server.add_user("analyst", allow("s3:ListBucket", "s3:GetObject")))
    source = bucket.source(PLACE)
    assert [(one.name, one.size, one.problem) for one in source.names()] == [("a", 8, "")]
    assert "s3:ListBucketVersions" in source.note
    assert read(source, "a") == b"evidence"
    source.close()


def test_a_listing_is_bounded(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        bucket.put(f"run/{name}", b"")
    monkeypatch.setattr(read_listing, "MAX_KEYS", 2)
    source = bucket.source(PLACE)
    with pytest.raises(SourceError, match="more than 2 objects"):
        list(source.names())
    source.close()


class _Endless:
    """A server whose listing has no end, or that is none."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer = answer

    def list_object_versions(self, **_: object) -> dict[str, object]:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"IsTruncated": True}, "does not come to an end"),
        ({"IsTruncated": True, "NextKeyMarker": "run/a"}, "does not come to an end"),
        ({"Versions": [{"Key": "other/a", "Size": 1, "VersionId": "1"}]}, "what was not asked for"),
        ({"Versions": [{"Key": "run/a", "Size": -1, "VersionId": "1"}]}, "not one of S3"),
        ({"Versions": [{"Key": "run/a", "VersionId": "1"}]}, "not one of S3"),
        ({"Versions": [7]}, "not one of S3"),
    ],
)
def test_a_listing_that_is_none_is_refused(answer: dict[str, object], words: str) -> None:
    lister = read_listing.Lister(_Endless(answer), BUCKET, "")
    with pytest.raises(SourceError, match=words):
        lister.objects("run/")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_every_range_gives_the_bytes_that_are_there(bucket: Bucket) -> None:
    data = os.urandom(3 * MIB + 17)
    bucket.put("run/a", data)
    bucket.put("run/empty", b"")
    source = bucket.source(PLACE)
    assert read(source, "a") == data
    assert read(source, "a", 70_001) == data
    assert read(source, "a", 99 * MIB) == data
    assert read(source, "empty") == b""
    blob = source.open("a")
    chance = random.Random(7)
    offset = 0
    for _ in range(150):
        offset = chance.choice([offset, chance.randrange(len(data) + 10), max(0, offset - 500)])
        length = chance.choice([0, 1, 16, 4096, 200_000, MIB])
        assert blob.read_at(offset, length) == data[offset : offset + length], (offset, length)
        offset += length
    assert blob.read_at(-1, 10) == b""
    blob.close()
    with pytest.raises(SourceError, match="closed"):
        blob.read_at(0, 1)
    source.close()


def test_every_request_names_version_etag_range_and_owner(bucket: Bucket) -> None:
    bucket.put("run/a", b"x" * 1000)
    settings = bucket.settings
    source = S3Source(
        bucket.source(PLACE)._place,
        S3(endpoint_url=settings.endpoint_url, region=settings.region, bucket_owner=bucket.server.account),
    )
    assert read(source, "a") == b"x" * 1000
    [asked] = bucket.server.requests("GetObject")
    held = bucket.server.bucket(BUCKET).objects["run/a"][0]
    assert asked.query["versionId"] == held.version_id
    assert asked.headers["if-match"].strip('"') == held.etag
    assert asked.headers["range"] == "bytes=0-999"
    for one in bucket.server.requests(lambda asked: asked.method == "GET"):
        assert one.headers["x-amz-expected-bucket-owner"] == bucket.server.account
    source.close()


def test_a_read_at_random_asks_for_little(bucket: Bucket) -> None:
    data = os.urandom(24 * MIB)
    bucket.put("run/a", data)
    source = bucket.source(PLACE)
    blob = source.open("a")
    for offset in (23 * MIB, 5 * MIB, 11 * MIB, 0):
        assert blob.read_at(offset, 100) == data[offset : offset + 100]
    assert bucket.read_from_server() == 4 * SMALL
    blob.close()
    source.close()


def test_reading_in_order_asks_further_and_further_ahead_and_never_beyond_its_bounds(bucket: Bucket) -> None:
    size = 200 * MIB
    bucket.put("run/a", bytes(size))
    source = bucket.source(PLACE)
    blob = source.open("a")
    most = 0
    for offset in range(0, size, MIB):
        assert len(blob.read_at(offset, MIB)) == MIB
        ahead = bucket.read_from_server() - offset
        most = max(most, ahead)
        if offset == MIB:
            assert ahead <= 4 * MIB
    assert bucket.read_from_server() == size  # nothing twice
    assert BUDGET / 2 < most <= BUDGET + PIECE
    ranges = bucket.server.requests("GetObject")
    assert max(asked.ended - asked.started for asked in ranges) < 60
    assert len({asked.peer for asked in ranges}) > 1
    blob.close()
    source.close()


def test_what_will_be_read_is_asked_for_before_it_is_opened(bucket: Bucket) -> None:
    names = [f"o/{number:03d}" for number in range(150)]
    for name in names:
        bucket.put(f"run/{name}", name.encode() * 100)
    source = bucket.source(PLACE)
    list(source.names())
    source.prefetch(names)
    deadline = time.monotonic() + 10
    while len(bucket.server.requests("GetObject")) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    asked = len(bucket.server.requests("GetObject"))
    assert 60 <= asked <= 70  # ahead, and not without bound
    assert read(source, "o/149") == b"o/149" * 100  # far ahead: what lies between is given up
    source.prefetch(names)
    for name in [*names[:20], *names[40:60], "o/010", *names[61:]]:  # some are skipped, one is read again
        assert read(source, name) == name.encode() * 100
    source.close()


def test_large_objects_are_read_ahead_within_the_same_bounds(bucket: Bucket) -> None:
    for name in "abc":
        bucket.put(f"run/{name}", bytes(40 * MIB))
    source = bucket.source(PLACE)
    list(source.names())
    source.prefetch("abc")
    time.sleep(0.5)
    assert bucket.read_from_server() == BUDGET
    for name in "abc":
        assert len(read(source, name)) == 40 * MIB
    assert bucket.read_from_server() == 120 * MIB
    source.close()


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_cut_a_pause_and_a_busy_server_lose_nothing(bucket: Bucket) -> None:
    data = os.urandom(20 * MIB)
    bucket.put("run/a", data)
    bucket.server.faults.cut(4, after_response=100_000, where="GetObject")
    bucket.server.faults.refuse(3, status=503, code="SlowDown", where="GetObject")
    bucket.server.faults.cut(2, before_answer=True, where="GetObject")
    bucket.server.faults.stall(0.3, 2, at="answer", where="GetObject")
    source = bucket.source(PLACE)
    assert read(source, "a") == data
    statuses = [asked.status for asked in bucket.server.requests("GetObject")]
    assert 503 in statuses
    assert -1 in statuses
    source.close()


@pytest.mark.parametrize("trouble", ["cut", "refuse"])
def test_trouble_that_does_not_end_is_an_error(bucket: Bucket, trouble: str) -> None:
    bucket.put("run/a", b"x" * MIB)
    if trouble == "cut":
        bucket.server.faults.cut(10_000, after_response=1000, where="GetObject")
    else:
        bucket.server.faults.refuse(10_000, status=403, code="AccessDenied", where="GetObject")
    source = bucket.source(PLACE)
    blob = source.open("a")
    for _ in range(2):
        with pytest.raises(SourceError, match=r"^a cannot be read"):
            blob.read_at(0, 10)
    assert len(bucket.server.requests("GetObject")) <= 2 * read_ranges.ATTEMPTS
    source.close()


def _other_range(response: Response) -> None:
    response.headers["Content-Range"] = "bytes 1-1000/3000"


def _other_total(response: Response) -> None:
    response.headers["Content-Range"] = "bytes 0-2999/9000"


def _no_range(response: Response) -> None:
    del response.headers["Content-Range"]


def _short(response: Response) -> None:
    response.body, response.length = b"x" * 10, 10


def _long(response: Response) -> None:
    response.body, response.length = b"x" * 4000, 4000


def _other_etag(response: Response) -> None:
    response.headers["ETag"] = '"0123"'


def _other_version(response: Response) -> None:
    response.headers["x-amz-version-id"] = "another"


@pytest.mark.parametrize("lie", [_other_range, _other_total, _no_range, _short, _long, _other_etag, _other_version])
def test_an_answer_that_says_something_else_than_was_asked_is_an_error(
    bucket: Bucket, lie: Callable[[Response], None]
) -> None:
    bucket.put("run/a", b"x" * 3000)
    server = bucket.server
    assert isinstance(server, Liar)
    server.change = lie
    source = bucket.source(PLACE)
    with pytest.raises(SourceError, match=r"^a cannot be read"):
        read(source, "a")
    assert len(server.requests("GetObject")) == 1  # and is not asked again
    source.close()


def test_a_server_without_ranges_is_an_error_where_a_range_was_wanted(bucket: Bucket) -> None:
    def whole(response: Response) -> None:
        response.status = 200
        response.headers.pop("Content-Range", None)
        response.body, response.length = b"x" * MIB, MIB

    bucket.put("run/a", b"x" * MIB)
    server = bucket.server
    assert isinstance(server, Liar)
    server.change = whole
    source = bucket.source(PLACE)
    with pytest.raises(SourceError, match="does not answer ranges"):
        source.open("a").read_at(0, 10)
    assert read(source, "a", 2 * MIB) == b"x" * MIB
    source.close()


def test_an_object_that_is_changed_while_it_is_read_is_an_error(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.server.make_bucket("plain")
    bucket.client.put_object(Bucket="plain", Key="run/a", Body=bytes(2 * MIB))
    source = bucket.source("s3://plain/run")
    blob = source.open("a")
    assert blob.read_at(0, 10) == bytes(10)
    bucket.client.put_object(Bucket="plain", Key="run/a", Body=b"x" * (2 * MIB))
    with pytest.raises(SourceError, match="changed while it was read"):
        blob.read_at(MIB, 10)
    bucket.client.delete_object(Bucket="plain", Key="run/a")
    with pytest.raises(SourceError, match="no longer there"):
        source.open("a").read_at(MIB, 10)
    source.close()


def test_what_is_not_allowed_is_named_with_the_right_it_needs(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("run/a", b"x")
    key = "arn:aws:kms:eu-central-1:111122223333:key/0"
    bucket.client.put_object(Bucket=BUCKET, Key="run/k", Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=key)
    everything = ("s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject", "s3:GetObjectVersion")
    log_in(monkeypatch, bucket.server.add_user("no-get", allow(*everything[:2])))
    source = bucket.source(PLACE)
    with pytest.raises(SourceError, match="a cannot be read: S3 refuses it: this needs s3:GetObjectVersion"):
        read(source, "a")
    source.close()
    log_in(monkeypatch, bucket.server.add_user("no-list", allow(*everything[2:])))
    source = bucket.source(PLACE)
    with pytest.raises(SourceError, match="cannot be listed: S3 refuses it: this needs s3:ListBucket "):
        list(source.names())
    source.close()
    log_in(monkeypatch, bucket.server.add_user("no-kms", allow(*everything)))
    source = bucket.source(PLACE)
    assert read(source, "a") == b"x"
    with pytest.raises(SourceError, match=r"k cannot be read: .*kms:Decrypt"):
        read(source, "k")
    source.close()


def test_what_else_is_wrong_is_said_in_one_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def complaint(place: str, **changes: str) -> str:
        settings = {"endpoint_url": bucket.server.endpoint_url, "region": bucket.server.region} | changes
        from agent.stores.s3.place import parse_place

        source = S3Source(parse_place(place), S3(**settings))
        with pytest.raises(SourceError) as caught:
            list(source.names())
        source.close()
        text = str(caught.value)
        assert "\n" not in text
        return text

    assert "no such bucket" in complaint("s3://nothing/run")
    assert "444455556666" in complaint(PLACE, bucket_owner="444455556666")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "SignatureDoesNotMatch" in complaint(PLACE)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UsageError, match="no AWS credentials"):
        bucket.source(PLACE)


def test_closing_ends_what_is_on_its_way(bucket: Bucket) -> None:
    bucket.put("run/a", bytes(100 * MIB))
    source = bucket.source(PLACE)
    list(source.names())
    bucket.server.faults.stall(30, 100, at="answer", where="GetObject")
    source.prefetch(["a"])
    time.sleep(0.3)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 5
    assert len(bucket.server.requests("GetObject")) <= read_ranges.CONNECTIONS
