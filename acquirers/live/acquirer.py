"""`live.files`: the files of every running container as it sees them, from the machine or from inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from acquirers.base import (
    AcquirerError,
    Availability,
    Gap,
    Item,
    State,
    Subject,
    reason_of,
)
from acquirers.facts import reduce_name
from acquirers.host import Mode
from acquirers.live.archive import Freezing, Live, Run
from acquirers.live.groups import Census, Group, look
from acquirers.live.inside import own_layers
from acquirers.live.surroundings import machine_around
from acquirers.nameless import Recovered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host
    from acquirers.live.verdicts import Key
    from acquirers.mounts import Mount

NAME = "live.files"
_MEDIA_TYPE = "application/x-tar"
_MAX_SUBJECTS = 1000
_MAX_MOUNTS = 500
"""Mounts that the manifest names of one container; its archive has the whole list."""

Names = Callable[["Host"], "Mapping[str, tuple[str, ...]]"]


def _no_names(_: Host) -> Mapping[str, tuple[str, ...]]:
    return {}


def _nothing_held() -> frozenset[tuple[int, int]]:
    return frozenset()


class LiveFiles:
    """Reads the containers that run, one after the other. A container that has ended is read from disk by others."""

    name = NAME

    def __init__(
        self,
        *,
        names: Names = _no_names,
        inits: Callable[[Host], Mapping[int, str]] = lambda _: {},
        held: Callable[[], frozenset[tuple[int, int]]] = _nothing_held,
        recovered: Callable[[], Recovered] = Recovered,
        freezer: Callable[[Host], Freezing] | None = None,
        deadline: float = 30.0,
    ) -> None:
        """`names`: of containers, by id. `inits`: first processes of those that no control group names.

        `held`: (device, inode) of executables that somebody else recovers. `recovered`: the files without a name that
        the run has already. `freezer`: what `--freeze` uses. `deadline`: seconds that one call into a filesystem that
        may not answer may take.
        """
        self._names = names
        self._inits = inits
        self._held = held
        self._recovered = recovered
        self._freezer = freezer
        self._deadline = deadline

    def probe(self, host: Host, scope: Scope) -> Availability:
        if not host.live:
            return Availability(State.ABSENT, "a mounted disk runs no containers")
        try:
            census = look(host, scope, self._names(host), inits=self._inits(host))
        except OSError as error:
            reason = f"/proc cannot be listed: {error.strerror}"
            return Availability(State.UNAVAILABLE, reason, "mount a proc filesystem")
        chosen = [group for group in census.groups if group.selected]
        readable = [group for group in chosen if not group.error]
        reason, remedy = _limits(host, census, chosen)
        subjects = tuple(
            Subject("container", group.label, os.fsencode(_name(group)), _state(group), selected=group.selected)
            for group in census.groups[:_MAX_SUBJECTS]
        )
        if not readable:
            state = State.UNAVAILABLE if chosen else State.ABSENT
            return Availability(
                state, reason or "no container runs here", remedy, subjects=subjects, matched=census.matched
            )
        reads = () if host.mode is Mode.INSIDE else tuple(_root_of(host, group) for group in readable)
        return Availability(State.AVAILABLE, reason, remedy, subjects=subjects, matched=census.matched, reads=reads)

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        """One for each container, in the order in which they were started."""
        if not host.live:
            return
        try:
            census = look(host, scope, self._names(host), inits=self._inits(host))
        except OSError as error:
            raise AcquirerError(reason_of(error), f"processes: {error.strerror}", host.proc or b"") from error
        paths = _Paths()
        chosen = [(group, paths.take(_item_name(host, group))) for group in census.groups if group.selected]
        run = Run(
            host,
            scope,
            machine_around(host, census.groups),
            self._recovered(),
            self._held(),
            _roots(chosen),
            _own_pid(host),
            self._freezer(host) if self._freezer is not None and scope.freeze else None,
            scope.remote,
            self._deadline,
        )
        if host.mode is Mode.INSIDE:
            run.inside_out = own_layers
        gaps = list(census.gaps)
        if gaps and not chosen:
            raise AcquirerError(gaps[0].reason, gaps[0].detail, gaps[0].where)
        for group, path in chosen:
            read = _told_first(Live(run, group, path), gaps)
            yield Item(path, _MEDIA_TYPE, read, None, _about(group))
            gaps = []


class _Paths:
    """Item paths, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        base = path = f"live/{reduce_name(name)}"
        count = 1
        while path.lower() in self._taken:
            count += 1
            path = f"{base}-{count}"
        self._taken.add(path.lower())
        return f"{path}.tar"


def _told_first(live: Live, gaps: Sequence[Gap]) -> Callable[[Report], Iterator[Buffer]]:
    """What is to be told of all containers is told with the first one."""

    def read(report: Report) -> Iterator[Buffer]:
        for gap in gaps:
            report.gap(gap)
        yield from live(report)

    return read


def _roots(chosen: Sequence[tuple[Group, str]]) -> dict[Key, str]:
    """Where the roots of containers will be stored: with the one that was started first."""
    found: dict[Key, str] = {}
    for group, path in chosen:
        top = group.root
        if top is not None and not group.error:
            found.setdefault((top.device, top.root), path)
    return found


def _name(group: Group) -> str:
    name = next((name.removeprefix("/") for name in group.names if name.removeprefix("/")), "")
    return name or group.init.comm.decode("utf-8", "replace") or "unnamed"


def _item_name(host: Host, group: Group) -> str:
    if host.mode is Mode.INSIDE and group.own:
        return f"self-{host.facts.hostname or 'unnamed'}"
    short = group.label[:12] if group.container else group.label
    return f"{short}-{_name(group)}"


def _state(group: Group) -> str:
    if group.error:
        return "closed"
    return "impound's own" if group.own else "running"


def _root_of(host: Host, group: Group) -> bytes:
    return os.path.join(host.proc or b"/proc", b"%d/%sroot" % (group.init.pid, group.init.base))


def _own_pid(host: Host) -> int:
    try:
        return int(os.readlink(os.path.join(host.proc or b"/proc", b"self")))
    except (OSError, ValueError):
        return 0


def _limits(host: Host, census: Census, chosen: Sequence[Group]) -> tuple[str, str]:
    """What will be missing, and what would help."""
    capabilities = host.facts.capabilities
    if closed := sum(bool(group.error) for group in chosen):
        what = f"{closed} of {len(chosen)} containers" if len(chosen) > 1 else "the container"
        return f"{what} may not be looked at by this user", "run as root with CAP_SYS_PTRACE, in the pid namespace"
    if not chosen:
        return "", ""
    if "dac_read_search" not in capabilities and "dac_override" not in capabilities:
        return f"as user {host.facts.uid}, without CAP_DAC_READ_SEARCH: only files that it may read", "run as root"
    if "sys_admin" not in capabilities:
        return "read in place: a read-only clone of the mounts needs CAP_SYS_ADMIN", ""
    return ("; ".join(gap.detail for gap in census.gaps), "") if census.gaps else ("", "")


def _about(group: Group) -> dict[str, object]:
    about: dict[str, object] = {
        "id": group.container,
        "names": list(group.names),
        "pid": group.init.pid,
        "comm": group.init.comm,
        "processes": len(group.processes),
        "namespaces": {"mnt": group.mnt, "pid": group.init.pid_ns, "user": group.init.user_ns},
        "mounts": [_mount(mount) for mount in group.mounts[:_MAX_MOUNTS]],
    }
    if group.pod:
        about["pod_uid"] = group.pod
    if group.chain:
        about["chain"] = list(group.chain)
    if group.upper:
        about["upper"] = group.upper
    if len(group.mounts) > _MAX_MOUNTS:
        about["further_mounts"] = len(group.mounts) - _MAX_MOUNTS
    return about


def _mount(mount: Mount) -> dict[str, object]:
    return {
        "point": mount.point,
        "fstype": mount.fstype.decode("ascii", "replace"),
        "device": f"{os.major(mount.device)}:{os.minor(mount.device)}",
        "root": mount.root,
    }
