"""A connection to a machine, hop by hop: each host's key is checked before anything is said to it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agent.errors import AuthorityError, UnreachableError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from agent.delivery.ssh.config import Hop
    from agent.delivery.ssh.hostkeys import HostKey, KnownHosts

CONNECT_S = 20.0
AUTHENTICATE_S = 60.0
KEEPALIVE_S = 15
WINDOW = 16 << 20
"""Bytes that a host may send before they are read."""
PACKET = 1 << 15
REKEY = 1 << 35
"""Bytes under one key: half of what RFC 4344 allows AES. paramiko's own 512 MiB would often fall on the end of a
channel, which it closes in the thread that negotiates, and then it waits for itself."""


class Authentication(msgspec.Struct, frozen=True):
    """How a person shows who they are: keys of the hop, an agent that holds keys, and here more keys."""

    agent: bool = True
    passphrase: Callable[[str], str] | None = None
    """Asked for a file of a private key that needs one."""
    more: tuple[Any, ...] = ()
    """Keys in memory (`paramiko.PKey`), tried first on the last hop."""


class Connection:
    """To the last of some hops. Use as a context manager."""

    def __init__(
        self,
        hops: list[Hop],
        known: Callable[[Hop], KnownHosts],
        authentication: Authentication,
        *,
        before_login: Callable[[], object] = lambda: None,
    ) -> None:
        """`before_login` is called when the last host's key was found good. Raises `ImpoundError`."""
        _quieten()
        self._transports: list[Any] = []
        self._authentication, self._before_login = authentication, before_login
        self.keys: list[tuple[Hop, HostKey]] = []
        """What each hop showed."""
        try:
            for hop in hops:
                self._add(hop, known(hop), last=hop is hops[-1])
        except BaseException:
            self.close()
            raise

    @property
    def transport(self) -> Any:
        """`paramiko.Transport` to the last hop."""
        return self._transports[-1]

    def close(self) -> None:
        for transport in reversed(self._transports):
            transport.close()
            transport.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def _add(self, hop: Hop, known: KnownHosts, *, last: bool) -> None:
        import paramiko

        where = f"{hop.address} port {hop.port}"
        link = self._link(hop, where)
        try:
            transport = paramiko.Transport(link, default_window_size=WINDOW, default_max_packet_size=PACKET)
        except BaseException:
            link.close()
            raise
        transport.packetizer.REKEY_BYTES = REKEY
        self._transports.append(transport)
        transport.banner_timeout = transport.auth_timeout = CONNECT_S
        self._prefer(transport, known.kinds(hop.known_as, hop.port))
        try:
            transport.start_client(timeout=CONNECT_S)
            key = known.check(hop.known_as, hop.port, transport.get_remote_server_key(), given=last)
            self.keys.append((hop, key))
            if last:
                self._before_login()
            self._log_in(transport, hop, last=last)
        except paramiko.SSHException as error:
            raise UnreachableError(f"{where} does not speak SSH with us: {str(error)[:300]!r}") from error
        except (OSError, EOFError) as error:
            raise UnreachableError(f"the connection to {where} broke: {str(error)[:300] or 'it was closed'}") from error
        transport.set_keepalive(KEEPALIVE_S)

    def _link(self, hop: Hop, where: str) -> Any:
        """What the next connection goes through."""
        import paramiko

        try:
            if self._transports:
                return self._transports[-1].open_channel(
                    "direct-tcpip", (hop.address, hop.port), ("127.0.0.1", 0), timeout=CONNECT_S
                )
            if hop.proxy:
                return paramiko.ProxyCommand(hop.proxy)
            return socket.create_connection((hop.address, hop.port), CONNECT_S)
        except paramiko.SSHException as error:
            raise UnreachableError(f"the host before it does not connect to {where}: {str(error)[:300]}") from error
        except OSError as error:
            raise UnreachableError(f"{where} cannot be reached: {error.strerror or error}") from error

    @staticmethod
    def _prefer(transport: Any, kinds: list[str]) -> None:
        """Asks for keys of the types that are known: another one would look as if it had changed."""
        first = [name for kind in kinds for name in _SIGNATURES.get(kind, [kind])]
        options = transport.get_security_options()
        offered = list(options.key_types)
        options.key_types = [name for name in first if name in offered] + [one for one in offered if one not in first]

    def _log_in(self, transport: Any, hop: Hop, *, last: bool) -> None:
        import paramiko

        tried, left, allowed = 0, [], [""]
        for key, what in self._offers(hop, last=last):
            try:
                left = transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType as error:
                allowed = error.allowed_types
                break
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    raise UnreachableError(f"{hop.address} closed the connection when it was shown {what}") from None
                tried += 1
                continue
            if not left:
                return
            raise AuthorityError(f"{hop.address} asks {hop.user} for more than a key: {', '.join(left)[:100]!r}")
        if allowed != [""]:
            raise AuthorityError(f"{hop.address} takes no keys of {hop.user}, but only: {', '.join(allowed)[:100]!r}")
        agent = "" if self._authentication.agent else ", and an agent was not to be asked"
        raise AuthorityError(
            f"{hop.address} takes none of {tried} keys for {hop.user}{agent}" if tried else
            f"there is no key to show {hop.address} for {hop.user}{agent}: --key FILE gives one, or an SSH agent does"
        )  # fmt: skip

    def _offers(self, hop: Hop, *, last: bool) -> Iterator[tuple[Any, str]]:
        """Keys, and what each of them is."""
        import paramiko

        if last:
            for key in self._authentication.more:
                yield key, "the key that was made for this run"
        for path in hop.keys:
            if (key := self._load(path, explicit=hop.only_these)) is not None:
                yield key, f"the key {path}"
        if self._authentication.agent and os.environ.get("SSH_AUTH_SOCK") and not (hop.only_these and hop.keys):
            agent = paramiko.Agent()
            try:
                for key in agent.get_keys():
                    yield key, "a key of the SSH agent"
            finally:
                agent.close()

    def _load(self, path: str, *, explicit: bool) -> Any | None:
        """A private key, with its certificate if there is one. `None` where it is not there and need not be."""
        import paramiko

        full = os.path.expanduser(path)
        if not os.path.isfile(full):
            if explicit:
                raise UsageError(f"there is no key {path!r}")
            return None
        try:
            try:
                key = _private_key(full, None)
            except paramiko.PasswordRequiredException:
                if self._authentication.passphrase is None:
                    raise UsageError(f"the key {path!r} has a passphrase: add it to an SSH agent") from None
                key = _private_key(full, self._authentication.passphrase(path))
            if os.path.isfile(certificate := f"{full}-cert.pub"):
                key.load_certificate(certificate)
        except (OSError, ValueError, paramiko.SSHException) as error:
            raise UsageError(f"the key {path!r} cannot be used: {str(error)[:200] or type(error).__name__}") from error
        return key


def _quieten() -> None:
    """The library logs what goes wrong, with the words of the other side as they came, and nobody escapes those."""
    log = logging.getLogger("paramiko")
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def _private_key(path: str, passphrase: str | None) -> Any:
    """Of whatever type it is. Raises `paramiko.SSHException`, `OSError`, `ValueError`."""
    import paramiko

    problems: list[Exception] = []
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key_file(path, passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError) as error:
            problems.append(error)
    raise problems[0]


_SIGNATURES = {"ssh-rsa": ["rsa-sha2-512", "rsa-sha2-256"]}
"""With which algorithms a type of key signs, where that is not its own name."""
