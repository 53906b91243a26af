"""Which directories of a containerd go into which archive."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from acquirers.base import Flag, FlagKind, Kind, Report
from acquirers.containers.containerd.tasks import CRI, bundle_paths, cri_paths, runc_paths
from acquirers.containers.parts import Keep, Part, one_file, only, top_level
from acquirers.containers.paths import resolve, within

if TYPE_CHECKING:
    from acquirers.containers.containerd.snapshots import Snapshotter
    from acquirers.containers.containerd.store import Entry, Store
    from acquirers.host import Host

MAX_BLOB = 512 << 10
"""Bytes of a blob that goes with the runtime: configurations and manifests of images have a few KiB."""

_CONFIGURATION = (b"/etc/containerd", b"/etc/host-containerd", b"/etc/cni/net.d", b"/etc/crictl.yaml", b"/etc/nerdctl")
_CONTENT = b"io.containerd.content.v1.content"
_NERDCTL = b"/var/lib/nerdctl"
_DIGEST = re.compile(rb"blobs/sha256/([0-9a-f]{64})")
_NERDCTL_CONTAINER = re.compile(rb"[0-9a-f]{4,64}/containers/[^/]+/([^/]+)(?:/.*)?", re.DOTALL)
_MAX_BLOBS = 50_000


def container_parts(host: Host, store: Store, entry: Entry) -> Iterator[Part]:
    """The writable snapshot, and what containerd, its CRI plugin, the shim and runc keep for the container."""
    if entry.stack is not None:
        yield Part(entry.stack.snapshotter.directory(entry.stack.upper.id), mounted=frozenset())
    root, record = store.root, entry.record
    for path in cri_paths(root, record):
        yield Part(path, recursive=True, optional=True)  # sandboxes/<id>/shm is a tmpfs
    for path in bundle_paths(root, record):
        yield Part(path, optional=True)  # what is mounted on its rootfs is the snapshot
    for path in runc_paths(host, root, record):
        yield Part(path, optional=True)


def nerdctl_part(host: Host, container_ids: frozenset[str], *, others: bool) -> Iterator[Part]:
    """What nerdctl keeps of some containers (records, logs), or of all but these, with its volumes and names."""
    base = _resolved(host, _NERDCTL)
    if base is None:
        return
    ids = frozenset(one.encode() for one in container_ids)

    def keep(path: bytes, _kind: Kind) -> bool:
        match = _NERDCTL_CONTAINER.fullmatch(path)
        if match is not None:
            return (match[1] in ids) is not others
        return others or path.count(b"/") < 3

    yield Part(base, lambda _: keep, optional=True)


def layer_part(snapshotter: Snapshotter, snapshot_id: int) -> Part:
    return Part(snapshotter.directory(snapshot_id), mounted=frozenset())


def unclaimed_part(snapshotter: Snapshotter, names: frozenset[bytes], what: str) -> Part:
    """Several snapshots that no container claims, each of them a finding."""
    base = snapshotter.path + b"/snapshots"

    def make(report: Report) -> Keep:
        def keep(path: bytes, _kind: Kind) -> bool:
            name = path.partition(b"/")[0]
            if name not in names:
                return False
            if path == name:
                report.flag(Flag(FlagKind.FINDING, what, base + b"/" + path))
            return True

        return keep

    return Part(base, make)


def runtime_parts(host: Host, store: Store, configs: Iterable[bytes], *, whole: bool) -> Iterator[Part]:
    """What belongs to no container: databases, small blobs, configuration. `whole`: of containers unknown, too."""
    root = store.root
    outside = {one.path for one in store.snapshotters if not within(one.path, root.path)}
    yield Part(root.path, _top_level(root.path))
    yield Part(root.path + b"/io.containerd.metadata.v1.bolt", optional=True)
    for snapshotter in store.snapshotters:
        yield Part(snapshotter.path, only(frozenset({b"metadata.db", b"snapshots"})), optional=True)
    for path in sorted(outside):
        yield Part(os.path.dirname(path), only(frozenset({b"config.toml", os.path.basename(path)})), optional=True)
    yield Part(root.path + b"/" + _CONTENT, _small_blobs(host, root.path + b"/" + _CONTENT), optional=True)
    known = frozenset(entry.record.id.encode("utf-8", "surrogatepass") for entry in store.entries)
    if whole:
        for base in (root.path, *root.states):
            for name in CRI:
                yield Part(base + b"/" + name, _unknown_cri(known), optional=True)
    for path in _CONFIGURATION if whole else ():
        resolved = _resolved(host, path)
        if resolved is None:
            continue
        if host.is_dir(resolved):
            yield Part(resolved, _without_keys(resolved), optional=True)
        else:
            yield one_file(resolved)
    for path in (*configs, *root.links):
        if not any(within(path, directory) for directory in _CONFIGURATION):
            yield one_file(path)


def _top_level(root: bytes) -> Callable[[Report], Keep]:
    """The directories as such; what is none of containerd's is named."""
    return top_level(
        root,
        lambda _, kind: kind in {Kind.DIRECTORY, Kind.SYMLINK},
        lambda path, _: not (path.startswith(b"io.containerd.") or path == b"tmpmounts"),
        "in the root of containerd, and its content not part of this archive",
    )


def _small_blobs(host: Host, directory: bytes) -> Callable[[Report], Keep]:
    """Configurations and manifests, and what is noted of unfinished downloads; not the layers."""

    def make(_: Report) -> Keep:
        small = _names_of_small(host, directory + b"/blobs/sha256")

        def keep(path: bytes, kind: Kind) -> bool:
            if kind is Kind.DIRECTORY:
                return path.count(b"/") < 2
            match = _DIGEST.fullmatch(path)
            if match is not None:
                return match[1] in small
            return path.startswith(b"ingest/") and not path.endswith(b"/data")

        return keep

    return make


def _names_of_small(host: Host, path: bytes) -> set[bytes]:
    found: set[bytes] = set()
    try:
        with host.tree(path) as tree, os.scandir(tree.fd) as entries:
            for entry in entries:
                if len(found) >= _MAX_BLOBS:
                    break
                try:
                    if entry.stat(follow_symlinks=False).st_size <= MAX_BLOB:
                        found.add(os.fsencode(entry.name))
                except OSError:
                    continue
    except OSError:
        pass  # told when it is walked
    return found


def _unknown_cri(known: frozenset[bytes]) -> Callable[[Report], Keep]:
    """Directories of containers and pods that no record knows."""

    def keep(path: bytes, _kind: Kind) -> bool:
        parts = path.split(b"/", 2)
        return len(parts) < 2 or parts[0] not in {b"containers", b"sandboxes"} or parts[1] not in known

    return lambda _: keep


def _without_keys(directory: bytes) -> Callable[[Report], Keep]:
    """Everything but private keys, which are no evidence of anything and a loss to everybody if they leak."""

    def make(report: Report) -> Keep:
        def keep(path: bytes, kind: Kind) -> bool:
            name = os.path.basename(path)
            if kind is Kind.DIRECTORY or not (name == b"key.pem" or name.endswith((b".key", b"-key.pem"))):
                return True
            report.flag(Flag(FlagKind.ELSEWHERE, "a private key: left out", directory + b"/" + path))
            return False

        return keep

    return make


def _resolved(host: Host, path: bytes) -> bytes | None:
    try:
        return resolve(host, path)[0]
    except OSError:
        return None
