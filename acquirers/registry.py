"""Every acquirer of this version, in the order of volatility (RFC 3227), and how selectors choose among them.

A sub-second snapshot comes before memory; what costs page cache (digests of executables) comes after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acquirers.base import Acquirer

PLANNED = (
    "snapshot.system",
    "memory.physical",
    "memory.symbols",
    "memory.process",
    "memory.swap",
    "containers.containerd",
    "containers.podman",
    "logs.runtime",
    "live.files",
    "host.artifacts",
)
"""Names that the design knows and this version does not have. Asking for one by name is refused, with the reason."""

_PROFILES: dict[str, tuple[str, ...]] = {
    "full": ("",),
    "memory": ("memory",),
    "containers": ("snapshot", "containers", "logs", "live"),
    "triage": ("snapshot", "containers", "logs", "live", "host"),
}


class UnknownAcquirerError(Exception):
    """A selector that names no acquirer of this version."""


def acquirers() -> list[Acquirer]:
    """New instances, in order. `snapshot.executables` is the slow half of `snapshot.processes`, and goes with it."""
    from acquirers.containers.docker import Docker
    from acquirers.snapshot import Executables, Processes

    processes = Processes()
    return [processes, Executables(processes), Docker()]


_COMPANIONS = {"snapshot.executables": "snapshot.processes"}


def _matches(name: str, selector: str) -> bool:
    if not selector or name == selector or name.startswith(selector + "."):
        return True
    principal = _COMPANIONS.get(name)
    return principal is not None and _matches(principal, selector)


def _check(selector: str, known: list[str]) -> None:
    if any(_matches(name, selector) for name in known):
        return
    if any(_matches(name, selector) for name in PLANNED):
        raise UnknownAcquirerError(f"{selector!r} is not part of this version; it has {', '.join(sorted(set(known)))}")
    raise UnknownAcquirerError(f"there is no acquirer {selector!r}; this version has {', '.join(sorted(set(known)))}")


def select(profile: str, only: list[str], skip: list[str]) -> list[Acquirer]:
    """The acquirers that a job asks for. Raises `UnknownAcquirerError`."""
    found = acquirers()
    known = [acquirer.name for acquirer in found]
    for selector in (*only, *skip):
        _check(selector, known)
    wanted = only or list(_PROFILES[profile])
    chosen = [
        acquirer
        for acquirer in found
        if any(_matches(acquirer.name, selector) for selector in wanted)
        and not any(_matches(acquirer.name, selector) for selector in skip)
    ]
    if not chosen:
        raise UnknownAcquirerError(f"nothing is left to acquire: this version has {', '.join(sorted(set(known)))}")
    return chosen


def left_out(profile: str, only: list[str]) -> list[str]:
    """Acquirers of the design that the profile asks for and this version does not have."""
    wanted = _PROFILES[profile] if not only else ()
    return [name for name in PLANNED if name != "memory.swap" and any(_matches(name, part) for part in wanted)]
