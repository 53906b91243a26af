"""The configuration of the image that a container was made of, among what was acquired of its runtime.

It is named by its SHA-256, wherever a runtime keeps it: `imagedb/content/sha256/<hex>` (Docker), `blobs/sha256/<hex>`
(containerd, where the name may be that of a manifest or index that leads to it), `overlay-images/<hex>/=<base64 of the
digest>` (containers/storage). So it is looked for by name, and its digest tells whether it is what it says.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from agent.analysis.containers import Container
    from agent.analysis.tarindex import TarIndex

MAX_CONFIG = 8 << 20
"""Bytes of a configuration."""
_DIGEST = re.compile(r"(?:.*@)?(?:sha256:)?([0-9a-f]{64})", re.DOTALL)
_KEYS = ("image_config", "image_id", "image_digest")
_STEPS = 20

Document = Mapping[str, object]


def image_config(container: Container, index: TarIndex, told: Callable[[str], None]) -> tuple[Document, str]:
    """The configuration and the file that it is from; empty ones where there is none. Raises `DamagedError`."""
    todo = []
    for key in _KEYS:
        match = _DIGEST.fullmatch(str(container.about.get(key) or ""))
        if match is not None and match[1] not in todo:
            todo.append(match[1])
    if not todo:
        told("the record of the container names no image by a digest: how it is run is not known")
        return {}, ""
    seen: set[str] = set()
    while todo and len(seen) < _STEPS:
        digest = todo.pop(0)
        if digest in seen:
            continue
        seen.add(digest)
        document, where = _document(digest, index, told)
        if isinstance(document.get("rootfs"), dict) or isinstance(document.get("history"), list):
            return document, where
        todo = _further(document) + todo
    told("the image's configuration was not acquired: how it is run is not known")
    return {}, ""


def _document(digest: str, index: TarIndex, told: Callable[[str], None]) -> tuple[Document, str]:
    encoded = base64.b64encode(f"sha256:{digest}".encode())
    for path in (*index.named(digest.encode()), *index.named(b"=" + encoded)):
        data = index.read(path, MAX_CONFIG)
        if data is None:
            continue
        where = path.decode("utf-8", "backslashreplace")
        try:
            document = msgspec.json.decode(data, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # another file of this name: a layer, a directory's record
        if hashlib.sha256(data).hexdigest() != digest:
            told(f"this is not the image's configuration, or it was changed: its digest is not its name: {where}")
            continue  # what it says could be anybody's
        return document, where
    return {}, ""


def _further(document: Document) -> list[str]:
    """What a manifest or an index leads to."""
    listed = document.get("manifests")
    found = [document.get("config"), *(listed if isinstance(listed, list) else [])]
    digests = [str(one.get("digest")) for one in found if isinstance(one, dict)]
    return [match[1] for digest in digests[:_STEPS] if (match := _DIGEST.fullmatch(digest)) is not None]
