"""Acquired image layers against the digests that name them: `acquirers.layers`, over archives.

Docker and podman keep the tar-split of each layer, so it can be put together again; containerd keeps none. Blobs and
image configurations are named after their own digest.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from acquirers.base import MAX_CHUNK
from acquirers.layers import tarsplit
from acquirers.layers.proof import MODES, OPAQUE, Found, Proof, Rules, prove
from agent.analysis.containers import bytes_of
from agent.analysis.tarindex import TarIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.analysis.containers import ContainerRun

SECONDS = 6 * 3600.0
"""For one layer: naming the files that differ takes a second for each 10 MB."""
_COPIES = frozenset({"vfs", "btrfs", "zfs"})
"""Drivers whose layers hold what is below them: only the lowest one is what its tar was."""
_BLOB = re.compile(rb"[0-9a-f]{64}")
_BLOBS = re.compile(
    rb".*/image/[^/]+/imagedb/content/sha256|.*/io\.containerd\.content\.v1\.content/blobs/sha256", re.DOTALL
)
_OF_OTHERS = b"/volumes/"
"""Below it anybody can have directories with such names."""
_REMAPPED = re.compile(rb"/(\d{1,10})\.(\d{1,10})$")
_OPAQUE = (*OPAQUE, b"user.overlay.opaque", b"user.fuseoverlayfs.opaque")
_MODES = {"podman": (0o755, 0o555)}
"""containers/storage makes the directory of a layer so that nobody writes into it."""
_MAX_DEPTH = 500
"""Far below what Python calls in each other; real layers have some 30 levels."""
_ZEROS = memoryview(bytes(MAX_CHUNK))


def prove_layers(run: ContainerRun, only: frozenset[bytes] | None = None) -> Iterator[dict[str, object]]:
    """One record for each layer, then one for each blob; `only`: of these directories. Raises what archives raise."""
    for number, (path, item) in enumerate(sorted(run.layers.items())):
        if only is not None and path not in only:
            continue
        about = run.layer_abouts[path]
        index = TarIndex(os.path.join(run.directory, f"layer-{number}.db"))
        try:
            index.add(run.archive(item))
            yield {"type": "layer", "item": item, "path": _text(path), **_one(run, index, path, about)}
        finally:
            index.close()
    for path, detail in sorted(run.known_layers.items()):
        if only is None or only & {path, path + b"/diff"}:
            yield {"type": "layer", "path": _text(path), **_line(Proof("", why=detail)), "left_out": True}
    if only is None:
        yield from _blobs(run)


def _one(run: ContainerRun, index: TarIndex, path: bytes, about: Mapping[str, object]) -> dict[str, object]:
    diff_id, runtime = _word(about, "diff_id"), _word(about, "runtime")
    expected = f"sha256:{diff_id.removeprefix('sha256:')}" if diff_id else ""
    chain_id = _word(about, "chain_id").removeprefix("sha256:")
    if _word(about, "driver") in _COPIES and chain_id != diff_id.removeprefix("sha256:"):
        return _line(Proof(expected, why="its directory is a copy of all that is below it, too"))
    record = _tar_split(run, index, about)
    if not expected or record is None:
        why = "no record says which digest it should have" if not expected else "its tar-split was not acquired"
        if runtime == "containerd":
            why = "containerd keeps nothing by which a layer could be put together again"
        return _line(Proof(expected, why=why))
    owner, where = record

    def entries() -> Iterator[tarsplit.Segment | tarsplit.Content]:
        return tarsplit.read(bytes(chunk) for chunk in owner.content(where).chunks())

    root = bytes_of(about, "data_root")
    ids = _REMAPPED.search(root)
    shift = (int(ids[1]), int(ids[2])) if ids else None if b"/home/" in root else (0, 0)
    rules = Rules(shift, _OPAQUE, _MODES.get(runtime, MODES))
    try:
        return _line(prove(entries, Files(index, path), expected, rules=rules, seconds=SECONDS))
    except FileNotFoundError:
        return _line(Proof(expected, why="its tar-split was not acquired"))


def _tar_split(run: ContainerRun, index: TarIndex, about: Mapping[str, object]) -> tuple[TarIndex, bytes] | None:
    """Where the record of a layer lies: with the layer itself (podman), or among the runtime's (Docker)."""
    root, layer = bytes_of(about, "image_store") or bytes_of(about, "data_root"), _word(about, "layer").encode()
    if layer:
        for directory in (_word(about, "driver").encode(), b"overlay"):
            where = root + b"/" + directory + b"-layers/" + layer + b".tar-split.gz"
            if index.node(where) is not None:
                return index, where
    chain, driver = _word(about, "chain_id").removeprefix("sha256:"), _word(about, "driver")
    if not chain or not driver:
        return None
    where = root + f"/image/{driver}/layerdb/sha256/{chain}/tar-split.json.gz".encode()
    records = runtime_index(run)
    return (records, where) if records.node(where) is not None else None


def runtime_index(run: ContainerRun) -> TarIndex:
    """All that runtimes have written down. Made once."""
    if run.records_index is None:
        run.records_index = TarIndex(os.path.join(run.directory, "runtime.db"))
        for name in run.names:
            if re.fullmatch(r"containers/[a-z0-9]+/runtime(-\d+)?\.tar", name):
                run.records_index.add(run.archive(name))
    return run.records_index


def _blobs(run: ContainerRun) -> Iterator[dict[str, object]]:
    """What is named after its own digest."""
    index = runtime_index(run)
    for directory in index.directories():
        if not _BLOBS.fullmatch(directory) or _OF_OTHERS in directory:
            continue
        for name in index.names(directory):
            path = directory + b"/" + name
            if not _BLOB.fullmatch(name):
                continue
            try:
                content = index.content(path)
            except FileNotFoundError:
                continue
            for _ in content.chunks():
                pass
            digest = content.sha256.hex() if content.sha256 is not None else ""
            yield {
                "type": "blob",
                "path": _text(path),
                "proved": digest.encode() == name,
                "expected": f"sha256:{name.decode()}",
                "digest": f"sha256:{digest}",
            }


class Files:
    """`acquirers.layers.proof.Files`: what an archive has below one directory."""

    def __init__(self, index: TarIndex, base: bytes) -> None:
        self._index, self._base = index, base

    def find(self, name: bytes) -> Found | None:
        node = self._index.node(self._native(name))
        if node is None:
            return None
        return Found.of(node.stat, node.target, node.xattrs)

    def read(self, name: bytes) -> Iterator[bytes | memoryview]:
        content = self._index.content(self._native(name))
        chunks, position = content.chunks(), 0
        for offset, length in content.extents:
            yield from _hole(offset - position)
            position = offset + length
            while length > 0:
                piece = next(chunks)
                length -= len(piece)  # noqa: PLW2901 - how much is left of it
                yield piece
        yield from _hole(content.size - position)

    def names(self) -> Iterator[bytes]:
        yield from self._below(b"", 0)

    def _below(self, path: bytes, depth: int) -> Iterator[bytes]:
        if depth > _MAX_DEPTH:
            raise OSError(36, "directories nested too deeply")
        deeper = []
        for name in self._index.names(self._native(path)):
            inner = path + b"/" + name if path else name
            yield inner
            node = self._index.node(self._native(inner))
            if node is not None and stat.S_ISDIR(node.stat.mode):
                deeper.append(inner)
        for inner in deeper:
            yield from self._below(inner, depth + 1)

    def _native(self, name: bytes) -> bytes:
        return self._base + b"/" + name if name else self._base


def _hole(length: int) -> Iterator[memoryview]:
    while length > 0:
        yield _ZEROS[:length]
        length -= MAX_CHUNK


def _line(proof: Proof) -> dict[str, object]:
    about = proof.about()
    about["differences"] = [{"path": _text(one.name), "what": one.what} for one in proof.differences]
    return about


def _word(about: Mapping[str, object], key: str) -> str:
    value = about.get(key)
    return value if isinstance(value, str) else ""


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
