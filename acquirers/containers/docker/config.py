"""What `config.v2.json` and `hostconfig.json` say of a container, as far as the acquisition or its manifest needs it.

Every field is decoded by itself, so that one of the wrong type costs that field and no other. Format: moby
`daemon/container/container.go`, `state.go`, `api/types/container/hostconfig.go`. Nothing here is believed: no path
in these records is ever opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from acquirers.containers.records import MalformedError, decode

_TEXT = 512
"""Characters that are kept of a word; a path may have `_PATH`."""
_PATH = 4096
_MAX_MOUNTS = 256
_MAX_PART = 1 << 18
"""Bytes of one nested object (labels, mounts) that are decoded: what they become in memory is many times as much."""
_MAX_INTEGER = (1 << 63) - 1
_MAX_STRINGS = 64
"""Strings of a list that are kept, each with `_SHORT` characters: there are some forty capabilities."""
_SHORT = 128
_NEVER = "0001-01-01T00:00:00Z"
_ORCHESTRATED = (
    "com.amazonaws.ecs.task-arn",
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
)
_HOST_CONFIG = (
    "Privileged ReadonlyRootfs AutoRemove NetworkMode PidMode IpcMode UTSMode UsernsMode CgroupnsMode Runtime "
    "CapAdd CapDrop SecurityOpt PublishAllPorts"
).split()

_T = TypeVar("_T")
_Raw = msgspec.Raw
_EMPTY = msgspec.Raw(b"")


class _Config(msgspec.Struct):
    ID: _Raw = _EMPTY
    Name: _Raw = _EMPTY
    Driver: _Raw = _EMPTY
    Image: _Raw = _EMPTY
    Created: _Raw = _EMPTY
    LogPath: _Raw = _EMPTY
    RestartCount: _Raw = _EMPTY
    State: _Raw = _EMPTY
    Config: _Raw = _EMPTY
    MountPoints: _Raw = _EMPTY


class _State(msgspec.Struct):
    Running: _Raw = _EMPTY
    Paused: _Raw = _EMPTY
    Restarting: _Raw = _EMPTY
    RemovalInProgress: _Raw = _EMPTY
    Dead: _Raw = _EMPTY
    OOMKilled: _Raw = _EMPTY
    Pid: _Raw = _EMPTY
    ExitCode: _Raw = _EMPTY
    StartedAt: _Raw = _EMPTY
    FinishedAt: _Raw = _EMPTY


class _Inner(msgspec.Struct):
    Image: _Raw = _EMPTY
    Hostname: _Raw = _EMPTY
    Labels: _Raw = _EMPTY


class _Mount(msgspec.Struct):
    Type: _Raw = _EMPTY
    Name: _Raw = _EMPTY
    Source: _Raw = _EMPTY
    Destination: _Raw = _EMPTY
    Driver: _Raw = _EMPTY
    RW: _Raw = _EMPTY


class _LogConfig(msgspec.Struct):
    """Its options may hold the token of a log service."""

    Type: _Raw = _EMPTY


class _HostConfig(msgspec.Struct):
    Privileged: _Raw = _EMPTY
    ReadonlyRootfs: _Raw = _EMPTY
    AutoRemove: _Raw = _EMPTY
    NetworkMode: _Raw = _EMPTY
    PidMode: _Raw = _EMPTY
    IpcMode: _Raw = _EMPTY
    UTSMode: _Raw = _EMPTY
    UsernsMode: _Raw = _EMPTY
    CgroupnsMode: _Raw = _EMPTY
    Runtime: _Raw = _EMPTY
    CapAdd: _Raw = _EMPTY
    CapDrop: _Raw = _EMPTY
    SecurityOpt: _Raw = _EMPTY
    PublishAllPorts: _Raw = _EMPTY
    LogConfig: _Raw = _EMPTY


class MountPoint(msgspec.Struct, frozen=True):
    """What the record says is mounted into the container."""

    kind: str
    name: str
    source: str
    destination: str
    driver: str
    writable: bool

    def about(self) -> dict[str, object]:
        return {
            "type": self.kind,
            "name": self.name,
            "source": self.source.encode(),
            "destination": self.destination.encode(),
            "driver": self.driver,
            "writable": self.writable,
        }


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One container as its daemon last wrote it down."""

    id: str = ""
    name: str = ""
    driver: str = ""
    image_id: str = ""
    image: str = ""
    hostname: str = ""
    state: str = "unknown"
    pid: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    created: str = ""
    started: str = ""
    finished: str = ""
    log_path: str = ""
    labels: int | None = None
    orchestrated: Mapping[str, str] = field(default_factory=dict)
    """Those labels that say which pod or ECS task it belongs to."""
    mounts: tuple[MountPoint, ...] = ()
    complaints: tuple[str, ...] = field(default=(), compare=False)
    """What of the record could not be read, the mounts first."""


class _Fields:
    """Decodes one field after the other and notes which ones are not what they should be."""

    def __init__(self) -> None:
        self.complaints: list[str] = []

    def take(self, raw: msgspec.Raw, kind: type[_T], default: _T, name: str) -> _T:
        data = bytes(raw)
        if data in {b"", b"null"}:
            return default
        if len(data) > _MAX_PART:
            self.complaints.append(f"{name}: {len(data)} bytes")
            return default
        try:
            return decode(data, kind)
        except MalformedError as error:
            self.complaints.append(f"{name}: {error}")
            return default

    def text(self, raw: msgspec.Raw, name: str, limit: int = _TEXT) -> str:
        return self.take(raw, str, "", name)[:limit]

    def integer(self, raw: msgspec.Raw, name: str) -> int:
        value = self.take(raw, int, 0, name)
        if abs(value) <= _MAX_INTEGER:
            return value
        self.complaints.append(f"{name}: a number of {value.bit_length()} bits")
        return 0


def parse_config(data: bytes) -> ContainerRecord:
    """`config.v2.json`. Raises `MalformedError` when it is no JSON object."""
    config = decode(data, _Config)
    fields = _Fields()
    state = fields.take(config.State, _State, _State(), "State")
    inner = fields.take(config.Config, _Inner, _Inner(), "Config")
    started = fields.text(state.StartedAt, "State.StartedAt", 64)
    labels = fields.take(inner.Labels, dict[str, _Raw], {}, "Config.Labels")
    return ContainerRecord(
        id=fields.text(config.ID, "ID"),
        name=fields.text(config.Name, "Name"),
        driver=fields.text(config.Driver, "Driver", 64),
        image_id=fields.text(config.Image, "Image"),
        image=fields.text(inner.Image, "Config.Image"),
        hostname=fields.text(inner.Hostname, "Config.Hostname"),
        state=_state(fields, state, started),
        pid=fields.integer(state.Pid, "State.Pid"),
        exit_code=fields.integer(state.ExitCode, "State.ExitCode") if bytes(state.ExitCode) else None,
        oom_killed=fields.take(state.OOMKilled, bool, False, "State.OOMKilled"),  # noqa: FBT003
        restarts=fields.integer(config.RestartCount, "RestartCount"),
        created=fields.text(config.Created, "Created", 64),
        started="" if started == _NEVER else started,
        finished=_time(fields.text(state.FinishedAt, "State.FinishedAt", 64)),
        log_path=fields.text(config.LogPath, "LogPath", _PATH),
        labels=len(labels),
        orchestrated={
            name: fields.text(labels[name], f"Config.Labels[{name}]") for name in _ORCHESTRATED if name in labels
        },
        mounts=_mounts(fields, config.MountPoints),
        complaints=tuple(sorted(fields.complaints, key=lambda one: not one.startswith("MountPoints"))[:20]),
    )


def _time(text: str) -> str:
    return "" if text == _NEVER else text


def _state(fields: _Fields, state: _State, started: str) -> str:
    """One word, as `docker ps` says it: `State.StateString`, moby daemon/container/state.go."""

    def is_set(raw: msgspec.Raw, name: str) -> bool:
        return fields.take(raw, bool, False, "State." + name)  # noqa: FBT003

    if is_set(state.Running, "Running"):
        if is_set(state.Paused, "Paused"):
            return "paused"
        return "restarting" if is_set(state.Restarting, "Restarting") else "running"
    if is_set(state.RemovalInProgress, "RemovalInProgress"):
        return "removing"
    if is_set(state.Dead, "Dead"):
        return "dead"
    return "created" if started in {"", _NEVER} else "exited"


def _mounts(fields: _Fields, raw: msgspec.Raw) -> tuple[MountPoint, ...]:
    found = []
    points = fields.take(raw, dict[str, _Raw], {}, "MountPoints")
    if len(points) > _MAX_MOUNTS:
        fields.complaints.append(f"MountPoints: {len(points)} of them, {_MAX_MOUNTS} were looked at")
    for destination, value in list(points.items())[:_MAX_MOUNTS]:
        name = f"MountPoints[{destination[:80]!r}]"
        point = fields.take(value, _Mount, _Mount(), name)
        found.append(
            MountPoint(
                kind=fields.text(point.Type, name + ".Type", 32),
                name=fields.text(point.Name, name + ".Name"),
                source=fields.text(point.Source, name + ".Source", _PATH),
                destination=fields.text(point.Destination, name + ".Destination", _PATH) or destination[:_PATH],
                driver=fields.text(point.Driver, name + ".Driver", 128),
                writable=fields.take(point.RW, bool, False, name + ".RW"),  # noqa: FBT003
            )
        )
    return tuple(found)


def parse_host_config(data: bytes) -> dict[str, object]:
    """What of `hostconfig.json` a person looks at first: privileges, namespaces, the log driver.

    Scalars and flat lists of strings, whatever the record holds: `left_out` names the fields that are anything else or
    larger. Raises `MalformedError` when it is no JSON object.
    """
    document = decode(data, _HostConfig)
    found: dict[str, object] = {}
    left_out = []
    for name in _HOST_CONFIG:
        value, whole = _plain(getattr(document, name))
        if value not in (None, "", False, []):
            found[name] = value
        if not whole:
            left_out.append(name)
    fields = _Fields()
    driver = fields.text(fields.take(document.LogConfig, _LogConfig, _LogConfig(), "LogConfig").Type, "LogConfig.Type")
    if driver:
        found["LogDriver"] = driver
    if left_out or fields.complaints:
        found["left_out"] = [*left_out, *(["LogConfig"] if fields.complaints else [])]
    return found


def _plain(raw: msgspec.Raw) -> tuple[object, bool]:
    """What may stand in a manifest of a JSON value, and whether that is all of it: the file itself is in the archive.

    Nothing nested: what a record nests, every reader of the manifest would have to follow.
    """
    data = bytes(raw)
    if data in {b"", b"null"}:
        return None, True
    if len(data) > _MAX_PART:
        return None, False
    kinds: tuple[type[object], ...] = (bool, int, str)
    for kind in kinds:
        try:
            value = decode(data, kind)
        except MalformedError:
            continue
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            return None, False
        if isinstance(value, str) and len(value) > _TEXT:
            return value[:_TEXT], False
        return value, True
    try:
        strings = decode(data, list[str])
    except MalformedError:
        return None, False
    kept = [text[:_SHORT] for text in strings[:_MAX_STRINGS]]
    return kept, kept == strings
