"""Policies: the evaluator by itself, and as the strict S3 applies it to users, sessions and buckets."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from tests.rigs.strict_iam import Asked, Effect, PolicyError, check, decide
from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]

B = {"Bucket": "evidence"}
RUN = "arn:aws:s3:::evidence/run/*"


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {**allow(action, resource, **more), "Effect": "Deny"}


WRITE_ONLY = policy(
    allow("s3:PutObject", RUN, Condition={"Bool": {"s3:ObjectCreationOperation": "false"}}),
)
"""What a host gets: it begins uploads and adds parts."""


@pytest.mark.parametrize(
    ("condition", "context", "holds"),
    [
        ({"StringEquals": {"k:a": ["x", "y"]}}, {"k:a": "y"}, True),
        ({"StringEquals": {"k:a": "x"}}, {}, False),
        ({"StringNotEquals": {"k:a": "x"}}, {}, True),
        ({"StringNotEquals": {"k:a": ["x", "y"]}}, {"k:a": "y"}, False),
        ({"StringLike": {"k:a": "run/*/x?"}}, {"K:A": "run/1/2/xy"}, True),
        ({"Bool": {"k:a": "false"}}, {}, False),
        ({"Bool": {"k:a": False}}, {"k:a": "false"}, True),
        ({"BoolIfExists": {"k:a": "false"}}, {}, True),
        ({"BoolIfExists": {"k:a": "false"}}, {"k:a": "true"}, False),
        ({"Null": {"k:a": "true"}}, {}, True),
        ({"Null": {"k:a": "false"}}, {}, False),
        ({"Null": {"k:a": "false"}}, {"k:a": "*"}, True),
        ({"ArnLike": {"k:a": "arn:aws:iam::*:role/x*"}}, {"k:a": "arn:aws:iam::1:role/xy"}, True),
        ({"ArnLike": {"k:a": "arn:aws:*:role/xy"}}, {"k:a": "arn:aws:iam::1:role/xy"}, False),
        ({"NumericLessThan": {"k:a": "1.2"}}, {"k:a": "1.3"}, False),
        ({"NumericLessThan": {"k:a": 1.3}}, {"k:a": "1.2"}, True),
        ({"NumericLessThan": {"k:a": "1.2"}}, {}, False),
        ({"Bool": {"k:a": "true"}, "Null": {"k:b": "true"}}, {"k:a": "true", "k:b": "1"}, False),
        ({"StringEquals": {"k:a": "${k:b}"}}, {"k:a": "1", "k:b": "1"}, True),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, str], holds: bool) -> None:
    document = policy(allow("s3:Put*", "arn:aws:s3:::b/*", Condition=condition))
    check(document)
    asked = Asked("s3:PutObject", "arn:aws:s3:::b/k", context=context)
    assert decide(document, asked) is (Effect.ALLOW if holds else None)


@pytest.mark.parametrize(
    "statement",
    [
        {"Effect": "Allow", "Action": "s3:*"},
        {**allow("s3:*"), "Effect": "allow"},
        allow("s3:*", Condition={"StringIs": {"k:a": "x"}}),
        allow("s3:*", Condition={"StringEquals": {"no key": "x"}}),
        allow("s3:*", Resources="*"),
        allow("s3:*", Principal="*"),
    ],
)
def test_what_it_does_not_understand_it_refuses(statement: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        check(policy(statement))


def refused(act: Callable[[], Any]) -> bool:
    """Whether it is refused with 403; any other refusal is raised."""
    try:
        act()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return True
    return False


@pytest.fixture
def s3(strict_s3: StrictS3) -> StrictS3:
    strict_s3.make_bucket("evidence", lock=True)
    return strict_s3


def test_a_host_that_may_only_add_parts(s3: StrictS3) -> None:
    role = s3.add_role("uploader")
    answer = s3.client("sts").assume_role(
        RoleArn=role.arn, RoleSessionName="host", Policy=json.dumps(WRITE_ONLY), DurationSeconds=900
    )["Credentials"]
    session = s3._verifier.credentials[answer["AccessKeyId"]]
    host, admin = s3.client("s3", session), s3.client()
    admin.put_object(**B, Key="run/there", Body=b"secret")
    upload_id = host.create_multipart_upload(**B, Key="run/k", ChecksumAlgorithm="CRC32")["UploadId"]
    part = host.upload_part(**B, Key="run/k", UploadId=upload_id, PartNumber=1, Body=b"x")
    listed = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}]}
    about = {**B, "Key": "run/k", "UploadId": upload_id}
    for act in (
        lambda: host.complete_multipart_upload(**about, MultipartUpload=listed),
        lambda: host.complete_multipart_upload(**about, MultipartUpload=listed, IfNoneMatch="*"),
        lambda: host.abort_multipart_upload(**about),
        lambda: host.list_parts(**about),
        lambda: host.list_multipart_uploads(**B),
        lambda: host.list_objects_v2(**B),
        lambda: host.list_object_versions(**B),
        lambda: host.put_object(**B, Key="run/new", Body=b""),
        lambda: host.copy_object(**B, Key="run/copy", CopySource="evidence/run/there"),
        lambda: host.get_object(**B, Key="run/there"),
        lambda: host.head_object(**B, Key="run/there"),
        lambda: host.head_object(**B, Key="run/nothing"),
        lambda: host.delete_object(**B, Key="run/there"),
        lambda: host.create_multipart_upload(**B, Key="other/k"),
        lambda: host.get_bucket_policy(**B),
        lambda: host.put_bucket_versioning(**B, VersioningConfiguration={"Status": "Enabled"}),
        host.list_buckets,
    ):
        assert refused(act)
    admin.complete_multipart_upload(**about, MultipartUpload=listed, IfNoneMatch="*")
    assert s3.read("evidence", "run/k") == b"x"
    s3.expire()
    with pytest.raises(ClientError, match="ExpiredToken"):
        host.create_multipart_upload(**B, Key="run/k2")


def test_an_attended_host_creates_and_never_overwrites(s3: StrictS3) -> None:
    create = allow("s3:PutObject", RUN, Condition={"Null": {"s3:if-none-match": "false"}})
    host = s3.client("s3", s3.add_user("host", policy(create, *WRITE_ONLY["Statement"])))
    assert refused(lambda: host.put_object(**B, Key="run/k", Body=b""))
    host.put_object(**B, Key="run/k", Body=b"", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        host.put_object(**B, Key="run/k", Body=b"", IfNoneMatch="*")


def test_a_session_has_no_more_than_its_role(s3: StrictS3) -> None:
    role = s3.add_role("narrow", policy(allow("s3:PutObject", "arn:aws:s3:::evidence/run/1/*")))
    sts = s3.client("sts")
    answer = sts.assume_role(RoleArn=role.arn, RoleSessionName="host", Policy=json.dumps(policy(allow("s3:*"))))
    host = s3.client("s3", s3._verifier.credentials[answer["Credentials"]["AccessKeyId"]])
    host.put_object(**B, Key="run/1/k", Body=b"")
    assert refused(lambda: host.put_object(**B, Key="run/2/k", Body=b""))
    assert refused(lambda: host.get_object(**B, Key="run/1/k"))


def test_sessions_that_are_not_minted(s3: StrictS3) -> None:
    role = s3.add_role("uploader")
    sts = s3.client("sts")
    about = {"RoleArn": role.arn, "RoleSessionName": "host"}
    long = json.dumps(policy(allow("s3:PutObject", ["arn:aws:s3:::evidence/" + "x" * 2000])))
    assert len(long) > 2048
    with pytest.raises((ClientError, ParamValidationError), match=r"2048|ValidationError"):
        sts.assume_role(**about, Policy=long)
    with pytest.raises(ClientError, match="MalformedPolicyDocument"):
        sts.assume_role(**about, Policy="{")
    stranger = s3.client("sts", s3.add_user("stranger", policy(allow("s3:*"))))
    assert refused(lambda: stranger.assume_role(**about))
    assert refused(lambda: sts.assume_role(RoleArn=role.arn + "x", RoleSessionName="host"))
    s3.sts.lifetime_s = 1.0
    answer = sts.assume_role(**about)["Credentials"]
    assert s3._verifier.credentials[answer["AccessKeyId"]].expires == pytest.approx(s3.now() + 1, abs=1)


def test_a_bucket_policy_denies_its_own_account(s3: StrictS3) -> None:
    s3.set_policy("evidence", policy(
        deny("s3:*", ["arn:aws:s3:::evidence", "arn:aws:s3:::evidence/*"], Principal="*",
             Condition={"Bool": {"aws:SecureTransport": "false"}}),
    ))  # fmt: skip
    assert refused(lambda: s3.client().put_object(**B, Key="k", Body=b""))
    s3.set_policy("evidence", policy(deny("s3:PutObject", "*", Principal="*", Condition={
        "Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"},
    })))  # fmt: skip
    assert refused(lambda: s3.client().put_object(**B, Key="k", Body=b""))
    s3.client().put_object(**B, Key="k", Body=b"", IfNoneMatch="*")
    s3.client().create_multipart_upload(**B, Key="k")


def test_a_bucket_policy_allows_a_user_without_rights(s3: StrictS3) -> None:
    user = s3.add_user("suspect", policy(deny("s3:None")))
    client = s3.client("s3", user)
    assert refused(lambda: client.put_object(**B, Key="run/k", Body=b""))
    s3.set_policy("evidence", policy(allow("s3:PutObject", RUN, Principal={"AWS": user.arn})))
    client.put_object(**B, Key="run/k", Body=b"")
    assert refused(lambda: client.get_object(**B, Key="run/k"))
    stranger = s3.client("s3", s3.add_user("stranger", account="999999999999"))
    assert refused(lambda: stranger.get_object(**B, Key="run/k"))


def test_transport_and_endpoint_are_known(tmp_path: Path) -> None:
    old = deny("s3:*", "*", Principal="*", Condition={"NumericLessThan": {"s3:TlsVersion": "1.3"}})
    outside = deny("s3:*", "*", Principal="*", Condition={"StringNotEquals": {"aws:SourceVpce": "vpce-1"}})
    for highest, fine in ((ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)):
        with StrictS3(tmp_path, tls=True, highest_tls=highest) as server:
            server.make_bucket("evidence", policy=policy(old))
            lists = functools.partial(server.client().list_objects_v2, **B)
            assert refused(lists) is not fine
            server.set_policy("evidence", policy(outside))
            assert refused(lists)
            server.world.source_vpce = "vpce-1"
            lists()


def test_presigned_requests_are_told_from_others(s3: StrictS3) -> None:
    by_header = deny("s3:GetObject", "*", Principal="*", Condition={"StringNotEquals": {"s3:authType": "REST-HEADER"}})
    s3.set_policy("evidence", policy(by_header))
    client = s3.client()
    client.put_object(**B, Key="k", Body=b"x")
    assert client.get_object(**B, Key="k")["Body"].read() == b"x"
    s3.set_policy("evidence", policy({**by_header, "Condition": {"StringEquals": {"s3:authType": "REST-HEADER"}}}))
    assert refused(lambda: client.get_object(**B, Key="k"))


def test_a_key_of_kms_needs_rights_of_its_own(s3: StrictS3) -> None:
    key = "arn:aws:kms:eu-central-1:111122223333:key/k"
    via = {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}}
    begin = policy(allow("s3:*"), allow("kms:GenerateDataKey", key, Condition=via))
    both = policy(allow("s3:*"), allow(["kms:GenerateDataKey", "kms:Decrypt"], key, Condition=via))
    sealed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key, "ChecksumAlgorithm": "CRC32"}
    none, half, whole = (
        s3.client("s3", s3.add_user(f"user{number}", document))
        for number, document in enumerate((policy(allow("s3:*")), begin, both))
    )
    assert refused(lambda: none.create_multipart_upload(**B, Key="k", **sealed))
    upload_id = half.create_multipart_upload(**B, Key="k", **sealed)["UploadId"]
    about = {**B, "Key": "k", "UploadId": upload_id, "PartNumber": 1, "Body": b"x"}
    assert refused(lambda: half.upload_part(**about))
    etags = {whole.upload_part(**about)["ETag"] for _ in range(2)}
    assert len(etags) == 2, "under SSE-KMS an ETag does not follow from the content"
