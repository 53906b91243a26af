"""A program on the far side of an SSH connection, with descriptors here for what it reads and writes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.delivery.lines import Lines
from agent.errors import UnreachableError

if TYPE_CHECKING:
    from agent.delivery.ssh.connection import Connection

OPEN_S = 30.0
_CHUNK = 1 << 18


class SshProgram:
    """One session of a connection, without a terminal: that would merge what is told apart, and change bytes."""

    def __init__(self, connection: Connection, command: str, on_line: Callable[[bytes], object]) -> None:
        """`command` is for the user's shell there. `on_line` gets each line of standard error, in a thread.

        Raises `UnreachableError`.
        """
        import paramiko

        try:
            self._channel: Any = connection.transport.open_session(timeout=OPEN_S)
            self._channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise UnreachableError(f"the host starts no program over SSH: {str(error)[:300]}") from error
        self._connection = connection
        self._far_reads, self.reads = os.pipe()
        self.writes, self._far_writes = os.pipe()
        lines = Lines(on_line)
        self._threads = [
            threading.Thread(target=work, args=args, name=f"ssh-{work.__name__}", daemon=True)
            for work, args in ((self._to_host, ()), (self._from_host, ()), (lines.read, (self._read_error,)))
        ]
        for thread in self._threads:
            thread.start()
        self._ended = False

    def end(self, grace_s: float) -> int:
        """Closes what the program reads, waits for its end, and closes the connection. Its exit code, or -1."""
        if self._ended:
            return -1
        self._ended = True
        os.close(self.reads)
        code = -1
        if self._channel.status_event.wait(grace_s):
            code = int(self._channel.recv_exit_status())
        end = time.monotonic() + 2.0
        self._threads[2].join(max(0.0, end - time.monotonic()))
        self._channel.close()
        self._connection.close()
        os.close(self.writes)
        for thread in self._threads:
            thread.join(2.0)
        return code

    def _to_host(self) -> None:
        try:
            while data := os.read(self._far_reads, _CHUNK):
                self._channel.sendall(data)
            self._channel.shutdown_write()
        except (OSError, EOFError):
            pass  # the host is gone: what it writes ends as well
        finally:
            os.close(self._far_reads)

    def _from_host(self) -> None:
        try:
            while data := self._channel.recv(_CHUNK):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._far_writes, rest) :]
        except (OSError, EOFError):
            pass  # the connection broke, or nobody reads any more
        finally:
            os.close(self._far_writes)

    def _read_error(self) -> bytes:
        with contextlib.suppress(OSError, EOFError):
            return bytes(self._channel.recv_stderr(1 << 16))
        return b""
