"""A credential that tries everything it must not do, refused each time by a real S3: Ceph's radosgw 16.2.

What this server cannot tell apart, since it knows neither s3:ObjectCreationOperation nor s3:if-none-match: starting an
upload, adding a part, completing, putting whole, overwriting. They are one permission here, s3:PutObject, and where
that is given they are all let through; the strict fake tells them apart (`test_bucket_strict.py`). It also does not
know the conditions on aws:PrincipalArn: the suspect stands as `Principal` here. Two things are as they are there, and
not as AWS has them: a denial with NotAction leaves out ListMultipartUploadParts and PutObjectLegalHold, so the actions
are named; and a session's policy does not bound AbortMultipartUpload.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from agent.delivery.bucket import settings
from agent.delivery.bucket.contents import second_versions, unfinished
from agent.delivery.bucket.looking import Looking
from agent.delivery.bucket.rows import Row, State
from agent.delivery.bucket.tries import Trial, make_probe
from agent.job import S3
from agent.stores.s3.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rigs.radosgw import RadosGateway

pytest_plugins = ["tests.rigs.s3_fixtures"]

SAME_PERMISSION = {
    "puts an object", "puts an object, create-only", "completes its upload", "completes its upload, create-only",
    "overwrites an object",
}  # fmt: skip
NAMED = [
    "s3:GetObject", "s3:GetObjectVersion", "s3:ListMultipartUploadParts", "s3:AbortMultipartUpload", "s3:DeleteObject",
    "s3:DeleteObjectVersion", "s3:PutObjectRetention", "s3:PutObjectLegalHold", "s3:BypassGovernanceRetention",
    "s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:PutBucketPolicy",
    "s3:PutBucketVersioning", "s3:PutLifecycleConfiguration",
]  # fmt: skip
PLACE = "cases"


@pytest.fixture
def bucket(rados_gateway: RadosGateway, bucket_name: str) -> Iterator[str]:
    client = rados_gateway.client("s3", rados_gateway.admin)
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}}
    client.put_object_lock_configuration(
        Bucket=bucket_name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    yield bucket_name
    rados_gateway.empty(bucket_name)


def _look(gateway: RadosGateway, bucket: str) -> Looking:
    s3 = S3(endpoint_url=gateway.endpoint_url, region=gateway.region)
    return Looking(gateway.client("s3", gateway.admin), Place(bucket, PLACE), s3)


def _try(look: Looking, client: Any) -> tuple[dict[str, Row], list[str]]:
    # As the check does it: what is there now is what would be put again.
    settings.versioning(look)
    settings.policy_of(look)
    run, outside = look.place.below("impound-check-1"), look.place.below("impound-check-2")
    trial = Trial(look, client, "host", run, outside, make_probe(look))
    rows = {row.name.removeprefix("host "): row for row in trial.rows()}
    return rows, trial.left


def _statement(effect: str, who: str, resource: list[str], **action: str | list[str]) -> dict[str, Any]:
    return {"Effect": effect, "Principal": {"AWS": [who]}, "Resource": resource, **action}


def _refused_each_time(rows: dict[str, Row], but: frozenset[str] = frozenset()) -> None:
    assert rows["starts an upload"].state is State.OK
    assert rows["adds a part"].state is State.OK
    through = {name for name, row in rows.items() if row.state is State.GRAVE}
    assert through == SAME_PERMISSION | but
    # There was no lifecycle to put again.
    assert {name for name, row in rows.items() if row.state is State.UNKNOWN} == {"puts the bucket's lifecycle"}
    refused = {name for name, row in rows.items() if row.state is State.OK and row.found == "refused"}
    assert refused == {
        "reads an object", "reads a version of an object", "lists objects", "lists versions", "lists uploads",
        "lists parts", "starts an upload elsewhere", "puts an object elsewhere", "aborts an upload",
        "deletes an object", "deletes a version", "changes a retention", "changes a legal hold",
        "puts the bucket's policy", "puts the bucket's versioning",
    } - but  # fmt: skip


def test_under_a_bucket_policy_everything_but_writing_is_refused(rados_gateway: RadosGateway, bucket: str) -> None:
    suspect = rados_gateway.add_user("suspect")
    whole, objects = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            _statement("Allow", suspect.arn, [f"{whole}/{PLACE}/impound-check-1/*", f"{whole}/{PLACE}/impound-check/*"],
                       Action="s3:PutObject"),
            _statement("Deny", suspect.arn, [whole, objects], Action=NAMED),
        ],
    }  # fmt: skip
    look = _look(rados_gateway, bucket)
    look.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    rows, left = _try(look, rados_gateway.client("s3", suspect))
    _refused_each_time(rows)
    assert not any("unfinished" in line for line in left), "the owner aborts what the probe began"
    assert unfinished(look).found == "none"
    # What was let through here made versions of the probe's own objects: they are shown, and are nobody else's.
    assert second_versions(look).state is State.OK
    assert json.loads(look.client.get_bucket_policy(Bucket=bucket)["Policy"]) == policy


def test_a_session_is_bounded_by_its_policy(rados_gateway: RadosGateway, bucket: str) -> None:
    allowed = [f"arn:aws:s3:::{bucket}/{PLACE}/impound-check-1/*", f"arn:aws:s3:::{bucket}/{PLACE}/impound-check/*"]
    session = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:PutObject", "Resource": allowed}],
    }
    user = rados_gateway.assume("uploader", session)
    look = _look(rados_gateway, bucket)
    owner_lets = {
        "Version": "2012-10-17",
        "Statement": [
            _statement("Allow", "arn:aws:iam:::role/uploader", [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                       Action="s3:*")
        ],
    }  # fmt: skip
    look.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(owner_lets))
    rows, _ = _try(look, rados_gateway.client("s3", user))
    _refused_each_time(rows, frozenset({"aborts an upload"}))


def test_a_credential_that_may_everything_is_caught(rados_gateway: RadosGateway, bucket: str) -> None:
    rows, _ = _try(_look(rados_gateway, bucket), rados_gateway.client("s3", rados_gateway.admin))
    state = {name: row.state for name, row in rows.items()}
    for name in ("reads an object", "lists parts", "deletes an object", "deletes a version", "aborts an upload",
                 "changes a retention", "changes a legal hold", "starts an upload elsewhere"):  # fmt: skip
        assert state[name] is State.GRAVE, name


def test_what_the_probe_object_is_held_by_is_held(rados_gateway: RadosGateway, bucket: str) -> None:
    look = _look(rados_gateway, bucket)
    probe = make_probe(look)
    assert probe is not None
    assert probe.mode == "GOVERNANCE"
    with pytest.raises(ClientError, match="AccessDenied"):
        look.client.delete_object(Bucket=bucket, Key=probe.key, VersionId=probe.version)


def test_what_this_server_has_of_the_settings_is_read(rados_gateway: RadosGateway, bucket: str) -> None:
    look = _look(rados_gateway, bucket)
    assert settings.versioning(look).state is State.OK
    assert settings.object_lock(look).found == "GOVERNANCE, 30 days for every new version"
    assert settings.public_access(look).state is State.FINDING
    assert settings.aborts(look).state is State.FINDING
    assert settings.not_public(look).state is State.OK
