"""Denied for certain: never said of a request that IAM would let through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery.bucket.denials import look_at_policy
from agent.delivery.bucket.evaluate import Asked, denied, excepted
from agent.delivery.bucket.rows import State
from agent.stores.s3.place import Place
from agent.stores.s3.policies import bucket_policy
from tests.rigs import strict_iam

ACCOUNT = "111122223333"
WHO = f"arn:aws:iam::{ACCOUNT}:role/somebody"
OTHER = f"arn:aws:iam::{ACCOUNT}:role/break-glass"
ASKED = Asked("s3:PutObject", "arn:aws:s3:::evidence/x", WHO, {
    "aws:principalarn": WHO, "s3:if-none-match": None, "s3:objectcreationoperation": "true", "s3:tlsversion": "1.1",
    "aws:securetransport": "true",
})  # fmt: skip


def deny(**more: Any) -> dict[str, Any]:
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::evidence/*", **more}
    return {"Version": "2012-10-17", "Statement": [{name: value for name, value in statement.items() if value}]}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (deny(), True),
        (deny(Principal={"AWS": "*"}), True),
        (deny(Principal={"AWS": [WHO]}), True),
        (deny(Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:root"}), False),
        (deny(Principal={"Service": "*"}), False),
        (deny(Principal=None, NotPrincipal={"AWS": OTHER}), True),
        (deny(Principal=None, NotPrincipal={"AWS": WHO}), False),
        (deny(Principal=None, NotPrincipal={"AWS": "*"}), False),
        (deny(Action=["s3:Get*", "S3:PUTOBJECT"]), True),
        (deny(Action="s3:PutObjectAcl"), False),
        (deny(Action=None, NotAction="s3:Get*"), True),
        (deny(Action=None, NotAction="s3:Put*"), False),
        (deny(Resource="arn:aws:s3:::evidence"), False),
        (deny(Resource="arn:aws:s3:::e?idence/*"), True),
        (deny(Resource="arn:aws:s3:::${aws:username}/*"), False),
        (deny(Condition={"Null": {"s3:if-none-match": "true"}}), True),
        (deny(Condition={"Null": {"s3:if-none-match": True}}), True),
        (deny(Condition={"Null": {"s3:if-none-match": "false"}}), False),
        (deny(Condition={"NumericLessThan": {"s3:TlsVersion": 1.2}}), True),
        (deny(Condition={"NumericLessThan": {"s3:TlsVersion": "1.1"}}), False),
        (deny(Condition={"Bool": {"S3:OBJECTCREATIONOPERATION": "true"}}), True),
        (deny(Condition={"ArnNotEquals": {"aws:PrincipalArn": OTHER}}), True),
        (deny(Condition={"ArnNotLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/*"}}), False),
        (deny(Condition={"StringNotEquals": {"s3:if-none-match": "*"}}), True),
        (deny(Condition={"StringEquals": {"s3:if-none-match": "*"}}), False),
        # What is not known does not count: the deny may not apply.
        (deny(Condition={"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}), False),
        (deny(Condition={"StringEqualsIfExists": {"aws:SourceAccount": "1"}}), False),
        (deny(Condition={"ForAnyValue:StringEquals": {"aws:PrincipalArn": WHO}}), False),
        (deny(Condition={"DateLessThan": {"aws:CurrentTime": "2099-01-01T00:00:00Z"}}), False),
        # Both have to hold.
        (deny(Condition={"Bool": {"aws:SecureTransport": "true"}, "Null": {"s3:if-none-match": "false"}}), False),
        # Not a policy.
        (None, False), ([], False), ({"Statement": "Deny"}, False), (deny(Condition=["x"]), False),
    ],
)  # fmt: skip
def test_what_is_denied(policy: Any, expected: bool) -> None:
    assert denied(policy, ASKED) is expected


def test_an_allow_denies_nothing() -> None:
    assert not denied(deny(Effect="Allow"), ASKED)


def test_who_is_excepted_is_named() -> None:
    assert excepted(deny(Condition={"ArnNotEquals": {"aws:PrincipalArn": [OTHER, WHO]}})) == [OTHER, WHO]
    assert excepted(deny(Principal=None, NotPrincipal={"AWS": OTHER})) == [OTHER]


def test_a_pattern_of_many_stars_is_answered_at_once() -> None:
    assert not denied(deny(Resource="arn:aws:s3:::" + "*" * 5000 + "y"), ASKED)


_VALUES = {
    "aws:PrincipalArn": [WHO, OTHER, f"arn:aws:iam::{ACCOUNT}:role/*", "*"],
    "s3:if-none-match": ["*", "x"],
    "s3:ObjectCreationOperation": ["true", "false"],
    "s3:TlsVersion": ["1.0", "1.1", "1.2"],
    "aws:SourceVpce": ["vpce-1"],
}
_OPERATORS = (
    "StringEquals StringNotEquals StringLike StringNotLike Bool ArnEquals ArnNotEquals NumericLessThan "
    "NumericGreaterThanEquals StringNotEqualsIfExists StringEqualsIfExists"
).split()


@st.composite
def _statements(draw: st.DrawFn) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": draw(st.sampled_from(["Deny", "Allow"]))}
    who = draw(st.sampled_from(["*", {"AWS": "*"}, {"AWS": [WHO]}, {"AWS": OTHER}]))
    statement[draw(st.sampled_from(["Principal", "NotPrincipal"])) if isinstance(who, dict) else "Principal"] = who
    actions = draw(st.lists(st.sampled_from(["s3:*", "s3:Put*", "s3:PutObject", "s3:GetObject", "*"]), min_size=1))
    statement[draw(st.sampled_from(["Action", "NotAction"]))] = actions
    statement["Resource"] = draw(
        st.sampled_from(["*", "arn:aws:s3:::evidence/*", "arn:aws:s3:::evidence", "arn:aws:s3:::*/y"])
    )
    condition: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(list(_VALUES)), max_size=3, unique=True)):
        operator = draw(st.sampled_from(_OPERATORS))
        condition.setdefault(operator, {})[key] = draw(st.lists(st.sampled_from(_VALUES[key]), min_size=1, max_size=2))
    if condition:
        statement["Condition"] = condition
    return statement


@given(statements=st.lists(_statements(), min_size=1, max_size=4), vpce=st.sampled_from([None, "vpce-1", "vpce-2"]))
def test_what_is_said_to_be_denied_is_denied_by_iam(statements: list[dict[str, Any]], vpce: str | None) -> None:
    policy = {"Version": "2012-10-17", "Statement": statements}
    if denied(policy, ASKED):
        context = {name: value for name, value in ASKED.context.items() if value is not None}
        asked = strict_iam.Asked(
            ASKED.action, ASKED.resource, WHO, ACCOUNT, context | ({"aws:SourceVpce": vpce} if vpce else {})
        )
        assert strict_iam.decide(policy, asked) is strict_iam.Effect.DENY


# -- the rows ---------------------------------------------------------------------------------------------------------

PLACE = Place("evidence", "cases")


def _wrong(policy: Any) -> list[str]:
    return [row.name for row in look_at_policy(policy, PLACE, "aws", ACCOUNT, "") if row.state is not State.OK]


def test_the_policy_that_is_printed_has_every_denial_however_it_is_written() -> None:
    policy = bucket_policy("evidence", break_glass=[OTHER], kms_key="arn:aws:kms:eu-central-1:111122223333:key/k")
    assert _wrong(policy) == []
    by_statement = {one["Sid"]: one for one in policy["Statement"]}
    # The same said otherwise: broader actions, other operators, one statement for two.
    by_statement["CreateOnly"]["Condition"] = {
        "StringNotEqualsIfExists": {"s3:if-none-match": "*"}, "StringEquals": {"s3:ObjectCreationOperation": "true"}
    }  # fmt: skip
    by_statement["NoDeletion"]["Action"] = "s3:Delete*"
    by_statement["NoBypassOfRetention"] |= {"Resource": "*", "Action": "s3:Bypass*"}
    by_statement["SettingsStay"]["Condition"] = {"StringNotLike": {"aws:PrincipalArn": [OTHER]}}
    by_statement["NoShorterRetention"] |= {"Action": "s3:PutObjectRetention", "Condition": {}}
    assert _wrong(policy) == []


def _found(policy: Any) -> dict[str, str]:
    return {row.name: row.found for row in look_at_policy(policy, PLACE, "aws", ACCOUNT, "")}


def test_who_is_excepted_is_named_only_where_they_are() -> None:
    policy = bucket_policy("evidence", break_glass=[OTHER], kms_key="arn:aws:kms:eu-central-1:111122223333:key/k")
    found = _found(policy)
    but = {name for name, text in found.items() if text == f"denied; excepted: {OTHER}"}
    assert but == {f"policy denies {what}" for what in (
        "deletion", "changing legal holds", "changing versioning", "changing the lifecycle", "changing the policy",
        "changing other settings",
    )}  # fmt: skip
    assert {text for name, text in found.items() if name not in but} == {"denied", "what a run needs is not denied"}
    # By what it means: an exception of one statement is none where another one denies it.
    again = next(one for one in policy["Statement"] if one["Sid"] == "NoChangeOfHolds")
    policy["Statement"].append({name: value for name, value in again.items() if name != "Condition"})
    assert _found(policy)["policy denies changing legal holds"] == "denied"
    # And the other way round.
    tls = next(one for one in policy["Statement"] if one["Sid"] == "TlsOnly")
    tls["Condition"]["StringNotLike"] = {"aws:PrincipalArn": f"{WHO}*"}
    assert _found(policy)["policy denies requests without TLS"] == f"denied; excepted: {WHO}*"


def test_a_policy_that_names_too_many_says_that_not_all_were_asked_about() -> None:
    policy = bucket_policy("evidence", break_glass=[f"{WHO}{number}" for number in range(300)])
    assert "perhaps more" in _found(policy)["policy denies overwriting"]


def test_what_mends_keys_of_somebody_else_says_that_it_needs_the_key() -> None:
    policy = bucket_policy("evidence", break_glass=[OTHER])
    (row,) = (row for row in look_at_policy(policy, PLACE, "aws", ACCOUNT, "the command") if row.state is not State.OK)
    assert row.name == "policy denies keys of somebody else"
    assert row.mend.startswith("the command; this needs --kms-key")


def test_a_denial_for_one_account_s_roles_only_is_none() -> None:
    policy = bucket_policy("evidence", break_glass=[OTHER], kms_key="arn:aws:kms:eu-central-1:111122223333:key/k")
    for statement in policy["Statement"]:
        if statement["Sid"] == "NoDeletion":
            statement["Condition"] = {"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/*"}}
    assert _wrong(policy) == ["policy denies deletion"]


def test_a_policy_that_denies_what_a_run_needs_is_a_finding() -> None:
    policy = bucket_policy("evidence", break_glass=[OTHER], kms_key="arn:aws:kms:eu-central-1:111122223333:key/k")
    # A common mistake: the condition without the exemption of what creates nothing.
    for statement in policy["Statement"]:
        if statement["Sid"] == "CreateOnly":
            statement["Condition"] = {"Null": {"s3:if-none-match": "true"}}
    assert _wrong(policy) == ["policy lets a run through"]
