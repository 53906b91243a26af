"""Objects into a bucket by our own uploader: whole, create-only, with digests, by every authority."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.channel.messages import Credentials
from agent.errors import ObjectExistsError, UsageError
from agent.job import S3
from agent.stores.base import Part
from agent.stores.s3.ambient import ambient
from agent.stores.s3.control import Control, composite_sha256
from agent.stores.s3.session import session
from agent.stores.s3.store import S3Store
from agent.stores.throttle import Throttle
from tests.rigs.strict_s3 import StrictS3
from tests.support.s3_reading import log_in
from tests.support.s3_uploads import (
    BUCKET,
    MIB,
    RUN,
    Controller,
    credentials_of,
    noise,
    s3_of,
    send,
    store_of,
    wait_until,
)

pytest_plugins = ["tests.rigs.s3_fixtures"]


@pytest.fixture
def server(strict_s3_tls: StrictS3) -> StrictS3:
    strict_s3_tls.make_bucket(BUCKET, lock=True, retention=("COMPLIANCE", 1))
    return strict_s3_tls


@pytest.fixture
def store(server: StrictS3) -> Iterator[S3Store]:
    made = store_of(server)
    yield made
    made.close()


def key(name: str) -> str:
    return RUN.key(name)


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB, 24 * MIB + 7])
def test_what_is_written_is_what_lies_there(server: StrictS3, store: S3Store, size: int) -> None:
    data = noise(size)
    parts = send(store, "a/b.bin", data)
    assert server.read(BUCKET, key("a/b.bin")) == data
    assert server.uploads(BUCKET) == []
    if size <= 8 * MIB:
        assert parts == ()
        assert not server.requests("CreateMultipartUpload")
    else:
        steps = [data[start : start + 8 * MIB] for start in range(0, size, 8 * MIB)]
        assert list(parts) == [Part(len(step), hashlib.sha256(step).digest()) for step in steps]
        assert store._pool.out == 0


def test_every_part_is_signed_for_its_bytes_and_for_the_owner(server: StrictS3) -> None:
    s3 = s3_of(server, bucket_owner=server.account)
    store = S3Store(RUN, s3, session(RUN, s3, None, Controller(server)), memory=64 * MIB)
    data = noise(20 * MIB)
    send(store, "x", data)
    store.close()
    sent = server.requests("UploadPart")
    assert len(sent) == 3
    for asked in sent:
        digest = hashlib.sha256(data[(int(asked.query["partNumber"]) - 1) * 8 * MIB :][: 8 * MIB]).digest()
        assert asked.secure
        assert asked.headers["x-amz-content-sha256"] == digest.hex()
        assert asked.headers["x-amz-checksum-sha256"] == base64.b64encode(digest).decode()
        assert asked.headers["x-amz-expected-bucket-owner"] == server.account
        assert "transfer-encoding" not in asked.headers
        signed = asked.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
        assert {"content-length", "host", "x-amz-checksum-sha256", "x-amz-expected-bucket-owner"} <= {*signed}


def test_connections_are_kept(server: StrictS3, store: S3Store) -> None:
    for number in range(4):
        send(store, f"o{number}", noise(17 * MIB))
    peers = {asked.peer for asked in server.requests("UploadPart")}
    assert len(server.requests("UploadPart")) == 12
    assert len(peers) <= 4


def test_nothing_comes_from_the_environment(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(server)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASOMEBODYELSE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    store = store_of(server, controller=controller)
    data = noise(17 * MIB)
    upload = store.begin("x")
    upload.write(data)
    wait_until(lambda: len(server.requests("UploadPart")) == 2)
    monkeypatch.undo()  # the controller's boto3 reads it, and is not what is tested
    upload.commit()
    store.close()
    assert server.read(BUCKET, key("x")) == data


def test_nothing_is_overwritten(server: StrictS3, store: S3Store) -> None:
    for size in (100, 9 * MIB):
        data = noise(size)
        send(store, f"o{size}", data)
        with pytest.raises(ObjectExistsError, match="not overwritten"):
            send(store, f"o{size}", noise(size))
        assert server.read(BUCKET, key(f"o{size}")) == data
    assert store._pool.out == 0


def test_session_without_a_channel_leaves_uploads_that_the_controller_completes(server: StrictS3) -> None:
    host = server.add_session("host")
    s3 = s3_of(server)
    store = S3Store(RUN, s3, session(RUN, s3, credentials_of(host)), memory=64 * MIB)
    small, large = noise(1000), noise(20 * MIB)
    assert send(store, "small", small) == ()
    parts = send(store, "large", large)
    store.close()
    assert server.keys(BUCKET) == []
    control = Control(server.client(), RUN, s3)
    found = {upload.name: upload.upload_id for upload in control.uploads()}
    assert sorted(found) == ["large", "small"]
    listed = list(control.parts("large", found["large"]))
    assert [Part(one.size, one.sha256 or b"") for one in listed] == list(parts)
    (only,) = control.parts("small", found["small"])
    control.complete("small", found["small"], [Part(only.size, only.sha256 or b"")], [only.etag])
    assert server.read(BUCKET, key("small")) == small


def test_ambient_completes_create_only_and_finds_its_own(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, server.add_session("role"))
    s3 = s3_of(server)
    store = S3Store(RUN, s3, ambient(RUN, s3), memory=64 * MIB)
    data = noise(20 * MIB)
    parts = send(store, "large", data)
    send(store, "small", b"x")
    assert server.read(BUCKET, key("large")) == data
    with pytest.raises(ObjectExistsError):
        send(store, "small", b"y")
    # What S3 did without being able to say so is no failure: the very object is there.
    server.faults.cut(1, before_answer=True, where="PutObject")
    send(store, "told not", b"z")
    server.faults.cut(1, before_answer=True, where="CompleteMultipartUpload")
    assert send(store, "large too", data) == parts
    assert server.read(BUCKET, key("large too")) == data
    store.close()
    assert all("if-none-match" in asked.headers for asked in server.requests("CompleteMultipartUpload"))
    checksum = Control(server.client(), RUN, s3).checksum("large")
    assert checksum == (len(data), composite_sha256(parts))


def test_sse_kms_key_is_named_when_an_object_is_begun(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, server.admin)
    arn = f"arn:aws:kms:{server.region}:{server.account}:key/1"
    s3 = s3_of(server, sse_kms_key=arn)
    store = S3Store(RUN, s3, ambient(RUN, s3), memory=64 * MIB)
    send(store, "small", b"x")
    send(store, "large", noise(9 * MIB))
    store.close()
    for operation in ("CreateMultipartUpload", "PutObject"):
        (asked,) = server.requests(operation)
        assert asked.headers["x-amz-server-side-encryption-aws-kms-key-id"] == arn


def test_manifest_and_log_stay_open_while_items_go_through_a_small_memory(server: StrictS3) -> None:
    store = store_of(server, memory=32 * MIB)
    manifest, custody = store.begin("manifest", estimate=0), store.begin("custody", estimate=0)
    lines = noise(5 * MIB - 1), noise(4 * MIB + 1)
    manifest.write(lines[0])
    custody.write(lines[1])
    data = noise(60 * MIB)
    for number in range(2):
        send(store, f"item{number}", data)
        manifest.write(b"line")
    manifest.commit()
    custody.commit()
    assert store._pool.made <= 32
    store.close()
    assert server.read(BUCKET, key("item1")) == data
    assert server.read(BUCKET, key("manifest")) == lines[0] + b"lineline"
    assert server.read(BUCKET, key("custody")) == lines[1]


def test_several_items_at_once_share_the_memory(server: StrictS3) -> None:
    store = store_of(server, memory=48 * MIB)
    data = [noise(30 * MIB) for _ in range(3)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            send(store, f"item{number}", data[number])
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert store._pool.made <= 48
    store.close()
    assert all(server.read(BUCKET, key(f"item{number}")) == data[number] for number in range(3))


def test_the_capacity_says_when_an_item_must_go_on_in_the_next_object(server: StrictS3) -> None:
    store = store_of(server, memory=32 * MIB)
    uploads = [store.begin("manifest", estimate=0), store.begin("custody", estimate=0), store.begin("x")]
    assert uploads[2].capacity == 9_900 * 7 * MIB
    for upload in uploads:
        upload.abort()
    assert store.begin("y").capacity > 9_900 * 9 * MIB
    store.close()


def test_writing_follows_the_limit(server: StrictS3) -> None:
    store = store_of(server, throttle=Throttle(64))  # 8 MB/s
    began = time.monotonic()
    send(store, "x", noise(20 * MIB))
    took = time.monotonic() - began
    store.close()
    assert 20 * MIB / took == pytest.approx(8e6, rel=0.1)


def test_too_little_memory_is_said_before_anything_is_begun(server: StrictS3) -> None:
    with pytest.raises(UsageError, match="needs 32 MiB for parts; there are 31"):
        store_of(server, memory=31 * MIB)


def test_the_clock_of_the_store(server: StrictS3, store: S3Store) -> None:
    server.clock_offset = 3600
    moment = store.moment()
    assert moment is not None
    there = time.mktime(time.strptime(moment.date, "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    assert there - moment.wall_ns / 1e9 == pytest.approx(3600, abs=2)
    assert 0 < moment.round_trip_ns < 5e9


def test_a_store_that_does_not_answer_has_no_clock() -> None:
    s3 = S3(endpoint_url="https://127.0.0.1:9")
    store = S3Store(RUN, s3, session(RUN, s3, Credentials("a", "b", "c", 4e9)), memory=64 * MIB)
    assert store.moment() is None
    store.close()


def test_an_endpoint_without_tls_is_taken_where_the_job_names_one(tmp_path: Path) -> None:
    with StrictS3(tmp_path) as server:
        server.make_bucket(BUCKET)
        store = store_of(server)
        data = noise(9 * MIB)
        send(store, "x", data)
        store.close()
        assert server.read(BUCKET, key("x")) == data
