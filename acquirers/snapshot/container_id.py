"""Which container a process belongs to, read off its control group or its mounts. Parsers only.

Forms of the control group (runc, crun, systemd and cgroupfs drivers of Docker, containerd, CRI-O, Podman, ECS):

    /docker/<id>                                    /ecs/<task>/<id>
    /system.slice/docker-<id>.scope                 /ecstasks.slice/ecstasks-<task>.slice/docker-<id>.scope
    /kubepods/burstable/pod<uid>/<id>               /ecs/<task>/<task>-<number>   (Fargate: the id has no 64 digits)
    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope
    /system.slice/containerd.service/kubepods-burstable-pod<uid>.slice:cri-containerd:<id>
    /machine.slice/libpod-<id>.scope/container      …/crio-<id>.scope

A process behind a control group namespace shows "/" only; its mounts still name the container, because runtimes bind
`/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` out of a directory that bears the id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from acquirers.mounts import parse_mountinfo

MAX_CHAIN = 16

_ID = re.compile(rb"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_FARGATE = re.compile(rb"^[0-9a-f]{32}-\d{1,10}$")
# conmon watches a container from outside and stands beside it in the tree: libpod-conmon-<id>.scope
_WATCHER = re.compile(rb"(?:^|-)conmon-")
# A static pod's uid is the hash of its manifest: 32 digits without dashes. Systemd writes `_` where `-` parts slices.
_POD = re.compile(rb"(?:^|[-/])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=$|[./:])")

_BOUND = frozenset({b"/etc/hostname", b"/etc/hosts", b"/etc/resolv.conf", b"/dev/termination-log", b"/dev/shm"})
_BOUND_ID = re.compile(rb"/(?:overlay-)?containers/([0-9a-f]{64})/")
_BOUND_SANDBOX = re.compile(rb"/sandboxes/([0-9a-f]{64})/")
_BOUND_POD = re.compile(rb"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})/")


@dataclass(frozen=True, slots=True)
class Placement:
    """What a process's control group or mounts say of its container. Empty where they say nothing."""

    container: str = ""
    """64 hexadecimal digits; on Fargate `<task>-<number>`."""
    chain: tuple[str, ...] = ()
    """All ids on the way, outermost first, where containers are nested."""
    pod: str = ""
    """Uid of the Kubernetes pod, with dashes."""
    sandbox: str = ""
    """Id of the pod's sandbox container, from the mounts."""
    upperdir: bytes = b""
    """Writable layer of the root overlay, from the mounts: what ties a process to a layer on disk."""
    source: str = ""
    """`cgroup` or `mountinfo`."""


@lru_cache(maxsize=1024)
def from_cgroup(data: bytes) -> Placement:
    """Of `/proc/<pid>/cgroup` (cgroups(7)): lines `hierarchy:controllers:path`, one in version 2, several in version 1.

    The hierarchy that names the longest chain of containers speaks for all: others may be mounted without them.
    """
    chain: list[str] = []
    pod = ""
    for line in data.split(b"\n")[:200]:
        path = line.split(b":", 2)[-1]
        found: list[str] = []
        for component in path.split(b"/")[:200]:
            match = _ID.search(component)
            if match and not _WATCHER.search(component):
                found.append(match[1].decode())
            elif _FARGATE.match(component):
                found.append(component.decode())
        if len(found) > len(chain):
            chain = found
        pods = _POD.findall(path)
        if pods and not pod:
            pod = pods[-1].decode().replace("_", "-")
    if not chain and not pod:
        return Placement()
    return Placement(
        container=chain[-1] if chain else "",
        chain=tuple(chain[:MAX_CHAIN]) if len(chain) > 1 else (),
        pod=pod,
        source="cgroup",
    )


def from_mountinfo(data: bytes) -> Placement:
    """Of `/proc/<pid>/mountinfo`: where the files that a runtime binds into a container come from."""
    container = sandbox = pod = ""
    upperdir = b""
    for mount in parse_mountinfo(data):
        if mount.point == b"/":
            upperdir = (mount.option(b"upperdir") or b"") if mount.fstype == b"overlay" else b""
        if mount.point not in _BOUND:
            continue
        root = mount.root + b"/"
        if match := _BOUND_ID.search(root):
            container = match[1].decode()
        if match := _BOUND_SANDBOX.search(root):
            sandbox = match[1].decode()
        if match := _BOUND_POD.search(root):
            pod = match[1].decode()
    if not (container or sandbox or pod or upperdir):
        return Placement()
    return Placement(container=container, pod=pod, sandbox=sandbox, upperdir=upperdir, source="mountinfo")
