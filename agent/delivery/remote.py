"""A program on the far side, whatever brought it there: what a controller talks through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Remote(Protocol):
    """What it reads and writes are descriptors here; its standard error was given away line by line."""

    @property
    def reads(self) -> int: ...

    @property
    def writes(self) -> int: ...

    def end(self, grace_s: float) -> int:
        """Closes what it reads and waits for its end, then ends it. Its exit code; negative where it has none."""
        ...


class Reached:
    """A remote program, and how it was reached: words for the ledger, the custody log and the manifest."""

    def __init__(self, remote: Remote, how: Mapping[str, str]) -> None:
        self.remote, self.how = remote, dict(how)


Reach = Callable[[Callable[[bytes], object]], Reached]
"""Starts a program; what it says on standard error goes to the function. Raises `ImpoundError`."""
