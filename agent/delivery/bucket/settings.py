"""What the bucket's own settings say. Each function gives one row, or raises `UnseenError`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.delivery.bucket.evaluate import statements
from agent.delivery.bucket.rows import Row, State, UnseenError

if TYPE_CHECKING:
    from agent.delivery.bucket.looking import Looking

TEMPLATE = "packaging/aws/evidence-bucket.yaml"
MOST_SKEW_S = 5.0
"""Times in custody logs of several machines are put side by side: what is further off than this is misleading."""
LEAST_ABORT_DAYS = 7
"""The longest acquisition, and the time until somebody finishes it: parts are evidence until they are completed."""


def versioning(look: Looking) -> Row:
    answer = look.ask("get_bucket_versioning", "s3:GetBucketVersioning") or {}
    status = str(answer.get("Status") or "never enabled")
    look.seen["versioning"] = answer
    return _row(
        "versioning",
        status == "Enabled",
        status,
        "without it an overwrite or a deletion is final, and Object Lock cannot be had",
        f"aws s3api put-bucket-versioning --bucket {look.place.bucket} --versioning-configuration Status=Enabled",
    )


def object_lock(look: Looking) -> Row:
    answer = look.ask(
        "get_object_lock_configuration",
        "s3:GetBucketObjectLockConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchObjectLockConfiguration",
    )
    lock = (answer or {}).get("ObjectLockConfiguration") or {}
    default = (lock.get("Rule") or {}).get("DefaultRetention") or {}
    hold = default.get("DefaultEventHold") or {}
    on = lock.get("ObjectLockEnabled") == "Enabled"
    period = _period(default)
    parts = []
    if period and default.get("Mode"):
        parts.append(f"{default['Mode']}, {period} for every new version")
    if hold:
        parts.append(f"held until released, then {_period(hold) or 'for no time'}")
    found = "not enabled" if not on else ", ".join(parts) or "enabled, without a default retention"
    rule = "ObjectLockEnabled=Enabled,Rule={DefaultRetention={Mode=GOVERNANCE,Days=30}}"
    return _row(
        "object lock",
        on and bool(parts),
        found,
        "for so long nobody can remove a stored object; the uploader has no right to set a retention of its own",
        f"aws s3api put-object-lock-configuration --bucket {look.place.bucket} --object-lock-configuration '{rule}'",
    )


def _period(default: dict[str, Any]) -> str:
    for word in ("Days", "Years"):
        if isinstance(default.get(word), int) and default[word] > 0:
            return f"{default[word]} {word.lower()}"
    return ""


def encryption(look: Looking) -> Row:
    answer = look.ask(
        "get_bucket_encryption", "s3:GetEncryptionConfiguration", "ServerSideEncryptionConfigurationNotFoundError"
    )
    rules = ((answer or {}).get("ServerSideEncryptionConfiguration") or {}).get("Rules") or [{}]
    default = rules[0].get("ApplyServerSideEncryptionByDefault") or {}
    way, key = str(default.get("SSEAlgorithm") or "none"), str(default.get("KMSMasterKeyID") or "")
    look.seen["kms_key"] = key
    wrong = []
    if not way.startswith("aws:kms"):
        wrong.append(f"{way}, no KMS key")
    elif not key or key.endswith("alias/aws/s3"):
        wrong.append("the key of AWS (aws/s3), which has no policy of yours")
    elif look.s3.sse_kms_key and not _same_key(look.s3.sse_kms_key, key):
        wrong.append(f"key {key}, not {look.s3.sse_kms_key}")
    if way == "aws:kms" and not rules[0].get("BucketKeyEnabled"):
        wrong.append("no bucket key")
    rule = {
        "Rules": [
            {
                "ApplyServerSideEncryptionByDefault": {
                    "SSEAlgorithm": "aws:kms",
                    "KMSMasterKeyID": look.s3.sse_kms_key or "KEY_ARN",
                },
                "BucketKeyEnabled": True,
            }
        ]
    }
    return _row(
        "default encryption",
        not wrong,
        "; ".join(wrong) if wrong else f"{way}, {key}" + (", bucket key" if way == "aws:kms" else ""),
        "a key of your own is a second door with its own policy and log; a bucket key keeps KMS from being asked for "
        "every part",
        f"aws s3api put-bucket-encryption --bucket {look.place.bucket} --server-side-encryption-configuration "
        f"'{json.dumps(rule)}'",
    )


def _same_key(one: str, other: str) -> bool:
    return one == other or one.rpartition("/")[2] == other.rpartition("/")[2]


def public_access(look: Looking) -> Row:
    answer = look.ask(
        "get_public_access_block", "s3:GetBucketPublicAccessBlock", "NoSuchPublicAccessBlockConfiguration"
    )
    block = (answer or {}).get("PublicAccessBlockConfiguration") or {}
    words = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    off = [word for word in words if block.get(word) is not True]
    on = ",".join(f"{word}=true" for word in words)
    return _row(
        "public access block",
        not off,
        f"off: {', '.join(off)}" if off else "all four are on",
        "one careless policy, and names and sizes of evidence are the world's",
        f"aws s3api put-public-access-block --bucket {look.place.bucket} --public-access-block-configuration {on}",
    )


def ownership(look: Looking) -> Row:
    answer = look.ask(
        "get_bucket_ownership_controls", "s3:GetBucketOwnershipControls", "OwnershipControlsNotFoundError"
    )
    rules = ((answer or {}).get("OwnershipControls") or {}).get("Rules") or [{}]
    owner = str(rules[0].get("ObjectOwnership") or "not set")
    return _row(
        "ownership",
        owner == "BucketOwnerEnforced",
        owner,
        "otherwise access lists (ACLs) count, and an account that uploads owns what it uploaded",
        f"aws s3api put-bucket-ownership-controls --bucket {look.place.bucket} --ownership-controls "
        "'Rules=[{ObjectOwnership=BucketOwnerEnforced}]'",
    )


def not_public(look: Looking) -> Row:
    try:
        obvious = any(_for_everybody(statement) for statement in statements(policy_of(look)))
    except UnseenError:
        obvious = False  # the policy has rows of its own
    try:
        answer = look.ask("get_bucket_policy_status", "s3:GetBucketPolicyStatus", "NoSuchBucketPolicy")
    except UnseenError:
        if not obvious:
            raise
        answer = None
    public = bool(((answer or {}).get("PolicyStatus") or {}).get("IsPublic"))
    found = "S3 says that it is public" if public else "it allows something to everybody" if obvious else "not public"
    return _row(
        "policy is not public",
        not (public or obvious),
        found,
        "evidence, or its names, would be anybody's",
        policy_command(look),
    )


def _for_everybody(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal")
    names = principal.get("AWS", []) if isinstance(principal, dict) else principal
    everybody = "*" in (names if isinstance(names, list) else [names])
    return statement.get("Effect") == "Allow" and everybody and not statement.get("Condition")


def logging(look: Looking) -> Row:
    answer = look.ask("get_bucket_logging", "s3:GetBucketLogging") or {}
    target = str((answer.get("LoggingEnabled") or {}).get("TargetBucket") or "")
    found = f"into {target}" if target else "off"
    if target == look.place.bucket:
        found = "into the bucket itself: the logs lie beside the evidence, and log themselves"
    return _row(
        "access logging",
        bool(target) and target != look.place.bucket,
        found,
        "who read evidence, and who tried, is part of its custody",
        f"aws s3api put-bucket-logging --bucket {look.place.bucket} --bucket-logging-status "
        "'LoggingEnabled={TargetBucket=LOG_BUCKET,TargetPrefix=evidence/}'",
    )


def aborts(look: Looking) -> Row:
    days = [
        int(rule["AbortIncompleteMultipartUpload"].get("DaysAfterInitiation") or 0)
        for rule in _rules(look)
        if (rule.get("AbortIncompleteMultipartUpload") or {}) and _covers(_prefix(rule), look.prefix())
    ]
    shortest = [
        int(rule["AbortIncompleteMultipartUpload"].get("DaysAfterInitiation") or 0)
        for rule in _rules(look)
        if (rule.get("AbortIncompleteMultipartUpload") or {}) and _touches(_prefix(rule), look.prefix())
    ]
    early = [day for day in shortest if day < LEAST_ABORT_DAYS]
    found = f"after {min(days)} days" if days else "never: no rule covers the prefix"
    if early:
        found = f"after {min(early)} days, and a run that is finished later loses what it stored"
    return _row(
        "lifecycle aborts unfinished uploads",
        bool(days) and not early,
        found,
        "parts of uploads that nobody finished are paid for and shown by no list of objects; until they are completed "
        "they are evidence",
        f"template parameter AbortDays ({TEMPLATE}), or a rule with AbortIncompleteMultipartUpload: "
        "{DaysAfterInitiation: 14} in aws s3api put-bucket-lifecycle-configuration",
    )


def expires_nothing(look: Looking) -> Row:
    wrong = []
    for rule in _rules(look):
        if not _touches(_prefix(rule), look.prefix()):
            continue
        name = str(rule.get("ID") or "a rule without a name")
        expiration = rule.get("Expiration") or {}
        if expiration.get("Days") or expiration.get("Date"):
            wrong.append(f"{name}: objects")
        if rule.get("NoncurrentVersionExpiration"):
            wrong.append(f"{name}: older versions")
    return _row(
        "lifecycle expires no evidence",
        not wrong,
        f"expires: {'; '.join(wrong)}"[:400] if wrong else "nothing expires",
        "a rule deletes without anybody's permission, as soon as the retention ends",
        f"remove Expiration and NoncurrentVersionExpiration: aws s3api put-bucket-lifecycle-configuration --bucket "
        f"{look.place.bucket} --lifecycle-configuration file://…",
    )


def _rules(look: Looking) -> list[dict[str, Any]]:
    if "lifecycle" not in look.seen:
        look.seen["lifecycle"] = look.ask(
            "get_bucket_lifecycle_configuration", "s3:GetLifecycleConfiguration", "NoSuchLifecycleConfiguration"
        )
    answer = look.seen["lifecycle"] or {}
    return [rule for rule in answer.get("Rules", ()) if rule.get("Status") == "Enabled"]


def _prefix(rule: dict[str, Any]) -> tuple[str, bool]:
    """The prefix of a rule, and whether it is bounded by more than that (tags, sizes)."""
    chosen = rule.get("Filter") or {}
    inner = chosen.get("And") or chosen
    more = any(word in inner for word in ("Tag", "Tags", "ObjectSizeGreaterThan", "ObjectSizeLessThan"))
    return str(inner.get("Prefix") or rule.get("Prefix") or ""), more


def _covers(rule: tuple[str, bool], ours: str) -> bool:
    return ours.startswith(rule[0]) and not rule[1]


def _touches(rule: tuple[str, bool], ours: str) -> bool:
    return ours.startswith(rule[0]) or rule[0].startswith(ours)


def region(look: Looking, first: dict[str, Any]) -> Row:
    headers = first.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    there = str(headers.get("x-amz-bucket-region") or "")
    if not there:
        answer = look.ask("get_bucket_location", "s3:GetBucketLocation") or {}
        there = str(answer.get("LocationConstraint") or "us-east-1")
        there = {"EU": "eu-west-1"}.get(there, there)
    ours = str(look.client.meta.region_name or "")
    return _row(
        "region",
        there == ours,
        there if there == ours else f"{there}, and {ours or 'none'} is what this machine is set to",
        "requests to another region are redirected or refused, and traffic between regions is slow and costs",
        f"--region {there}",
    )


def clock(look: Looking) -> Row:
    name, why = "clock", "times in custody logs are compared with those of other machines; S3's clock is nobody's here"
    if look.skew is None:
        return Row(name, State.UNKNOWN, "the answers have no Date", why)
    skew, bound = look.skew
    found = f"this machine is {-skew:+.1f} s off S3's, known to {bound:.1f} s"
    return _row(name, abs(skew) - bound <= MOST_SKEW_S, found, why, "set the clock of this machine (chronyc makestep)")


ROWS = (versioning, object_lock, encryption, public_access, ownership, aborts, expires_nothing, logging, not_public)
NAMES = (
    "versioning", "object lock", "default encryption", "public access block", "ownership",
    "lifecycle aborts unfinished uploads", "lifecycle expires no evidence", "access logging", "policy is not public",
)  # fmt: skip


def policy_command(look: Looking, role: str = "", host: str = "") -> str:
    """How the bucket gets the policy that it should have."""
    words = [
        "impound bucket policy",
        str(look.place),
        "--break-glass ROLE_ARN",
        f"--uploader-role {role or 'ROLE_ARN'}",
    ]
    if host:
        words.append(f"--host-role {host}")
    key = look.s3.sse_kms_key or str(look.seen.get("kms_key", ""))
    words.append(f"--kms-key {key if key.startswith('arn:') and ':key/' in key else 'KEY_ARN'}")
    return (
        f"{' '.join(words)} > policy.json; aws s3api put-bucket-policy --bucket {look.place.bucket} "
        "--policy file://policy.json"
    )


def policy_of(look: Looking) -> Any:
    """The bucket's policy, parsed; None where there is none."""
    if "policy_text" not in look.seen:
        answer = look.ask("get_bucket_policy", "s3:GetBucketPolicy", "NoSuchBucketPolicy")
        look.seen["policy_text"] = str((answer or {}).get("Policy") or "")
    try:
        return json.loads(look.seen["policy_text"] or "null")
    except ValueError:
        return None


def _row(name: str, good: object, found: str, why: str, mend: str) -> Row:
    return Row(name, State.OK if good else State.FINDING, found, why, "" if good else mend)
