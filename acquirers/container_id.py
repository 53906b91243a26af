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
from functools import lru_cache

import msgspec

from acquirers.mounts import parse_mountinfo

MAX_CHAIN = 16

_ID = re.compile(rb"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_PODMANS = b"libpod_parent"
_FARGATE = re.compile(rb"^[0-9a-f]{32}-\d{1,10}$")
# conmon watches a container from outside and stands beside it in the tree: libpod-conmon-<id>.scope
_WATCHER = re.compile(rb"(?:^|-)conmon-")
# A static pod's uid is the hash of its manifest: 32 digits without dashes. Systemd writes `_` where `-` parts slices.
_POD = re.compile(rb"(?:^|[-/])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=$|[./:])")

_BOUND = frozenset({b"/etc/hostname", b"/etc/hosts", b"/etc/resolv.conf", b"/dev/termination-log", b"/dev/shm"})
_BOUND_ID = re.compile(rb"/(?:overlay-)?containers/([0-9a-f]{64})/")
_BOUND_SANDBOX = re.compile(rb"/sandboxes/([0-9a-f]{64})/")
_BOUND_POD = re.compile(rb"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})/")


class Placement(msgspec.Struct, frozen=True):
    """What a process's control group or mounts say of its container. Empty where they say nothing."""

    container: str = ""
    """64 hexadecimal digits; on Fargate `<task>-<number>`. The outermost one: what is below its control group is named
    by whoever is in it, and may bear the id of anybody."""
    chain: tuple[str, ...] = ()
    """All ids on the way, outermost first, where containers are nested, or pretend to be."""
    group: bytes = b""
    """The control group of the container itself."""
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
    pod, group = "", b""
    for line in data.split(b"\n")[:200]:
        path = line.split(b":", 2)[-1]
        found, pod_there, group_there = _on_the_way(path)
        if len(found) > len(chain):
            chain, pod, group = found, pod_there or pod, group_there
        pod = pod or pod_there
    if not chain and not pod:
        return Placement()
    return Placement(
        container=chain[0] if chain else "",
        chain=tuple(chain[:MAX_CHAIN]) if len(chain) > 1 else (),
        group=group,
        pod=pod,
        source="cgroup",
    )


def _on_the_way(path: bytes) -> tuple[list[str], str, bytes]:
    """The ids of containers, the pod of the first one, and its control group."""
    found: list[str] = []
    pod, group, above = "", b"", b""
    length = 0
    for component in path.split(b"/")[:200]:
        length += len(component) + 1
        if not found and (pods := _POD.findall(component)):
            pod = pods[-1].decode().replace("_", "-")
        one = _container_of(component, above)
        if one and not found:
            group = path[: length - 1]
        if one:
            found.append(one)
        above = component
    return found, pod, group


def is_id(text: str) -> bool:
    """Whether it is an id as control groups tell them: 64 hexadecimal digits, or Fargate's."""
    word = text.encode("utf-8", "surrogatepass")
    return re.fullmatch(rb"[0-9a-f]{64}", word) is not None or _FARGATE.match(word) is not None


def short_id(text: str) -> str:
    """As people know them: twelve digits. What is no such id is not cut."""
    return text[:12] if is_id(text) else text


def _container_of(component: bytes, above: bytes) -> str:
    match = _ID.search(component)
    if match and above == _PODMANS and match.start() == 0 and match[1] == component:
        return ""  # a pod of Podman without systemd, which holds its containers
    if match and not _WATCHER.search(component):
        return match[1].decode()
    return component.decode() if _FARGATE.match(component) else ""


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
