"""`impound bucket check`: every row, in order."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from agent import aws
from agent.channel.messages import Credentials
from agent.delivery.bucket import contents, denials, settings
from agent.delivery.bucket.looking import DENIED, code_of
from agent.delivery.bucket.rows import Row, State, UnseenError
from agent.delivery.bucket.tries import Stay, Trial, make_probe
from agent.errors import UsageError
from agent.ids import uuid7
from agent.stores.s3.client import given, standard
from agent.stores.s3.control import explained
from agent.stores.s3.policies import check_principal, session_policy

if TYPE_CHECKING:
    from agent.delivery.bucket.looking import Looking
    from agent.job import S3
    from agent.stores.s3.place import Place

SESSION_S = 900
"""Seconds that the session of a probe lives: the shortest that STS gives."""


class Checked(msgspec.Struct):
    """What a check leaves behind, filled while its rows are read."""

    left: list[str] = msgspec.field(default_factory=list)
    """What the tries left in the bucket."""


def check(look: Looking, checked: Checked, *, role: str = "", profile: str = "", tries: bool = True) -> Iterator[Row]:
    """Looks at everything, then tries. `role` is that of the host's sessions, `profile` the host's own credentials.

    Raises `UsageError`, and `StoreError` where the bucket cannot be reached or the credentials are not accepted.
    """
    if role:
        check_principal(role)
    first = look.first()
    if first is None and look.s3.bucket_owner and look.first(owned=False) is not None:
        yield Row(
            "bucket",
            State.GRAVE,
            f"it does not belong to {look.s3.bucket_owner}",
            "somebody else's bucket of that name would get the evidence",
            "do not use it; look for a wrong name, or for a bucket that was deleted and made anew by somebody else",
        )
        return
    yield _bucket(look, first)
    yield from _row("region", lambda: settings.region(look, first or {}))
    yield settings.clock(look)
    for name, function in zip(settings.NAMES, settings.ROWS, strict=True):
        yield from _row(name, lambda function=function: function(look))  # type: ignore[misc]
    yield from _policy(look, role, profile)
    yield from _row("unfinished uploads", lambda: contents.unfinished(look))
    yield from _row("second versions and delete markers", lambda: contents.second_versions(look))
    if tries:
        yield from _tries(look, checked, role, profile)


def _bucket(look: Looking, first: dict[str, Any] | None) -> Row:
    owner = f"owned by {look.s3.bucket_owner}" if look.s3.bucket_owner else "owner not asked for: give --bucket-owner"
    if first is None:
        mend = "allow s3:ListBucket to whoever checks: `impound bucket policy --kind responder` has it"
        return Row("bucket", State.UNKNOWN, "not allowed: s3:ListBucket", "it may not be there", mend)
    return Row("bucket", State.OK, f"there, {owner}", "somebody else's bucket of that name would get the evidence")


def _row(name: str, function: Callable[[], Row]) -> Iterator[Row]:
    try:
        yield function()
    except UnseenError as error:
        yield Row(name, State.UNKNOWN, str(error), "it could not be looked at", error.mend)


def _policy(look: Looking, role: str, profile: str) -> Iterator[Row]:
    try:
        policy = settings.policy_of(look)
    except UnseenError as error:
        yield Row("policy", State.UNKNOWN, str(error), "what nobody may do stands in the bucket's policy", error.mend)
        return
    account = look.s3.bucket_owner if re.fullmatch(r"[0-9]{12}", look.s3.bucket_owner) else ""
    if not account and role:
        account = role.split(":")[4]
    host = _role_behind(look, profile) if profile else ""
    mend, machine = settings.policy_command(look, role, host), role or host
    yield from denials.look_at_policy(policy, look.place, look.partition, account, mend)
    if machine:
        yield from denials.look_at_machines(policy, look.place, look.partition, machine, mend, completes=not role)


def _role_behind(look: Looking, profile: str) -> str:
    """The ARN of the role that a profile's credentials are of; "" for anything else."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        credentials = of_profile(profile)
        arn = str(given(_sts(look), credentials, "sts").get_caller_identity()["Arn"])
    except (BotoCoreError, ClientError):
        return ""
    match = re.fullmatch(r"arn:(aws[a-z-]*):sts::([0-9]{12}):assumed-role/([^/]+)/[^/]+", arn)
    if match is None:
        return arn
    # The path of a role is not in the ARN of its sessions; the policy may have it.
    pattern = rf"arn:{match[1]}:iam::{match[2]}:role/(?:[^\"*]*/)?{re.escape(match[3])}(?=\")"
    found = re.search(pattern, str(look.seen.get("policy_text", "")))
    return found[0] if found else f"arn:{match[1]}:iam::{match[2]}:role/{match[3]}"


# -- by trying --------------------------------------------------------------------------------------------------------


def _tries(look: Looking, checked: Checked, role: str, profile: str) -> Iterator[Row]:
    name, why = "the host's authority", "what a policy says and what S3 does are two things: only trying proves it"
    if not role and not profile:
        mend = "give --role ROLE_ARN (session) or --profile NAME (ambient), or --look-only"
        yield Row(name, State.UNKNOWN, "not tried: no authority of a host was given", why, mend)
        return
    run = look.place.below(f"impound-check-{uuid7()}")
    beside = look.place.below(f"impound-check-{uuid7()}")
    probe = make_probe(look)
    trials: list[Trial] = []
    try:
        if profile:
            client = given(_here(look), of_profile(profile))
            # The machine's own role is bounded by the bucket's prefix, not by a run's.
            trials.append(Trial(look, client, "the host", run, _above(look.place), probe, completes=True))
            trials[0].mend = _mend(look, "host")
        else:
            client = given(_here(look), mint(look, role, session_policy_of(look, run)))
            trials.append(Trial(look, client, "the host", run, beside, probe, mend=_mend(look, "uploader")))
            # The same without the session's policy: what one mistake in the controller would give away.
            client = given(_here(look), mint(look, role, ""))
            bare = Trial(look, client, "the role alone", run, _above(look.place), probe, worst=State.FINDING)
            bare.mend = _mend(look, "uploader")
            trials.append(bare)
    except UnseenError as error:
        yield Row(name, State.UNKNOWN, str(error), why, error.mend)
        return
    stay = Stay()
    try:
        for trial in trials:
            trial.left, trial.stay = checked.left, stay
            yield from trial.rows()
    finally:
        if stay.count:
            checked.left.append(stay.line())


def _above(place: Place) -> Place | None:
    """A place beside the prefix; None where the whole bucket is meant."""
    return type(place)(place.bucket, f"impound-check-{secrets.token_hex(8)}") if place.prefix else None


def session_policy_of(look: Looking, run: Place) -> str:
    """The policy that the controller would give to a session for that run."""
    key = look.s3.sse_kms_key or str(look.seen.get("kms_key", ""))
    return session_policy(
        run.bucket, run.prefix, key if key.startswith("arn:") and ":key/" in key else "", partition=look.partition
    )


def mint(look: Looking, role: str, policy: str) -> Credentials:
    """Credentials of a session of the role. Raises `UnseenError` where it may not be assumed, `StoreError`."""
    from botocore.exceptions import ClientError

    bounded = {"Policy": policy} if policy else {}
    with explained(f"{role} could not be assumed"):
        try:
            answer = standard(_sts(look), "sts").assume_role(
                RoleArn=role,
                RoleSessionName=f"impound-check-{secrets.token_hex(4)}",
                DurationSeconds=SESSION_S,
                **bounded,
            )["Credentials"]
        except ClientError as error:
            if code_of(error)[0] in DENIED:
                mend = "check with the responder's role, and let the trust policy of the host's role name it"
                raise UnseenError(f"not allowed: sts:AssumeRole on {role}", mend) from error
            raise
    return Credentials(
        str(answer["AccessKeyId"]),
        str(answer["SecretAccessKey"]),
        str(answer["SessionToken"]),
        answer["Expiration"].timestamp(),
    )


def of_profile(profile: str) -> Credentials:
    """The credentials of a profile in the AWS configuration of this machine. Raises `UsageError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with aws.within(aws.EXCHANGE_S):
            found = aws.session(profile).get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
    except (BotoCoreError, ClientError) as error:
        raise UsageError(f"--profile {profile[:80]!r} gives no credentials: {str(error)[:300]}") from error
    if frozen is None:
        raise UsageError(f"--profile {profile[:80]!r} has no credentials")
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "", 0.0)


def _here(look: Looking) -> S3:
    """The same place for clients that read no configuration."""
    return msgspec.structs.replace(look.s3, region=str(look.client.meta.region_name or look.s3.region))


def _sts(look: Looking) -> S3:
    """For STS: an endpoint of AWS's own is one of S3, and any other server has both at one address."""
    ours = re.search(r"\.amazonaws\.com(?:\.cn)?(?::\d+)?/?$", look.s3.endpoint_url)
    return msgspec.structs.replace(_here(look), endpoint_url="" if ours else look.s3.endpoint_url)


def _mend(look: Looking, kind: str) -> str:
    return f"give the role the policy that `impound bucket policy {look.place} --kind {kind}` prints, and nothing else"
