"""One container as containerd's database describes it: its record, its OCI specification, what Kubernetes says of it.

Each part is decoded by itself, so that one of the wrong type costs that part and no other. Nothing is believed: of the
paths that stand here, none is opened before it was checked. Formats: containerd `core/metadata/containers.go`,
`internal/cri/store/{container,sandbox}/metadata.go`, OCI runtime-spec `config.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from acquirers.containers.containerd.values import any_of, go_time
from acquirers.containers.records import MalformedError, decode

if TYPE_CHECKING:
    from acquirers.bolt import Bucket

POD = "io.kubernetes.pod.name"
NAMESPACE = "io.kubernetes.pod.namespace"
UID = "io.kubernetes.pod.uid"
CONTAINER = "io.kubernetes.container.name"
KIND = "io.cri-containerd.kind"
NERDCTL = "nerdctl/name"
_KEPT = frozenset({POD, NAMESPACE, UID, CONTAINER, KIND, NERDCTL, "nerdctl/namespace"})
_MAX_TEXT = 512
_MAX_PATH = 4096
_MAX_MOUNTS = 256
_MAX_JSON = 4 << 20
_EMPTY = msgspec.Raw(b"")

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What may be one component of a path: containerd's own rule, `pkg/identifiers`, and room for more."""

_T = TypeVar("_T")


class _Mount(msgspec.Struct):
    destination: msgspec.Raw = _EMPTY
    source: msgspec.Raw = _EMPTY
    type: msgspec.Raw = _EMPTY


class _Linux(msgspec.Struct):
    cgroup: msgspec.Raw = msgspec.field(name="cgroupsPath", default=_EMPTY)


class _Spec(msgspec.Struct):
    hostname: msgspec.Raw = _EMPTY
    mounts: msgspec.Raw = _EMPTY
    annotations: msgspec.Raw = _EMPTY
    linux: msgspec.Raw = _EMPTY


class _Versioned(msgspec.Struct):
    Metadata: msgspec.Raw = _EMPTY


class _Name(msgspec.Struct):
    name: msgspec.Raw = _EMPTY
    namespace: msgspec.Raw = _EMPTY
    uid: msgspec.Raw = _EMPTY


class _CriConfig(msgspec.Struct):
    metadata: msgspec.Raw = _EMPTY
    log_directory: msgspec.Raw = _EMPTY


class _Cri(msgspec.Struct):
    SandboxID: msgspec.Raw = _EMPTY
    ImageRef: msgspec.Raw = _EMPTY
    LogPath: msgspec.Raw = _EMPTY
    Config: msgspec.Raw = _EMPTY


class MountPoint(msgspec.Struct, frozen=True):
    """What the specification says is mounted into the container."""

    kind: str
    source: str
    destination: str

    def about(self) -> dict[str, object]:
        return {"type": self.kind, "source": self.source.encode(), "destination": self.destination.encode()}


class ContainerRecord(msgspec.Struct):
    """One container. Strings are the machine's own, cut to a bounded length."""

    namespace: str
    id: str
    image: str = ""
    image_ref: str = ""
    snapshotter: str = ""
    snapshot_key: bytes = b""
    created: str = ""
    updated: str = ""
    runtime: str = ""
    kind: str = "container"
    """Or "sandbox": what holds the namespaces of a pod."""
    name: str = ""
    """Of the container in its pod, or what nerdctl calls it."""
    pod: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    sandbox_id: str = ""
    hostname: str = ""
    cgroup: str = ""
    log_path: str = ""
    """As the CRI plugin names it: a file of a container, the directory of a pod."""
    labels: int = 0
    mounts: tuple[MountPoint, ...] = ()
    has_container: bool = True
    """False: a sandbox (containerd 2) that no container stands for."""
    complaints: list[str] = msgspec.field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What a person may call it."""
        pod = [self.pod, f"{self.pod_namespace}/{self.pod}", f"{self.pod_namespace}/{self.pod}/{self.name}"]
        return [self.id, self.name, *(pod if self.pod else [])]

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, roughly."""
        texts = (
            self.id, self.image, self.image_ref, self.name, self.pod, self.hostname, self.cgroup, self.log_path,
            *(text for mount in self.mounts for text in (mount.source, mount.destination)), *self.complaints,
        )  # fmt: skip
        return 1500 + len(self.snapshot_key) + sum(60 + len(text) for text in texts)


def parse_container(namespace: str, container_id: str, bucket: Bucket) -> ContainerRecord:
    """`v1/<namespace>/containers/<id>`. Raises nothing for what it holds."""
    record = ContainerRecord(namespace, container_id)
    plain = {key: bucket.get(key) for key in (b"image", b"snapshotter", b"snapshotKey", b"sandboxid")}
    record.image = _text(plain[b"image"])
    record.snapshotter = _text(plain[b"snapshotter"], 128)
    record.snapshot_key = (plain[b"snapshotKey"] or b"")[:_MAX_PATH]
    record.sandbox_id = _text(plain[b"sandboxid"], 128)
    record.created, record.updated = go_time(bucket.get(b"createdat")), go_time(bucket.get(b"updatedat"))
    runtime = bucket.bucket(b"runtime")
    record.runtime = _text(runtime.get(b"name"), 128) if runtime is not None else ""
    _labels(record, bucket.bucket(b"labels"))
    _spec(record, any_of(bucket.get(b"spec"))[1])
    _extensions(record, bucket.bucket(b"extensions"))
    return record


def parse_sandbox(namespace: str, sandbox_id: str, bucket: Bucket) -> ContainerRecord:
    """`v1/<namespace>/sandboxes/<id>` of containerd 2."""
    record = ContainerRecord(namespace, sandbox_id, kind="sandbox", has_container=False)
    record.created, record.updated = go_time(bucket.get(b"createdat")), go_time(bucket.get(b"updatedat"))
    runtime = bucket.bucket(b"runtime")
    record.runtime = _text(runtime.get(b"name"), 128) if runtime is not None else ""
    _labels(record, bucket.bucket(b"labels"))
    _spec(record, any_of(bucket.get(b"spec"))[1])
    _extensions(record, bucket.bucket(b"extensions"))
    record.kind = "sandbox"
    return record


def _text(data: bytes | None, limit: int = _MAX_TEXT) -> str:
    return (data or b"")[: limit * 4].decode("utf-8", "replace")[:limit]


def _labels(record: ContainerRecord, bucket: Bucket | None) -> None:
    if bucket is None:
        return
    found: dict[str, str] = {}
    for key, value in bucket.items():
        record.labels += 1
        name = key[:128].decode("utf-8", "replace")
        if name in _KEPT:
            found[name] = _text(value)
    _apply(record, found)


def _apply(record: ContainerRecord, labels: Mapping[str, str]) -> None:
    record.pod = record.pod or labels.get(POD, "")
    record.pod_namespace = record.pod_namespace or labels.get(NAMESPACE, "") or labels.get("nerdctl/namespace", "")
    record.pod_uid = record.pod_uid or labels.get(UID, "")
    record.name = record.name or labels.get(CONTAINER, "") or labels.get(NERDCTL, "")
    if labels.get(KIND) == "sandbox":
        record.kind = "sandbox"


def _spec(record: ContainerRecord, data: bytes) -> None:
    if not data:
        return
    if len(data) > _MAX_JSON:
        record.complaints.append(f"a specification of {len(data)} bytes: not looked into")
        return
    try:
        spec = decode(data, _Spec)
    except MalformedError as error:
        record.complaints.append(f"the specification: {error}")
        return
    take = _Fields(record.complaints)
    record.hostname = take.text(spec.hostname, "hostname")
    linux = take.of(spec.linux, _Linux, _Linux(), "linux")
    record.cgroup = take.text(linux.cgroup, "linux.cgroupsPath", _MAX_PATH)
    annotations = take.of(spec.annotations, dict[str, msgspec.Raw], {}, "annotations")
    known = {
        POD: "io.kubernetes.cri.sandbox-name",
        NAMESPACE: "io.kubernetes.cri.sandbox-namespace",
        UID: "io.kubernetes.cri.sandbox-uid",
        CONTAINER: "io.kubernetes.cri.container-name",
        KIND: "io.kubernetes.cri.container-type",
    }
    _apply(
        record,
        {label: take.text(annotations[name], name) for label, name in known.items() if name in annotations},
    )
    sandbox = annotations.get("io.kubernetes.cri.sandbox-id", _EMPTY)
    record.sandbox_id = record.sandbox_id or take.text(sandbox, "sandbox-id", 128)
    record.mounts = tuple(_mounts(take, spec.mounts))


def _mounts(take: _Fields, raw: msgspec.Raw) -> Iterator[MountPoint]:
    """What of the machine is mounted into it; not what every container gets from the kernel."""
    mounts = take.of(raw, list[msgspec.Raw], [], "mounts")
    if len(mounts) > _MAX_MOUNTS:
        take.complaints.append(f"{len(mounts)} mounts, of which {_MAX_MOUNTS} were looked at")
    for value in mounts[:_MAX_MOUNTS]:
        mount = take.of(value, _Mount, _Mount(), "a mount")
        source = take.text(mount.source, "mount.source", _MAX_PATH)
        if source.startswith("/"):
            kind = take.text(mount.type, "mount.type", 32)
            yield MountPoint(kind, source, take.text(mount.destination, "mount.destination", _MAX_PATH))


def _extensions(record: ContainerRecord, bucket: Bucket | None) -> None:
    """What the CRI plugin keeps. In the order of the keys, container before sandbox."""
    if bucket is None:
        return
    take = _Fields(record.complaints)
    for name in (b"io.cri-containerd.container.metadata", b"io.cri-containerd.sandbox.metadata"):
        data = any_of(bucket.get(name))[1]
        if not data:
            continue
        if len(data) > _MAX_JSON:
            record.complaints.append(f"CRI metadata of {len(data)} bytes: not looked into")
            continue
        versioned = take.of(msgspec.Raw(data), _Versioned, _Versioned(), "CRI metadata")
        cri = take.of(versioned.Metadata, _Cri, _Cri(), "CRI metadata")
        config = take.of(cri.Config, _CriConfig, _CriConfig(), "CRI configuration")
        names = take.of(config.metadata, _Name, _Name(), "CRI names")
        record.sandbox_id = record.sandbox_id or take.text(cri.SandboxID, "SandboxID", 128)
        record.image_ref = record.image_ref or take.text(cri.ImageRef, "ImageRef")
        if name.startswith(b"io.cri-containerd.container"):
            record.name = record.name or take.text(names.name, "name")
            record.log_path = take.text(cri.LogPath, "LogPath", _MAX_PATH)
        else:
            record.kind = "sandbox"
            record.pod = record.pod or take.text(names.name, "name")
            record.pod_namespace = record.pod_namespace or take.text(names.namespace, "namespace")
            record.pod_uid = record.pod_uid or take.text(names.uid, "uid")
            record.log_path = take.text(config.log_directory, "log_directory", _MAX_PATH)


class _Fields:
    """Decodes one field after the other and notes which ones are not what they should be."""

    def __init__(self, complaints: list[str]) -> None:
        self.complaints = complaints

    def of(self, raw: msgspec.Raw, kind: type[_T], default: _T, name: str) -> _T:
        data = bytes(raw)
        if data in {b"", b"null"}:
            return default
        try:
            return decode(data, kind)
        except MalformedError as error:
            if len(self.complaints) < 20:
                self.complaints.append(f"{name[:80]}: {error}")
            return default

    def text(self, raw: msgspec.Raw, name: str, limit: int = _MAX_TEXT) -> str:
        return self.of(raw, str, "", name)[:limit]


def is_component(text: str) -> bool:
    """Whether a name from a record may be one component of a path."""
    return IDENTIFIER.fullmatch(text) is not None


def all_components(texts: Iterable[str]) -> bool:
    return all(map(is_component, texts))
