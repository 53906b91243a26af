"""The logs of pods that are in no container's own archive, and the small files that the kubelet keeps for each pod.

`/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restart>.log` and its rotations; of a static pod the uid is the hash
of its manifest. What a container's archive claims is left to it; pods whose container nobody knows any more are taken
here, and they are what an intruder who removes a container leaves behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Kind, Report
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.logs.groups import KUBELET, POD_LOGS
from acquirers.logs.places import Place, names
from acquirers.selectors import matching

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.host import Host
    from acquirers.logs.places import Keep

_POD = re.compile(rb"([a-z0-9.-]{1,63})_([a-z0-9.-]{1,253})_([0-9a-f-]{1,64})")
_MAX_PODS = 20_000
_MAX_CONTAINERS = 100
_MAX_TOLD = 200

Claimed = Callable[[], "set[bytes]"]
"""Native paths of directories or files in `/var/log/pods` that a container's own archive holds."""


class Pod(msgspec.Struct, frozen=True):
    """One directory of `/var/log/pods`."""

    directory: bytes
    namespace: str
    name: str
    uid: str
    containers: tuple[str, ...]
    """Names of its directories, as far as they are looked at."""


def listing(host: Host) -> Iterator[Pod]:
    """Every pod that has logs, as far as its name is one. Raises `OSError` when there is no such directory."""
    with host.tree(POD_LOGS) as tree, os.scandir(tree.fd) as entries:
        for count, entry in enumerate(entries):
            name = os.fsencode(entry.name)
            match = _POD.fullmatch(name)
            if count >= _MAX_PODS:
                return
            if match is not None and entry.is_dir(follow_symlinks=False):
                namespace, pod, uid = (group.decode() for group in match.groups())
                yield Pod(name, namespace, pod, uid, tuple(_containers(tree.fd, name)))


def _containers(fd: int, name: bytes) -> Iterator[str]:
    try:
        below = open_noatime(name, DIRECTORY, fd)
    except OSError:
        return
    try:
        with os.scandir(below) as entries:
            for count, entry in enumerate(entries):
                if count >= _MAX_CONTAINERS:
                    return
                yield entry.name
    except OSError:
        return
    finally:
        os.close(below)


class Chosen(msgspec.Struct, frozen=True):
    """Which pods are asked for. None: all of them."""

    directories: dict[bytes, frozenset[bytes] | None] | None = None
    """Directory of a pod -> its containers that are asked for, or None for all of them."""
    uids: frozenset[bytes] | None = None
    matched: frozenset[str] = frozenset()


def choose(pods: Iterable[Pod], selectors: tuple[str, ...]) -> Chosen:
    """`--container` by the name of the container, `pod`, `namespace/pod`, `namespace/pod/container`."""
    if not selectors:
        return Chosen()
    directories: dict[bytes, frozenset[bytes] | None] = {}
    matched: set[str] = set()
    uids = set()
    for pod in pods:
        whole = f"{pod.namespace}/{pod.name}"
        found = matching(selectors, "", (pod.name, whole))
        some: set[bytes] = set()
        for container in pod.containers:
            for_one = matching(selectors, "", (container, f"{whole}/{container}"))
            if for_one:
                some.add(os.fsencode(container))
                matched |= for_one
        if found or some:
            matched |= found
            directories[pod.directory] = None if found else frozenset(some)
            uids.add(pod.uid.encode())
    return Chosen(directories, frozenset(uids), frozenset(matched))


def places(chosen: Chosen, claimed: Claimed) -> tuple[Place, ...]:
    """What of the pods' files is taken."""
    return (
        Place(POD_LOGS, keep=lambda report, native: _unclaimed(report, native, chosen, claimed())),
        Place(KUBELET, names(rb"pods"), keep=lambda _report, _native: _pod_files(chosen.uids), recursive=False),
    )


def _unclaimed(report: Report, native: bytes, chosen: Chosen, claimed: set[bytes]) -> Keep:
    bases = {native.rstrip(b"/") + b"/", POD_LOGS + b"/"}
    told = 0

    def keep(path: bytes, _kind: Kind) -> bool:
        nonlocal told
        pod, _, rest = path.partition(b"/")
        if chosen.directories is not None:
            if pod not in chosen.directories:
                return False
            some = chosen.directories[pod]
            if rest and some is not None and rest.partition(b"/")[0] not in some:
                return False
        if not claimed or not any(base + path in claimed for base in bases):
            return True
        told += 1
        if told <= _MAX_TOLD:
            more = " (nor are the claimed ones that follow)" if told == _MAX_TOLD else ""
            detail = f"stored with the container that it belongs to{more}"
            report.flag(Flag(FlagKind.ELSEWHERE, detail, native.rstrip(b"/") + b"/" + path))
        return False

    return keep


def _pod_files(uids: frozenset[bytes] | None) -> Keep:
    """`pods/<uid>/etc-hosts` and `pods/<uid>/containers/<name>/<id>`, the termination logs. Volumes are not logs."""

    def keep(path: bytes, kind: Kind) -> bool:
        parts = path.split(b"/")
        if len(parts) == 1:
            return kind is Kind.DIRECTORY
        if uids is not None and parts[1] not in uids:
            return False
        if len(parts) == 2:
            return kind is Kind.DIRECTORY
        return parts[2] in {b"etc-hosts", b"containers"}

    return keep
