"""AssumeRole and GetCallerIdentity, as STS answers them: temporary credentials for the strict S3."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from tests.rigs.s3_errors import S3Error
from tests.rigs.s3_http import Request, Response
from tests.rigs.s3_signature import Credential, Verifier
from tests.rigs.s3_state import iso
from tests.rigs.strict_iam import Asked, PolicyError, allowed, check

MAX_SESSION_POLICY = 2048
_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


@dataclass(slots=True)
class Role:
    """A role that may be assumed by whoever has `sts:AssumeRole` on it. Without `policy` it may do everything."""

    arn: str
    policy: dict[str, Any] | None = None
    longest_s: int = 43_200


@dataclass(slots=True)
class SecurityTokenService:
    """The part of STS that a controller needs. `lifetime_s` overrides every duration: boto3 sends none below 900."""

    verifier: Verifier
    account: str
    roles: dict[str, Role] = field(default_factory=dict)
    lifetime_s: float | None = None

    def answer(self, request: Request) -> tuple[str, str, Response]:
        """The operation, who asked, and the answer. Raises `S3Error`."""
        body = request.body.read(1 << 20)
        fields = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        operation = fields.get("Action", "")
        signed = self.verifier.verify(request, ("sts",), body)
        if signed.credential is None:
            raise S3Error("MissingAuthenticationToken", "Request is missing Authentication Token", status=403)
        if operation == "GetCallerIdentity":
            inner = _xml({"Arn": signed.credential.arn, "UserId": signed.credential.access_key,
                          "Account": signed.credential.account})  # fmt: skip
        elif operation == "AssumeRole":
            inner = self._assume(signed.credential, fields)
        else:
            raise S3Error("InvalidAction", f"Could not find operation {operation}", status=400)
        document = (
            f'<{operation}Response xmlns="{_NAMESPACE}"><{operation}Result>{inner}</{operation}Result>'
            f"<ResponseMetadata><RequestId>{secrets.token_hex(16)}</RequestId></ResponseMetadata></{operation}Response>"
        )
        return operation, signed.credential.arn, Response(200, {"Content-Type": "text/xml"}, document.encode())

    def _assume(self, caller: Credential, fields: dict[str, str]) -> str:
        arn, name = fields.get("RoleArn", ""), fields.get("RoleSessionName", "")
        asked = Asked("sts:AssumeRole", arn, caller.arn, caller.account)
        may = allowed(asked, identity=caller.policy, session=caller.session_policy, resource=None, owner=caller.account)
        role = self.roles.get(arn)
        if role is None or not may:
            message = f"User: {caller.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
            raise S3Error("AccessDenied", message)
        if not re.fullmatch(r"[\w+=,.@-]{2,64}", name):
            raise S3Error("ValidationError", "roleSessionName failed to satisfy constraint", status=400)
        duration = int(fields.get("DurationSeconds", "3600"))
        longest = 3600 if caller.token else role.longest_s
        if not 900 <= duration <= longest:
            message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            raise S3Error("ValidationError", message, status=400)
        expires = self.verifier.now() + (duration if self.lifetime_s is None else self.lifetime_s)
        session = f"arn:aws:sts::{self.account}:assumed-role/{arn.rpartition('/')[2]}/{name}"
        made = Credential(
            f"ASIA{secrets.token_hex(8).upper()}",
            secrets.token_urlsafe(30),
            session,
            self.account,
            secrets.token_urlsafe(240),
            role.policy,
            _session_policy(fields.get("Policy", "")),
            expires,
        )
        self.verifier.credentials[made.access_key] = made
        credentials = {
            "AccessKeyId": made.access_key,
            "SecretAccessKey": made.secret_key,
            "SessionToken": made.token,
            "Expiration": iso(expires),
        }
        user = {"AssumedRoleId": f"AROA{secrets.token_hex(8).upper()}:{name}", "Arn": session}
        return (
            f"<Credentials>{_xml(credentials)}</Credentials><AssumedRoleUser>{_xml(user)}</AssumedRoleUser>"
            f"<PackedPolicySize>{len(fields.get('Policy', '')) * 100 // MAX_SESSION_POLICY}</PackedPolicySize>"
        )


def _session_policy(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    if len(text) > MAX_SESSION_POLICY:
        raise S3Error(
            "ValidationError",
            "1 validation error detected: Value at 'policy' failed to satisfy constraint: Member must have length "
            "less than or equal to 2048",
            status=400,
        )
    try:
        policy: dict[str, Any] = json.loads(text)
        check(policy)
    except (ValueError, PolicyError, AttributeError, TypeError) as error:
        raise S3Error("MalformedPolicyDocument", str(error), status=400) from None
    return policy


def error_document(error: S3Error) -> Response:
    """A refusal as STS words it."""
    kind = "Sender" if error.status < 500 else "Receiver"
    inner = _xml({"Type": kind, "Code": error.code, "Message": error.message})
    document = f'<ErrorResponse xmlns="{_NAMESPACE}"><Error>{inner}</Error></ErrorResponse>'
    return Response(error.status, {"Content-Type": "text/xml"}, document.encode())


def _xml(fields: dict[str, str]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
