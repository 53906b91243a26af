"""Records of containers/storage as far as the acquisition or its manifest needs them: containers, layers, images.

Pure parsers: bytes of one element in, a small record out. Every field is decoded by itself, so that one of the wrong
type costs that field and no other. Format: containers/storage `containers.go`, `layers.go`, `images.go`; what CRI-O
puts into the metadata: cri-o `internal/storage/runtime.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from acquirers.containers.records import MalformedError, decode

ID = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KUBERNETES = re.compile(r"k8s_([^_]{1,253})_([^_]{1,253})_([^_]{1,63})_([0-9a-f-]{1,64})_(\d{1,9})")
"""`k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`: cri-o `internal/factory/container`; a sandbox is called POD."""
_TEXT = 512
_NAME = 255
_MAX_NAMES = 8
_MAX_PART = 1 << 18

_T = TypeVar("_T")
_Raw = msgspec.Raw
_EMPTY = msgspec.Raw(b"")


class Fields:
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
        if abs(value) < 1 << 63:
            return value
        self.complaints.append(f"{name}: a number of {value.bit_length()} bits")
        return 0

    def flag(self, raw: msgspec.Raw, name: str) -> bool:
        return self.take(raw, bool, False, name)  # noqa: FBT003

    def texts(self, raw: msgspec.Raw, name: str, *, count: int = _MAX_NAMES, limit: int = _NAME) -> tuple[str, ...]:
        return tuple(text[:limit] for text in self.take(raw, list[str], [], name)[:count])


class _Container(msgspec.Struct):
    id: _Raw = _EMPTY
    names: _Raw = _EMPTY
    image: _Raw = _EMPTY
    layer: _Raw = _EMPTY
    metadata: _Raw = _EMPTY
    created: _Raw = _EMPTY
    flags: _Raw = _EMPTY


class _Metadata(msgspec.Struct):
    """What podman and CRI-O keep in the field `metadata`, which is a string."""

    image_name: _Raw = msgspec.field(name="image-name", default=_EMPTY)
    name: _Raw = _EMPTY
    pod_name: _Raw = msgspec.field(name="pod-name", default=_EMPTY)
    pod_id: _Raw = msgspec.field(name="pod-id", default=_EMPTY)
    metadata_name: _Raw = msgspec.field(name="metadata-name", default=_EMPTY)
    uid: _Raw = _EMPTY
    namespace: _Raw = _EMPTY
    attempt: _Raw = _EMPTY
    pod: _Raw = _EMPTY
    privileged: _Raw = _EMPTY


class _Layer(msgspec.Struct):
    id: _Raw = _EMPTY
    parent: _Raw = _EMPTY
    diff_digest: _Raw = msgspec.field(name="diff-digest", default=_EMPTY)
    compressed: _Raw = msgspec.field(name="compressed-diff-digest", default=_EMPTY)
    toc: _Raw = msgspec.field(name="toc-digest", default=_EMPTY)
    size: _Raw = msgspec.field(name="diff-size", default=_EMPTY)
    flags: _Raw = _EMPTY


class _LayerFlags(msgspec.Struct):
    incomplete: _Raw = _EMPTY


class _Image(msgspec.Struct):
    id: _Raw = _EMPTY
    names: _Raw = _EMPTY
    history: _Raw = msgspec.field(name="names-history", default=_EMPTY)
    layer: _Raw = _EMPTY
    mapped: _Raw = msgspec.field(name="mapped-layers", default=_EMPTY)


class Kubernetes(msgspec.Struct, frozen=True):
    """What CRI-O says of the place of a container, or of a pod's sandbox, in Kubernetes."""

    pod: str = ""
    pod_id: str = ""
    """Id of the sandbox."""
    namespace: str = ""
    uid: str = ""
    container: str = ""
    """As the pod calls it. "" of a sandbox."""
    attempt: int = 0
    sandbox: bool = False

    def names(self) -> tuple[str, ...]:
        """What it may be asked for by."""
        whole = f"{self.namespace}/{self.pod}" if self.namespace else ""
        return tuple(
            name for name in (self.container, self.pod, whole, f"{whole}/{self.container}" if whole else "") if name
        )


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One element of containers.json."""

    id: str
    names: tuple[str, ...] = ()
    image: str = ""
    layer: str = ""
    created: str = ""
    image_name: str = ""
    kubernetes: Kubernetes | None = None
    """Only of containers that CRI-O made."""
    complaints: tuple[str, ...] = field(default=(), compare=False)


class LayerRecord(msgspec.Struct, frozen=True):
    """One element of layers.json."""

    id: str
    parent: str = ""
    diff_id: str = ""
    size: int | None = None
    digested: bool = False
    """It has a digest of any kind: it came out of an image, and was not written by a container."""
    incomplete: bool = False
    """It was being made, or being deleted."""


class ImageRecord(msgspec.Struct, frozen=True):
    """One element of images.json."""

    id: str
    names: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    """Its topmost layer, and the same with other owners for user namespaces."""


def parse_container(data: bytes) -> ContainerRecord:
    """Raises `MalformedError` when it is no JSON object or has no id."""
    document = decode(data, _Container)
    fields = Fields()
    metadata = _Metadata()
    text = fields.take(document.metadata, str, "", "metadata")
    if text.startswith("{"):
        try:
            metadata = decode(text.encode("utf-8", "surrogatepass"), _Metadata)
        except MalformedError as error:
            fields.complaints.append(f"metadata: {error}")
    names = fields.texts(document.names, "names")
    return ContainerRecord(
        id=_id(fields.text(document.id, "id"), "id"),
        names=names,
        image=_optional_id(fields, fields.text(document.image, "image"), "image"),
        layer=_optional_id(fields, fields.text(document.layer, "layer"), "layer"),
        created=fields.text(document.created, "created", 64),
        image_name=fields.text(metadata.image_name, "metadata.image-name"),
        kubernetes=_kubernetes(fields, metadata, names),
        complaints=tuple(fields.complaints[:20]),
    )


def _kubernetes(fields: Fields, metadata: _Metadata, names: tuple[str, ...]) -> Kubernetes | None:
    pod = fields.text(metadata.pod_name, "metadata.pod-name", _NAME)
    pod_id = fields.text(metadata.pod_id, "metadata.pod-id", 64)
    if not (pod or pod_id):
        return None
    told = next((match for match in map(_KUBERNETES.fullmatch, names) if match is not None), None)
    container, named, namespace, uid, attempt = told.groups() if told is not None else ("", "", "", "", "0")
    sandbox = fields.flag(metadata.pod, "metadata.pod")
    return Kubernetes(
        pod=named or pod,
        pod_id=pod_id,
        namespace=namespace or fields.text(metadata.namespace, "metadata.namespace", 63),
        uid=uid or fields.text(metadata.uid, "metadata.uid", 64),
        container="" if sandbox else container or fields.text(metadata.metadata_name, "metadata.metadata-name", _NAME),
        attempt=int(attempt),
        sandbox=sandbox,
    )


def parse_layer(data: bytes) -> LayerRecord:
    """Raises `MalformedError` when it is no JSON object, or its id or its parent's is none."""
    document = decode(data, _Layer)
    fields = Fields()
    diff_id = fields.text(document.diff_digest, "diff-digest", 128)
    flags = fields.take(document.flags, _LayerFlags, _LayerFlags(), "flags")
    parent = fields.text(document.parent, "parent")
    size = fields.integer(document.size, "diff-size")
    digests = (diff_id, fields.text(document.compressed, "compressed"), fields.text(document.toc, "toc-digest"))
    return LayerRecord(
        id=_id(fields.text(document.id, "id"), "id"),
        parent=_id(parent, "parent") if parent else "",
        diff_id=diff_id if _DIGEST.fullmatch(diff_id) else "",
        size=size if size > 0 else None,
        digested=any(digests),
        incomplete=fields.flag(flags.incomplete, "flags.incomplete"),
    )


def parse_image(data: bytes) -> ImageRecord:
    """Raises `MalformedError` when it is no JSON object or has no id."""
    document = decode(data, _Image)
    fields = Fields()
    layers = (fields.text(document.layer, "layer"), *fields.texts(document.mapped, "mapped-layers", count=64))
    names = fields.texts(document.names, "names") or fields.texts(document.history, "names-history")
    return ImageRecord(
        id=_id(fields.text(document.id, "id"), "id"),
        names=names,
        layers=tuple(layer for layer in layers if ID.fullmatch(layer)),
    )


def _id(text: str, name: str) -> str:
    if not ID.fullmatch(text):
        raise MalformedError(f"{name}: {text[:80]!r} has not 64 hexadecimal digits")
    return text


def _optional_id(fields: Fields, text: str, name: str) -> str:
    if not text or ID.fullmatch(text):
        return text
    fields.complaints.append(f"{name}: {text[:80]!r} has not 64 hexadecimal digits")
    return ""
