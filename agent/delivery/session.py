"""Session credentials for one run: `sts:AssumeRole` with a policy that is bounded by the run's own prefix.

They are minted by the responder's own AWS configuration, last an hour unless told otherwise, and are minted anew when
the host asks. They may start uploads and add parts below `<prefix>/<case>/<host>/<run>/`, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from agent.channel.messages import Credentials
from agent.errors import AuthorityError, StoreError, UnreachableError, UsageError
from agent.stores.s3.client import standard
from agent.stores.s3.policies import session_policy

if TYPE_CHECKING:
    from agent.job import S3
    from agent.stores.s3.place import Place

DURATION_S = 3600
MIN_DURATION_S, MAX_DURATION_S = 900, 43_200
"""What STS takes. A role that was itself assumed from a role gets 3,600 at most."""
_ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(?:[0-9]{12})?:role/[A-Za-z0-9_+=,.@/-]{1,576}")
_TAG = re.compile(r"[\w .:/=+@-]{1,128}")
_SOURCE_IDENTITY = re.compile(r"[\w+=,.@-]{2,64}")


def sts_client(s3: S3) -> Any:
    """STS where the responder's own configuration finds it: at the bucket's endpoint only where that is not AWS's.

    Raises `UsageError`.
    """
    host = urlsplit(s3.endpoint_url).hostname or ""
    at_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return standard(msgspec.structs.replace(s3, endpoint_url="") if at_aws else s3, "sts")


class Minter:
    """Mints sessions of one role."""

    def __init__(
        self,
        client: Any,
        s3: S3,
        role: str,
        *,
        duration_s: int = DURATION_S,
        source_identity: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `UsageError` for what STS would refuse."""
        match = _ROLE.fullmatch(role)
        if match is None:
            raise UsageError(f"--role is the ARN of a role, arn:aws:iam::ACCOUNT:role/NAME, not {role[:100]!r}")
        if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
            raise UsageError(f"a session lasts {MIN_DURATION_S} to {MAX_DURATION_S} seconds")
        if source_identity and not _SOURCE_IDENTITY.fullmatch(source_identity):
            raise UsageError("a source identity is 2 to 64 of A-Z a-z 0-9 _ + = , . @ -")
        if not all(_TAG.fullmatch(key) and _TAG.fullmatch(value) for key, value in (tags or {}).items()):
            raise UsageError("a session tag is KEY=VALUE, of letters, digits and _ . : / = + - @")
        self.role = role
        self._partition, self._client, self._s3, self._duration_s = match[1], client, s3, duration_s
        self._more: dict[str, Any] = {"SourceIdentity": source_identity} if source_identity else {}
        if tags:
            self._more["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]

    def policy(self, place: Place) -> str:
        """The session policy for a run at `place`. Raises `UsageError` where it is too long."""
        region = self._s3.region or str(self._client.meta.region_name)
        return session_policy(place.bucket, place.prefix, self._s3.sse_kms_key, region, self._partition)

    def mint(self, place: Place, session: str) -> Credentials:
        """Credentials for the run at `place`. Raises `StoreError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            policy = self.policy(place)
        except UsageError as error:
            raise StoreError(str(error)) from error
        try:
            answer = self._client.assume_role(
                RoleArn=self.role,
                RoleSessionName=session,
                Policy=policy,
                DurationSeconds=self._duration_s,
                **self._more,
            )["Credentials"]
        except ClientError as error:
            told = error.response.get("Error", {})
            why = f"{told.get('Code', 'unknown')}: {str(told.get('Message', ''))[:300]}"
            raise AuthorityError(f"STS gives no session of {self.role}: {why}") from error
        except BotoCoreError as error:
            raise UnreachableError(f"STS cannot be reached: {str(error)[:300]}") from error
        return Credentials(
            answer["AccessKeyId"],
            answer["SecretAccessKey"],
            answer["SessionToken"],
            answer["Expiration"].timestamp(),
        )


def session_name(case: str, run: str) -> str:
    """The name under which CloudTrail shows what the host does: of 64 characters at most."""
    return f"impound-{case[:42]}-{run[-12:]}"
