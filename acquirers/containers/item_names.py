"""Item paths that are unique within a run, whatever the machine calls its containers."""

from __future__ import annotations

from acquirers.facts import reduce_name


class ItemNames:
    """Hands out each path once; a second claim gets `-2`, a third `-3`. The same claims give the same paths."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, directory: str, name: str, suffix: str = ".tar") -> str:
        """`<directory>/<name><suffix>`, `name` reduced to what an item path may hold."""
        base = f"{directory}/{reduce_name(name)}"
        path, count = base + suffix, 1
        while path.lower() in self._taken:
            count += 1
            path = f"{base}-{count}{suffix}"
        self._taken.add(path.lower())  # the store may be a directory that does not tell case apart
        return path
