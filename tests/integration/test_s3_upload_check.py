"""What is said before anything is read, when a run could not be stored; and that asking leaves nothing behind."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from agent.channel.messages import Credentials
from agent.errors import UsageError
from agent.job import S3
from agent.stores.s3.ambient import ambient
from agent.stores.s3.check import check_bucket
from agent.stores.s3.place import parse_place
from agent.stores.s3.session import session
from agent.stores.s3.store import S3Store
from tests.support.s3_reading import log_in
from tests.support.s3_uploads import BUCKET, MIB, RUN, credentials_of, noise, s3_of, send

if TYPE_CHECKING:
    from agent.stores.s3.authority import Authority
    from tests.rigs.localstack import LocalStack
    from tests.rigs.radosgw import RadosGateway
    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]


@pytest.fixture
def server(strict_s3_tls: StrictS3, monkeypatch: pytest.MonkeyPatch) -> StrictS3:
    strict_s3_tls.make_bucket(BUCKET, lock=True)
    log_in(monkeypatch, strict_s3_tls.admin)
    return strict_s3_tls


def held(s3: S3) -> Authority:
    return session(RUN, s3, Credentials("A", "s", "t", 4e9))


def test_a_bucket_that_can_be_stored_in_is_left_as_it_was(server: StrictS3) -> None:
    s3 = s3_of(server, bucket_owner=server.account)
    check_bucket(s3, RUN, ambient(RUN, s3))
    host = server.add_session("host")
    check_bucket(s3, RUN, session(RUN, s3, credentials_of(host)))
    assert server.keys(BUCKET) == []
    assert server.uploads(BUCKET) == []


def test_no_such_bucket(server: StrictS3) -> None:
    s3, place = s3_of(server), parse_place("s3://nowhere/run")
    with pytest.raises(UsageError, match=r"no such bucket|no bucket nowhere"):
        check_bucket(s3, place, ambient(place, s3))


def test_another_owner(server: StrictS3) -> None:
    s3 = s3_of(server, bucket_owner="999988887777")
    with pytest.raises(UsageError, match="the bucket must be of 999988887777"):
        check_bucket(s3, RUN, ambient(RUN, s3))


def test_a_role_that_may_not_store(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    log_in(monkeypatch, server.add_user("reader", {"Version": "2012-10-17", "Statement": [reader]}))
    s3 = s3_of(server)
    with pytest.raises(UsageError, match=f"need s3:PutObject below {RUN}"):
        check_bucket(s3, RUN, ambient(RUN, s3))


def test_another_region(server: StrictS3) -> None:
    s3 = s3_of(server)
    elsewhere = S3(endpoint_url=s3.endpoint_url, region="us-west-2", ca_bundle=s3.ca_bundle)
    with pytest.raises(UsageError, match=f"the bucket is in the region {server.region}, not us-west-2: use --region"):
        check_bucket(elsewhere, RUN, ambient(RUN, elsewhere))


def test_another_region_that_the_bucket_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        """As S3 answers nobody in particular."""

        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        s3 = S3(endpoint_url=f"http://127.0.0.1:{answering.server_port}", region="us-west-2")
        try:
            with pytest.raises(UsageError, match=r"in the region eu-west-1, not us-west-2: .*--region eu-west-1"):
                check_bucket(s3, RUN, held(s3))
        finally:
            answering.shutdown()


def test_a_wrong_secret_key_is_called_that(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebodyelses")
    s3 = s3_of(server)
    with pytest.raises(UsageError, match=r"the secret key is wrong.*SignatureDoesNotMatch") as caught:
        check_bucket(s3, RUN, ambient(RUN, s3))
    assert "s3:PutObject" not in str(caught.value)
    assert "somebodyelses" not in str(caught.value)


def test_an_access_key_that_there_is_not(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    s3 = s3_of(server)
    with pytest.raises(UsageError, match=r"the access key is wrong.*InvalidAccessKeyId"):
        check_bucket(s3, RUN, ambient(RUN, s3))


@pytest.mark.parametrize("status", [500, 502, 503])
def test_what_passes_by_itself_is_asked_again(server: StrictS3, status: int) -> None:
    server.faults.refuse(3, status=status, code="ServiceUnavailable", where="UploadPart")
    s3 = s3_of(server)
    check_bucket(s3, RUN, ambient(RUN, s3))
    assert [asked.status for asked in server.requests("UploadPart")] == [status] * 3 + [404]


def test_connections_that_are_reset_are_made_again(server: StrictS3) -> None:
    server.faults.cut(3, before_answer=True)
    s3 = s3_of(server)
    check_bucket(s3, RUN, ambient(RUN, s3))


def test_what_does_not_pass_is_said_after_four_tries(server: StrictS3) -> None:
    server.faults.refuse(9, status=503, code="SlowDown", where="UploadPart")
    s3 = s3_of(server)
    with pytest.raises(UsageError, match="SlowDown"):
        check_bucket(s3, RUN, ambient(RUN, s3))
    assert len(server.requests("UploadPart")) == 4


def test_a_refusal_is_asked_once(server: StrictS3) -> None:
    server.faults.refuse(9, status=403, code="AccessDenied", where="UploadPart")
    s3 = s3_of(server)
    with pytest.raises(UsageError, match="need s3:PutObject"):
        check_bucket(s3, RUN, ambient(RUN, s3))
    assert len(server.requests("UploadPart")) == 1


def test_no_credentials(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="there are no AWS credentials"):
        ambient(RUN, s3_of(server))


def test_nobody_answers() -> None:
    s3 = S3(endpoint_url="https://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9 does not answer: .*refused.*--endpoint-url"):
        check_bucket(s3, RUN, held(s3))


def test_a_certificate_that_is_not_trusted(server: StrictS3) -> None:
    s3 = S3(endpoint_url=server.endpoint_url, region=server.region)
    with pytest.raises(UsageError, match=r"not trusted.*--ca-bundle"):
        check_bucket(s3, RUN, held(s3))


def test_certificates_that_are_none() -> None:
    s3 = S3(endpoint_url="https://127.0.0.1:9", ca_bundle="not PEM")
    with pytest.raises(UsageError, match="--ca-bundle cannot be read"):
        check_bucket(s3, RUN, held(S3()))


def test_localstack_takes_parts_with_digests(
    local_stack: LocalStack, bucket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = local_stack.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    _round_trip(S3(endpoint_url=local_stack.endpoint_url, region="us-east-1"), bucket_name, client)


def test_radosgw_takes_our_signatures(
    rados_gateway: RadosGateway, bucket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rados_gateway.admin.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rados_gateway.admin.secret_key)
    client = rados_gateway.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    _round_trip(S3(endpoint_url=rados_gateway.endpoint_url, region="us-east-1"), bucket_name, client)
    rados_gateway.empty(bucket_name)


def _round_trip(s3: S3, bucket: str, client: object) -> None:
    place = parse_place(f"s3://{bucket}/ir/INC-1")
    authority = ambient(place, s3)
    check_bucket(s3, place, authority)
    store = S3Store(place, s3, authority, memory=64 * MIB)
    for size in (0, 1, 9 * MIB, 40 * MIB + 5):
        data = noise(size)
        send(store, f"o {size}", data)
        body = client.get_object(Bucket=bucket, Key=place.key(f"o {size}"))["Body"]  # type: ignore[attr-defined]
        assert body.read() == data
    assert store.moment() is not None
    store.close()
