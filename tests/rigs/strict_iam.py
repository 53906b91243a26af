"""A small evaluator of IAM policies: what S3 and STS need of the language, and a refusal of what it does not know.

    context = {"s3:if-none-match": "*", "aws:SecureTransport": "true"}
    request = Asked("s3:PutObject", "arn:aws:s3:::bucket/key", principal, account, context)
    check(policy)                                                   # raises PolicyError
    decide(policy, request)                                         # Effect.ALLOW, Effect.DENY or None
    allowed(request, identity=policy, session=None, resource=bucket_policy, owner="111122223333")

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html. One thing is stricter than
AWS: a session policy also bounds what a bucket policy gives to the session itself.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


class PolicyError(Exception):
    """The policy says something that this evaluator does not understand, or that AWS would refuse."""


class Effect(enum.Enum):
    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to do. Keys of `context` are compared without case; `principal` is "" for anonymous."""

    action: str
    resource: str
    principal: str = ""
    account: str = ""
    context: Mapping[str, str] = field(default_factory=dict)

    def value(self, key: str) -> str | None:
        return next((value for name, value in self.context.items() if name.lower() == key.lower()), None)


@functools.cache
def _pattern(text: str, flags: int) -> re.Pattern[str]:
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in text)
    return re.compile("".join(parts), flags | re.DOTALL)


def matches(pattern: str, value: str, *, case: bool = True) -> bool:
    """`*` and `?` as IAM has them: they match `/` and `:`, too."""
    return _pattern(pattern, 0 if case else re.IGNORECASE).fullmatch(value) is not None


def _arn_like(pattern: str, value: str) -> bool:
    """Each of the six components by itself: a wildcard does not reach over a colon."""
    ours, theirs = pattern.split(":", 5), value.split(":", 5)
    return len(ours) == len(theirs) and all(matches(a, b) for a, b in zip(ours, theirs, strict=True))


def _number(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(wanted: str, value: str) -> bool:
        try:
            return test(float(value), float(wanted))
        except ValueError:
            return False

    return compare


def _in_network(wanted: str, value: str) -> bool:
    return ipaddress.ip_address(value) in ipaddress.ip_network(wanted, strict=False)


_OPERATORS: dict[str, tuple[Callable[[str, str], bool], bool]] = {
    # operator -> (wanted, value) match, and whether it is negated
    "StringEquals": (lambda wanted, value: wanted == value, False),
    "StringNotEquals": (lambda wanted, value: wanted == value, True),
    "StringEqualsIgnoreCase": (lambda wanted, value: wanted.lower() == value.lower(), False),
    "StringLike": (matches, False),
    "StringNotLike": (matches, True),
    "Bool": (lambda wanted, value: wanted.lower() == value.lower(), False),
    "ArnLike": (_arn_like, False),
    "ArnEquals": (_arn_like, False),
    "ArnNotLike": (_arn_like, True),
    "ArnNotEquals": (_arn_like, True),
    "NumericEquals": (_number(lambda value, wanted: value == wanted), False),
    "NumericLessThan": (_number(lambda value, wanted: value < wanted), False),
    "NumericLessThanEquals": (_number(lambda value, wanted: value <= wanted), False),
    "NumericGreaterThan": (_number(lambda value, wanted: value > wanted), False),
    "NumericGreaterThanEquals": (_number(lambda value, wanted: value >= wanted), False),
    "IpAddress": (_in_network, False),
    "NotIpAddress": (_in_network, True),
}
_STATEMENT_KEYS = {
    "Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition", "Principal", "NotPrincipal",
}  # fmt: skip


def _list(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    # JSON's true and 5 stand for "true" and "5".
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in found]


def check(policy: Policy, *, of_resource: bool = False) -> None:
    """Raises `PolicyError` where a statement is malformed or beyond this evaluator."""
    if policy.get("Version") not in {"2012-10-17", "2008-10-17"}:
        raise PolicyError("Version must be 2012-10-17")
    statements = policy.get("Statement")
    if not isinstance(statements, (list, dict)) or not statements:
        raise PolicyError("Missing required field Statement")
    for statement in _statements(policy):
        unknown = set(statement) - _STATEMENT_KEYS
        if unknown:
            raise PolicyError(f"Unknown field {', '.join(sorted(unknown))}")
        if statement.get("Effect") not in {"Allow", "Deny"}:
            raise PolicyError("Effect must be Allow or Deny")
        for one, other in (("Action", "NotAction"), ("Resource", "NotResource")):
            if (one in statement) == (other in statement):
                raise PolicyError(f"a statement has either {one} or {other}")
        if of_resource != bool({"Principal", "NotPrincipal"} & set(statement)):
            raise PolicyError("Missing required field Principal" if of_resource else "Principal is not allowed here")
        for name, tests in statement.get("Condition", {}).items():
            if name != "Null" and name.removesuffix("IfExists") not in _OPERATORS:
                raise PolicyError(f"Invalid Condition type : {name}")
            if not isinstance(tests, dict):
                raise PolicyError("Condition must hold keys")
            for key in tests:
                if not re.fullmatch(r"[a-z0-9-]+:[A-Za-z0-9:/._-]+", key):
                    raise PolicyError(f"Policy has an invalid condition key {key}")


def _statements(policy: Policy) -> list[dict[str, Any]]:
    found = policy["Statement"]
    return [found] if isinstance(found, dict) else list(found)


def _fill(text: str, asked: Asked) -> str:
    """Policy variables: `${aws:PrincipalArn}`, and `${*}`, `${?}`, `${$}`, which this evaluator does not know."""

    def value(match: re.Match[str]) -> str:
        found = asked.value(match[1])
        return "\0" if found is None else found

    return re.sub(r"\$\{([^}]+)\}", value, text)


def _holds(operator: str, key: str, wanted: list[str], asked: Asked) -> bool:
    value = asked.value(key)
    if operator == "Null":
        return any((value is None) == (item.lower() == "true") for item in wanted)
    test, negated = _OPERATORS[operator.removesuffix("IfExists")]
    if value is None:
        return negated or operator.endswith("IfExists")
    return any(test(_fill(item, asked), value) for item in wanted) != negated


def _principal_matches(principal: Any, asked: Asked, effect: str) -> bool:
    if principal == "*":
        return True
    names = _list(principal.get("AWS", [])) if isinstance(principal, dict) else []
    whole = {asked.account, f"arn:aws:iam::{asked.account}:root"}
    for name in names:
        if name == "*" or (asked.principal and name in {asked.principal, role_of(asked.principal)}):
            return True
        # An account stands for all in it where it denies. Where it allows, it only hands over to their own policies.
        if effect == "Deny" and asked.account and name in whole:
            return True
    return False


def role_of(arn: str) -> str:
    """The role of an assumed-role session; any other principal is itself."""
    found = re.fullmatch(r"arn:aws:sts::([0-9]{12}):assumed-role/([^/]+)/[^/]+", arn)
    return f"arn:aws:iam::{found[1]}:role/{found[2]}" if found else arn


def _applies(statement: dict[str, Any], asked: Asked) -> bool:
    if "Principal" in statement and not _principal_matches(statement["Principal"], asked, statement["Effect"]):
        return False
    if "NotPrincipal" in statement and _principal_matches(statement["NotPrincipal"], asked, statement["Effect"]):
        return False
    actions = _list(statement.get("Action", statement.get("NotAction")))
    if any(matches(item, asked.action, case=False) for item in actions) != ("Action" in statement):
        return False
    resources = [_fill(item, asked) for item in _list(statement.get("Resource", statement.get("NotResource")))]
    if any(matches(item, asked.resource) for item in resources) != ("Resource" in statement):
        return False
    return all(
        _holds(operator, key, _list(wanted), asked)
        for operator, tests in statement.get("Condition", {}).items()
        for key, wanted in tests.items()
    )


def decide(policy: Policy, asked: Asked) -> Effect | None:
    """What one policy says: a denial wins; None where it says nothing."""
    effects = {statement["Effect"] for statement in _statements(policy) if _applies(statement, asked)}
    return Effect.DENY if "Deny" in effects else Effect.ALLOW if "Allow" in effects else None


def allowed(
    asked: Asked, *, identity: Policy | None, session: Policy | None, resource: Policy | None, owner: str
) -> bool:
    """Whether it may be done, by all policies together.

    `identity` None: an administrator of its account. `owner` is the account of the resource. An anonymous request
    (`asked.principal` is "") has only the resource's policy.
    """
    own = Effect.ALLOW if identity is None else decide(identity, asked)
    of_session = Effect.ALLOW if session is None else decide(session, asked)
    of_resource = decide(resource, asked) if resource is not None else None
    if Effect.DENY in {own, of_session, of_resource}:
        return False
    if not asked.principal:
        return of_resource is Effect.ALLOW
    if asked.account == owner:
        return of_session is Effect.ALLOW and Effect.ALLOW in {own, of_resource}
    return {own, of_session, of_resource} == {Effect.ALLOW}


def is_public(policy: Policy) -> bool:
    """Whether it gives anything to everybody, without a condition that narrows who that is."""
    for statement in _statements(policy):
        principal = statement.get("Principal")
        everybody = principal == "*" or (isinstance(principal, dict) and "*" in _list(principal.get("AWS", [])))
        if statement["Effect"] == "Allow" and everybody and not statement.get("Condition"):
            return True
    return False
