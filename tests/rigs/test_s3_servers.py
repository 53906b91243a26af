"""The servers that are not ours start, do what tests rely on, and leave nothing."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.rigs.radosgw import RadosGateway, missing_program

if TYPE_CHECKING:
    from tests.rigs.localstack import LocalStack

pytest_plugins = ["tests.rigs.s3_fixtures"]


def refused(act: Callable[[], Any], status: int = 403) -> bool:
    """Whether it is refused with that status; any other refusal is raised."""
    try:
        act()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != status:
            raise
        return True
    return False


@pytest.mark.slow
def test_a_gateway_leaves_nothing() -> None:
    if missing_program():
        pytest.skip(f"needs {missing_program()}")
    with RadosGateway() as gateway:
        directory, pids = gateway.directory, gateway.pids
        assert len(pids) == 3
    assert not directory.exists()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_the_gateway_checks_signatures_policies_and_locks(rados_gateway: RadosGateway, bucket_name: str) -> None:
    admin, b = rados_gateway.client(), {"Bucket": bucket_name}
    admin.create_bucket(**b, ObjectLockEnabledForBucket=True)
    suspect = rados_gateway.add_user(f"suspect-{bucket_name}")
    client = rados_gateway.client("s3", suspect)
    assert refused(lambda: client.put_object(**b, Key="run/k", Body=b"x"))
    put = {"Effect": "Allow", "Principal": {"AWS": [suspect.arn]}, "Action": ["s3:PutObject"]}
    # Who uploads owns the object here, and an owner may read unless that is denied.
    read = {"Effect": "Deny", "Principal": {"AWS": [suspect.arn]}, "Action": ["s3:GetObject"]}
    statements = [statement | {"Resource": f"arn:aws:s3:::{bucket_name}/run/*"} for statement in (put, read)]
    admin.put_bucket_policy(**b, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    client.put_object(**b, Key="run/k", Body=b"x")
    for act in (
        lambda: client.get_object(**b, Key="run/k"),
        lambda: client.delete_object(**b, Key="run/k"),
        lambda: client.put_object(**b, Key="other", Body=b"x"),
        lambda: client.list_objects_v2(**b),
    ):
        assert refused(act)
    import dataclasses

    forger = rados_gateway.client("s3", dataclasses.replace(rados_gateway.admin, secret_key=suspect.secret_key))
    assert refused(lambda: forger.list_objects_v2(**b))
    version = admin.put_object(**b, Key="held", Body=b"x")["VersionId"]
    admin.put_object_legal_hold(**b, Key="held", VersionId=version, LegalHold={"Status": "ON"})
    assert refused(lambda: admin.delete_object(**b, Key="held", VersionId=version))
    rados_gateway.empty(bucket_name)
    assert refused(lambda: admin.head_bucket(**b), 404)


def test_the_gateway_narrows_a_session(rados_gateway: RadosGateway, bucket_name: str) -> None:
    rados_gateway.client().create_bucket(Bucket=bucket_name)
    put = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket_name}/run/*"}
    session = rados_gateway.assume("uploader", {"Version": "2012-10-17", "Statement": [put]})
    client = rados_gateway.client("s3", session)
    client.put_object(Bucket=bucket_name, Key="run/k", Body=b"x")
    assert refused(lambda: client.put_object(Bucket=bucket_name, Key="k", Body=b"x"))
    assert refused(lambda: client.get_object(Bucket=bucket_name, Key="run/k"))
    rados_gateway.empty(bucket_name)


def test_local_stack_checks_conditions_checksums_and_presigned_urls(local_stack: LocalStack, bucket_name: str) -> None:
    client, b = local_stack.client(), {"Bucket": bucket_name}
    client.create_bucket(**b, ObjectLockEnabledForBucket=True)
    client.put_object(**b, Key="k", Body=b"x", IfNoneMatch="*")
    assert refused(lambda: client.put_object(**b, Key="k", Body=b"y", IfNoneMatch="*"), 412)
    wrong = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
    assert refused(lambda: client.put_object(**b, Key="l", Body=b"x", ChecksumSHA256=wrong), 400)
    url = client.generate_presigned_url("get_object", Params={**b, "Key": "k"})
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - loopback
        assert answer.read() == b"x"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url.replace("Signature=", "Signature=0"), timeout=20)  # noqa: S310 - loopback
    assert caught.value.code == 403
    caught.value.close()


def test_local_stack_makes_a_bucket_from_a_template(local_stack: LocalStack, bucket_name: str) -> None:
    template = {
        "Resources": {
            "Bucket": {
                "Type": "AWS::S3::Bucket",
                "Properties": {
                    "BucketName": bucket_name,
                    "ObjectLockEnabled": True,
                    "VersioningConfiguration": {"Status": "Enabled"},
                },
            }
        }
    }
    formation = local_stack.client("cloudformation")
    formation.create_stack(StackName=bucket_name, TemplateBody=json.dumps(template))
    formation.get_waiter("stack_create_complete").wait(StackName=bucket_name, WaiterConfig={"Delay": 1})
    assert local_stack.client().get_bucket_versioning(Bucket=bucket_name)["Status"] == "Enabled"
