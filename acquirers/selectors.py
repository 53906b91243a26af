"""`--container`: which containers a job asks for, by id, by the beginning of an id, or by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PREFIX = re.compile(r"[0-9a-fA-F]{4,64}")


def matching(selectors: Iterable[str], container_id: str, names: Iterable[str]) -> frozenset[str]:
    """Those of the selectors that mean this container.

    A prefix of an id has at least four digits, and one that fits several containers means all of them: what was not
    meant can be left out later, what was not taken is gone. Names match with and without the slash that Docker puts
    in front.
    """
    known = {name.removeprefix("/") for name in names if name.removeprefix("/")}
    return frozenset(
        selector
        for selector in selectors
        if selector == container_id
        or selector.removeprefix("/") in known
        or (_PREFIX.fullmatch(selector) and container_id.startswith(selector.lower()))
    )
