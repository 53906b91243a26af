"""A snapshotter: its database, its directories, and the chain from a container's snapshot to the lowest layer.

`metadata.db`: `v1/snapshots/<name>/{id,kind,parent,size,inodes,labels}`; the id is the directory `snapshots/<id>`,
whose `fs` is the layer and whose `work` is overlayfs's own (of the native snapshotter it is the layer itself). Sources:
containerd `core/snapshots/storage/bolt.go`, `plugins/snapshots/overlay/overlay.go`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, reason_of
from acquirers.bolt import BoltError, open_file, read
from acquirers.containers.containerd.values import uvarint, varint
from acquirers.containers.paths import mount_of, resolve, within
from acquirers.containers.records import MalformedError, Records, TooManyNamesError

if TYPE_CHECKING:
    from acquirers.bolt import Database
    from acquirers.host import Host

VIEW, ACTIVE, COMMITTED = 1, 2, 3

DIRECTORIES = frozenset({"overlayfs", "fuse-overlayfs", "native", "soci", "stargz", "nydus", "erofs"})
"""Those whose snapshots are directories `snapshots/<id>`."""
COPIES = frozenset({"native"})
"""Each snapshot is a whole copy, and there is no `fs` in it."""
ELSEWHERE = {
    "btrfs": "snapshots are subvolumes in active, view and snapshots",
    "zfs": "snapshots are datasets of a pool, not directories",
    "devmapper": "snapshots are thin block devices: take an image of the disk",
    "blockfile": "snapshots are images of block devices",
}
"""What this version does not take, and what that means."""
_LAZY = {
    "nydus": "its layers are images that a daemon loads piece by piece",
    "stargz": "its layers may be loaded piece by piece from the registry",
}
_REMOTE = b"containerd.io/snapshot/remote"
"""The label of a layer that a remote snapshotter mounts, and whose content is not in its directory."""
_OUTSIDE = {
    "soci": (b"/var/lib/soci-snapshotter-grpc/snapshotter", b"/var/lib/soci-snapshotter/snapshotter",
             b"/var/lib/soci-snapshotter-grpc", b"/var/lib/soci-snapshotter"),
    "stargz": (b"/var/lib/containerd-stargz-grpc/snapshotter",),
    "nydus": (b"/var/lib/containerd-nydus",),
    "fuse-overlayfs": (b"/var/lib/containerd-fuse-overlayfs",),
}  # fmt: skip
"""Where snapshotters that are processes of their own keep their data."""

_SNAPSHOTTER = re.compile(rb"io\.containerd\.snapshotter\.v1\.([A-Za-z0-9._-]{1,64})")
_DIRECTORY = re.compile(rb"(?:new-|rm-)?[0-9]{1,20}")
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})\Z")
_MAX_SNAPSHOTS = 60_000
_MAX_BYTES = 16 << 20
_MAX_KEY = 4096
_MAX_CHAIN = 500


class Snapshot(msgspec.Struct, frozen=True):
    """One record of `metadata.db`."""

    name: bytes
    """`<namespace>/<number>/<key>`, unique in the snapshotter."""
    id: int
    kind: int
    parent: bytes
    size: int | None = None
    remote: bool = False

    @property
    def key(self) -> bytes:
        """What its client called it: a container's id, a chain id."""
        return self.name.split(b"/", 2)[-1]

    @property
    def chain_id(self) -> str:
        found = _DIGEST.search(self.name)
        return "sha256:" + found[1].decode() if found else ""


class Stack(msgspec.Struct):
    """What a container wrote, and what lies below it, the topmost first."""

    snapshotter: Snapshotter
    upper: Snapshot
    lowers: tuple[Snapshot, ...] = ()
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    @property
    def upper_path(self) -> bytes:
        return self.snapshotter.layer_path(self.upper.id)

    @property
    def lower_paths(self) -> list[bytes]:
        """Of a snapshotter that copies there are none: the upper one is whole."""
        copies = self.snapshotter.name in COPIES
        return [] if copies else [self.snapshotter.layer_path(one.id) for one in self.lowers]


class Snapshotter(msgspec.Struct):
    """One directory of snapshots."""

    name: str
    path: bytes
    by_name: dict[bytes, Snapshot] = msgspec.field(default_factory=dict)
    directories: frozenset[bytes] = frozenset()
    """Names in `snapshots`."""
    readable: bool = False
    """Its database could be read."""
    owner: int = 0
    """Who owns it: only root may set `trusted.overlay.*`."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    def directory(self, snapshot_id: int) -> bytes:
        return self.path + b"/snapshots/%d" % snapshot_id

    def layer_path(self, snapshot_id: int) -> bytes:
        """Where the files of the layer are."""
        return self.directory(snapshot_id) + (b"" if self.name in COPIES else b"/fs")

    def stack(self, name: bytes) -> Stack | None:
        """The snapshot of that name and all below it; None when the database does not know it."""
        upper = self.by_name.get(name)
        if upper is None:
            return None
        stack = Stack(self, upper)
        if self.name not in DIRECTORIES:
            detail = ELSEWHERE.get(self.name, "a snapshotter that this version does not know")
            stack.gaps.append(Gap(Reason.UNSUPPORTED, f"the snapshotter {self.name[:40]!r}: {detail}", self.path))
            return stack
        self._check(stack, upper)
        stack.lowers = tuple(self._below(stack, upper))
        return stack

    def _below(self, stack: Stack, snapshot: Snapshot) -> Iterator[Snapshot]:
        seen = {snapshot.name}
        while snapshot.parent:
            parent = self.by_name.get(snapshot.parent)
            where = self.directory(snapshot.id)
            if parent is None:
                detail = f"the layer below is in no record: {snapshot.parent[:200]!r}"
                stack.gaps.append(Gap(Reason.MALFORMED, detail, where))
                return
            if parent.name in seen or len(seen) > _MAX_CHAIN:
                fault = "leads back to itself" if parent.name in seen else f"has more than {_MAX_CHAIN} layers"
                stack.gaps.append(Gap(Reason.MALFORMED, f"the chain of layers {fault}", where))
                return
            seen.add(parent.name)
            self._check(stack, parent)
            yield parent
            snapshot = parent

    def _check(self, stack: Stack, snapshot: Snapshot) -> None:
        if b"%d" % snapshot.id not in self.directories:
            stack.gaps.append(
                Gap(Reason.VANISHED, "the snapshot's directory is not there", self.directory(snapshot.id))
            )

    def layer_gaps(self, snapshot: Snapshot) -> list[Gap]:
        """Why the content of a layer may not lie in its directory."""
        where = self.layer_path(snapshot.id)
        if self.name in _LAZY:
            return [Gap(Reason.UNSUPPORTED, f"the snapshotter {self.name!r}: {_LAZY[self.name]}", where)]
        if snapshot.remote:
            detail = "a layer that is loaded piece by piece: its content is not in its directory"
            return [Gap(Reason.UNSUPPORTED, detail, where)]
        return []

    def strangers(self) -> list[bytes]:
        """Directories of snapshots that are in no record: left behind, half made, or hidden."""
        known = {b"%d" % snapshot.id for snapshot in self.by_name.values()}
        return sorted(self.directories - known, key=lambda name: (len(name), name))


def find_snapshotters(
    host: Host, root: bytes, named: set[str], gaps: list[Gap], configured: Mapping[bytes, str]
) -> list[Snapshotter]:
    """Those in the root of a containerd, and those among `named` that keep their data elsewhere. Raises nothing.

    `configured`: directory -> name, of those that a configuration has there.
    """
    places: dict[bytes, str] = {}
    try:
        with Records.open(host, root) as records:
            for name, kind in records.names(matching=_SNAPSHOTTER, limit=100):
                match = _SNAPSHOTTER.fullmatch(name)
                if match is not None and kind is Kind.DIRECTORY:
                    places[root + b"/" + name] = match[1].decode("ascii")
    except (OSError, MalformedError) as error:
        gaps.append(_gap("the snapshotters", error, root))
    elsewhere = [(path, name) for path, name in configured.items() if name in named]
    elsewhere += [(path, name) for name in sorted(named & _OUTSIDE.keys()) for path in _OUTSIDE[name]]
    for path, outside in elsewhere:
        try:
            native, _ = resolve(host, path)
            # What lies in a directory of this name and in one above it is the same.
            if host.is_dir(native + b"/snapshots") and not any(within(native, one) for one in places):
                places[native] = outside
        except OSError:
            continue
    found = []
    for path, called in places.items():
        snapshotter = _open(host, called, path)
        if snapshotter.readable or snapshotter.directories or snapshotter.gaps:
            found.append(snapshotter)
    return found


def _open(host: Host, name: str, path: bytes) -> Snapshotter:
    found = Snapshotter(name, path)
    mount = mount_of(host.mounts, path)
    if mount is not None and not mount.local:
        detail = f"on {mount.fstype.decode('ascii', 'replace')}, which is not entered"
        found.gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
        return found
    try:
        found.owner = _owner(host, path)
        with Records.open(host, path) as records:
            if records.kind(b"snapshots") is Kind.DIRECTORY:
                found.directories = _directories(found, records)
    except (OSError, MalformedError) as error:
        found.gaps.append(_gap("the directories of snapshots", error, path + b"/snapshots"))
    where = path + b"/metadata.db"
    try:
        with open_file(host, where) as source:
            reading = read(source, _snapshots)
    except FileNotFoundError as error:
        if found.directories:
            found.gaps.append(_gap("the database of a snapshotter", error, where))
        return found
    except (OSError, BoltError) as error:
        found.gaps.append(_gap("the database of a snapshotter", error, where))
        return found
    found.readable = True
    found.by_name, left_out = reading.value
    for complaint in reading.complaints[:20]:
        found.flags.append(Flag(FlagKind.FINDING, f"the database of a snapshotter: {complaint}", where))
    if left_out:
        found.gaps.append(Gap(Reason.LIMIT, f"{left_out} further snapshots: not looked at", where))
    return found


def _owner(host: Host, path: bytes) -> int:
    fd = host.open_path(path)
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)


def _directories(found: Snapshotter, records: Records) -> frozenset[bytes]:
    try:
        names = records.names(b"snapshots", matching=_DIRECTORY)
    except TooManyNamesError as error:
        names = error.first
        found.gaps.append(
            Gap(Reason.LIMIT, f"{error.strerror}: the rest was not looked at", found.path + b"/snapshots")
        )
    return frozenset(name for name, kind in names if kind is Kind.DIRECTORY)


def _snapshots(database: Database) -> tuple[dict[bytes, Snapshot], int]:
    """All snapshots by name, and how many there was no room for."""
    found: dict[bytes, Snapshot] = {}
    room, left_out = _MAX_BYTES, 0
    bucket = database.root.bucket(b"v1", b"snapshots")
    for name, inner in bucket.buckets() if bucket is not None else ():
        snapshot_id = uvarint(inner.get(b"id"))
        kind = inner.get(b"kind") or b"\0"
        parent = (inner.get(b"parent") or b"")[:_MAX_KEY]
        if snapshot_id is None:
            continue
        size = 300 + len(name) + len(parent)
        if len(found) >= _MAX_SNAPSHOTS or size > room or len(name) > _MAX_KEY:
            left_out += 1
            continue
        room -= size
        labels = inner.bucket(b"labels")
        remote = labels is not None and labels.get(_REMOTE) is not None
        found[name] = Snapshot(name, snapshot_id, kind[0], parent, varint(inner.get(b"size")), remote)
    return found, left_out


def _gap(what: str, error: OSError | ValueError, where: bytes) -> Gap:
    if isinstance(error, OSError):
        return Gap(reason_of(error), f"{what}: {error.strerror}", where)
    return Gap(Reason.MALFORMED, f"{what}: {error}", where)
