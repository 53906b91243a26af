"""Every acquirer of this version, in the order of volatility (RFC 3227), and how selectors choose among them.

A sub-second snapshot comes before memory; what costs page cache (digests of executables) comes after it.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from acquirers.near import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.base import Acquirer, Availability, Item, Scope
    from acquirers.containers.containerd import Containerd
    from acquirers.containers.storage import Podman
    from acquirers.host import Host
    from acquirers.logs import SessionLogs
    from acquirers.nameless import Recovered
    from acquirers.snapshot import Processes

A = TypeVar("A", bound="Acquirer")

PLANNED = (
    "snapshot.system",
    "host.artifacts",
)
"""Names that the design knows and this version does not have. Asking for one by name is refused, with the reason."""

_PROFILES: dict[str, tuple[str, ...]] = {
    "full": ("",),
    "memory": ("memory",),
    "containers": ("snapshot", "containers", "logs", "live"),
    "triage": ("snapshot", "containers", "logs", "live", "host"),
}


def container_names(host: Host) -> dict[str, tuple[str, ...]]:
    """What all containers may be called, by their ids, whatever runtime has them."""
    from acquirers.containers import containerd, docker, storage

    names: dict[str, tuple[str, ...]] = {}
    for runtime in (docker, containerd, storage):
        for container, called in runtime.container_names(host).items():
            names[container] = tuple(dict.fromkeys((*names.get(container, ()), *called)))
    return names


def container_inits(host: Host) -> dict[int, str]:
    """Pids of first processes -> ids of the containers that no control group names."""
    from acquirers.containers import containerd

    return containerd.container_inits(host)


class UnknownAcquirerError(Exception):
    """A selector that names no acquirer of this version."""


class Lazy(Generic[A]):
    """An acquirer that is imported and made when it is first asked: a run pays for those that it wants."""

    def __init__(self, name: str, make: Callable[[], A]) -> None:
        self.name = name
        self._make = make

    @cached_property
    def made(self) -> A:
        return self._make()

    @property
    def asked(self) -> bool:
        return "made" in self.__dict__

    def probe(self, host: Host, scope: Scope) -> Availability:
        return self.made.probe(host, scope)

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        return self.made.items(host, scope)


def acquirers() -> list[Acquirer]:
    """New instances, in order. `snapshot.executables` is the slow half of `snapshot.processes`, and goes with it."""
    processes = Lazy("snapshot.processes", _processes)
    sessions = Lazy("logs.sessions", _sessions)
    containerd = Lazy("containers.containerd", _containerd)
    podman = Lazy("containers.podman", _podman)
    recovered = cache(_recovered)  # what has no name is stored once in a run, whoever meets it first
    return [
        processes,
        sessions,  # an agent removes them with its task
        Lazy("memory.symbols", _symbols),
        Lazy("memory.physical", _physical),
        Lazy("memory.process", lambda: _process_memory(processes, recovered)),
        Lazy("live.files", lambda: _live(processes, recovered)),  # before executables that are held are let go
        Lazy("snapshot.executables", lambda: _executables(processes)),
        Lazy("containers.census", _census),
        Lazy("containers.docker", _docker),
        containerd,
        podman,
        Lazy("logs.runtime", lambda: _logs(sessions, containerd, podman)),
        Lazy("memory.swap", _swap),
    ]


def _processes() -> Processes:
    from acquirers.snapshot import Processes

    return Processes()


def _executables(processes: Lazy[Processes]) -> Acquirer:
    from acquirers.snapshot import Executables

    return Executables(processes.made)


def _symbols() -> Acquirer:
    from acquirers.memory.symbols import Symbols

    return Symbols()


def _physical() -> Acquirer:
    from acquirers.memory.physical import Physical

    return Physical()


def _recovered() -> Recovered:
    from acquirers.nameless import Recovered

    return Recovered()


def _live(processes: Lazy[Processes], recovered: Callable[[], Recovered]) -> Acquirer:
    from acquirers.live import LiveFiles
    from acquirers.memory.freezer import Freezer

    return LiveFiles(
        names=container_names,
        inits=container_inits,
        held=lambda: processes.made.holdings.known,
        recovered=recovered,
        freezer=Freezer,
    )


def _process_memory(processes: Lazy[Processes], recovered: Callable[[], Recovered]) -> Acquirer:
    from acquirers.memory.process import ProcessMemory

    # What runs without a name is recovered once: by the other one, if it is asked as well.
    return ProcessMemory(
        names=container_names,
        inits=container_inits,
        held=lambda: processes.made.holdings.known,
        recovered=recovered,
    )


def _swap() -> Acquirer:
    from acquirers.memory.swap import Swap

    return Swap()


def _census() -> Acquirer:
    from acquirers.containers.census import Census

    return Census()


def _docker() -> Acquirer:
    from acquirers.containers.docker import Docker

    return Docker()


def _containerd() -> Containerd:
    from acquirers.containers.containerd import Containerd

    return Containerd()


def _podman() -> Podman:
    from acquirers.containers.storage import Podman

    return Podman()


def _sessions() -> SessionLogs:
    from acquirers.logs import SessionLogs

    return SessionLogs()


def _logs(sessions: Lazy[SessionLogs], containerd: Lazy[Containerd], podman: Lazy[Podman]) -> Acquirer:
    from acquirers.logs import RuntimeLogs

    def claimed() -> set[bytes]:
        """What is in the archives of containers, of those runtimes that the run asks."""
        found: set[bytes] = set()
        if containerd.asked:
            found |= containerd.made.claimed
        if podman.asked:
            found |= podman.made.claimed
        return found

    return RuntimeLogs(claimed=claimed, sessions=sessions.made if sessions.asked else None)


ONLY_BY_NAME = frozenset({"memory.swap"})
"""In no profile, and not under a prefix: it reads whole disks."""

USED_BY: dict[str, tuple[str, ...]] = {
    "--freeze": ("memory.process", "live.files"),
    "--fault-in": ("memory.process",),
    "--remote": ("live.files",),
    "--pid": ("snapshot.processes", "memory.process"),
}
"""Which acquirers an option of the selection is for. Asking for it where none of them is chosen is a mistake."""

NOT_HERE = {
    "memory.symbols": "no file of a kernel found here",
    "memory.swap": "no swap area found here",
    "containers.docker": "no Docker found here",
    "containers.containerd": "no containerd found here",
    "containers.podman": "no podman, buildah or CRI-O found here",
}
"""What it means in words that an acquirer found nothing of its kind."""

_COMPANIONS = {"snapshot.executables": "snapshot.processes", "logs.sessions": "logs.runtime"}


def _matches(name: str, selector: str) -> bool:
    if not selector or name == selector or name.startswith(selector + "."):
        return True
    principal = _COMPANIONS.get(name)
    return principal is not None and _matches(principal, selector)


def _check(selector: str, known: list[str]) -> None:
    if selector.strip() and any(_matches(name, selector) for name in known):
        return
    there = f"this version has {', '.join(sorted(set(known)))}"
    if not selector.strip():
        raise UnknownAcquirerError(f"the name of an acquirer is missing; {there}")
    if any(_matches(name, selector) for name in PLANNED):
        raise UnknownAcquirerError(f"{selector!r} is not part of this version, which will not take it; {there}")
    if "," in selector or " " in selector.strip():
        raise UnknownAcquirerError(f"{selector!r} is no name of an acquirer: repeat the option, one name each; {there}")
    hint = did_you_mean(selector, [*known, *sorted({name.split(".")[0] for name in known})])
    raise UnknownAcquirerError(f"there is no acquirer {selector!r}{hint}; {there}")


def select(profile: str, only: list[str], skip: list[str]) -> list[Acquirer]:
    """The acquirers that a job asks for. Raises `UnknownAcquirerError`."""
    found = acquirers()
    known = [acquirer.name for acquirer in found]
    if profile not in _PROFILES:
        raise UnknownAcquirerError(f"there is no profile {profile!r}: choose one of {', '.join(_PROFILES)}")
    for selector in (*only, *skip):
        _check(selector, known)
    wanted = only or list(_PROFILES[profile])
    chosen = [
        acquirer
        for acquirer in found
        if any(_matches(acquirer.name, selector) for selector in wanted)
        and (acquirer.name not in ONLY_BY_NAME or acquirer.name in only)
        and not any(_matches(acquirer.name, selector) for selector in skip)
    ]
    if not chosen:
        asked = f"--only {' --only '.join(only)}" if only else f"--profile {profile}"
        without = f" without {' and '.join(skip)}" if skip else ""
        raise UnknownAcquirerError(f"nothing is left to acquire: {asked}{without} chooses no acquirer of this version")
    return chosen


def left_out(profile: str, only: list[str]) -> list[str]:
    """Acquirers of the design that the profile asks for and this version does not have."""
    wanted = _PROFILES[profile] if not only else ()
    return [name for name in PLANNED if any(_matches(name, part) for part in wanted)]
