"""A channel through a program: anything that connects its standard input and output with an agent on a host.

`ssh -T root@host impound`, `docker exec -i web impound`, or just `impound`. The program gets an argument list, no
shell, and a session of its own: a Ctrl-C at the terminal is the controller's to pass on, in order. So it cannot ask for
a password at the terminal either. What it says on standard error is passed on, line by line and bounded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Self

from agent.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

MAX_LINE = 2000
"""Bytes of a line that are passed on."""
MAX_SAID = 1 << 20
"""Bytes that are passed on; what follows is thrown away."""
GRACE_S = 10.0
"""Until a program that has nothing left to read must have ended."""
BROKEN_GRACE_S = 2.0
"""The same, where the channel broke: there is nothing that it could still do in order."""
KILL_S = 5.0


class Program:
    """A program that was started, with pipes to all three of its descriptors. Use as a context manager: it is ended."""

    def __init__(self, argv: Sequence[str], on_line: Callable[[bytes], object]) -> None:
        """`on_line` gets each line of standard error, in a thread. Raises `UsageError` where it cannot be started."""
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"{argv[0]!r} cannot be started: {why}") from error
        self._said = 0
        self._listener = threading.Thread(
            target=self._listen, args=(_pipe(self._process.stderr), on_line), name="program-stderr", daemon=True
        )
        self._listener.start()

    @property
    def reads(self) -> int:
        """Descriptor of what the program reads."""
        return _pipe(self._process.stdin).fileno()

    @property
    def writes(self) -> int:
        """Descriptor of what the program writes."""
        return _pipe(self._process.stdout).fileno()

    def end(self, grace_s: float = GRACE_S) -> int:
        """Closes what it reads, and ends it and all that it started if it does not end by itself.

        Gives its exit code; negative is the signal that ended it.
        """
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        for number, wait_s in ((0, grace_s), (signal.SIGTERM, KILL_S), (signal.SIGKILL, KILL_S)):
            if number:
                self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
                break
        self._signal(signal.SIGKILL)  # what it left behind, in its own session
        self._listener.join(1.0)
        _pipe(self._process.stdout).close()
        if not self._listener.is_alive():  # else somebody still holds the other end, and the thread still reads
            _pipe(self._process.stderr).close()
        return self._process.returncode if self._process.returncode is not None else -int(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if not _pipe(self._process.stdout).closed:
            self.end(0.0)

    def _listen(self, pipe: IO[bytes], on_line: Callable[[bytes], object]) -> None:
        rest, skipping = b"", False
        while data := self._read(pipe):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not skipping:
                    self._tell(line, on_line)
                skipping = False
            if len(rest) > MAX_LINE:
                if not skipping:
                    self._tell(rest, on_line)
                rest, skipping = b"", True
        if rest and not skipping:
            self._tell(rest, on_line)

    @staticmethod
    def _read(pipe: IO[bytes]) -> bytes:
        try:
            return os.read(pipe.fileno(), 1 << 16)
        except (OSError, ValueError):
            return b""

    def _tell(self, line: bytes, on_line: Callable[[bytes], object]) -> None:
        if self._said > MAX_SAID:
            return
        self._said += len(line) + 1
        on_line(line[:MAX_LINE] + (b" ..." if len(line) > MAX_LINE else b""))
        if self._said > MAX_SAID:
            on_line(b"(it says more, which is not shown)")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - Popen was given PIPE for all three
    return pipe
