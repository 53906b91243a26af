"""A container's `config.json` (OCI runtime-spec) and CRI-O's `state.json`, as far as somebody needs to know of them.

Pure parsers. Nothing here is believed: no path in these files is opened because of them alone. Sources: runtime-spec
`specs-go/config.go`; cri-o `pkg/annotations/internal.go`, `internal/oci/container.go` (ContainerState).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import msgspec

from acquirers.containers.records import decode
from acquirers.containers.storage.model import Fields

_PATH = 4096
_MAX_MOUNTS = 256
_MAX_ANNOTATION = 1 << 14
_NEVER = "0001-01-01T00:00:00Z"
_POD_LOG = re.compile(r"/var/log/pods/([^/\0]{1,255})/([^/\0]{1,255})/(\d{1,9})\.log")

_Raw = msgspec.Raw
_EMPTY = msgspec.Raw(b"")


class _Spec(msgspec.Struct):
    root: _Raw = _EMPTY
    hostname: _Raw = _EMPTY
    mounts: _Raw = _EMPTY
    annotations: _Raw = _EMPTY


class _Root(msgspec.Struct):
    path: _Raw = _EMPTY
    readonly: _Raw = _EMPTY


class _Mount(msgspec.Struct):
    destination: _Raw = _EMPTY
    type: _Raw = _EMPTY
    source: _Raw = _EMPTY
    options: _Raw = _EMPTY


class _State(msgspec.Struct):
    status: _Raw = _EMPTY
    pid: _Raw = _EMPTY
    created: _Raw = _EMPTY
    started: _Raw = _EMPTY
    finished: _Raw = _EMPTY
    exit_code: _Raw = msgspec.field(name="exitCode", default=_EMPTY)
    oom_killed: _Raw = msgspec.field(name="oomKilled", default=_EMPTY)


class SpecMount(msgspec.Struct, frozen=True):
    """A directory or file of the machine that the container sees."""

    source: str
    destination: str
    writable: bool

    def about(self) -> dict[str, object]:
        return {
            "type": "bind",
            "source": self.source.encode("utf-8", "surrogatepass"),
            "destination": self.destination.encode("utf-8", "surrogatepass"),
            "writable": self.writable,
        }


@dataclass(frozen=True, slots=True)
class Spec:
    """What a container was started with."""

    root: str = ""
    hostname: str = ""
    manager: str = ""
    """`libpod`, `cri-o`."""
    kind: str = ""
    """`sandbox` or `container`, of CRI-O."""
    pod: str = ""
    namespace: str = ""
    container: str = ""
    sandbox: str = ""
    image: str = ""
    log_path: str = ""
    privileged: bool = False
    labels: int | None = None
    binds: tuple[SpecMount, ...] = ()
    complaints: tuple[str, ...] = field(default=(), compare=False)


class CrioState(msgspec.Struct, frozen=True):
    """What CRI-O last wrote down of a container."""

    status: str = "unknown"
    pid: int = 0
    created: str = ""
    started: str = ""
    finished: str = ""
    exit_code: int | None = None
    oom_killed: bool = False


def parse_spec(data: bytes) -> Spec:
    """`config.json`. Raises `MalformedError` when it is no JSON object."""
    document = decode(data, _Spec)
    fields = Fields()
    annotations = fields.take(document.annotations, dict[str, _Raw], {}, "annotations")

    def annotation(name: str, limit: int = 512) -> str:
        raw = annotations.get("io.kubernetes.cri-o." + name, _EMPTY)
        return fields.text(raw, name, limit)

    labels = annotation("Labels", _MAX_ANNOTATION)
    return Spec(
        root=fields.text(fields.take(document.root, _Root, _Root(), "root").path, "root.path", _PATH),
        hostname=fields.text(document.hostname, "hostname", 255),
        manager=fields.text(annotations.get("io.container.manager", _EMPTY), "io.container.manager", 64),
        kind=annotation("ContainerType", 32),
        pod=annotation("KubeName", 255),
        namespace=annotation("Namespace", 63),
        container=fields.text(annotations.get("io.kubernetes.container.name", _EMPTY), "container", 255),
        sandbox=annotation("SandboxID", 64),
        image=annotation("ImageName"),
        log_path=annotation("LogPath", _PATH),
        privileged=annotation("PrivilegedRuntime", 8) == "true",
        labels=_count(fields, labels),
        binds=_binds(fields, document.mounts),
        complaints=tuple(fields.complaints[:20]),
    )


def _count(fields: Fields, text: str) -> int | None:
    return (
        len(fields.take(_Raw(text.encode("utf-8", "surrogatepass")), dict[str, _Raw], {}, "Labels")) if text else None
    )


def _binds(fields: Fields, raw: msgspec.Raw) -> tuple[SpecMount, ...]:
    mounts = fields.take(raw, list[_Raw], [], "mounts")
    if len(mounts) > _MAX_MOUNTS:
        fields.complaints.append(f"mounts: {len(mounts)} of them, {_MAX_MOUNTS} were looked at")
    found = []
    for position, value in enumerate(mounts[:_MAX_MOUNTS]):
        name = f"mounts[{position}]"
        mount = fields.take(value, _Mount, _Mount(), name)
        options = fields.texts(mount.options, name + ".options", count=64, limit=64)
        source = fields.text(mount.source, name + ".source", _PATH)
        kind = fields.text(mount.type, name + ".type", 32)
        if source.startswith("/") and (kind == "bind" or {"bind", "rbind"} & set(options)):
            destination = fields.text(mount.destination, name + ".destination", _PATH)
            found.append(SpecMount(source, destination, "ro" not in options))
    return tuple(found)


def parse_crio_state(data: bytes) -> CrioState:
    """`state.json`. Raises `MalformedError` when it is no JSON object."""
    document = decode(data, _State)
    fields = Fields()
    return CrioState(
        status=fields.text(document.status, "status", 32) or "unknown",
        pid=fields.integer(document.pid, "pid"),
        created=_time(fields.text(document.created, "created", 64)),
        started=_time(fields.text(document.started, "started", 64)),
        finished=_time(fields.text(document.finished, "finished", 64)),
        exit_code=_code(fields, document.exit_code),
        oom_killed=fields.flag(document.oom_killed, "oomKilled"),
    )


def _code(fields: Fields, raw: msgspec.Raw) -> int | None:
    return None if bytes(raw) in {b"", b"null"} else fields.integer(raw, "exitCode")


def _time(text: str) -> str:
    return "" if text == _NEVER else text


def pod_log(path: str) -> tuple[bytes, bytes, bytes] | None:
    """(directory of the pod, of the container, number) of a log that the kubelet keeps; None when it is elsewhere."""
    match = _POD_LOG.fullmatch(path)
    if match is None or {match[1], match[2]} & {".", ".."}:
        return None
    pod, container, number = (group.encode("utf-8", "surrogatepass") for group in match.groups())
    return pod, container, number
