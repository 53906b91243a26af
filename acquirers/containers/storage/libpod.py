"""What podman itself keeps of a container and a pod: the JSON in its database, whichever database that is.

Pure parsers. Format: podman `libpod/container_config.go`, `container.go` (ContainerState), `pod.go`, `define/
containerstate.go`. Nothing here is believed: no path in these records is opened because of them alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from acquirers.containers.records import MalformedError, decode
from acquirers.containers.storage.model import ID, Fields

MAX_CONTAINERS = 20_000
"""Containers, and pods, of one database that are looked at."""
MAX_VALUE = 4 << 20
"""Bytes of one JSON document."""
_PATH = 4096
_MAX_VOLUMES = 256
_NEVER = "0001-01-01T00:00:00Z"
_STATES = ("unknown", "created", "initialized", "running", "stopped", "paused", "exited", "removing", "stopping")

_Raw = msgspec.Raw
_EMPTY = msgspec.Raw(b"")


class _Config(msgspec.Struct, rename="camel"):
    name: _Raw = _EMPTY
    pod: _Raw = _EMPTY
    rootfs: _Raw = _EMPTY
    rootfs_image_name: _Raw = _EMPTY
    named_volumes: _Raw = _EMPTY
    labels: _Raw = _EMPTY
    created_time: _Raw = _EMPTY
    log_path: _Raw = _EMPTY
    log_driver: _Raw = _EMPTY
    pause: _Raw = _EMPTY
    privileged: _Raw = _EMPTY


class _Volume(msgspec.Struct, rename="camel"):
    volume_name: _Raw = _EMPTY
    dest: _Raw = _EMPTY


class _State(msgspec.Struct, rename="camel"):
    state: _Raw = _EMPTY
    started_time: _Raw = _EMPTY
    finished_time: _Raw = _EMPTY
    exit_code: _Raw = _EMPTY
    oom_killed: _Raw = _EMPTY
    pid: _Raw = _EMPTY
    restart_count: _Raw = _EMPTY


@dataclass(frozen=True, slots=True)
class PodmanRecord:
    """One container as podman has it in its database."""

    name: str = ""
    pod_id: str = ""
    pod: str = ""
    infra: bool = False
    image: str = ""
    rootfs: str = ""
    """The directory that is its root, where it was not made from an image."""
    volumes: tuple[str, ...] = ()
    labels: int | None = None
    created: str = ""
    log_path: str = ""
    log_driver: str = ""
    privileged: bool = False
    state: str = "unknown"
    pid: int = 0
    exit_code: int | None = None
    started: str = ""
    finished: str = ""
    oom_killed: bool = False
    restarts: int = 0
    complaints: tuple[str, ...] = field(default=(), compare=False)


class Podman(msgspec.Struct):
    """What a database of podman says."""

    containers: dict[str, PodmanRecord] = msgspec.field(default_factory=dict)
    pods: dict[str, str] = msgspec.field(default_factory=dict)
    """Id -> name."""
    run_root: bytes = b""
    tmp_dir: bytes = b""
    volume_path: bytes = b""
    complaints: list[str] = msgspec.field(default_factory=list)
    cut: bool = False
    """There are more containers or pods than are looked at."""

    def complain(self, text: str) -> None:
        if len(self.complaints) < 100:
            self.complaints.append(text)

    def add(self, container_id: str, config: bytes, state: bytes, pod_id: str = "") -> None:
        """Notes one container. What is malformed is a complaint."""
        if not ID.fullmatch(container_id):
            self.complain(f"a container whose id has not 64 hexadecimal digits: {container_id[:80]!r}")
            return
        if len(self.containers) >= MAX_CONTAINERS:
            self.cut = True
            return
        try:
            self.containers[container_id] = parse_record(config, state, pod_id)
        except MalformedError as error:
            self.complain(f"container {container_id}: {error}")
            self.containers[container_id] = PodmanRecord(pod_id=pod_id)

    def add_pod(self, pod_id: str, name: str) -> None:
        if len(self.pods) >= MAX_CONTAINERS:
            self.cut = True
        elif ID.fullmatch(pod_id):
            self.pods[pod_id] = name[:255]


def parse_record(config_data: bytes, state_data: bytes, pod_id: str = "") -> PodmanRecord:
    """Configuration and state of one container. Raises `MalformedError` when the configuration is no JSON object."""
    config = decode(_bounded(config_data), _Config)
    fields = Fields()
    try:
        state = decode(_bounded(state_data), _State) if state_data else _State()
    except MalformedError as error:
        fields.complaints.append(f"its state: {error}")
        state = _State()
    number = fields.integer(state.state, "state")
    started = _time(fields.text(state.started_time, "startedTime", 64))
    return PodmanRecord(
        name=fields.text(config.name, "name", 255),
        pod_id=fields.text(config.pod, "pod", 64) or pod_id,
        infra=fields.flag(config.pause, "pause"),
        image=fields.text(config.rootfs_image_name, "rootfsImageName"),
        rootfs=fields.text(config.rootfs, "rootfs", _PATH),
        volumes=_volumes(fields, config.named_volumes),
        labels=len(fields.take(config.labels, dict[str, _Raw], {}, "labels")),
        created=fields.text(config.created_time, "createdTime", 64),
        log_path=fields.text(config.log_path, "logPath", _PATH),
        log_driver=fields.text(config.log_driver, "logDriver", 64),
        privileged=fields.flag(config.privileged, "privileged"),
        state=_STATES[number] if bytes(state.state) and 0 <= number < len(_STATES) else "unknown",
        pid=fields.integer(state.pid, "pid"),
        exit_code=fields.integer(state.exit_code, "exitCode") if bytes(state.exit_code) or started else None,
        started=started,
        finished=_time(fields.text(state.finished_time, "finishedTime", 64)),
        oom_killed=fields.flag(state.oom_killed, "oomKilled"),
        restarts=fields.integer(state.restart_count, "restartCount"),
        complaints=tuple(fields.complaints[:20]),
    )


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_VALUE:
        raise MalformedError(f"{len(data)} bytes, of which at most {MAX_VALUE} are read as a record")
    return data


def _time(text: str) -> str:
    return "" if text == _NEVER else text


def _volumes(fields: Fields, raw: msgspec.Raw) -> tuple[str, ...]:
    volumes = fields.take(raw, list[_Raw], [], "namedVolumes")
    if len(volumes) > _MAX_VOLUMES:
        fields.complaints.append(f"namedVolumes: {len(volumes)} of them, {_MAX_VOLUMES} were looked at")
    found: dict[str, None] = {}
    for position, volume in enumerate(volumes[:_MAX_VOLUMES]):
        name = f"namedVolumes[{position}]"
        found[fields.text(fields.take(volume, _Volume, _Volume(), name).volume_name, name + ".volumeName", 256)] = None
    found.pop("", None)
    return tuple(found)
