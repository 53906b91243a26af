"""Where a host is, and by which way: what a person said, and below that ssh_config(5)."""

from __future__ import annotations

import getpass
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_TARGET = re.compile(r"(?:([^@\s]{1,64})@)?(\[[0-9A-Fa-f:.%a-z]+\]|[^@\s:\[\]]{1,253})(?::([0-9]{1,5}))?")
MAX_HOPS = 8


class Hop(msgspec.Struct, frozen=True):
    """One machine on the way, the last of which is the one that is meant."""

    address: str
    port: int
    user: str
    known_as: str
    """Under which name its key is looked up."""
    keys: tuple[str, ...] = ()
    """Files of private keys."""
    only_these: bool = False
    """Keys that an agent holds beside them are not offered."""
    known_hosts: tuple[str, ...] = ()
    proxy: str = ""
    """A program that connects to it, in place of a connection of our own."""


def parse_target(text: str) -> tuple[str, str, int | None]:
    """(user or "", host, port or `None`), of `[USER@]HOST[:PORT]`. Raises `UsageError`."""
    match = _TARGET.fullmatch(text.removeprefix("ssh://"))
    if match is None or text.startswith("-") or match[2].startswith("-"):
        raise UsageError(f"a host is [USER@]HOST[:PORT], and {text[:100]!r} is none")
    port = int(match[3]) if match[3] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"there is no port {port}")
    return match[1] or "", match[2].strip("[]"), port


def route(target: str, jumps: Sequence[str], keys: Sequence[str] = (), config: str | None = None) -> list[Hop]:
    """The hops to a target, itself the last. `jumps`: as `ProxyJump`; without any, ssh_config's own.

    `config`: a file of ssh_config, "" for none, `None` for the user's. Raises `UsageError`.
    """
    known = _Config(config)
    hops: list[Hop] = []
    waiting = [(target, True)]
    while waiting:
        text, last = waiting.pop()
        hop, further = known.hop(text, keys if last else ())
        hops.insert(0, hop)
        if len(hops) > MAX_HOPS:
            raise UsageError(f"there are more than {MAX_HOPS} hosts on the way to {target}")
        if last and jumps:
            further = [one for jump in jumps for one in jump.split(",")]
            hops[0] = msgspec.structs.replace(hop, proxy="")
        if not further:
            continue
        # All but the first are as they are named; the first may have its own way.
        for one in reversed(further[1:]):
            hops.insert(0, known.hop(one, ())[0])
        waiting.append((further[0], False))
    return hops


class _Config:
    def __init__(self, path: str | None) -> None:
        from paramiko import ConfigParseError, SSHConfig

        chosen = os.path.expanduser("~/.ssh/config") if path is None else path
        self._known: Any = SSHConfig()
        if not chosen or (path is None and not os.path.isfile(chosen)):
            return
        try:
            self._known = SSHConfig.from_path(chosen)
        except (OSError, ConfigParseError, UnicodeDecodeError) as error:
            raise UsageError(f"{chosen!r} cannot be read: {error}") from error

    def hop(self, text: str, keys: Sequence[str]) -> tuple[Hop, list[str]]:
        """A hop, and what it says are the jumps before it."""
        from paramiko import ConfigParseError, CouldNotCanonicalize

        user, name, port = parse_target(text)
        try:
            found = self._known.lookup(name)
            port = port or int(found.get("port", 22))
        except (ConfigParseError, CouldNotCanonicalize, ImportError, ValueError) as error:
            raise UsageError(f"ssh_config gives no way to {name}: {error}") from error
        jump = str(found.get("proxyjump", "none"))
        proxy = str(found.get("proxycommand", "") or "")
        hop = Hop(
            address=str(found.get("hostname", name)),
            port=port,
            user=user or str(found.get("user", "")) or getpass.getuser(),
            known_as=str(found.get("hostkeyalias", found.get("hostname", name))),
            keys=tuple(keys) or tuple(map(str, found.get("identityfile", []))),
            only_these=bool(keys) or str(found.get("identitiesonly", "no")) == "yes",
            known_hosts=tuple(os.path.expanduser(one) for one in str(found.get("userknownhostsfile", "")).split()),
            proxy="" if proxy.lower() == "none" else proxy,
        )
        return hop, [] if jump.lower() == "none" else [one.strip() for one in jump.split(",")]
