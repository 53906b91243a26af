"""Does a bucket policy deny this request for certain?

Only what is certain counts: a `Deny` with a condition on a key that the request says nothing about, or with an operator
or a principal that is not understood here, is taken as not there. So an answer "denied" can be relied on; "not denied"
may be wrong where a policy is written in an unusual way, and is looked at by a person then.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """A request. `context` has every condition key that is known, in lower case; None is known not to be there."""

    action: str
    resource: str
    principal: str
    context: Mapping[str, str | None]


def denied(policy: Any, asked: Asked) -> bool:
    """Whether a statement of the policy denies it, whatever else there is."""
    return any(_denies(statement, asked) for statement in statements(policy))


def excepted(policy: Any) -> list[str]:
    """Principals that a denial of the policy leaves out."""
    found: set[str] = set()
    for statement in statements(policy):
        if statement.get("Effect") != "Deny":
            continue
        found |= set(_names(statement.get("NotPrincipal")))
        for operator, tests in _conditions(statement):
            if operator.lower().startswith(("arnnot", "stringnot")):
                for key, wanted in tests.items():
                    if key.lower() in {"aws:principalarn", "aws:userid"}:
                        found |= set(_texts(wanted))
    return sorted(found)


def statements(policy: Any) -> list[dict[str, Any]]:
    """The statements of a policy, whatever shape it has."""
    found = policy.get("Statement", []) if isinstance(policy, dict) else []
    return [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, dict)]


def _denies(statement: dict[str, Any], asked: Asked) -> bool:
    if statement.get("Effect") != "Deny" or not _about(statement, asked.principal):
        return False
    if not _names_it(statement, "Action", lambda pattern: _like(pattern.lower(), asked.action.lower())):
        return False
    if not _names_it(statement, "Resource", lambda pattern: "${" not in pattern and _like(pattern, asked.resource)):
        return False
    return all(
        _holds(operator, wanted, asked.context.get(key.lower()) if key.lower() in asked.context else _UNKNOWN)
        for operator, tests in _conditions(statement)
        for key, wanted in tests.items()
    )


def _about(statement: dict[str, Any], principal: str) -> bool:
    if "NotPrincipal" in statement:
        return not {"*", principal} & set(_names(statement["NotPrincipal"]))
    names = _names(statement.get("Principal"))
    return "*" in names or principal in names


def _names(principal: Any) -> list[str]:
    if isinstance(principal, dict):
        return _texts(principal.get("AWS", []))
    return [principal] if isinstance(principal, str) else []


def _names_it(statement: dict[str, Any], word: str, matches: Callable[[str], bool]) -> bool:
    if word in statement:
        return any(matches(pattern) for pattern in _texts(statement[word]))
    # Without either word the policy is no policy.
    return f"Not{word}" in statement and not any(matches(pattern) for pattern in _texts(statement[f"Not{word}"]))


def _conditions(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    found = statement.get("Condition", {})
    for operator, tests in found.items() if isinstance(found, dict) else [("?", {"?": ""})]:
        yield str(operator), tests if isinstance(tests, dict) else {"?": ""}


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in found]


_UNKNOWN = object()


def _holds(operator: str, wanted: Any, value: Any) -> bool:
    """Whether one condition holds for certain."""
    words = _texts(wanted)
    if value is _UNKNOWN or any("${" in word for word in words):
        return False
    name = operator.lower()
    if name == "null":
        return any((value is None) == (word.lower() == "true") for word in words)
    optional = name.endswith("ifexists")
    test, negated = _OPERATORS.get(name.removesuffix("ifexists"), (None, False))
    if test is None:
        return False
    if value is None:
        return negated or optional
    return any(test(word, str(value)) for word in words) != negated


def _arn(pattern: str, value: str) -> bool:
    """Each of the six components by itself."""
    ours, theirs = pattern.split(":", 5), value.split(":", 5)
    return len(ours) == len(theirs) and all(_like(one, other) for one, other in zip(ours, theirs, strict=True))


def _like(pattern: str, value: str) -> bool:
    return _compiled(pattern).fullmatch(value) is not None


@functools.lru_cache(1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    # A run of stars is one star: a policy is somebody else's text, and many of them would take for ever.
    parts = re.split(r"(\*+|\?)", pattern)
    return re.compile(
        "".join(".*" if part[:1] == "*" else "." if part == "?" else re.escape(part) for part in parts), re.DOTALL
    )


def _numeric(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(wanted: str, value: str) -> bool:
        try:
            return test(float(value), float(wanted))
        except ValueError:
            return False

    return compare


_Test = Callable[[str, str], bool]
_OPERATORS: dict[str, tuple[_Test, bool]] = {
    # operator -> whether (wanted, value) match, and whether it is negated
    "stringequals": (lambda wanted, value: wanted == value, False),
    "stringnotequals": (lambda wanted, value: wanted == value, True),
    "stringequalsignorecase": (lambda wanted, value: wanted.lower() == value.lower(), False),
    "stringnotequalsignorecase": (lambda wanted, value: wanted.lower() == value.lower(), True),
    "stringlike": (_like, False),
    "stringnotlike": (_like, True),
    "bool": (lambda wanted, value: wanted.lower() == value.lower(), False),
    "arnequals": (_arn, False),
    "arnlike": (_arn, False),
    "arnnotequals": (_arn, True),
    "arnnotlike": (_arn, True),
    "numericequals": (_numeric(lambda value, wanted: value == wanted), False),
    "numericnotequals": (_numeric(lambda value, wanted: value == wanted), True),
    "numericlessthan": (_numeric(lambda value, wanted: value < wanted), False),
    "numericlessthanequals": (_numeric(lambda value, wanted: value <= wanted), False),
    "numericgreaterthan": (_numeric(lambda value, wanted: value > wanted), False),
    "numericgreaterthanequals": (_numeric(lambda value, wanted: value >= wanted), False),
}
