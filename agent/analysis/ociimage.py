"""`impound export oci`: a container as an image, for `podman load`, `docker load` and `skopeo`.

One tar with both layouts on the same blobs: that of OCI (`oci-layout`, `index.json`; image specification 1.0), and
`manifest.json` of `docker save` (moby, image/spec/v1.2.md), which Docker before 25 asks for. Layers are not compressed,
so that the digest of a blob is the layer's DiffID. A blob is named after its digest, which is known only once it is
written: its header is written last.

The layers are made anew from what was acquired: their digests are not those of the image in a registry, and the
configuration says so.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from agent.analysis.imageconfig import image_config
from agent.analysis.ocilayer import layer_tar

if TYPE_CHECKING:
    from acquirers.base import Buffer
    from agent.analysis.view import View

LABEL = "dev.impound."

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BLOCK = tarfile.BLOCKSIZE
_STRINGS = ("User", "WorkingDir", "StopSignal")
_LISTS = ("Env", "Entrypoint", "Cmd", "Shell", "OnBuild")
_SETS = ("ExposedPorts", "Volumes")
_TOLD = 50


class Image(msgspec.Struct):
    """What was made."""

    layers: list[str] = msgspec.field(default_factory=list)
    """Digests, the lowest first."""
    config: str = ""
    manifest: str = ""
    reference: str = ""
    config_from: str = ""
    """The file that the configuration is from; empty where there was none."""
    notes: list[str] = msgspec.field(default_factory=list)
    more_notes: int = 0
    bytes: int = 0

    def told(self, note: str) -> None:
        if len(self.notes) < _TOLD:
            self.notes.append(note)
        else:
            self.more_notes += 1


def write_image(out: BinaryIO, view: View, run: str, *, machine: str = "") -> Image:
    """Writes the tar to a file that can be sought in. Raises `DamagedError`, `SourceError`, `OSError`."""
    image = Image(notes=list(view.notes))
    tar = _BlobTar(out)
    tar.directory("blobs/")
    tar.directory("blobs/sha256/")
    layers = []
    for number in range(len(view.present) - 1, -1, -1):
        descriptor = tar.blob(layer_tar(view, number, image.told), _LAYER)
        layers.append(descriptor)
        image.layers.append(str(descriptor["digest"]))
    config = _config(view, run, image, machine)
    described = tar.blob([_json(config)], _CONFIG)
    image.config = str(described["digest"])
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
    manifest["annotations"] = _labels(view, run)
    listed = tar.blob([_json(manifest)], _MANIFEST)
    image.manifest = str(listed["digest"])
    image.reference = _reference(view)
    # To containerd a name is one with its registry: Docker 29 loads any other one, and does not find it again.
    whole = f"docker.io/{image.reference}"
    listed["annotations"] = {"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": whole}
    listed["platform"] = {"architecture": config["architecture"], "os": config["os"]}
    tar.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    tar.file("index.json", _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [listed]}))
    saved = {
        "Config": _path(image.config),
        "RepoTags": [image.reference],
        "Layers": [_path(digest) for digest in image.layers],
    }
    tar.file("manifest.json", _json([saved]))
    image.bytes = tar.end()
    return image


class _BlobTar:
    """A tar whose blobs get their header when they are whole."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._written: set[str] = set()
        """A blob that comes again (an empty layer) is not written twice."""

    def directory(self, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        self._out.write(info.tobuf(tarfile.GNU_FORMAT))

    def file(self, name: str, data: bytes) -> None:
        self._out.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))

    def blob(self, chunks: Iterable[Buffer], media_type: str) -> dict[str, object]:
        """Writes a blob and describes it."""
        start = self._out.tell()
        self._out.write(bytes(_BLOCK))
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            self._out.write(chunk)
            size += len(chunk)
        name = "sha256:" + digest.hexdigest()
        if name in self._written:
            self._out.seek(start)
            self._out.truncate()
        else:
            self._out.write(bytes(-size % _BLOCK))
            end = self._out.tell()
            self._out.seek(start)
            self._out.write(_header(_path(name), size))
            self._out.seek(end)
            self._written.add(name)
        return {"mediaType": media_type, "digest": name, "size": size}

    def end(self) -> int:
        self._out.write(bytes(2 * _BLOCK))
        return self._out.tell()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o644, size
    return info.tobuf(tarfile.GNU_FORMAT)


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _reference(view: View) -> str:
    """A name for the image that nobody pulls from anywhere."""
    identity = re.sub(r"[^a-z0-9]", "", view.container.id.lower())[:12] or "container"
    return f"impound/{identity}:latest"


def _labels(view: View, run: str) -> dict[str, str]:
    about = view.container.about
    labels = {
        "what": "a container as it was acquired: image layers and writable layer, made anew from their files",
        "run": run,
        "runtime": view.container.runtime,
        "container": view.container.id,
        "name": view.container.name,
        "image": str(about.get("image") or ""),
        "image-id": str(about.get("image_id") or ""),
        "layers": str(len(view.present)),
        "missing-layers": str(sum(not one.item and bool(one.path) for one in view.layers)),
    }
    return {LABEL + key: value[:1000] for key, value in labels.items() if value}


def _config(view: View, run: str, image: Image, machine: str) -> dict[str, object]:
    """The configuration: that of the image where it was acquired, with layers and labels of this one."""
    found, image.config_from = image_config(view.container, view.index, image.told)
    architecture = _text(found.get("architecture")) or _ARCHITECTURES.get(machine, "")
    if not architecture:
        architecture = "amd64"
        image.told("nothing says for which machine the image is: amd64 is put there")
    inner = _sound(found.get("config"))
    labels = inner.get("Labels")
    inner["Labels"] = {**(labels if isinstance(labels, dict) else {}), **_labels(view, run)}
    config: dict[str, object] = {
        "created": _text(found.get("created")) or datetime.fromtimestamp(0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "architecture": architecture,
        "os": _text(found.get("os")) or "linux",
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": image.layers},
        "history": _history(found.get("history"), image, view),
    }
    for key in ("author", "variant"):
        if text := _text(found.get(key)):
            config[key] = text
    return config


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _history(value: object, image: Image, view: View) -> list[dict[str, object]]:
    """That of the image, if it fits its layers, and a line for each further layer."""
    history: list[dict[str, object]] = []
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                kept: dict[str, object] = {
                    key: one[key]
                    for key in ("created", "created_by", "author", "comment")
                    if isinstance(one.get(key), str)
                }
                history.append(kept | ({"empty_layer": True} if one.get("empty_layer") is True else {}))
    count = sum("empty_layer" not in one for one in history)
    labels = [layer.label for layer in reversed(view.present)]
    if count > len(image.layers):
        history, count = [], 0
    return history + [{"created_by": f"impound export oci: layer {label}"} for label in labels[count:]]


def _sound(value: object) -> dict[str, object]:
    """The part that says how it is run, as far as it is of the right types: what loads it is strict."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, object] = {key: value[key] for key in _STRINGS if isinstance(value.get(key), str)}
    for key in _LISTS:
        texts = value.get(key)
        if isinstance(texts, list) and all(isinstance(one, str) for one in texts):
            found[key] = texts
    for key in _SETS:
        names = value.get(key)
        if isinstance(names, dict):
            found[key] = {name: {} for name in names}
    labels = value.get("Labels")
    if isinstance(labels, dict):
        found["Labels"] = {name: text for name, text in labels.items() if isinstance(text, str)}
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 1000 else ""
