"""Names that are near one that is not there, for whoever mistyped it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KNOWN = 2000
"""Names that are compared: a hostile machine can have any number."""
_MAX_LENGTH = 200
_ALIKE = 0.6
_BESIDE = 0.1
"""How much less like it than the likest one a name may be to be told as well."""


def near(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the names that are like `word` or hold it, the likest first."""
    from difflib import SequenceMatcher

    wanted = word.casefold()[:_MAX_LENGTH]
    if not wanted:
        return []
    found: dict[str, float] = {}
    for number, name in enumerate(known):
        if number == MAX_KNOWN:
            break
        candidate = name.casefold()[:_MAX_LENGTH]
        # Of a name with dots a person may have written the last part alone.
        parts = (candidate, *candidate.split(".")[1:])
        found[name] = max(SequenceMatcher(None, wanted, part, autojunk=False).ratio() for part in parts)
        if len(wanted) > 2 and wanted in candidate:
            found[name] = max(found[name], _ALIKE + 0.3)
    least = max(_ALIKE, max(found.values(), default=0) - _BESIDE)
    return sorted((name for name in found if found[name] >= least), key=lambda name: (-found[name], name))[:count]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'a' or 'b'?)`, to stand behind the word, or nothing where no name is near."""
    found = near(word, known)
    return f" (did you mean {' or '.join(repr(name) for name in found)}?)" if found else ""
