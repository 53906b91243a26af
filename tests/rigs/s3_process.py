"""Programs that a rig runs: started with their output in a file, awaited, ended by their id, nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path


class RigError(Exception):
    """The rig could not do its work."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """One program in the background, in a session of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: dict[str, str], directory: Path) -> None:
        self.name, self.log = Path(arguments[0]).name, log
        # Tests that are killed stop nothing: what they started goes with the thread that started it.
        setpriv = shutil.which("setpriv")
        tied = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [*tied, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Raises `RigError` where it ends before it is ready, or is not in time."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._child.poll() is not None:
                raise RigError(f"{self.name} ended with {self._child.returncode}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RigError(f"{self.name} is not ready after {seconds:.0f} s: {self.tail()}")
            time.sleep(0.1)

    def tail(self) -> str:
        return self.log.read_bytes()[-2000:].decode("utf-8", "replace")

    def stop(self, *, gently_s: float = 10) -> None:
        """Ends it, and what it started. With 0 it gets no time to tidy up."""
        if self._child.poll() is None and gently_s:
            self._child.terminate()
            try:
                self._child.wait(gently_s)
            except subprocess.TimeoutExpired:
                pass  # then by force, with its children
        try:
            # Its own session, so its process group is itself and what it started.
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all are gone
        self._child.wait(10)


def answers(url: str) -> bool:
    """Whether something speaks HTTP there."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - loopback
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
