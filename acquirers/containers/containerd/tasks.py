"""What runs: the bundles that shims keep in the state directory, runc's own records, and what /proc says to them.

`<state>/io.containerd.runtime.v2.task/<namespace>/<id>/{config.json,init.pid,options.json,…}`, and
`<runc root>/<namespace>/<id>/state.json`. Sources: containerd `cmd/containerd-shim-runc-v2`, runc `libcontainer/state`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from acquirers.containers.containerd.record import is_component
from acquirers.containers.records import MalformedError, decode

if TYPE_CHECKING:
    from acquirers.containers.containerd.record import ContainerRecord
    from acquirers.containers.containerd.roots import ContainerdRoot
    from acquirers.host import Host

BUNDLES = (b"io.containerd.runtime.v2.task", b"io.containerd.runtime.v1.linux")
CRI = (b"io.containerd.grpc.v1.cri", b"io.containerd.podsandbox.controller.v1.podsandbox")
_RUNC = (b"/run/containerd/runc", b"/run/docker/runtime-runc", b"/run/k3s/containerd/runc")
_MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_MAX_STATE = 4 << 20

_T = TypeVar("_T")


class _State(msgspec.Struct):
    init_process_pid: int = 0


class _Status(msgspec.Struct):
    Pid: int = 0
    CreatedAt: int = 0
    StartedAt: int = 0
    FinishedAt: int = 0
    ExitCode: int = 0


class _Options(msgspec.Struct):
    root: str = ""


class Task(msgspec.Struct, frozen=True):
    """What is known of a container's process."""

    state: str
    pid: int = 0
    exit_code: int | None = None
    finding: str = ""
    """What does not fit together."""

    @property
    def running(self) -> bool:
        return self.state.startswith("running")


def bundle_paths(root: ContainerdRoot, record: ContainerRecord) -> Iterator[bytes]:
    """Where a shim may keep, or have kept, the bundle of that container."""
    if is_component(record.namespace) and is_component(record.id):
        tail = f"/{record.namespace}/{record.id}".encode()
        for base in (*root.states, root.path):
            for name in BUNDLES:
                yield base + b"/" + name + tail


def runc_paths(host: Host, root: ContainerdRoot, record: ContainerRecord) -> Iterator[bytes]:
    """Where runc may keep its record of that container."""
    if not (is_component(record.namespace) and is_component(record.id)):
        return
    tail = f"/{record.namespace}/{record.id}".encode()
    bases = list(_RUNC)
    for bundle in bundle_paths(root, record):
        told = _json(host, bundle + b"/options.json", _Options)
        if told is not None and told.root.startswith("/") and len(told.root) < 4096 and "\0" not in told.root:
            bases.insert(0, told.root.encode("utf-8", "surrogatepass"))
    yield from dict.fromkeys(base + tail for base in bases)


def cri_paths(root: ContainerdRoot, record: ContainerRecord) -> Iterator[bytes]:
    """The directories that the CRI plugin keeps for a container or a pod, both on disk and in the state directory."""
    if is_component(record.id):
        kind = b"sandboxes/" if record.kind == "sandbox" else b"containers/"
        for base in (root.path, *root.states):
            for name in CRI:
                yield base + b"/" + name + b"/" + kind + record.id.encode()


def task_of(host: Host, root: ContainerdRoot, record: ContainerRecord) -> Task:
    """The state of a container, held against /proc where there is one. Raises nothing for what the machine holds."""
    status = _cri_status(host, root, record)
    pid = _pid_of(host, root, record) or (status.Pid if status is not None else 0)
    exit_code = status.ExitCode if status is not None and status.FinishedAt else None
    if 0 < pid <= _MAX_PID and host.proc is not None:
        belongs = _belongs(host, pid, record.id)
        if belongs:
            return Task("running", pid)
        if belongs is None:  # it ended, and nobody has taken its bundle away
            return Task("exited", 0, exit_code)
        finding = f"the records say that process {pid} runs, but it is none of this container"
        return Task("running (stale record)", 0, None, finding)
    if status is not None and status.FinishedAt:
        return Task("exited", 0, exit_code)
    if status is not None and status.StartedAt:
        return Task("running (record)", pid)
    if pid:
        return Task("running (record)", pid)
    if status is not None and status.CreatedAt:
        return Task("created")
    return Task("not running")


def _pid_of(host: Host, root: ContainerdRoot, record: ContainerRecord) -> int:
    for bundle in bundle_paths(root, record):
        try:
            text = host.read(bundle + b"/init.pid", 64).strip()
        except OSError:
            continue
        if text.isdigit() and len(text) < 8:
            return int(text)
    for path in runc_paths(host, root, record):
        state = _json(host, path + b"/state.json", _State)
        if state is not None and state.init_process_pid > 0:
            return state.init_process_pid
    return 0


def _cri_status(host: Host, root: ContainerdRoot, record: ContainerRecord) -> _Status | None:
    for path in cri_paths(root, record):
        status = _json(host, path + b"/status", _Status)
        if status is not None:
            return status
    return None


def _belongs(host: Host, pid: int, container_id: str) -> bool | None:
    """Whether a process names the container in its cgroup or in what is mounted for it; None when it is gone."""
    seen = None
    for name in (b"cgroup", b"mountinfo"):
        try:
            if container_id.encode("utf-8", "surrogatepass") in host.read_proc(b"%d/%s" % (pid, name)):
                return True
        except OSError:
            continue
        seen = False
    return seen


def _json(host: Host, path: bytes, kind: type[_T]) -> _T | None:
    try:
        return decode(host.read(path, _MAX_STATE), kind)
    except (OSError, MalformedError):
        return None
