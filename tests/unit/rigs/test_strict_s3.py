"""The strict S3 against an independent client: boto3 can do everything, and each strictness refuses."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import http.client
import io
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError

from tests.rigs.s3_serve import ServedS3
from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]

MIB = 1 << 20
B = {"Bucket": "evidence"}


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def code_of(act: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        act()
    answer = caught.value.response
    return f"{answer['ResponseMetadata']['HTTPStatusCode']} {answer['Error']['Code']}"


def send(
    server: StrictS3, url: str, data: bytes | None = None, method: str = "PUT", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """What a client without an SDK gets: status and body."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", data, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


@pytest.fixture
def s3(strict_s3: StrictS3) -> StrictS3:
    strict_s3.make_bucket("evidence", lock=True)
    return strict_s3


def upload(client: Any, key: str, bodies: list[bytes], **more: Any) -> tuple[str, list[dict[str, Any]]]:
    upload_id = client.create_multipart_upload(**B, Key=key, ChecksumAlgorithm="SHA256", **more)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        checksum = sha256(body)
        answer = client.upload_part(
            **B, Key=key, UploadId=upload_id, PartNumber=number, Body=body, ChecksumSHA256=checksum
        )
        assert answer["ChecksumSHA256"] == checksum
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum})
    return upload_id, parts


@pytest.mark.parametrize("tls", [False, True])
def test_what_boto3_stores_it_reads_again(tls: bool, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 * 17
    with StrictS3(tmp_path, tls=tls) as server:
        server.make_bucket("evidence", lock=True)
        client = server.client()
        client.upload_fileobj(io.BytesIO(data), "evidence", "a b/ü+~")
        found = io.BytesIO()
        client.download_fileobj("evidence", "a b/ü+~", found)
        assert found.getvalue() == data
        answer = client.get_object(**B, Key="a b/ü+~", Range=f"bytes={8 * MIB - 3}-{8 * MIB + 2}")
        assert answer["Body"].read() == data[8 * MIB - 3 : 8 * MIB + 3]
        assert answer["ContentRange"] == f"bytes {8 * MIB - 3}-{8 * MIB + 2}/{len(data)}"
        assert client.get_object(**B, Key="a b/ü+~", Range="bytes=-4")["Body"].read() == data[-4:]
        assert code_of(lambda: client.get_object(**B, Key="a b/ü+~", Range=f"bytes={len(data)}-")).startswith("416")


def test_lists_are_paged_and_grouped(s3: StrictS3) -> None:
    client = s3.client()
    keys = [f"run/{number:03}/x<&>" for number in range(25)]
    for key in [*keys, "other"]:
        client.put_object(**B, Key=key, Body=b"")
    pages = list(client.get_paginator("list_objects_v2").paginate(**B, Prefix="run/", PaginationConfig={"PageSize": 7}))
    assert len(pages) == 4
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
    answer = client.list_objects_v2(**B, Delimiter="/")
    assert [entry["Prefix"] for entry in answer["CommonPrefixes"]] == ["run/"]
    assert [entry["Key"] for entry in answer["Contents"]] == ["other"]


def test_parts_and_uploads_are_paged(tmp_path: Path) -> None:
    with StrictS3(tmp_path, min_part=0) as server:
        server.make_bucket("evidence")
        client = server.client()
        upload_id, parts = upload(client, "k", [bytes([number]) for number in range(23)])
        pages = list(
            client.get_paginator("list_parts").paginate(
                **B, Key="k", UploadId=upload_id, PaginationConfig={"PageSize": 10}
            )
        )
        assert len(pages) == 3
        listed = [
            {name: part[name] for name in ("PartNumber", "ETag", "ChecksumSHA256")}
            for page in pages
            for part in page["Parts"]
        ]
        assert listed == parts
        others = {client.create_multipart_upload(**B, Key=f"u/{n}")["UploadId"] for n in range(7)}
        pages = list(
            client.get_paginator("list_multipart_uploads").paginate(**B, Prefix="u/", PaginationConfig={"PageSize": 3})
        )
        assert len(pages) == 3
        assert {entry["UploadId"] for page in pages for entry in page["Uploads"]} == others


def test_complete_holds_parts_against_etag_and_checksum(s3: StrictS3) -> None:
    client = s3.client()
    bodies = [bytes(5 * MIB), b"end"]
    upload_id, parts = upload(client, "k", bodies)

    def complete(listed: list[dict[str, Any]], **more: Any) -> Any:
        about = {"UploadId": upload_id, "MultipartUpload": {"Parts": listed}}
        return client.complete_multipart_upload(**B, Key="k", **about, **more)

    first, last = parts
    assert code_of(lambda: complete([first, {**last, "ETag": '"no"'}])) == "400 InvalidPart"
    assert code_of(lambda: complete([first, {**last, "ChecksumSHA256": sha256(b"x")}])) == "400 InvalidPart"
    assert code_of(lambda: complete([first, {**last, "PartNumber": 3}])) == "400 InvalidPart"
    assert code_of(lambda: complete([last, first])) == "400 InvalidPartOrder"
    bare = [{name: value for name, value in part.items() if name != "ChecksumSHA256"} for part in parts]
    assert code_of(lambda: complete(bare)) == "400 InvalidRequest"
    assert code_of(lambda: complete(parts, MpuObjectSize=1)) == "400 InvalidRequest"
    answer = complete(parts, IfNoneMatch="*", MpuObjectSize=5 * MIB + 3)
    digests = b"".join(hashlib.sha256(body).digest() for body in bodies)
    assert answer["ChecksumSHA256"] == f"{sha256(digests)}-2"
    assert client.head_object(**B, Key="k", ChecksumMode="ENABLED")["ChecksumSHA256"] == answer["ChecksumSHA256"]
    assert s3.read("evidence", "k") == b"".join(bodies)
    assert code_of(lambda: complete(parts)) == "404 NoSuchUpload"


def test_small_parts_and_odd_numbers_are_refused(s3: StrictS3) -> None:
    client = s3.client()
    upload_id, parts = upload(client, "k", [b"small", b"end"])
    about = {"Key": "k", "UploadId": upload_id}
    act = lambda: client.complete_multipart_upload(**B, **about, MultipartUpload={"Parts": parts})  # noqa: E731
    assert code_of(act) == "400 EntityTooSmall"
    for number in (0, 10_001):
        part = {"PartNumber": number, "Body": b"x", "ChecksumSHA256": sha256(b"x")}
        assert code_of(functools.partial(client.upload_part, **B, **about, **part)) == "400 InvalidArgument"


def test_wrong_checksums_are_refused_and_leave_nothing(s3: StrictS3) -> None:
    client = s3.client()
    assert code_of(lambda: client.put_object(**B, Key="k", Body=b"x", ChecksumSHA256=sha256(b"y"))) == "400 BadDigest"
    wrong = base64.b64encode(bytes(4)).decode()
    assert code_of(lambda: client.put_object(**B, Key="k", Body=b"x", ChecksumCRC32=wrong)) == "400 BadDigest"
    upload_id, _ = upload(client, "k", [])
    about = {"Key": "k", "UploadId": upload_id, "PartNumber": 1, "Body": b"x"}
    assert code_of(lambda: client.upload_part(**B, **about, ChecksumSHA256=sha256(b"y"))) == "400 BadDigest"
    assert s3.keys("evidence") == []
    assert s3.uploads("evidence")[0].parts == {}


@pytest.mark.parametrize(
    ("name", "expected"), [("CRC32", "y/Q5Jg=="), ("CRC32C", "4waSgw=="), ("CRC64NVME", "rosUhgp5mIg=")]
)
def test_checksums_have_their_catalogued_values(name: str, expected: str, s3: StrictS3) -> None:
    answer = s3.client().put_object(**B, Key="k", Body=b"123456789", **{f"Checksum{name}": expected})
    assert answer[f"Checksum{name}"] == expected


def test_a_locked_bucket_wants_a_checksum(s3: StrictS3) -> None:
    s3.make_bucket("open")
    client = s3.client(request_checksum_calculation="when_required")
    client.put_object(Bucket="open", Key="k", Body=b"x")
    with pytest.raises(ClientError, match="Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object"):
        client.put_object(**B, Key="k", Body=b"x")
    upload_id = client.create_multipart_upload(**B, Key="k")["UploadId"]
    about = {"Key": "k", "UploadId": upload_id, "PartNumber": 1, "Body": b"x"}
    with pytest.raises(ClientError, match="Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part"):
        client.upload_part(**B, **about)
    md5 = base64.b64encode(hashlib.md5(b"x", usedforsecurity=False).digest()).decode()
    client.upload_part(**B, **about, ContentMD5=md5)
    assert code_of(lambda: client.upload_part(**B, **{**about, "Body": b"y"}, ContentMD5=md5)) == "400 BadDigest"


def test_a_part_has_the_checksum_that_its_upload_was_begun_with(s3: StrictS3) -> None:
    client = s3.client(request_checksum_calculation="when_required")
    plain = client.create_multipart_upload(**B, Key="k")["UploadId"]
    summed = client.create_multipart_upload(**B, Key="k", ChecksumAlgorithm="SHA256")["UploadId"]
    about = {"Key": "k", "PartNumber": 1, "Body": b"x"}
    for upload_id, more in ((plain, {"ChecksumSHA256": sha256(b"x")}), (summed, {"ChecksumCRC32": "jNwV6A=="})):
        with pytest.raises(ClientError, match="Checksum Type mismatch"):
            client.upload_part(**B, **about, UploadId=upload_id, **more)


def test_conditions_protect_what_is_there(s3: StrictS3) -> None:
    client = s3.client()
    client.put_object(**B, Key="k", Body=b"first", IfNoneMatch="*")
    assert code_of(lambda: client.put_object(**B, Key="k", Body=b"x", IfNoneMatch="*")) == "412 PreconditionFailed"
    upload_id, parts = upload(client, "k", [b"x"])
    about = {"Key": "k", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
    assert code_of(lambda: client.complete_multipart_upload(**B, **about)) == "412 PreconditionFailed"
    client.delete_object(**B, Key="k")
    client.complete_multipart_upload(**B, **about)


def test_versions_and_locks(s3: StrictS3) -> None:
    client = s3.client()
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    about = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
    first = client.put_object(**B, Key="k", Body=b"1", **about)["VersionId"]
    second = client.put_object(**B, Key="k", Body=b"2")["VersionId"]
    assert client.get_object(**B, Key="k", VersionId=first)["Body"].read() == b"1"
    assert code_of(lambda: client.delete_object(**B, Key="k", VersionId=first)) == "403 AccessDenied"
    client.delete_object(**B, Key="k", VersionId=second)
    client.delete_object(**B, Key="k")
    assert code_of(lambda: client.get_object(**B, Key="k")) == "404 NoSuchKey"
    listed = client.list_object_versions(**B)
    assert [entry["VersionId"] for entry in listed["Versions"]] == [first]
    assert listed["DeleteMarkers"][0]["IsLatest"]
    sooner = {"Mode": "COMPLIANCE", "RetainUntilDate": until - dt.timedelta(hours=1)}
    act = lambda: client.put_object_retention(**B, Key="k", VersionId=first, Retention=sooner)  # noqa: E731
    assert code_of(act) == "403 AccessDenied"
    off = {"Status": "Suspended"}
    act = lambda: client.put_bucket_versioning(**B, VersioningConfiguration=off)  # noqa: E731
    assert code_of(act) == "409 InvalidBucketState"


def test_default_retention_and_governance(s3: StrictS3) -> None:
    client = s3.client()
    rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}}}
    client.put_object_lock_configuration(**B, ObjectLockConfiguration=rule)
    assert client.get_object_lock_configuration(**B)["ObjectLockConfiguration"] == rule
    version = client.put_object(**B, Key="k", Body=b"")["VersionId"]
    assert client.head_object(**B, Key="k")["ObjectLockMode"] == "GOVERNANCE"
    assert code_of(lambda: client.delete_object(**B, Key="k", VersionId=version)) == "403 AccessDenied"
    weak = s3.client(
        "s3", s3.add_user("weak", {"Version": "2012-10-17", "Statement": [_allow("s3:DeleteObjectVersion")]})
    )
    about = {"Key": "k", "VersionId": version, "BypassGovernanceRetention": True}
    assert code_of(lambda: weak.delete_object(**B, **about)) == "403 AccessDenied"
    client.delete_object(**B, **about)


def _allow(action: str, **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": "*", **more}


def test_the_owner_that_is_expected(s3: StrictS3) -> None:
    client = s3.client()
    client.put_object(**B, Key="k", Body=b"", ExpectedBucketOwner=s3.account)
    act = lambda: client.put_object(**B, Key="k", Body=b"", ExpectedBucketOwner="999999999999")  # noqa: E731
    assert code_of(act) == "403 AccessDenied"


def test_documents_of_the_bucket(s3: StrictS3) -> None:
    client = s3.client()
    assert client.get_bucket_versioning(**B)["Status"] == "Enabled"
    assert all(client.get_public_access_block(**B)["PublicAccessBlockConfiguration"].values())
    controls = client.get_bucket_ownership_controls(**B)["OwnershipControls"]
    assert controls == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert code_of(lambda: client.get_bucket_policy(**B)) == "404 NoSuchBucketPolicy"
    assert code_of(lambda: client.get_bucket_lifecycle_configuration(**B)) == "404 NoSuchLifecycleConfiguration"
    assert "LoggingEnabled" not in client.get_bucket_logging(**B)
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObjectVersion",
        "Resource": "arn:aws:s3:::evidence/*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    client.put_bucket_policy(**B, Policy=policy)
    assert client.get_bucket_policy(**B)["Policy"] == policy
    assert client.get_bucket_policy_status(**B)["PolicyStatus"]["IsPublic"] is False
    public = json.dumps({"Version": "2012-10-17", "Statement": [{**deny, "Effect": "Allow"}]})
    assert code_of(lambda: client.put_bucket_policy(**B, Policy=public)) == "403 AccessDenied"
    rule = {
        "ID": "a",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 14},
    }
    client.put_bucket_lifecycle_configuration(**B, LifecycleConfiguration={"Rules": [rule]})
    assert client.get_bucket_lifecycle_configuration(**B)["Rules"] == [rule]
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "arn:aws:kms:eu-central-1:111122223333:key/k"}
    rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}]}
    client.put_bucket_encryption(**B, ServerSideEncryptionConfiguration=rules)
    assert client.get_bucket_encryption(**B)["ServerSideEncryptionConfiguration"] == rules
    assert client.put_object(**B, Key="k", Body=b"")["SSEKMSKeyId"] == default["KMSMasterKeyID"]
    assert client.get_bucket_location(**B)["LocationConstraint"] == s3.region


# -- signatures -------------------------------------------------------------------------------------------------------


def test_wrong_secrets_tokens_regions_and_clocks_are_refused(s3: StrictS3) -> None:
    def asks(**changes: Any) -> Callable[[], Any]:
        import dataclasses

        return lambda: s3.client("s3", dataclasses.replace(s3.admin, **changes)).list_objects_v2(**B)

    assert code_of(asks(secret_key="x" * 40)) == "403 SignatureDoesNotMatch"
    assert code_of(asks(access_key="AKIAUNKNOWN")) == "403 InvalidAccessKeyId"
    assert code_of(asks(token="x" * 40)) == "400 InvalidToken"
    session = s3.add_session("host", seconds=100)
    s3.client("s3", session).list_objects_v2(**B)
    s3.expire(session.access_key)
    assert code_of(lambda: s3.client("s3", session).list_objects_v2(**B)) == "400 ExpiredToken"
    session.token = ""
    s3.clock_offset = 3600
    client = s3.client()
    assert code_of(lambda: client.list_objects_v2(**B)) == "403 RequestTimeTooSkewed"
    _, body = send(s3, f"{s3.endpoint_url}/evidence", method="GET")
    assert "AccessDenied" in body, "anonymous"


def test_a_token_is_needed_with_temporary_credentials(s3: StrictS3) -> None:
    import dataclasses

    bare = dataclasses.replace(s3.add_session("host"), token="")
    assert code_of(lambda: s3.client("s3", bare).list_objects_v2(**B)) == "403 InvalidAccessKeyId"


def signed_part(s3: StrictS3, body: bytes, **more: Any) -> tuple[str, dict[str, str]]:
    client = s3.client()
    upload_id, _ = upload(client, "k", [])
    about = {"Key": "k", "UploadId": upload_id, "PartNumber": 1, "ChecksumSHA256": sha256(body)}
    url = client.generate_presigned_url("upload_part", Params={**B, **about}, **{"ExpiresIn": 60, **more})
    return url, {"x-amz-checksum-sha256": sha256(body)}


def test_a_presigned_part_takes_exactly_what_was_signed(s3: StrictS3) -> None:
    url, headers = signed_part(s3, b"body")
    assert send(s3, url, b"body")[0] == 403, "the signed header is not sent"
    status, body = send(s3, url, b"body", headers={**headers, "x-amz-meta-more": "1"})
    assert (status, "<HeadersNotSigned>x-amz-meta-more<" in body) == (403, True)
    status, body = send(s3, url, b"other", headers=headers)
    assert (status, "BadDigest" in body) == (400, True)
    other = {"x-amz-checksum-sha256": sha256(b"other")}
    assert send(s3, url, b"other", headers=other)[0] == 403
    assert send(s3, url.replace("partNumber=1", "partNumber=2"), b"body", headers=headers)[0] == 403
    assert send(s3, url, b"body", method="POST", headers=headers)[0] == 403
    assert send(s3, url, b"body", headers={**headers, "content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="})[0] == 403
    assert s3.uploads("evidence")[0].parts == {}
    assert send(s3, url, b"body", headers=headers)[0] == 200
    s3.clock_offset = 61
    status, body = send(s3, url, b"body", headers=headers)
    assert (status, "Request has expired" in body) == (403, True)


def test_a_body_that_was_not_signed_is_refused(s3: StrictS3) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    digest = hashlib.sha256(b"signed").hexdigest()
    for payload, body, expected in (
        (digest, b"signed", 200),
        (digest, b"other!", 400),
        ("UNSIGNED-PAYLOAD", b"signed", 400),
    ):
        s3.make_bucket("open")
        request = AWSRequest("PUT", f"{s3.endpoint_url}/open/k", {"X-Amz-Content-SHA256": payload}, body)
        signer = S3SigV4Auth(Credentials(s3.admin.access_key, s3.admin.secret_key), "s3", s3.region)
        request.context["payload_signing_enabled"] = payload != "UNSIGNED-PAYLOAD"
        signer.payload = lambda _, payload=payload: payload
        signer.add_auth(request)
        assert send(s3, request.url, body, headers=dict(request.headers.items()))[0] == expected


# -- faults -----------------------------------------------------------------------------------------------------------


def test_refusals_are_counted_and_logged(s3: StrictS3) -> None:
    client = s3.client(retries={"total_max_attempts": 4, "mode": "standard"})
    s3.faults.refuse(2, status=503, code="SlowDown", where="PutObject", retry_after=1)
    client.put_object(**B, Key="k", Body=b"x")
    assert [(entry.status, entry.code) for entry in s3.requests("PutObject")] == [(503, "SlowDown")] * 2 + [(200, "")]
    s3.faults.refuse(1, status=409, code="ConditionalRequestConflict", where="k")
    assert code_of(lambda: s3.client().head_object(**B, Key="k")).startswith("409")


def test_connections_are_cut_in_a_body_and_before_an_answer(s3: StrictS3) -> None:
    client = s3.client()
    body = bytes(3 * MIB)
    s3.faults.cut(1, after_body=MIB + 1, where="PutObject")
    with pytest.raises(HTTPClientError):
        client.put_object(**B, Key="k", Body=body)
    assert s3.keys("evidence") == []
    assert s3.requests("PutObject")[-1].received == MIB + 1
    s3.faults.cut(1, before_answer=True, where="PutObject")
    with pytest.raises(HTTPClientError):
        client.put_object(**B, Key="k", Body=body, IfNoneMatch="*")
    assert s3.requests("PutObject")[-1].status == -1
    assert s3.read("evidence", "k") == body, "it was done, and nobody said so"
    s3.faults.cut(1, after_response=MIB, where="GetObject")
    with pytest.raises(HTTPClientError):
        client.get_object(**B, Key="k")["Body"].read()
    assert client.get_object(**B, Key="k")["Body"].read() == body


@pytest.mark.parametrize("at", ["start", "body", "answer"])
def test_stalls_take_their_time(at: Any, s3: StrictS3) -> None:
    s3.faults.stall(1, 1, at=at, after_body=2, where="PutObject")
    client = s3.client()
    for _ in range(2):
        client.put_object(**B, Key="k", Body=b"four")
    took = [entry.ended - entry.started for entry in s3.requests("PutObject")]
    assert took[0] >= 1 > took[1]


def test_one_address_is_slow_and_the_other_is_not(strict_s3_tls: StrictS3) -> None:
    strict_s3_tls.make_bucket("evidence")
    strict_s3_tls.limit(MIB, "127.0.0.2")
    assert strict_s3_tls.certificates
    context = ssl.create_default_context(cafile=str(strict_s3_tls.certificates.ca_file))
    took = {}
    for address in ("127.0.0.1", "127.0.0.2"):
        # The host is signed, so each address has its own URL.
        client = strict_s3_tls.client(address=address, signature_version="s3v4")
        url = client.generate_presigned_url("put_object", Params={**B, "Key": "k"})
        request = urllib.request.Request(url, bytes(MIB), method="PUT")  # noqa: S310 - loopback
        began = time.monotonic()
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:  # noqa: S310 - loopback
            assert answer.status == 200
        took[address] = time.monotonic() - began
    assert took["127.0.0.2"] > 0.9 > took["127.0.0.1"]
    assert [entry.address for entry in strict_s3_tls.requests("PutObject")] == ["127.0.0.1", "127.0.0.2"]


def test_a_bucket_vanishes_and_comes_back(s3: StrictS3) -> None:
    client = s3.client()
    s3.vanish("evidence")
    assert code_of(lambda: client.put_object(**B, Key="k", Body=b"")) == "404 NoSuchBucket"
    s3.vanish("evidence", back=True)
    client.put_object(**B, Key="k", Body=b"")


def test_the_clock_is_in_the_date(s3: StrictS3) -> None:
    s3.clock_offset = -600
    answer = s3.client().head_bucket(**B)
    date = dt.datetime.strptime(answer["ResponseMetadata"]["HTTPHeaders"]["date"], "%a, %d %b %Y %H:%M:%S GMT")  # noqa: DTZ007
    assert 598 <= time.time() - date.replace(tzinfo=dt.UTC).timestamp() <= 605


def test_large_bodies_need_not_be_kept(tmp_path: Path) -> None:
    with StrictS3(tmp_path, keep_bodies=False) as server:
        server.make_bucket("evidence")
        client = server.client()
        upload_id, parts = upload(client, "k", [bytes(6 * MIB), b"end"])
        assert server.part("evidence", upload_id, 1).data is None
        assert server.part("evidence", upload_id, 1).size == 6 * MIB
        client.complete_multipart_upload(**B, Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts})
        assert code_of(lambda: client.get_object(**B, Key="k")) == "501 NotImplemented"
        client.put_object(**B, Key="small", Body=b"receipt")
        assert client.get_object(**B, Key="small")["Body"].read() == b"receipt"


def test_many_threads_at_once(s3: StrictS3) -> None:
    client, failed = s3.client(max_pool_connections=8), []

    def put(number: int) -> None:
        try:
            for turn in range(20):
                client.put_object(**B, Key=f"{number}/{turn}", Body=bytes(1000))
        except ClientError as error:
            failed.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(s3.keys("evidence")) == 160


def test_nothing_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    with StrictS3(tmp_path, tls=True) as server:
        server.make_bucket("evidence")
        server.client().put_object(**B, Key="k", Body=bytes(2 * MIB))
        server.faults.stall(60, 1, at="answer")
        client = server.client()

        def ask() -> None:
            with pytest.raises(HTTPClientError):
                client.head_bucket(**B)

        act = threading.Thread(target=ask)
        act.start()
        while not server.requests("HeadBucket"):
            time.sleep(0.01)
        began = time.monotonic()
    act.join(10)
    assert time.monotonic() - began < 5
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_it_serves_from_a_process_of_its_own() -> None:
    with ServedS3(tls=True, keep_bodies=False) as served:
        assert served.pid
        assert not accepts_anonymous(served)
        found = Path(f"/proc/{served.pid}/cmdline").read_bytes()
        assert b"s3_serve" in found
    assert not Path(f"/proc/{served.pid}").exists()


def accepts_anonymous(served: ServedS3) -> bool:
    """Whether a request without a signature is accepted there."""
    context = ssl.create_default_context(cadata=served.ca_pem)
    request = urllib.request.Request(f"{served.endpoint_url}/evidence")  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, context=context, timeout=20):  # noqa: S310 - loopback
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
