"""What a program says on standard error, line by line and bounded."""

from __future__ import annotations

from collections.abc import Callable

MAX_LINE = 2000
"""Bytes of a line that are passed on."""
MAX_SAID = 1 << 20
"""Bytes that are passed on; what follows is thrown away."""


class Lines:
    """Passes lines on."""

    def __init__(self, on_line: Callable[[bytes], object]) -> None:
        self._on_line = on_line
        self._said = 0

    def read(self, read: Callable[[], bytes]) -> None:
        """Until `read` gives nothing more."""
        rest, skipping = b"", False
        while data := read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not skipping:
                    self._tell(line)
                skipping = False
            if len(rest) > MAX_LINE:
                if not skipping:
                    self._tell(rest)
                rest, skipping = b"", True
        if rest and not skipping:
            self._tell(rest)

    def _tell(self, line: bytes) -> None:
        if self._said > MAX_SAID:
            return
        self._said += len(line) + 1
        self._on_line(line[:MAX_LINE] + (b" ..." if len(line) > MAX_LINE else b""))
        if self._said > MAX_SAID:
            self._on_line(b"(it says more, which is not shown)")
