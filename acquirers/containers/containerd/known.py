"""containerd's containers for the census."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acquirers.base import Scope
from acquirers.containers import docker
from acquirers.containers.containerd.acquirer import take_survey
from acquirers.containers.containerd.kubernetes import Pods
from acquirers.containers.containerd.metadata import DOCKER
from acquirers.containers.known import UNCLAIMED, Known, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.base import Gap
    from acquirers.containers.containerd.store import Entry, Store, Unclaimed
    from acquirers.host import Host


def known(host: Host, gaps: list[Gap] | None = None) -> Iterator[Known]:
    """Every container of every containerd, and snapshots that none of them claims. Those of Docker 29 are Docker's."""
    pods = Pods(host)
    survey = take_survey(host, Scope())
    gaps = [] if gaps is None else gaps
    gaps += unknown(survey.found.denied, survey.found.gaps)
    of_docker = docker.container_names(host)
    for store in survey.stores:
        gaps += unknown(store=store.gaps)
        for entry in store.entries:
            if entry.record.namespace == DOCKER and entry.record.id in of_docker:
                continue  # Docker's own records tell more of it
            yield _known(store, entry, pods)
        for one in store.unclaimed:
            yield _unclaimed(store, one)


def _known(store: Store, entry: Entry, pods: Pods) -> Known:
    record, stack = entry.record, entry.stack
    files = pods.files(record)
    return Known(
        runtime="containerd",
        id=record.id,
        name=entry.name,
        state=entry.task.state,
        pid=entry.task.pid or 0,
        image=record.image,
        pod=record.pod,
        namespace=record.pod_namespace or record.namespace,
        pod_uid=record.pod_uid,
        root=store.root.path,
        upper=stack.upper_path if stack is not None else b"",
        lowers=tuple(stack.lower_paths) if stack is not None else (),
        logs=(files.logs,) if files.logs is not None else (),
        other=(files.directory,) if files.directory is not None else (),
        record=record.has_container,
        disk=stack is not None,
        sandbox=record.kind == "sandbox",
    )


def _unclaimed(store: Store, one: Unclaimed) -> Known:
    path = one.snapshotter.path + b"/snapshots/" + one.directory
    return Known(
        runtime="containerd",
        id=one.directory.decode("ascii", "replace"),
        name=one.snapshot.key[:200].decode("utf-8", "replace") if one.snapshot is not None else "",
        state=UNCLAIMED,
        root=store.root.path,
        upper=path + b"/fs",
        record=False,
    )
