"""From a job to a machine, acquirers and what each of them found: everything that can be refused is refused here.

Nothing is read but names and small records, and nothing is created: `plan` shows what this finds, `acquire` goes on.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from acquirers import registry
from acquirers.base import Acquirer, Availability, Layers, Scope, State, Subject
from acquirers.container_id import short_id
from acquirers.host import Host, Mode, NotARootError
from acquirers.inside import in_container
from acquirers.near import did_you_mean
from acquirers.selectors import matching
from agent.errors import UsageError
from agent.place import check_beside_root, check_outside
from agent.sealing import distinct, parse_recipient
from agent.stores.directory import check_destination, check_outside_runs

if TYPE_CHECKING:
    from agent.job import Job, Selection, Where
    from agent.sealing import Recipient


class Prepared(msgspec.Struct, frozen=True):
    """What a run or a plan stands on."""

    host: Host
    scope: Scope
    probes: tuple[tuple[Acquirer, Availability], ...]
    left_out: tuple[str, ...]
    """What the profile asks for and this version does not have."""


def find_host(where: Where, selection: Selection) -> Host:
    """The machine that a job means. Raises `UsageError`."""
    try:
        for option, root in (("--root", where.root), ("--live-root", where.live_root)):
            if root and not os.path.isdir(root):
                raise UsageError(
                    f"not the root of a machine: {option} {root!r} is no directory that is there; "
                    "a root holds etc, usr or var"
                )
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
    _check_used(selection, host, frozenset(acquirer.name for acquirer in chosen))
    layers = Layers.UPPER if selection.profile == "triage" else Layers(selection.layers)
    scope = Scope(
        containers=tuple(selection.containers),
        pids=tuple(selection.pids),
        layers=layers,
        known_layers=frozenset(selection.known_layers),
        beside=frozenset(acquirer.name for acquirer in chosen),
        freeze=selection.freeze,
        fault_in=selection.fault_in,
        remote=selection.remote,
    )
    probes = tuple((acquirer, _probe(acquirer, host, scope)) for acquirer in chosen)
    _check_selectors(host, scope, probes)
    return Prepared(host, scope, probes, tuple(registry.left_out(selection.profile, selection.only)))


def _probe(acquirer: Acquirer, host: Host, scope: Scope) -> Availability:
    try:
        found = acquirer.probe(host, scope)
    except Exception as error:  # noqa: BLE001 - a fault in one acquirer must not cost the others
        return Availability(State.UNAVAILABLE, f"a fault of impound: {type(error).__name__}: {error}", "report it")
    if found.state is not State.ABSENT:
        return found
    words = registry.NOT_HERE.get(acquirer.name, "")
    if words and found.reason:
        words = f"{words} ({found.reason})"
    return replace(found, reason=words or found.reason or "nothing of its kind was found here")


def _check_used(selection: Selection, host: Host, chosen: frozenset[str]) -> None:
    """Refuses options that nothing of the selection would heed: whoever gives them expects something of them."""
    given = {
        "--freeze": selection.freeze,
        "--fault-in": selection.fault_in,
        "--remote": selection.remote,
        "--pid": bool(selection.pids),
    }
    for option in (option for option, asked in given.items() if asked):
        users = registry.USED_BY[option]
        if host.mode is Mode.DEAD:
            raise UsageError(f"{option} is for what runs, and a mounted disk (--root) has no processes: leave it out")
        if not chosen & set(users):
            neither = "has neither" if len(users) > 1 else "does not have it"
            raise UsageError(
                f"{option} is for {' and '.join(users)}, and this selection {neither}: "
                f"leave {option} out, or choose {' or '.join(users)} as well"
            )


def _check_selectors(host: Host, scope: Scope, probes: tuple[tuple[Acquirer, Availability], ...]) -> None:
    matched = frozenset[str]().union(*(availability.matched for _, availability in probes))
    for pid in scope.pids:
        if str(pid) not in matched:
            why = "it has ended, it is of another PID namespace, or impound started it"
            why = "it is impound itself" if pid == os.getpid() else why
            raise UsageError(f"there is no process {pid} to take: {why}")
    missing = [selector for selector in scope.containers if selector not in matched]
    if missing:
        raise UsageError(_no_container(host, missing[0], probes))


def _no_container(host: Host, selector: str, probes: tuple[tuple[Acquirer, Availability], ...]) -> str:
    """Why nothing is meant by a selector, and what could have been."""
    here = registry.container_names(host)
    if any(matching([selector], container, names) for container, names in here.items()):
        asked = ", ".join(acquirer.name for acquirer, _ in probes)
        return (
            f"container {selector!r} is here, and {asked} has nothing of it: its files and logs are in containers.*, "
            "and live.files and memory.process take what runs"
        )
    known = {f"{next(iter(names), '')} ({short_id(container)})".lstrip(): names for container, names in here.items()}
    for _, availability in probes:
        for subject in availability.subjects:
            if subject.kind == "container" and subject.id not in here:
                known[_called(subject)] = (_called(subject),)
    listed = sorted(known)
    there = ", ".join(listed[:20]) + (" …" if len(listed) > 20 else "") if listed else "none"
    blind = [availability for _, availability in probes if availability.state is State.UNAVAILABLE]
    if blind:
        there += f"; not all could be looked at: {blind[0].reason}; {blind[0].remedy}".rstrip("; ")
    short = "; of an id, at least four digits count" if re.fullmatch("[0-9a-f]{1,3}", selector) else ""
    hint = did_you_mean(selector, (name for names in known.values() for name in names))
    return f"there is no container {selector!r}{hint}{short}; containers here: {there}"


def _called(subject: Subject) -> str:
    """What a person can type for it."""
    return subject.name.decode("utf-8", "backslashreplace") or short_id(subject.id)


def read_recipients(job: Job) -> list[Recipient]:
    """The keys that evidence is sealed to. Raises `UsageError`."""
    return distinct(parse_recipient(text) for text in job.recipients)


def check_place(job: Job, prepared: Prepared) -> None:
    """Whether the destination may be written to. Raises `UsageError`."""
    if job.to == "-":  # nothing is written here
        return
    if job.to.startswith("s3://"):
        from agent.stores.s3.place import parse_place

        parse_place(job.to)
        return
    check_destination(job.to)
    check_outside_runs(job.to)
    trees = [tree for _, availability in prepared.probes for tree in availability.reads]
    if prepared.host.mode in {Mode.DEAD, Mode.LIVE_ROOT}:
        trees.append(prepared.host.root)
    if prepared.host.mode is Mode.INSIDE:
        check_beside_root(job.to)
    check_outside(job.to, trees)
