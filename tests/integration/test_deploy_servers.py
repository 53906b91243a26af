"""The broker's signed URLs against servers of S3 that others wrote: LocalStack checks checksums, radosgw signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import urllib3

from agent.channel.messages import Credentials
from agent.job import S3
from agent.stores.s3.client import given
from agent.stores.s3.control import Control
from agent.stores.s3.place import Place
from tests.unit.delivery.deploys import Deploys
from tests.unit.delivery.hosts import part_of

if TYPE_CHECKING:
    from tests.rigs.localstack import LocalStack
    from tests.rigs.radosgw import RadosGateway

pytest_plugins = ["tests.rigs.s3_fixtures"]


def test_a_run_into_localstack(local_stack: LocalStack, bucket_name: str, tmp_path: Path) -> None:
    client = local_stack.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    deploys = Deploys(tmp_path, local_stack.endpoint_url, "us-east-1", "test", "test", bucket=bucket_name)
    code, result, stderr = deploys.run()
    assert (code, result["verdict"]) == (0, "complete"), stderr
    code, verdict = deploys.verify(result["store"], "--receipt-sha256", result["receipt_sha256"])
    assert (code, verdict["verdict"]) == (0, "intact"), verdict


def test_a_run_into_radosgw(rados_gateway: RadosGateway, bucket_name: str, tmp_path: Path) -> None:
    """It keeps no SHA-256 of parts: they are compared by size, and it is said so."""
    admin = rados_gateway.admin
    rados_gateway.client("s3", admin).create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    deploys = Deploys(
        tmp_path, rados_gateway.endpoint_url, rados_gateway.region, admin.access_key, admin.secret_key,
        bucket=bucket_name,
    )  # fmt: skip
    try:
        code, result, stderr = deploys.run()
        assert (code, result["verdict"]) == (0, "complete"), stderr
        assert "by sizes alone" in stderr
        code, verdict = deploys.verify(result["store"], "--receipt-sha256", result["receipt_sha256"])
        assert (code, verdict["verdict"]) == (0, "intact"), verdict
    finally:
        rados_gateway.empty(bucket_name)


def presigned(
    endpoint: str, region: str, keys: tuple[str, str], bucket: str
) -> tuple[str, dict[str, str], bytes, str, Control]:
    settings = S3(endpoint_url=endpoint, region=region, authority="broker")
    client = given(settings, Credentials(*keys, "", 0))
    control = Control(client, Place(bucket, "cases/C-1"), settings)
    data = b"1" * (5 << 20)
    upload = control.begin("a.age")
    url, headers = control.presign_part("a.age", upload, 1, part_of(data))
    return url, headers, data, upload, control


def put(url: str, headers: dict[str, str], data: bytes) -> int:
    answer = urllib3.request("PUT", url, body=data, headers=headers, retries=False, timeout=30)
    return int(answer.status)


def test_a_signed_url_of_localstack_takes_its_own_bytes_only(local_stack: LocalStack, bucket_name: str) -> None:
    client = local_stack.client("s3")
    client.create_bucket(Bucket=bucket_name)
    url, headers, data, upload, control = presigned(
        local_stack.endpoint_url, "us-east-1", ("test", "test"), bucket_name
    )
    assert put(url, headers, b"2" * len(data)) == 400
    assert put(url.replace("partNumber=1", "partNumber=2"), headers, data) == 403
    assert put(url, {key: value for key, value in headers.items() if "sha256" not in key}, data) == 403
    assert list(control.parts("a.age", upload)) == []
    assert put(url, headers, data) == 200
    [part] = control.parts("a.age", upload)
    assert part.sha256 == part_of(data).sha256


def test_a_signed_url_of_radosgw_is_for_one_part(rados_gateway: RadosGateway, bucket_name: str) -> None:
    admin = rados_gateway.admin
    client = rados_gateway.client("s3", admin)
    client.create_bucket(Bucket=bucket_name)
    try:
        url, headers, data, upload, control = presigned(
            rados_gateway.endpoint_url, rados_gateway.region, (admin.access_key, admin.secret_key), bucket_name
        )
        assert put(url.replace("partNumber=1", "partNumber=2"), headers, data) == 403
        assert put(url.replace("a.age", "b.age"), headers, data) == 403
        assert put(url, headers | {"content-length": str(len(data) - 1)}, data[:-1]) == 403
        assert list(control.parts("a.age", upload)) == []
        assert put(url, headers, data) == 200
        [part] = control.parts("a.age", upload)
        assert (part.size, part.sha256) == (len(data), None)
        client.abort_multipart_upload(Bucket=bucket_name, Key="cases/C-1/a.age", UploadId=upload)
    finally:
        rados_gateway.empty(bucket_name)
