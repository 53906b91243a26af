"""Runs below a prefix of a bucket: the prefix itself, or those of a host, a case, a whole destination."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agent.stores.directory import MAX_LEVELS
from agent.stores.s3.read_listing import Lister

if TYPE_CHECKING:
    from agent.stores.s3.place import Place

_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find_places(client: Any, place: Place, owner: str) -> list[Place]:
    """The places of runs at or below `place`, sorted. Raises `SourceError`.

    A run whose objects are all marked deleted is found, too, where versions may be listed.
    """
    found: list[Place] = []
    _find(Lister(client, place.bucket, owner), place, MAX_LEVELS, found)
    return found


def _find(lister: Lister, place: Place, depth: int, found: list[Place]) -> None:
    prefix = f"{place.prefix}/" if place.prefix else ""
    if _RUN.fullmatch(place.prefix.rpartition("/")[2]) and lister.holds(prefix):
        found.append(place)
        return
    level = lister.level(prefix)
    if "receipt.json" in level.objects or (
        "progress" in level.prefixes and lister.holds(f"{prefix}progress/000000.json")
    ):
        found.append(place)
        return
    for name in sorted(level.prefixes) if depth else ():
        if _RUN.fullmatch(name):
            found.append(place.below(name))
        elif name:
            _find(lister, place.below(name), depth - 1, found)
