"""Does the bucket's policy deny what it must? By what it means, not by how it is written.

Each row asks for requests of a role that nobody has heard of, of the bucket's account and of another one, and wants
every one of them denied (`evaluate`). Requests that a run needs must not be.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from agent.delivery.bucket.evaluate import Asked, denied, excepted
from agent.delivery.bucket.rows import Row, State
from agent.stores.s3.policies import SETTINGS

if TYPE_CHECKING:
    from agent.stores.s3.place import Place

_STRANGERS_ACCOUNT = "999999999999"
_SSE_KEY = "s3:x-amz-server-side-encryption-aws-kms-key-id"
_SSE_C = "s3:x-amz-server-side-encryption-customer-algorithm"
_NORMAL: dict[str, str | None] = {
    # A sound request: what every probe begins with.
    "aws:securetransport": "true",
    "s3:tlsversion": "1.3",
    "s3:if-none-match": None,
    "s3:if-match": None,
    "s3:x-amz-server-side-encryption": None,
    _SSE_KEY: None,
    _SSE_C: None,
    "s3:x-amz-copy-source": None,
}
_CREATE: dict[str, str | None] = {"s3:objectcreationoperation": "true"}
_CREATE_ONLY = _CREATE | {"s3:if-none-match": "*"}
_ADD: dict[str, str | None] = {"s3:objectcreationoperation": "false"}

MOST_NAMED = 200
"""Principals of a policy that are asked about one by one: S3 takes 20 KiB, but another server may send anything."""

Probe = tuple[str, dict[str, str | None]]


class _Denial(msgspec.Struct, frozen=True):
    name: str
    why: str
    probes: tuple[Probe, ...]
    needs: str = ""
    """What the command that mends must have, in words."""


def _everything(context: dict[str, str | None]) -> tuple[Probe, ...]:
    return (
        ("s3:PutObject", _CREATE_ONLY | context), ("s3:PutObject", _ADD | context), ("s3:GetObject", context),
        ("s3:DeleteObject", context), ("s3:ListBucket", context),
    )  # fmt: skip


_SEPARATE = ("s3:PutBucketPolicy", "s3:DeleteBucketPolicy", "s3:PutBucketVersioning", "s3:PutLifecycleConfiguration")
_FOREIGN_KEY = f"arn:aws:kms:us-east-1:{_STRANGERS_ACCOUNT}:key/00000000-0000-0000-0000-000000000000"

DENIALS = (
    _Denial(
        "policy denies requests without TLS",
        "who sees the network sees names and sizes of evidence, and could use signed requests again",
        _everything({"aws:securetransport": "false", "s3:tlsversion": None}),
    ),
    _Denial(
        "policy denies TLS before 1.2",
        "TLS 1.0 and 1.1 can be broken",
        _everything({"s3:tlsversion": "1.0"}) + _everything({"s3:tlsversion": "1.1"}),
    ),
    _Denial(
        "policy denies overwriting",
        "an object that is put over another one hides it from everybody who does not ask for versions",
        (("s3:PutObject", _CREATE),),
    ),
    _Denial(
        "policy denies deletion",
        "a delete marker hides evidence; a version that no retention holds any longer would be gone",
        (("s3:DeleteObject", {}), ("s3:DeleteObjectVersion", {})),
    ),
    _Denial(
        "policy denies shorter retention",
        "whoever may set a retention could set one that ends tomorrow",
        tuple(
            ("s3:PutObjectRetention", {"s3:object-lock-remaining-retention-days": days, "s3:object-lock-mode": mode})
            for days in ("0", "1")
            for mode in ("GOVERNANCE", "COMPLIANCE")
        ),
    ),
    _Denial(
        "policy denies bypassing governance",
        "in governance mode this one permission undoes every retention",
        (("s3:BypassGovernanceRetention", {}),),
    ),
    _Denial(
        "policy denies changing legal holds",
        "a hold keeps evidence beyond its retention until people decide otherwise",
        (("s3:PutObjectLegalHold", {}),),
    ),
    _Denial(
        "policy denies changing versioning",
        "without versioning the next write destroys what was there",
        (("s3:PutBucketVersioning", {}),),
    ),
    _Denial(
        "policy denies changing the lifecycle",
        "a rule that expires objects deletes evidence without anybody's permission to delete",
        (("s3:PutLifecycleConfiguration", {}),),
    ),
    _Denial(
        "policy denies changing the policy",
        "everything here can be undone by whoever may change the policy",
        (("s3:PutBucketPolicy", {}), ("s3:DeleteBucketPolicy", {})),
    ),
    _Denial(
        "policy denies changing other settings",
        "lock, encryption, public access, ownership, logging and replication protect evidence or carry it elsewhere",
        tuple((action, {}) for action in SETTINGS if action not in _SEPARATE),
    ),
    _Denial(
        "policy denies keys of somebody else",
        "evidence that is stored under an attacker's key (SSE-C, or KMS of another account) can be read by nobody else",
        (
            ("s3:PutObject", _ADD | {_SSE_C: "AES256"}),
            ("s3:PutObject", _CREATE_ONLY | {_SSE_C: "AES256"}),
            ("s3:PutObject", _ADD | {"s3:x-amz-server-side-encryption": "aws:kms", _SSE_KEY: _FOREIGN_KEY}),
        ),
        "this needs --kms-key, the ARN of the bucket's key: without it the printed policy lets KMS keys of others pass",
    ),
)

_NEEDED: tuple[Probe, ...] = (("s3:PutObject", _ADD), ("s3:PutObject", _CREATE_ONLY), ("s3:GetObject", {}))

_OF_MACHINES: tuple[Probe, ...] = tuple(
    (action, {}) for action in (
        "s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket", "s3:ListBucketVersions", "s3:ListMultipartUploadParts",
        "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:DeleteObjectVersion",
    )
)  # fmt: skip


def look_at_policy(policy: Any, place: Place, partition: str, account: str, mend: str) -> Iterator[Row]:
    """A row for each denial, and one for what must not be denied. `account` is the bucket's, or ""."""
    arn, made = f"arn:{partition}:s3:::{place.bucket}", secrets.token_hex(4)
    strangers = [
        f"arn:{partition}:iam::{owner}:role/impound-check-{made}" for owner in (account or "1" * 12, _STRANGERS_ACCOUNT)
    ]
    named = excepted(policy)
    for denial in DENIALS:
        open_ = _not_denied(policy, denial.probes, strangers, arn, place)
        if open_:
            better = f"{mend}; {denial.needs}" if denial.needs and mend else mend
            yield Row(denial.name, State.FINDING, f"not denied: {', '.join(open_)}", denial.why, better)
        else:
            # Named somewhere in the policy, and not denied this: an exception of another statement is none here.
            but = [who for who in named[:MOST_NAMED] if _not_denied(policy, denial.probes, [who], arn, place)]
            but += ["perhaps more: the policy names too many"] if len(named) > MOST_NAMED else []
            exceptions = f"; excepted: {', '.join(but)}"[:400] if but else ""
            yield Row(denial.name, State.OK, f"denied{exceptions}", denial.why)
    needed = [probe[0] for probe in _NEEDED if not _not_denied(policy, (probe,), strangers[:1], arn, place)]
    yield Row(
        "policy lets a run through",
        State.FINDING if needed else State.OK,
        f"denied to everybody: {', '.join(dict.fromkeys(needed))}" if needed else "what a run needs is not denied",
        "a run that cannot be stored is lost",
        mend if needed else "",
    )


def look_at_machines(
    policy: Any, place: Place, partition: str, role: str, mend: str, *, completes: bool
) -> Iterator[Row]:
    """Whether the policy bounds a machine's role, whatever its own policies say."""
    arn = f"arn:{partition}:s3:::{place.bucket}"
    probes = _OF_MACHINES if completes else (*_OF_MACHINES, ("s3:PutObject", _CREATE_ONLY))
    open_ = _not_denied(policy, probes, [role], arn, place)
    yield Row(
        "policy bounds the host's role",
        State.FINDING if open_ else State.OK,
        f"not denied to {role}: {', '.join(open_)}" if open_ else f"{role} may only write",
        "one more permission given to that role by mistake, and every examined machine has it",
        mend if open_ else "",
    )


def _not_denied(policy: Any, probes: tuple[Probe, ...], principals: list[str], arn: str, place: Place) -> list[str]:
    found: dict[str, None] = {}
    for action, context in probes:
        resource = arn if action in SETTINGS or action.startswith("s3:ListBucket") else f"{arn}/{place.key('case/x')}"
        for principal in principals:
            known = _NORMAL | context | {"aws:principalarn": principal}
            if not denied(policy, Asked(action, resource, principal, known)):
                found[action] = None
    return list(found)
