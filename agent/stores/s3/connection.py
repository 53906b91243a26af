"""One connection to one address: urllib3's, made so that another thread can cut it at any moment."""

from __future__ import annotations

import contextlib
import pkgutil
import socket
import ssl
from typing import TYPE_CHECKING

from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from agent.stores.s3.addresses import Address

CONNECT_S = 10.0


class Cutter:
    """The other end of the rope: `cut` wakes whoever connects, sends or waits on a socket, with an error.

    It holds a descriptor of its own, so that the number of one that was closed meanwhile is never meant.
    """

    def __init__(self) -> None:
        self._guard: socket.socket | None = None
        self._was_cut = False

    def hold(self, made: socket.socket) -> None:
        """Raises `OSError` where it was cut before there was anything to cut."""
        self._guard = made.dup()
        if self._was_cut:
            raise ConnectionAbortedError("it was cut")

    def cut(self) -> None:
        """For any thread. Never raises."""
        self._was_cut = True
        with contextlib.suppress(OSError, AttributeError):
            self._guard.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def close(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()


def _connect(address: Address, cutter: Cutter, seconds: float) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.settimeout(seconds)
        cutter.hold(made)
        made.connect(address.sockaddr)
    except BaseException:
        made.close()
        raise
    return made


class Secure(HTTPSConnection):
    """TLS to one address, whose certificate must be that of `name`."""

    def __init__(self, address: Address, name: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(address.host, port, timeout=CONNECT_S, ssl_context=context, server_hostname=name)
        self.address, self.cutter = address, Cutter()
        self.idle_since = 0.0

    def _new_conn(self) -> socket.socket:
        return _connect(self.address, self.cutter, CONNECT_S)

    def close(self) -> None:
        super().close()
        self.cutter.close()


class Plain(HTTPConnection):
    """Without TLS: only where the job names an endpoint that has none."""

    def __init__(self, address: Address, port: int) -> None:
        super().__init__(address.host, port, timeout=CONNECT_S)
        self.address, self.cutter = address, Cutter()
        self.idle_since = 0.0

    def _new_conn(self) -> socket.socket:
        return _connect(self.address, self.cutter, CONNECT_S)

    def close(self) -> None:
        super().close()
        self.cutter.close()


Connection = Secure | Plain


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """What is trusted: the PEM certificates in `ca_bundle`, or those that come with botocore; TLS 1.2 at least.

    Neither the environment nor the examined machine's own certificates are asked. Raises `ssl.SSLError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cadata=ca_bundle or _certificates())
    return context


def _certificates() -> str:
    """Those that come with botocore: the agent's own, whatever the machine trusts. In the binary they are no file."""
    return (pkgutil.get_data("botocore", "cacert.pem") or b"").decode("ascii")
