"""Where Kubernetes keeps what belongs to a pod: its logs, its volumes on disk, what its containers said at their end.

`/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restart>.log` and the rotated ones beside it, and
`/var/lib/kubelet/pods/<uid>/{etc-hosts,containers/<container>/<hash>,volumes/<plugin>/<name>}`. Source: kubelet
`pkg/kubelet/kuberuntime/helpers.go`, `pkg/kubelet/kubelet_getters.go`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from acquirers.containers.containerd.record import all_components
from acquirers.containers.paths import resolve
from acquirers.containers.records import MalformedError, Records, TooManyNamesError

if TYPE_CHECKING:
    from acquirers.base import Report
    from acquirers.containers.containerd.record import ContainerRecord
    from acquirers.containers.parts import Keep
    from acquirers.host import Host

_LOGS = b"/var/log/pods"
_PODS = b"/var/lib/kubelet/pods"
_NUMBERED = re.compile(r"[0-9]{1,10}\.log")
_MAX_LOGS = 200
_ON_DISK = frozenset(
    b"kubernetes.io~" + name for name in (b"empty-dir", b"configmap", b"projected", b"secret", b"downward-api")
)
"""Volumes that the kubelet makes itself. Others are devices or servers mounted there."""


class PodFiles(msgspec.Struct, frozen=True):
    """What lies where for one container; None where its record does not say enough."""

    logs: bytes | None = None
    """The directory of its logs, native."""
    directory: bytes | None = None
    """The directory of its pod, native."""
    finding: str = ""


class Pods:
    """The directories of the kubelet on one machine."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._logs = _native(host, _LOGS)
        self._pods = _native(host, _PODS)

    def files(self, record: ContainerRecord) -> PodFiles:
        """Only names that are one component of a path are believed."""
        parts = (record.pod_namespace, record.pod, record.pod_uid)
        if not all_components(parts):
            return PodFiles()
        directory = self._pods + b"/" + record.pod_uid.encode()
        if record.kind == "sandbox" or not all_components((record.name,)):
            return PodFiles(None, directory)
        tail = "/" + "_".join(parts) + "/" + record.name
        logs, finding = self._logs + tail.encode(), ""
        told, name = os.path.split(record.log_path)
        if told.endswith(tail) and _NUMBERED.fullmatch(name):
            logs = _native(self._host, told[: -len(tail)].encode("utf-8", "surrogatepass")) + tail.encode()
        elif told:
            finding = f"the record names a log that is not where the kubelet puts it: {record.log_path[:200]!r}"
        return PodFiles(logs, directory, finding)

    def log_files(self, record: ContainerRecord, directory: bytes, *, own: bool) -> list[bytes]:
        """Native paths of the log files in that directory, all of them or those of this container only."""
        try:
            with Records.open(self._host, directory) as records:
                names = records.names(limit=_MAX_LOGS)
        except TooManyNamesError as error:
            names = error.first
        except (OSError, MalformedError):
            return []
        base = os.path.basename(record.log_path).encode("utf-8", "surrogatepass")
        files = [name for name, kind in names if kind in {Kind.FILE, Kind.SYMLINK}]
        return [directory + b"/" + name for name in files if not own or not base or name.startswith(base)]


def keep_pod(_: Report) -> Keep:
    """All of a pod's directory but what was mounted there from elsewhere."""

    def keep(path: bytes, _kind: Kind) -> bool:
        top, _, below = path.partition(b"/")
        if top == b"volumes" and below:
            return below.partition(b"/")[0] in _ON_DISK
        return top not in {b"volume-subpaths", b"plugins"}

    return keep


def _native(host: Host, path: bytes) -> bytes:
    """With links followed; as it stands when it is not there."""
    try:
        return resolve(host, path)[0].rstrip(b"/")
    except OSError:
        return path
