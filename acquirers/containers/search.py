"""What a search for the directories of a runtime brings, bounded however much a machine has of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeVar

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason
from acquirers.containers.paths import within

MAX_TOLD = 1000
"""Roots, gaps and flags of one search that are kept."""


class _Root(Protocol):
    path: bytes


_R = TypeVar("_R", bound=_Root)


class Findings(msgspec.Struct):
    """Gaps and flags of a search. The last one that there is room for says that there are more."""

    what: ClassVar[str]
    """What is searched for, in the plural."""

    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    def gap(self, gap: Gap) -> None:
        """Notes it, once."""
        if len(self.gaps) < MAX_TOLD and gap not in self.gaps:
            more = Gap(Reason.LIMIT, f"{MAX_TOLD} gaps of the search for {self.what}: further ones are not told")
            self.gaps.append(gap if len(self.gaps) < MAX_TOLD - 1 else more)

    def flag(self, flag: Flag) -> None:
        if len(self.flags) < MAX_TOLD:
            more = Flag(flag.kind, f"{MAX_TOLD} flags of the search for {self.what}: further ones are not told")
            self.flags.append(flag if len(self.flags) < MAX_TOLD - 1 else more)


def outermost(roots: Sequence[_R], stored: re.Pattern[bytes], what: str, found: Findings) -> list[_R]:
    """A runtime in a container of its own kind: what lies in a volume or in a layer of another root is stored there.

    Only there: a root that claims to be above all others (`"data-root": "/"`) must not make them disappear. `stored`
    matches what is left of such a path below the other root; `what` names one root.
    """
    if len(roots) > MAX_TOLD:
        detail = f"{len(roots)} {what}s, of which {MAX_TOLD} are taken"
        found.gaps.append(Gap(Reason.LIMIT, detail, roots[MAX_TOLD].path))
        roots = roots[:MAX_TOLD]
    outer = []
    for root in roots:
        inside = (root.path[len(other.path) :] for other in roots if within(root.path, other.path))
        if not any(stored.match(path) for path in inside):
            outer.append(root)
            continue
        detail = f"a {what} inside of another one: stored with the volume or the layer that it lies in"
        found.flags.append(Flag(FlagKind.ELSEWHERE, detail, root.path))
    return outer
