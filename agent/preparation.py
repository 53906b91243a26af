"""From a job to a machine, acquirers and what each of them found: everything that can be refused is refused here.

Nothing is read but names and small records, and nothing is created: `plan` shows what this finds, `acquire` goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acquirers import registry
from acquirers.base import Acquirer, Availability, Layers, Scope, State
from acquirers.host import Host, Mode, NotARootError
from acquirers.inside import in_container
from agent.errors import UsageError
from agent.place import check_outside
from agent.sealing import parse_recipient
from agent.stores.directory import check_destination, check_outside_runs

if TYPE_CHECKING:
    from agent.job import Job, Selection, Where
    from agent.sealing import Recipient


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run or a plan stands on."""

    host: Host
    scope: Scope
    probes: tuple[tuple[Acquirer, Availability], ...]
    left_out: tuple[str, ...]
    """What the profile asks for and this version does not have."""


def find_host(where: Where, selection: Selection) -> Host:
    """The machine that a job means. Raises `UsageError`."""
    try:
        if where.root:
            return Host(Mode.DEAD, os.fsencode(where.root))
        if where.live_root:
            return Host(Mode.LIVE_ROOT, os.fsencode(where.live_root))
    except NotARootError as error:
        raise UsageError(f"not the root of a machine: {error}") from error
    except OSError as error:
        raise UsageError(f"the root cannot be opened: {error.strerror}") from error
    only_containers = bool(selection.only) and all(name.split(".")[0] == "containers" for name in selection.only)
    inside = where.inside or (not only_containers and bool(in_container()))
    try:
        return Host(Mode.INSIDE if inside else Mode.HOST)
    except (NotARootError, OSError) as error:
        raise UsageError(f"this machine has no root that could be read: {error}") from error


def prepare(selection: Selection, where: Where) -> Prepared:
    """Chooses acquirers and asks each what it can. Raises `UsageError`."""
    try:
        chosen = registry.select(selection.profile, selection.only, selection.skip)
    except registry.UnknownAcquirerError as error:
        raise UsageError(str(error)) from error
    host = find_host(where, selection)
    layers = Layers.UPPER if selection.profile == "triage" else Layers(selection.layers)
    scope = Scope(containers=tuple(selection.containers), pids=tuple(selection.pids), layers=layers)
    probes = tuple((acquirer, _probe(acquirer, host, scope)) for acquirer in chosen)
    _check_selectors(scope, probes)
    return Prepared(host, scope, probes, tuple(registry.left_out(selection.profile, selection.only)))


def _probe(acquirer: Acquirer, host: Host, scope: Scope) -> Availability:
    try:
        return acquirer.probe(host, scope)
    except Exception as error:  # noqa: BLE001 - a fault in one acquirer must not cost the others
        return Availability(State.UNAVAILABLE, f"a fault of impound: {type(error).__name__}: {error}", "report it")


def _check_selectors(scope: Scope, probes: tuple[tuple[Acquirer, Availability], ...]) -> None:
    matched = frozenset[str]().union(*(availability.matched for _, availability in probes))
    for pid in scope.pids:
        if str(pid) not in matched:
            raise UsageError(f"there is no process {pid}")
    missing = [selector for selector in scope.containers if selector not in matched]
    if missing:
        known = sorted(
            subject.name.decode("utf-8", "backslashreplace") or subject.id[:12]
            for _, availability in probes
            for subject in availability.subjects
            if subject.kind == "container"
        )
        there = ", ".join(known[:20]) + (" …" if len(known) > 20 else "") if known else "none"
        blind = [availability for _, availability in probes if availability.state is State.UNAVAILABLE]
        if blind:
            there += f"; not all could be looked at: {blind[0].reason}; {blind[0].remedy}".rstrip("; ")
        raise UsageError(f"there is no container {missing[0]!r}; containers here: {there}")


def read_recipients(job: Job) -> list[Recipient]:
    """The keys that evidence is sealed to. Raises `UsageError`."""
    found: dict[str, Recipient] = {}
    for text in job.recipients:
        recipient = parse_recipient(text)
        found.setdefault(recipient.text, recipient)
    return list(found.values())


def check_place(job: Job, prepared: Prepared) -> None:
    """Whether the destination may be written to. Raises `UsageError`."""
    if job.to.startswith("s3://"):
        raise UsageError("this version stores into a directory only: --to DIR")
    check_destination(job.to)
    check_outside_runs(job.to)
    trees = [tree for _, availability in prepared.probes for tree in availability.reads]
    if prepared.host.mode in {Mode.DEAD, Mode.LIVE_ROOT}:
        trees.append(prepared.host.root)
    check_outside(job.to, trees)
