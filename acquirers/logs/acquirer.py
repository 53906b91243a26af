"""`logs.runtime`: what no container's own archive holds; and `logs.sessions`, the part of it that does not wait."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from acquirers.base import Availability, Gap, Item, Reason, State, Subject, reason_of
from acquirers.host import Mode
from acquirers.logs import pods, unlinked
from acquirers.logs.archive import Archive
from acquirers.logs.groups import CONTAINER, GROUPS, POD_LOGS, SESSIONS, Group
from acquirers.logs.places import is_there, measure

if TYPE_CHECKING:
    from acquirers.base import Scope
    from acquirers.host import Host
    from acquirers.logs.places import Place
    from acquirers.logs.pods import Chosen, Claimed

_MEDIA_TYPE = "application/x-tar"
_KUBERNETES = "kubernetes"
_MAX_LISTED = 1000
"""Pods that a plan lists."""


class _Here:
    """Which places of one group are there, and which cannot be looked at."""

    def __init__(self, host: Host, group: Group, more: Sequence[Place] = ()) -> None:
        self.name = group.name
        self.places: list[Place] = []
        self.denied: list[bytes] = []
        self.gaps: list[Gap] = []
        for place in (*group.places, *more):
            try:
                if is_there(host, place):
                    self.places.append(place)
            except OSError as error:
                if reason_of(error) is Reason.DENIED:
                    self.denied.append(place.path)
                self.gaps.append(Gap(reason_of(error), error.strerror or str(error), place.path))

    @property
    def item_path(self) -> str:
        return f"logs/{self.name}.tar"

    def item(self, host: Host, scope: Scope) -> Item:
        about = {"group": self.name, "places": [place.path for place in self.places]}
        archive = Archive(host, scope, self.places, self.gaps)
        return Item(self.item_path, _MEDIA_TYPE, archive, self.estimate(host), about)

    def estimate(self, host: Host) -> int:
        total = 0
        for place in self.places:
            try:
                total += measure(host, place)
            except OSError:
                continue
        return total


class SessionLogs:
    """What was done through ECS Exec and Session Manager. Their agents delete it: it is taken before what is slow."""

    name = "logs.sessions"

    def __init__(self) -> None:
        self.begun = False
        """It was asked for its items, and has them: nobody else needs to take them."""

    def probe(self, host: Host, scope: Scope) -> Availability:  # noqa: ARG002 - belongs to no container
        if host.mode is Mode.INSIDE:
            return Availability(State.ABSENT, "inside of a container: its own sessions are among its own logs")
        here = _Here(host, SESSIONS)
        return _availability(host, [here], "no logs of ECS Exec or Session Manager")

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        if host.mode is Mode.INSIDE:
            return
        self.begun = True
        here = _Here(host, SESSIONS)
        if here.places or here.gaps:
            yield here.item(host, scope)


class RuntimeLogs:
    """Reads files only; asks no daemon."""

    name = "logs.runtime"

    def __init__(self, claimed: Claimed = set, sessions: SessionLogs | None = None) -> None:
        """`claimed` tells, when it is time to read, which pod logs are in a container's own archive: their native
        paths, or those of directories above them. With `sessions`, what that one takes in the run is left to it.
        """
        self._claimed = claimed
        self._sessions = sessions

    def probe(self, host: Host, scope: Scope) -> Availability:
        chosen, listed = self._pods(host, scope)
        here = self._groups(host, chosen)
        found = unlinked.search(host)
        if found.files:
            count = len(found.files)
            listed.append(Subject("unlinked", "", b"logs without a name, held open", f"{count} files", None))
        told = _availability(host, here, "no logs of runtimes", unlinked_files=len(found.files), denied=found.denied)
        return Availability(
            told.state,
            told.reason,
            told.remedy,
            estimate=None if told.estimate is None else told.estimate + sum(file.size for file in found.files),
            subjects=tuple(listed),
            matched=chosen.matched,
            reads=told.reads,
        )

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        chosen, _ = self._pods(host, scope)
        found = unlinked.search(host)
        if found.files or found.gaps:
            size = sum(file.size for file in found.files)
            about = {"group": "deleted", "files": len(found.files)}
            yield Item("logs/deleted.tar", _MEDIA_TYPE, unlinked.Archive(host, found), size, about)
        for here in self._groups(host, chosen):
            if here.places or here.gaps:
                yield here.item(host, scope)

    def _groups(self, host: Host, chosen: Chosen) -> list[_Here]:
        if host.mode is Mode.INSIDE:
            return [_Here(host, CONTAINER)]
        groups = GROUPS if self._sessions is not None and self._sessions.begun else (SESSIONS, *GROUPS)
        more = {_KUBERNETES: pods.places(chosen, self._claimed)}
        return [_Here(host, group, more.get(group.name, ())) for group in groups]

    def _pods(self, host: Host, scope: Scope) -> tuple[Chosen, list[Subject]]:
        """The pods that have logs. Whose containers have archives of their own is not known here."""
        if host.mode is Mode.INSIDE:
            return pods.choose((), scope.containers), []
        try:
            here = list(pods.listing(host))
        except OSError:
            here = []  # told when it is read
        chosen = pods.choose(here, scope.containers)
        listed = []
        for pod in here[:_MAX_LISTED]:
            selected = chosen.directories is None or pod.directory in chosen.directories
            name = os.fsencode(f"{pod.namespace}/{pod.name}")
            listed.append(Subject("pod-logs", pod.uid, name, f"{len(pod.containers)} containers", None, selected))
        return chosen, listed


def _availability(
    host: Host, groups: Sequence[_Here], nothing: str, *, unlinked_files: int = 0, denied: int = 0
) -> Availability:
    places = [place for here in groups for place in here.places]
    closed = [path for here in groups for path in here.denied]
    troubled = [gap for here in groups for gap in here.gaps]
    what = f"{len(closed) + denied} places and processes that this user may not look at" if closed or denied else ""
    remedy = "run as root" if what else ""
    if not places and not unlinked_files:
        if closed or denied:
            return Availability(State.UNAVAILABLE, what, remedy)
        if troubled:
            gap = troubled[0]
            return Availability(State.UNAVAILABLE, f"{gap.detail}: {gap.where.decode('utf-8', 'replace')}")
        return Availability(State.ABSENT, nothing)
    whole = {place.path for place in places if place.names is None and place.path != b"/"} | (
        {POD_LOGS} if any(place.path == POD_LOGS for place in places) else set()
    )
    return Availability(
        State.AVAILABLE,
        what,
        remedy,
        estimate=sum(here.estimate(host) for here in groups),
        reads=tuple(host.here(path) for path in sorted(whole)),
    )
