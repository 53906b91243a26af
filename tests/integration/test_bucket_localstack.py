"""What `impound bucket check` reads, and the template, on LocalStack. It enforces no policy: nothing is tried there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cli import main
from agent.stores.s3.policies import bucket_policy
from tests.support.buckets import BREAK_GLASS, LIFECYCLE

if TYPE_CHECKING:
    from tests.rigs.localstack import LocalStack

pytest_plugins = ["tests.rigs.s3_fixtures"]

TEMPLATE = Path(__file__).resolve().parents[2] / "packaging/aws/evidence-bucket.yaml"
KEY = "arn:aws:kms:us-east-1:000000000000:key/11111111-2222-3333-4444-555555555555"


@pytest.fixture
def stack(local_stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> LocalStack:
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return local_stack


def _check(stack: LocalStack, bucket: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["bucket", "check", f"s3://{bucket}/cases", "--look-only", "--endpoint-url", stack.endpoint_url])
    out, err = capsys.readouterr()
    assert out, err
    return code, json.loads(out)


def test_a_good_bucket_has_no_finding_and_each_lack_is_one(
    stack: LocalStack, bucket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = stack.client("s3")
    client.create_bucket(Bucket=f"{bucket_name}-logs")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    code, result = _check(stack, bucket_name, capsys)
    assert code == 1
    assert {"object lock", "default encryption", "lifecycle aborts unfinished uploads", "access logging",
            "policy denies overwriting"} <= set(result["finding"])  # fmt: skip
    retention = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}
    client.put_object_lock_configuration(
        Bucket=bucket_name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}
    client.put_bucket_encryption(
        Bucket=bucket_name,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}]
        },
    )
    client.put_bucket_lifecycle_configuration(Bucket=bucket_name, LifecycleConfiguration=LIFECYCLE)
    logs = {"LoggingEnabled": {"TargetBucket": f"{bucket_name}-logs", "TargetPrefix": "evidence/"}}
    client.put_bucket_logging(Bucket=bucket_name, BucketLoggingStatus=logs)
    policy = bucket_policy(bucket_name, break_glass=[BREAK_GLASS], kms_key=KEY)
    client.put_bucket_policy(Bucket=bucket_name, Policy=json.dumps(policy))
    code, result = _check(stack, bucket_name, capsys)
    # This server does not know GetBucketPolicyStatus.
    assert (code, result["unknown"], "finding" in result) == (1, ["policy is not public"], False), result


def test_the_template_is_deployed(stack: LocalStack, bucket_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a bucket this CloudFormation leaves out what it does not know: encryption, lifecycle, logging."""
    formation = stack.client("cloudformation")
    role = "arn:aws:iam::000000000000:role"
    parameters = {
        "BucketName": bucket_name, "ResponderPrincipalArns": f"{role}/ir", "AnalystPrincipalArns": f"{role}/lab",
        "BreakGlassPrincipalArns": f"{role}/chief", "CreateHostRole": "yes",
    }  # fmt: skip
    formation.create_stack(
        StackName=bucket_name,
        TemplateBody=TEMPLATE.read_text("utf-8"),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    formation.get_waiter("stack_create_complete").wait(
        StackName=bucket_name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    (made,) = formation.describe_stacks(StackName=bucket_name)["Stacks"]
    outputs = {one["OutputKey"]: one["OutputValue"] for one in made["Outputs"]}
    assert outputs["Destination"].startswith(f"--to s3://{bucket_name}/cases --region us-east-1 --bucket-owner 0000000")
    # The policy that it deployed is the one that the command of its output prints.
    assert main(outputs["Policy"].split()[1:]) == 0
    printed = json.loads(capsys.readouterr().out)
    deployed = stack.client("s3").get_bucket_policy(Bucket=bucket_name)["Policy"]
    # It takes the text "30" for a number; in a policy they are the same.
    assert json.loads(deployed, parse_int=str) == printed
    _, result = _check(stack, bucket_name, capsys)
    assert set(result["finding"]) <= {
        "default encryption", "lifecycle aborts unfinished uploads", "access logging",
    }, result  # fmt: skip
