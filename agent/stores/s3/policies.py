"""What each may do in an evidence bucket, as policy documents. Pure: names in, documents out.

Who stands in them:

uploader     the role of which the controller mints a session for one run: starts uploads, adds parts, nothing else
host         the machine's own role, for `--authority ambient`: also completes, create-only
responder    the controller: assumes the uploader, begins, completes, reads, lists; aborts and deletes nothing
analyst      reads and lists
break-glass  the only one that may change the bucket's settings, or delete what no retention holds any longer

`s3:PutObject` is one permission for four calls. `s3:ObjectCreationOperation` tells those that make an object appear
(PutObject, CompleteMultipartUpload) from those that do not (CreateMultipartUpload, UploadPart):
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html.
`packaging/aws/evidence-bucket.yaml` holds the same documents, and a test compares them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Document = dict[str, Any]
Statement = dict[str, Any]

MAX_SESSION_POLICY = 2048
"""Characters that STS takes as a session policy (AssumeRole, `Policy`)."""
RETENTION_DAYS = 30

_KEY_ARN = re.compile(r"arn:(aws[a-z-]*):kms:([a-z0-9-]{1,40}):([0-9]{12}):key/[A-Za-z0-9-]{1,64}")
_PRINCIPAL_ARN = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(?:root|(?:role|user)/[A-Za-z0-9_+=,.@/-]{1,576})")

_CREATES = {"Bool": {"s3:ObjectCreationOperation": "true"}}
_CREATES_NOT = {"Bool": {"s3:ObjectCreationOperation": "false"}}
_SSE_KEY = "s3:x-amz-server-side-encryption-aws-kms-key-id"
_CREATE_ONLY = {"Null": {"s3:if-none-match": "false"}}

SETTINGS = (
    "s3:PutBucketPolicy",
    "s3:DeleteBucketPolicy",
    "s3:PutBucketVersioning",
    "s3:PutLifecycleConfiguration",
    "s3:PutBucketObjectLockConfiguration",
    "s3:PutEncryptionConfiguration",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketOwnershipControls",
    "s3:PutBucketAcl",
    "s3:PutBucketLogging",
    "s3:PutReplicationConfiguration",
    "s3:DeleteBucket",
)
"""What would undo the bucket's protection, or carry evidence elsewhere."""

READ_SETTINGS = (
    "s3:GetBucketLocation",
    "s3:GetBucketVersioning",
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetEncryptionConfiguration",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetBucketOwnershipControls",
    "s3:GetBucketPolicy",
    "s3:GetBucketPolicyStatus",
    "s3:GetLifecycleConfiguration",
    "s3:GetBucketLogging",
)
"""What `impound bucket check` looks at."""


def check_key(kms_key: str) -> tuple[str, str]:
    """(partition, region) of a key's ARN. Raises `UsageError`: an alias or a bare id names nothing in a policy."""
    match = _KEY_ARN.fullmatch(kms_key)
    if match is None:
        raise UsageError(f"a KMS key in a policy is an ARN, arn:aws:kms:REGION:ACCOUNT:key/ID, not {kms_key[:80]!r}")
    return match[1], match[2]


def check_principal(arn: str) -> str:
    """The ARN of a role, a user or an account's root. Raises `UsageError`."""
    if not _PRINCIPAL_ARN.fullmatch(arn):
        raise UsageError(f"a role is an ARN, arn:aws:iam::ACCOUNT:role/NAME, not {arn[:80]!r}")
    return arn


def session_policy(bucket: str, prefix_of_run: str, kms_key: str = "", region: str = "", partition: str = "aws") -> str:
    """The policy of the session that a host gets for one run: minified JSON. Raises `UsageError` beyond 2,048."""
    text = minified(_document(add_parts(bucket, prefix_of_run, kms_key, region, partition)))
    if len(text) > MAX_SESSION_POLICY:
        raise UsageError(
            f"the prefix of the run is too long: its session policy has {len(text)} characters, and STS takes "
            f"{MAX_SESSION_POLICY}"
        )
    return text


def uploader_policy(bucket: str, prefix: str, kms_key: str = "", region: str = "", partition: str = "aws") -> Document:
    """The role behind the sessions: the same, for all runs. A session is the intersection of both."""
    return _document(add_parts(bucket, prefix, kms_key, region, partition))


def add_parts(bucket: str, prefix: str, kms_key: str, region: str, partition: str) -> list[Statement]:
    """Starting uploads and adding parts below a prefix; nothing appears, nothing is read."""
    return [
        # Only what makes no object appear: the controller completes, after it compared the parts.
        _allow("AddParts", "s3:PutObject", _below(bucket, prefix, partition), _CREATES_NOT),
        *_through_s3(kms_key, region),
    ]


def host_policy(bucket: str, prefix: str, kms_key: str = "", region: str = "", partition: str = "aws") -> Document:
    """A machine's own role (`ambient`): what a session may, and completing and putting what is not there yet."""
    below = _below(bucket, prefix, partition)
    return _document([
        # Nobody else completes for it.
        _allow("CreateOnly", "s3:PutObject", below, _CREATE_ONLY),
        *add_parts(bucket, prefix, kms_key, region, partition),
    ])  # fmt: skip


def responder_policy(
    bucket: str,
    prefix: str,
    uploaders: Sequence[str] = (),
    kms_key: str = "",
    signing_key: str = "",
    region: str = "",
    partition: str = "aws",
) -> Document:
    """The controller's role. It can neither abort an upload nor delete anything."""
    whole, below = _bucket(bucket, partition), _below(bucket, prefix, partition)
    statements = [
        # The session of a host is minted from this role, bounded by `session_policy`.
        *([_allow("MintSessions", "sts:AssumeRole", _checked(uploaders))] if uploaders else []),
        # Uploads are begun for the host, and parts are signed for it (broker).
        _allow("AddParts", "s3:PutObject", below, _CREATES_NOT),
        # Completing, receipts, countersignatures: only where there is nothing of that name.
        _allow("CreateOnly", "s3:PutObject", below, _CREATE_ONLY),
        # Comparing parts with what was signed; reading progress, receipts and what is to be checked.
        _allow("Read", ["s3:GetObject", "s3:ListMultipartUploadParts", "s3:GetObjectRetention"], below),
        # Finding runs, and second versions of objects.
        _list(bucket, prefix, partition),
        # There is no condition key for a prefix here.
        _allow("ListUploads", "s3:ListBucketMultipartUploads", whole),
        # `impound bucket check`.
        _allow("LookAtSettings", list(READ_SETTINGS), whole),
        *_through_s3(kms_key, region),
    ]
    if signing_key:
        check_key(signing_key)
        # Countersigning a run (`impound finish --countersign-key`).
        statements.append(_allow("Countersign", ["kms:Sign", "kms:GetPublicKey"], signing_key))
    return _document(statements)


def analyst_policy(
    bucket: str, prefix: str, kms_key: str = "", sealing_key: str = "", region: str = "", partition: str = "aws"
) -> Document:
    """Who opens evidence: reads objects and their versions, writes nothing."""
    statements = [
        # Versions, because somebody may have put a delete marker over one.
        _allow("Read", ["s3:GetObject", "s3:GetObjectVersion"], _below(bucket, prefix, partition)),
        _list(bucket, prefix, partition),
    ]
    if kms_key:
        # Reading needs no data key.
        statements.append(_kms("DecryptThroughS3", ["kms:Decrypt"], kms_key, region))
    if sealing_key:
        check_key(sealing_key)
        # The private half of an age recipient: each use is an event in CloudTrail.
        statements.append(_allow("OpenSealed", ["kms:DeriveSharedSecret", "kms:GetPublicKey"], sealing_key))
    return _document(statements)


def break_glass_policy(bucket: str, partition: str = "aws") -> Document:
    """Who may change the bucket. It reads no evidence, and has no right to bypass a retention."""
    whole = _bucket(bucket, partition)
    return _document([
        # Never needed in an investigation; each use is worth an alarm.
        _allow("Settings", [*SETTINGS, *READ_SETTINGS], whole),
        # What to delete has to be found.
        _allow("List", ["s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"], whole),
        # Object Lock still holds what is under retention; parts of an unfinished upload it does not.
        _allow(
            "RemoveWhatNoRetentionHolds",
            ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:AbortMultipartUpload", "s3:PutObjectLegalHold"],
            f"{whole}/*",
        ),
    ])  # fmt: skip


def role_trust(principals: Sequence[str], *, mfa: bool = False) -> Document:
    """Who may assume a role."""
    statement: Statement = {
        "Sid": "Assume",
        "Effect": "Allow",
        "Principal": {"AWS": _checked(principals)},
        "Action": "sts:AssumeRole",
    }
    if mfa:
        # A stolen key alone does not open it.
        statement["Condition"] = {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    return _document([statement])


def instance_trust() -> Document:
    """The trust of a role for an instance profile (`ambient`)."""
    service = {"Service": "ec2.amazonaws.com"}
    return _document([{"Sid": "Assume", "Effect": "Allow", "Principal": service, "Action": "sts:AssumeRole"}])


def endpoint_policy(
    bucket: str, prefix: str, account: str, region: str, agent_bucket: str = "", partition: str = "aws"
) -> Document:
    """A VPC endpoint for S3 through which evidence goes in and nothing else goes out.

    Whoever holds a stolen key on the isolated machine cannot write to a bucket of their own.
    """
    if not re.fullmatch(r"[0-9]{12}", account) or not region:
        raise UsageError("an endpoint policy needs the account that owns the bucket (twelve digits) and the region")
    statements = [
        # aws:ResourceAccount: a bucket of that name that somebody else made after ours was deleted is not ours.
        _anyone("EvidenceIn", "s3:PutObject", _below(bucket, prefix, partition), account),
        # What the SSM agent fetches. AWS owns these buckets.
        _anyone(
            "SystemsManager",
            "s3:GetObject",
            [f"{_bucket(name, partition)}/*" for name in (
                f"aws-ssm-{region}", f"amazon-ssm-{region}", f"amazon-ssm-packages-{region}",
                f"aws-ssm-document-attachments-{region}", f"{region}-birdwatcher-prod",
            )],
        ),
    ]  # fmt: skip
    if agent_bucket:
        # Where the machine gets impound from.
        statements.append(_anyone("AgentOut", "s3:GetObject", f"{_bucket(agent_bucket, partition)}/*"))
    return _document(statements)


def bucket_policy(
    bucket: str,
    *,
    break_glass: Sequence[str],
    uploaders: Sequence[str] = (),
    hosts: Sequence[str] = (),
    kms_key: str = "",
    source_vpce: Sequence[str] = (),
    retention_days: int = RETENTION_DAYS,
    partition: str = "aws",
) -> Document:
    """What nobody may do, whatever their own policies say. It grants nothing.

    `break_glass`: who is excepted where somebody must be. `uploaders`: roles that sessions are minted from.
    `hosts`: roles of machines (`ambient`). `source_vpce`: both may act only through these VPC endpoints.
    """
    if not break_glass:
        raise UsageError("without a break-glass role nobody but the account's root could ever change the bucket again")
    whole = _bucket(bucket, partition)
    objects = f"{whole}/*"
    others = {"ArnNotEquals": {"aws:PrincipalArn": _checked(break_glass)}}
    statements = [
        # Credentials, keys and names of evidence are nobody's on the way.
        _deny("TlsOnly", "s3:*", [whole, objects], {"Bool": {"aws:SecureTransport": "false"}}),
        # TLS 1.0 and 1.1 are broken.
        _deny("Tls12OrLater", "s3:*", [whole, objects], {"NumericLessThan": {"s3:TlsVersion": "1.2"}}),
        # Nothing is ever overwritten. CreateMultipartUpload and UploadPart take no condition, and create nothing.
        _deny("CreateOnly", "s3:PutObject", objects, {"Null": {"s3:if-none-match": "true"}, **_CREATES}),
        # Neither a version removed nor a marker put over it.
        _deny("NoDeletion", ["s3:DeleteObject", "s3:DeleteObjectVersion"], objects, others),
        # No exception: who must, changes this policy first, and that is one more event in CloudTrail.
        _deny("NoBypassOfRetention", "s3:BypassGovernanceRetention", objects),
        # A retention of our own choice could end tomorrow.
        _deny(
            "NoShorterRetention",
            "s3:PutObjectRetention",
            objects,
            {"NumericLessThan": {"s3:object-lock-remaining-retention-days": str(retention_days)}},
        ),
        # A hold ends by the decision of people, not of a role that works with evidence.
        _deny("NoChangeOfHolds", "s3:PutObjectLegalHold", objects, others),
        # What protects the bucket is not changed by who works with it.
        _deny("SettingsStay", list(SETTINGS), whole, others),
        # A customer's own key (SSE-C) in an upload would make it evidence that nobody else can read.
        _deny(
            "NoKeyOfSomebodyElse",
            "s3:PutObject",
            objects,
            {"Null": {"s3:x-amz-server-side-encryption-customer-algorithm": "false"}},
        ),
    ]
    if kms_key:
        check_key(kms_key)
        # The same by a KMS key of another account. Without the header it is the bucket's default, ours; and since a
        # negated operator holds for what is not there, the header has to be there.
        statements.append(
            _deny(
                "OurKmsKeyOnly",
                "s3:PutObject",
                objects,
                {"Null": {_SSE_KEY: "false"}, "ArnNotEquals": {_SSE_KEY: kms_key}},
            )
        )
    machines = [*_checked(uploaders), *_checked(hosts)]
    if machines:
        # Not read, list, delete or abort, even if somebody gives their role more by mistake.
        statements.append(_deny_but("MachinesOnlyWrite", "s3:PutObject", [whole, objects], _is(machines)))
    if uploaders:
        # The controller completes, after it compared the parts.
        statements.append(
            _deny("UploadersCompleteNothing", "s3:PutObject", objects, _is(_checked(uploaders)) | _CREATES)
        )
    if machines and source_vpce:
        # Credentials that leave the machine are worth nothing elsewhere.
        elsewhere = _is(machines) | {"StringNotEquals": {"aws:SourceVpce": list(source_vpce)}}
        statements.append(_deny("MachinesThroughTheEndpoint", "s3:*", [whole, objects], elsewhere))
    return _document(statements)


def minified(document: Document) -> str:
    """As few characters as JSON takes."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True)


def _document(statements: list[Statement]) -> Document:
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(sid: str, action: str | list[str], resource: str | list[str], condition: Document | None = None) -> Document:
    statement: Statement = {"Sid": sid, "Effect": "Allow", "Action": action, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def _deny(sid: str, action: str | list[str], resource: str | list[str], condition: Document | None = None) -> Document:
    statement: Statement = {"Sid": sid, "Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def _deny_but(sid: str, action: str, resource: list[str], condition: Document) -> Statement:
    return {
        "Sid": sid, "Effect": "Deny", "Principal": "*", "NotAction": action, "Resource": resource,
        "Condition": condition,
    }  # fmt: skip


def _anyone(sid: str, action: str, resource: str | list[str], account: str = "") -> Statement:
    statement: Statement = {"Sid": sid, "Effect": "Allow", "Principal": "*", "Action": action, "Resource": resource}
    return statement | ({"Condition": {"StringEquals": {"aws:ResourceAccount": account}}} if account else {})


def _list(bucket: str, prefix: str, partition: str) -> Statement:
    condition = {"StringLike": {"s3:prefix": [_literal(prefix), f"{_literal(prefix)}/*"]}} if prefix else None
    return _allow("List", ["s3:ListBucket", "s3:ListBucketVersions"], _bucket(bucket, partition), condition)


def _through_s3(kms_key: str, region: str) -> list[Statement]:
    """SSE-KMS of uploads: S3 asks for a data key, and decrypts it at each further part, in the caller's name."""
    return [_kms("EncryptThroughS3", ["kms:GenerateDataKey", "kms:Decrypt"], kms_key, region)] if kms_key else []


def _kms(sid: str, actions: list[str], kms_key: str, region: str) -> Statement:
    partition, home = check_key(kms_key)
    suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    # Only through S3: without s3:GetObject it decrypts nothing by itself.
    return _allow(sid, actions, kms_key, {"StringEquals": {"kms:ViaService": f"s3.{region or home}.{suffix}"}})


def _is(roles: Sequence[str]) -> Document:
    # Not as `Principal`: a role that is deleted there turns into an id that a new role of that name does not have.
    return {"ArnEquals": {"aws:PrincipalArn": list(roles)}}


def _checked(principals: Sequence[str]) -> list[str]:
    return [check_principal(arn) for arn in principals]


def _bucket(bucket: str, partition: str) -> str:
    return f"arn:{partition}:s3:::{bucket}"


def _below(bucket: str, prefix: str, partition: str) -> str:
    return f"{_bucket(bucket, partition)}/{_literal(prefix)}/*" if prefix else f"{_bucket(bucket, partition)}/*"


def _literal(prefix: str) -> str:
    """A `*` in a prefix is only that, in a policy: not a wildcard."""
    return prefix.replace("*", "${*}")
