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

from agent.delivery.lines import Lines
from agent.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

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
        self._listener = threading.Thread(
            target=Lines(on_line).read, args=(self._read_error,), name="program-stderr", daemon=True
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

        Gives its exit code; negative is the signal that ended it. Ended already, it does nothing.
        """
        if _pipe(self._process.stdout).closed:
            return self._process.returncode if self._process.returncode is not None else -int(signal.SIGKILL)
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
        self.end(0.0)

    def _read_error(self) -> bytes:
        try:
            return os.read(_pipe(self._process.stderr).fileno(), 1 << 16)
        except (OSError, ValueError):
            return b""


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - Popen was given PIPE for all three
    return pipe
