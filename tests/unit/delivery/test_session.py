"""Sessions: what is asked of STS, and what is refused before STS is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.delivery.session import Minter, session_name, sts_client
from agent.errors import AuthorityError, StoreError, UnreachableError, UsageError
from agent.job import S3
from agent.stores.s3.place import parse_place
from tests.rigs.strict_s3 import StrictS3

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
PLACE = parse_place(f"s3://evidence/cases/C-1/i-0abc/{RUN}")
ROLE = "arn:aws:iam::111122223333:role/uploader"
ALLOW = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[StrictS3]:
    with StrictS3(tmp_path) as server:
        server.make_bucket("evidence")
        yield server


class Asked:
    """STS that remembers what it was asked, and says no."""

    class meta:  # noqa: N801 - as boto3 names it
        region_name = "eu-central-1"

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def assume_role(self, **values: Any) -> Any:
        from botocore.exceptions import ClientError

        self.values = values
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, "AssumeRole")


def test_a_session_is_of_the_run_and_nothing_else() -> None:
    sts = Asked()
    minter = Minter(sts, S3(), ROLE, duration_s=900, source_identity="alice", tags={"case": "C-1"})
    with pytest.raises(AuthorityError, match="AccessDenied: not you"):
        minter.mint(PLACE, session_name("C-1", RUN))
    assert sts.values["RoleArn"] == ROLE
    assert sts.values["RoleSessionName"] == "impound-C-1-b302099a8057"
    assert sts.values["DurationSeconds"] == 900
    assert sts.values["SourceIdentity"] == "alice"
    assert sts.values["Tags"] == [{"Key": "case", "Value": "C-1"}]
    [statement] = json.loads(sts.values["Policy"])["Statement"]
    assert statement["Resource"] == f"arn:aws:s3:::evidence/cases/C-1/i-0abc/{RUN}/*"
    assert statement["Action"] == "s3:PutObject"
    assert statement["Condition"] == {"Bool": {"s3:ObjectCreationOperation": "false"}}


def test_names_of_sessions_fit() -> None:
    assert len(session_name("c" * 64, RUN)) <= 64


def test_minted_by_sts(s3: StrictS3) -> None:
    role = s3.add_role("uploader", ALLOW)
    minter = Minter(s3.client("sts"), S3(endpoint_url=s3.endpoint_url, region=s3.region), role.arn)
    first, second = minter.mint(PLACE, "impound-C-1-1"), minter.mint(PLACE, "impound-C-1-1")
    assert first.access_key != second.access_key
    assert first.token
    assert 3000 < first.expires - s3.now() <= 3601


def test_sts_that_does_not_answer(s3: StrictS3) -> None:
    client = s3.client("sts")
    s3.faults.cut(10, before_answer=True)
    with pytest.raises(UnreachableError):
        Minter(client, S3(), ROLE).mint(PLACE, "impound-C-1-1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "uploader"},
        {"role": "arn:aws:iam::1:role/x"},
        {"duration_s": 899},
        {"duration_s": 43_201},
        {"source_identity": "a b"},
        {"tags": {"a": "\n"}},
    ],
)
def test_what_sts_would_refuse_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Minter(Asked(), S3(), **({"role": ROLE} | wrong))


def test_a_policy_that_is_too_long() -> None:
    far = parse_place("s3://evidence/" + "/".join("p" * 100 for _ in range(5)))
    key = "arn:aws:kms:eu-central-1:111122223333:key/" + "1" * 36
    minter = Minter(Asked(), S3(sse_kms_key=key), ROLE)
    assert len(minter.policy(far.below(f"C-1/i-0abc/{RUN}"))) < 2048
    longer = parse_place("s3://evidence/" + "/".join("*" * 190 for _ in range(3)))
    with pytest.raises(UsageError, match="too long"):
        minter.policy(longer)
    with pytest.raises(StoreError, match="too long"):
        minter.mint(longer, "impound")


def test_sts_is_not_looked_for_at_an_endpoint_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    of_aws = S3(endpoint_url="https://bucket.vpce-1.s3.eu-central-1.vpce.amazonaws.com", region="eu-central-1")
    assert sts_client(of_aws).meta.endpoint_url == "https://sts.eu-central-1.amazonaws.com"
    own = S3(endpoint_url="https://s3.example.test", region="eu-central-1")
    assert sts_client(own).meta.endpoint_url == "https://s3.example.test"
