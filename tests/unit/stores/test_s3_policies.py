"""The policies that are printed: what they allow and deny, asked of an evaluator that knows IAM."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.stores.s3 import policies
from agent.stores.s3.place import MAX_PREFIX, Place, parse_place
from tests.rigs.strict_iam import Asked, Effect, check, decide

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
OTHER_KEY = "arn:aws:kms:eu-central-1:999999999999:key/11111111-2222-3333-4444-555555555555"
BREAK_GLASS = f"arn:aws:iam::{ACCOUNT}:role/break-glass"
UPLOADER = f"arn:aws:iam::{ACCOUNT}:role/uploader"
HOST = f"arn:aws:iam::{ACCOUNT}:role/host"
ANYBODY = f"arn:aws:iam::{ACCOUNT}:role/anybody"
RUN = "cases/INC-1/i-0abc/018f3b1e-7c00-7abc-8def-0123456789ab"

CREATES = {"s3:ObjectCreationOperation": "true"}
ADDS = {"s3:ObjectCreationOperation": "false"}
CREATE_ONLY = CREATES | {"s3:if-none-match": "*"}


def effect(
    policy: Any, action: str, key: str | None = None, principal: str = "", **context: str | dict[str, str]
) -> Effect | None:
    """What one policy says; `key` None is the bucket. Context may be given as dictionaries."""
    known = {"aws:SecureTransport": "true", "s3:TlsVersion": "1.3", "aws:PrincipalArn": principal}
    for value in context.values():
        known |= value if isinstance(value, dict) else {}
    resource = "arn:aws:s3:::evidence" + (f"/{key}" if key is not None else "")
    return decide(policy, Asked(action, resource, principal, ACCOUNT, known))


READING = ("s3:GetObject", "s3:GetObjectVersion", "s3:ListMultipartUploadParts", "s3:GetObjectRetention")
LISTING = ("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads")
DESTROYING = (
    "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectRetention",
    "s3:PutObjectLegalHold", "s3:BypassGovernanceRetention", "s3:PutObjectTagging", "s3:PutObjectAcl",
)  # fmt: skip


# -- one run's session ------------------------------------------------------------------------------------------------


def test_a_session_starts_uploads_and_adds_parts_below_its_run_and_nothing_else() -> None:
    policy = json.loads(policies.session_policy("evidence", RUN, KEY))
    check(policy)
    assert effect(policy, "s3:PutObject", f"{RUN}/memory/x", c=ADDS) is Effect.ALLOW
    for context in (CREATES, CREATE_ONLY, {}):
        assert effect(policy, "s3:PutObject", f"{RUN}/memory/x", c=context) is None
    for elsewhere in ("cases/INC-1/i-0abc/other/x", f"{RUN}x/y", RUN, "x"):
        assert effect(policy, "s3:PutObject", elsewhere, c=ADDS) is None
    for action in (*READING, *DESTROYING):
        assert effect(policy, action, f"{RUN}/memory/x") is None
    for action in (*LISTING, *policies.SETTINGS, *policies.READ_SETTINGS):
        assert effect(policy, action) is None


def test_a_session_uses_the_key_through_s3_only() -> None:
    policy = json.loads(policies.session_policy("evidence", RUN, KEY))
    via = {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}
    for action in ("kms:GenerateDataKey", "kms:Decrypt"):
        assert decide(policy, Asked(action, KEY, context=via)) is Effect.ALLOW
        assert decide(policy, Asked(action, KEY)) is None
        assert decide(policy, Asked(action, OTHER_KEY, context=via)) is None
    assert decide(policy, Asked("kms:DeriveSharedSecret", KEY, context=via)) is None
    assert "kms" not in policies.session_policy("evidence", RUN)


@given(
    bucket=st.from_regex(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", fullmatch=True),
    prefix=st.lists(st.text("abcXYZ019!_.'()=+@-*", min_size=1, max_size=64), min_size=1, max_size=9),
)
def test_any_place_gives_a_policy_that_sts_takes_and_that_reaches_no_other_prefix(
    bucket: str, prefix: list[str]
) -> None:
    try:
        place = parse_place(f"s3://{bucket}/{'/'.join(prefix)}")
    except UsageError:
        return
    run = place.below(f"{'c' * 64}/{'h' * 100}/018f3b1e-7c00-7abc-8def-0123456789ab")
    text = policies.session_policy(run.bucket, run.prefix, KEY)
    assert len(text) <= 2048
    assert text == json.dumps(json.loads(text), separators=(",", ":"))
    resource = json.loads(text)["Statement"][0]["Resource"]
    assert resource.endswith("/*")
    # A star in a name is written as ${*}, which is one: no other character is special in a resource.
    assert not re.search(r"[*?$]", resource[:-1].replace("${*}", ""))
    assert resource.replace("${*}", "*") == f"arn:aws:s3:::{bucket}/{run.prefix}/*"


def test_the_longest_place_still_fits_and_what_does_not_is_refused() -> None:
    longest = Place("b" * 63, "p" * MAX_PREFIX).below(f"{'c' * 64}/{'h' * 100}/{'r' * 36}")
    assert len(policies.session_policy(longest.bucket, longest.prefix, KEY)) <= policies.MAX_SESSION_POLICY
    with pytest.raises(UsageError, match="too long"):
        policies.session_policy("evidence", "p" * 2000, KEY)


@pytest.mark.parametrize(
    "key", ["alias/evidence", "1234", "arn:aws:kms:eu-central-1:1:alias/x", f'{KEY}","x', f"{KEY}*"]
)
def test_a_key_that_names_nothing_in_a_policy_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="KMS key"):
        policies.session_policy("evidence", RUN, key)


@pytest.mark.parametrize(
    "arn", ["*", "uploader", "arn:aws:iam::1:role/x", f"{UPLOADER}*", f"arn:aws:iam::{ACCOUNT}:role/a b"]
)
def test_a_principal_that_is_no_role_is_refused(arn: str) -> None:
    with pytest.raises(UsageError, match="ARN"):
        policies.bucket_policy("evidence", break_glass=[arn])
    with pytest.raises(UsageError, match="ARN"):
        policies.bucket_policy("evidence", break_glass=[BREAK_GLASS], uploaders=[arn])
    with pytest.raises(UsageError, match="ARN"):
        policies.responder_policy("evidence", "cases", [arn])
    with pytest.raises(UsageError, match="ARN"):
        policies.role_trust([arn])


# -- roles ------------------------------------------------------------------------------------------------------------


def test_a_machine_s_own_role_also_completes_create_only() -> None:
    policy = policies.host_policy("evidence", "cases", KEY)
    check(policy)
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c=ADDS) is Effect.ALLOW
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c=CREATE_ONLY) is Effect.ALLOW
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c=CREATES) is None
    assert effect(policy, "s3:PutObject", "elsewhere/x", c=CREATE_ONLY) is None
    for action in (*READING, *DESTROYING):
        assert effect(policy, action, f"{RUN}/x") is None
    for action in (*LISTING, *policies.SETTINGS):
        assert effect(policy, action) is None


def test_a_responder_completes_reads_and_lists_and_removes_nothing() -> None:
    policy = policies.responder_policy("evidence", "cases", [UPLOADER], KEY, KEY)
    check(policy)
    for context in (ADDS, CREATE_ONLY):
        assert effect(policy, "s3:PutObject", f"{RUN}/x", c=context) is Effect.ALLOW
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c=CREATES) is None
    for action in ("s3:GetObject", "s3:ListMultipartUploadParts"):
        assert effect(policy, action, f"{RUN}/x") is Effect.ALLOW
        assert effect(policy, action, "elsewhere/x") is None
    assert effect(policy, "s3:ListBucket", c={"s3:prefix": "cases/"}) is Effect.ALLOW
    assert effect(policy, "s3:ListBucket", c={"s3:prefix": "other/"}) is None
    for action in policies.READ_SETTINGS:
        assert effect(policy, action) is Effect.ALLOW
    for action in DESTROYING:
        assert effect(policy, action, f"{RUN}/x") is None
    for action in policies.SETTINGS:
        assert effect(policy, action) is None
    assert decide(policy, Asked("sts:AssumeRole", UPLOADER)) is Effect.ALLOW
    assert decide(policy, Asked("sts:AssumeRole", ANYBODY)) is None
    assert decide(policy, Asked("kms:Sign", KEY)) is Effect.ALLOW


def test_an_analyst_reads_versions_and_writes_nothing() -> None:
    policy = policies.analyst_policy("evidence", "cases", KEY, OTHER_KEY)
    check(policy)
    for action in ("s3:GetObject", "s3:GetObjectVersion"):
        assert effect(policy, action, f"{RUN}/x") is Effect.ALLOW
    for action in ("s3:PutObject", *DESTROYING):
        for context in (ADDS, CREATE_ONLY, CREATES):
            assert effect(policy, action, f"{RUN}/x", c=context) is None
    assert decide(policy, Asked("kms:DeriveSharedSecret", OTHER_KEY)) is Effect.ALLOW
    assert decide(policy, Asked("kms:GenerateDataKey", KEY)) is None


def test_break_glass_reads_no_evidence_and_bypasses_no_retention() -> None:
    policy = policies.break_glass_policy("evidence")
    check(policy)
    for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:BypassGovernanceRetention", "s3:PutObject"):
        assert effect(policy, action, f"{RUN}/x") is None
    for action in policies.SETTINGS:
        assert effect(policy, action) is Effect.ALLOW


def test_an_endpoint_lets_evidence_out_to_our_bucket_only() -> None:
    policy = policies.endpoint_policy("evidence", "cases", ACCOUNT, "eu-central-1", "agents")
    check(policy, of_resource=True)
    ours = {"aws:ResourceAccount": ACCOUNT}
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c=ours) is Effect.ALLOW
    assert effect(policy, "s3:PutObject", f"{RUN}/x", c={"aws:ResourceAccount": "999999999999"}) is None
    assert effect(policy, "s3:GetObject", f"{RUN}/x", c=ours) is None
    assert decide(policy, Asked("s3:PutObject", "arn:aws:s3:::thief/x", ANYBODY, ACCOUNT, ours)) is None
    for bucket in ("agents", "aws-ssm-eu-central-1"):
        assert decide(policy, Asked("s3:GetObject", f"arn:aws:s3:::{bucket}/x", ANYBODY, ACCOUNT)) is Effect.ALLOW
    with pytest.raises(UsageError, match="account"):
        policies.endpoint_policy("evidence", "cases", "", "eu-central-1")


# -- the bucket -------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy() -> policies.Document:
    made = policies.bucket_policy(
        "evidence", break_glass=[BREAK_GLASS], uploaders=[UPLOADER], hosts=[HOST], kms_key=KEY,
        source_vpce=["vpce-1"], retention_days=30,
    )  # fmt: skip
    check(made, of_resource=True)
    return made


def test_it_grants_nothing(policy: policies.Document) -> None:
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Deny"}
    assert len(policies.minified(policy)) < 20 * 1024


def test_every_statement_has_a_name_of_its_own(policy: policies.Document) -> None:
    sids = [statement["Sid"] for statement in policy["Statement"]]
    assert len(set(sids)) == len(sids)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in sids)


@pytest.mark.parametrize(
    "context", [{"aws:SecureTransport": "false"}, {"s3:TlsVersion": "1.0"}, {"s3:TlsVersion": "1.1"}]
)
def test_bad_transport_is_denied_to_everybody(policy: policies.Document, context: dict[str, str]) -> None:
    for who in (ANYBODY, BREAK_GLASS):
        assert effect(policy, "s3:GetObject", "cases/x", who, c=context) is Effect.DENY
        assert effect(policy, "s3:ListBucket", None, who, c=context) is Effect.DENY


def test_overwriting_is_denied_to_everybody_and_uploads_are_not(policy: policies.Document) -> None:
    for who in (ANYBODY, BREAK_GLASS):
        assert effect(policy, "s3:PutObject", "cases/x", who, c=CREATES) is Effect.DENY
        for context in (CREATE_ONLY, ADDS):
            assert effect(policy, "s3:PutObject", "cases/x", who, c=context) is None


def test_only_break_glass_deletes_and_changes_settings(policy: policies.Document) -> None:
    for action in ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectLegalHold"):
        assert effect(policy, action, "cases/x", ANYBODY) is Effect.DENY
        assert effect(policy, action, "cases/x", BREAK_GLASS) is None
    for action in policies.SETTINGS:
        assert effect(policy, action, None, ANYBODY) is Effect.DENY
        assert effect(policy, action, None, BREAK_GLASS) is None


def test_nobody_bypasses_a_retention_or_sets_a_shorter_one(policy: policies.Document) -> None:
    for who in (ANYBODY, BREAK_GLASS):
        assert effect(policy, "s3:BypassGovernanceRetention", "cases/x", who) is Effect.DENY
        for days, expected in (("1", Effect.DENY), ("29", Effect.DENY), ("30", None), ("400", None)):
            context = {"s3:object-lock-remaining-retention-days": days}
            assert effect(policy, "s3:PutObjectRetention", "cases/x", who, c=context) is expected


def test_nobody_stores_under_a_key_of_somebody_else(policy: policies.Document) -> None:
    header = "s3:x-amz-server-side-encryption-aws-kms-key-id"
    for own in (ADDS, CREATE_ONLY):
        assert effect(policy, "s3:PutObject", "cases/x", ANYBODY, c=own, d={header: OTHER_KEY}) is Effect.DENY
        assert effect(policy, "s3:PutObject", "cases/x", ANYBODY, c=own, d={header: KEY}) is None
        customers = {"s3:x-amz-server-side-encryption-customer-algorithm": "AES256"}
        assert effect(policy, "s3:PutObject", "cases/x", ANYBODY, c=own, d=customers) is Effect.DENY


def test_machines_only_write_and_only_through_the_endpoint(policy: policies.Document) -> None:
    inside = {"aws:SourceVpce": "vpce-1"}
    for who in (UPLOADER, HOST):
        assert effect(policy, "s3:PutObject", "cases/x", who, c=ADDS, d=inside) is None
        assert effect(policy, "s3:PutObject", "cases/x", who, c=ADDS) is Effect.DENY
        assert effect(policy, "s3:PutObject", "cases/x", who, c=ADDS, d={"aws:SourceVpce": "vpce-2"}) is Effect.DENY
        for action in (*READING, *DESTROYING):
            assert effect(policy, action, "cases/x", who, d=inside) is Effect.DENY
        for action in (*LISTING, *policies.SETTINGS):
            assert effect(policy, action, None, who, d=inside) is Effect.DENY
    assert effect(policy, "s3:PutObject", "cases/x", UPLOADER, c=CREATE_ONLY, d=inside) is Effect.DENY
    assert effect(policy, "s3:PutObject", "cases/x", HOST, c=CREATE_ONLY, d=inside) is None
    assert effect(policy, "s3:GetObject", "cases/x", ANYBODY) is None


def test_without_anybody_excepted_there_is_no_policy() -> None:
    with pytest.raises(UsageError, match="break-glass"):
        policies.bucket_policy("evidence", break_glass=[])
