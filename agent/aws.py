"""What every client that boto3 makes gets here, whatever service it asks: deadlines, bounds, and a clean environment.

Every exchange has a deadline as a whole, besides the timeouts of single reads: a server that sends a byte now and then
would hold a call for ever. Bodies that are streamed are their callers' to bound, with `within`. `session` has the
standard AWS sources; the clients behind its credentials (STS, SSO) are made in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCHANGE_S = 120.0
"""One request and its answer, from the connection on; what it sends comes on top, at `SLOWEST`."""
COMPLETE_S = 1800.0
"""The same where an upload is completed: a bucket takes minutes over a large one, and sends spaces meanwhile."""
SLOWEST = 16 << 10
"""Bytes a second that even a bad line carries."""
MAX_ANSWER = 6 << 20
"""Bytes of an answer that is no object. A listing of 1,000 keys has under 4 MiB."""
_PIECE = 64 << 10


def session(profile: str = "") -> Any:
    """A session with the standard AWS sources. Raises what botocore raises for a profile that is not there."""
    import boto3
    import botocore.session

    forget_debugging()

    class Session(botocore.session.Session):  # type: ignore[misc]
        def create_client(self, *args: Any, **named: Any) -> Any:
            return with_deadlines(super().create_client(*args, **named))

    return boto3.Session(profile_name=profile or None, botocore_session=Session())


def forget_debugging() -> None:
    """Takes out of the environment what no use of this program needs and whoever owns the machine could plant.

    SSLKEYLOGFILE has OpenSSL's secrets written to a file, and a variable of botocore's own has a module imported. Both
    are read when a connection or a client is made, so they go before that, and for good.
    """
    for name in [name for name in os.environ if name == "SSLKEYLOGFILE" or name.startswith("BOTOCORE_")]:
        os.environ.pop(name, None)


class _Watch(threading.Thread):
    """The one thread that rings every alarm when its time is up.

    One for the process, made with the first client. A thread for each exchange would have to be started in the middle
    of a run, and where memory is refused then, Python waits for ever for one that died before it could say it lives.
    """

    TICK_S = 0.25

    def __init__(self) -> None:
        super().__init__(name="deadlines", daemon=True)
        self._alarms: set[_Alarm] = set()
        self._some = threading.Event()

    def add(self, alarm: _Alarm) -> None:
        self._alarms.add(alarm)
        self._some.set()

    def remove(self, alarm: _Alarm) -> None:
        self._alarms.discard(alarm)

    def run(self) -> None:
        while True:
            # This thread outlives whatever fails in it: nobody else would end a call that hangs.
            with contextlib.suppress(Exception):
                self._some.wait()
                self._look()
            time.sleep(self.TICK_S)

    def _look(self) -> None:
        self._some.clear()
        now = time.monotonic()
        alarms = self._alarms.copy()  # in one step of the interpreter: others add and remove meanwhile
        if alarms:
            self._some.set()
        for alarm in alarms:
            if now >= alarm.due:
                alarm.ring()
                self._alarms.discard(alarm)


@functools.cache
def _watch() -> _Watch:
    watch = _Watch()
    watch.start()
    return watch


class _Alarm:
    """Ends the connection that it watches when its time is up. Whatever waits on it then, gets an end of file."""

    def __init__(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        self.rang = False
        self._lock, self._line = threading.Lock(), -1
        _watch().add(self)

    def watch(self, line: socket.socket) -> None:
        """Watches this connection. A copy: TLS and urllib3 take the socket apart and close it as they see fit."""
        with self._lock:
            self._let_go()
            self._line = os.dup(line.fileno())
            if self.rang:
                self._end()

    def stop(self) -> None:
        _watch().remove(self)
        with self._lock:
            self._let_go()

    def ring(self) -> None:
        with self._lock:
            self.rang = True
            self._end()

    def _end(self) -> None:
        if self._line >= 0:
            line = socket.socket(fileno=os.dup(self._line))
            with line, contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if self._line >= 0:
            os.close(self._line)
        self._line = -1


class _Set(threading.local):
    alarm: _Alarm | None = None


_set = _Set()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What this thread exchanges in here ends after `seconds`, as a whole, with an error of botocore.

    Covers the TLS handshake, headers, and what is read of a streamed body; not the look-up of a name.
    """
    outer = _set.alarm
    alarm = _set.alarm = _Alarm(seconds)
    try:
        yield
    except Exception as error:
        if alarm.rang:
            raise _overlong(seconds) from error
        raise
    finally:
        _set.alarm = outer
        alarm.stop()
    if alarm.rang:
        raise _overlong(seconds)  # an end of file is a whole answer where no length was given


def is_overlong(error: Exception) -> bool:
    """Whether it is what `within` raises when the time is up."""
    return isinstance(error, _overlong_error())


def _overlong(seconds: float) -> Exception:
    error: Exception = _overlong_error()(seconds=seconds)
    return error


@functools.cache
def _overlong_error() -> Any:
    from botocore.exceptions import BotoCoreError

    class OverlongError(BotoCoreError):  # type: ignore[misc]  # not one of those that botocore tries again
        fmt = "the answer was not complete after {seconds:.0f} seconds"

    return OverlongError


def with_deadlines(client: Any) -> Any:
    """The same client, of which each exchange has a deadline and each answer that is no stream a bound."""
    _watch()  # now, while threads can be had
    endpoint = client._endpoint  # noqa: SLF001 - there is no public way to give a client its HTTP session
    inner = endpoint.http_session
    # One dictionary, which the managers of proxies, made later, take too.
    inner._pool_classes_by_scheme.update(_watched_pools())  # noqa: SLF001
    endpoint.http_session = _Bounded(inner)
    return client


@functools.cache
def _watched_pools() -> dict[str, Any]:
    from botocore import awsrequest

    def watched(kind: Any) -> Any:
        class Connection(kind):  # type: ignore[misc]
            def _new_conn(self) -> Any:
                made = super()._new_conn()
                if _set.alarm is not None:
                    _set.alarm.watch(made)
                return made

            def request(self, *args: Any, **named: Any) -> Any:
                if _set.alarm is not None and self.sock is not None:
                    _set.alarm.watch(self.sock)
                return super().request(*args, **named)

        return Connection

    class Plain(awsrequest.AWSHTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = watched(awsrequest.AWSHTTPConnection)

    class Tls(awsrequest.AWSHTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = watched(awsrequest.AWSHTTPSConnection)

    return {"http": Plain, "https": Tls}


class _Bounded:
    """Stands where botocore has its HTTP session."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def close(self) -> None:
        self._inner.close()

    def send(self, request: Any) -> Any:
        """One exchange. The body is read here where it is no stream. Raises botocore's errors."""
        completes = request.method == "POST" and "uploadId=" in request.url
        seconds = COMPLETE_S if completes else EXCHANGE_S
        seconds += int(request.headers.get("Content-Length") or 0) / SLOWEST
        # Where a caller has set an alarm already, that one holds.
        with within(seconds) if _set.alarm is None else contextlib.nullcontext():
            streamed, request.stream_output = request.stream_output, True
            try:
                answer = self._inner.send(request)
            finally:
                request.stream_output = streamed
            if not streamed:
                answer._content = _whole(answer.raw, request)  # noqa: SLF001 - what `content` gives
            return answer


def _whole(raw: Any, request: Any) -> bytes:
    from botocore.exceptions import ConnectionClosedError, HTTPClientError, ReadTimeoutError
    from urllib3.exceptions import HTTPError, ProtocolError
    from urllib3.exceptions import ReadTimeoutError as Late

    data = bytearray()
    try:
        while piece := raw.read(_PIECE):
            data += piece
            if len(data) > MAX_ANSWER:
                raw.close()
                raise HTTPClientError(error=ValueError(f"the answer is larger than {MAX_ANSWER} bytes"))
    except Late as error:
        raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
    except ProtocolError as error:
        raise ConnectionClosedError(error=error, request=request, endpoint_url=request.url) from error
    except (HTTPError, OSError) as error:
        raise HTTPClientError(error=error) from error
    return bytes(data)
