"""A remote program that is found again when the way to it breaks."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.channel.attaching import PATIENCE_S
from agent.channel.lasting import SILENCE_S, Lasting
from agent.errors import ImpoundError, UnreachableError

if TYPE_CHECKING:
    from agent.delivery.remote import Remote

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Before each try; the last one again and again."""
GREETING_S = 30.0
"""From a way to the run's answer over it."""
GRACE_S = 3.0
LAST_S = 3.0
"""For the last bytes, on the way out."""


def new_name() -> str:
    """Under which a run is found again: nobody guesses it, and whoever reads it is who reads arguments on that host."""
    return secrets.token_hex(16)


class LastingRemote:
    """`first` was started with `--lasting NAME`; `again` starts what attaches to it. Both are ended here."""

    def __init__(self, first: Remote, again: Callable[[], Remote], tell: Callable[[str], object]) -> None:
        """`tell` gets a line for a person when the way breaks, and when there is another."""
        self._remote, self._again, self._tell = first, again, tell
        self._ended = threading.Event()
        self._busy = threading.Lock()
        self._stream = Lasting(self._lost, silence_s=SILENCE_S)
        self._stream.connect(os.dup(first.writes), os.dup(first.reads))

    @property
    def reads(self) -> int:
        return self._stream.writes

    @property
    def writes(self) -> int:
        return self._stream.reads

    def end(self, grace_s: float) -> int:
        if self._ended.is_set():
            return -1
        with contextlib.suppress(OSError):
            os.close(self._stream.writes)
        self._stream.wait(max(grace_s, LAST_S))  # the host learns that nobody waits for it any longer
        self._ended.set()
        self._stream.give_up()
        with self._busy:
            code = self._remote.end(grace_s)
        with contextlib.suppress(OSError):
            os.close(self._stream.reads)
        return code

    def _lost(self) -> None:
        """In a thread of its own, which tries until there is another way, or nobody wants one."""
        with self._busy:
            if self._ended.is_set() or self._stream.connected or self._stream.given_up:
                return
            self._tell("the channel broke; the run on the host waits, and it is tried again")
            self._remote.end(0.0)
            deadline, number = time.monotonic() + PATIENCE_S, 0
            while time.monotonic() < deadline:
                if self._ended.wait(PAUSES_S[min(number, len(PAUSES_S) - 1)]):
                    return
                number += 1
                try:
                    if self._is_back(self._again()):
                        self._tell("the channel is there again, and nothing was lost")
                        return
                except _GoneError:
                    self._tell("the host answers, and the run is not there any more")
                    break
                except ImpoundError as error:
                    self._tell(f"not yet: {error}")
            else:
                self._tell("the host did not come back in time")
        self._stream.give_up()

    def _is_back(self, remote: Remote) -> bool:
        """Whether the run itself answers through it. Raises `_GoneError` where there is none."""
        self._remote = remote
        self._stream.connect(os.dup(remote.writes), os.dup(remote.reads))
        if self._stream.wait_for_greeting(GREETING_S):
            return True
        if remote.end(GRACE_S) == UnreachableError.exit_code:
            raise _GoneError
        return False


class _GoneError(Exception):
    """What attaches says that there is nothing to attach to."""
