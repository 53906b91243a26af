"""The host's side of a channel that may break: the run goes on in a process of its own, and is found again by a name.

    stay(name)      in the process that was started: it becomes a bridge between its standard input and output and the
                    run, which goes on in a child with a session of its own
    attach(name)    in a process that somebody started later: another bridge, in place of the first

They meet at an abstract Unix socket, which is no file, in the network namespace of the host; only processes of the same
user are let in. A run whose bridge is gone waits for another one, and then ends in order.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import threading
from typing import NoReturn

from agent.channel.lasting import Lasting
from agent.errors import UnreachableError, UsageError

PATIENCE_S = 600.0
"""So long a run waits for its controller to come back."""
_CHUNK = 1 << 18
_NAME_LENGTH = 64


def _address(name: str) -> str:
    if not (name.isalnum() and name.isascii() and 8 <= len(name) <= _NAME_LENGTH):
        raise UsageError("a channel that lasts has a name of 8 to 64 letters and digits")
    return f"\0impound-{name}"


def stay(name: str, patience_s: float = PATIENCE_S) -> Lasting:
    """Gives the stream, in the child. The parent is the bridge, and never returns. Raises `UsageError`."""
    address = _address(name)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(f"there is such a channel already: {error.strerror}") from error
    listener.listen(1)
    here, there = socket.socketpair()
    child = os.fork()
    if child:
        listener.close()
        there.close()
        _be_a_bridge(here, child)
    here.close()
    os.setsid()
    _leave_standard_descriptors()
    return _serve(listener, there, patience_s)


def attach(name: str) -> int:
    """A bridge to a run that stays. Its exit code. Raises `UnreachableError`, `UsageError`."""
    address = _address(name)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError as error:
        connection.close()
        raise UnreachableError("there is no such run on this machine any more") from error
    with connection:
        _bridge(connection)
    return 0


def _serve(listener: socket.socket, first: socket.socket, patience_s: float) -> Lasting:
    back = threading.Event()

    def lost() -> None:
        back.clear()
        if not back.wait(patience_s) and not stream.connected:  # who came at once may have been missed
            stream.give_up()

    stream = Lasting(lost, answers=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if _is_ours(connection):
                    back.set()
                    stream.connect(os.dup(connection.fileno()), os.dup(connection.fileno()))

    stream.connect(os.dup(first.fileno()), os.dup(first.fileno()))
    first.close()
    threading.Thread(target=accept, name="channel-accept", daemon=True).start()
    return stream


def _is_ours(connection: socket.socket) -> bool:
    """Whether the process on the other side has the same user (SO_PEERCRED: pid, uid, gid)."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", told)[1] == os.geteuid())


def _leave_standard_descriptors() -> None:
    """What a library prints by accident is no part of a stream that the bridge alone reads and writes."""
    empty, other = os.pipe()
    os.close(other)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)


def _be_a_bridge(connection: socket.socket, child: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with connection:
        ended = _bridge(connection)
    code = 0
    if ended:  # the run closed its side: it is about to end
        with contextlib.suppress(ChildProcessError):
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _bridge(connection: socket.socket) -> bool:
    """Copies both ways until either side ends. Whether it was the run's."""
    pairs = {0: connection.fileno(), connection.fileno(): 1}
    poll = select.poll()
    for source in pairs:
        poll.register(source, select.POLLIN)
    with contextlib.suppress(OSError):
        while True:
            for source, _ in poll.poll():
                data = os.read(source, _CHUNK)
                if not data:
                    return source != 0
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(pairs[source], rest) :]
    return False
