"""The custody log: everything the run did, in order, each line chained to the one before.

JSON Lines. `prev` is the SHA-256 of the line before, without its newline ("" for the first): a line that is changed,
left out or moved breaks the chain, and the head in receipt and progress records shows a log that was cut.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import msgspec

from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seq: int
    wall_ns: int
    monotonic_ns: int
    event: str
    prev: str
    data: dict[str, object]


class CustodyLog:
    """Writes lines to `sink` and knows the head."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self.head = ""
        self.lines = 0

    def add(self, event: str, data: Mapping[str, object] | None = None) -> None:
        line = msgspec.json.encode(
            Line(self.lines, time.time_ns(), time.monotonic_ns(), event, self.head, dict(data or {}))
        )
        self.head = hashlib.sha256(line).hexdigest()
        self.lines += 1
        self._sink(line + b"\n")


def check(lines: Iterable[bytes], what: str) -> tuple[str, int]:
    """Follows the chain and gives its head and length. Raises `DamagedError` naming `what` and the line."""
    head, count = "", 0
    for raw in lines:
        try:
            line = msgspec.json.decode(raw, type=Line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedError(f"{what}: line {count + 1} is not one that impound wrote") from error
        if line.seq != count or line.prev != head:
            raise DamagedError(f"{what}: the chain is broken at line {count + 1}")
        head = hashlib.sha256(raw).hexdigest()
        count += 1
    return head, count
