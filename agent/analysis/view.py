"""One container's layers, out of the archives of a run, merged."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.overlay import Dialect, Union
from agent.analysis.containers import bytes_of
from agent.analysis.dockerrootfs import rootfs_of
from agent.analysis.owners import Remapped
from agent.analysis.tarindex import Meta, TarIndex, TarLayer
from agent.errors import SourceError

if TYPE_CHECKING:
    from acquirers.overlay import Layer
    from acquirers.overlay.union import OnProblem
    from agent.analysis.containers import Container, ContainerRun, RootFs
    from agent.analysis.notes import Note

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_KINDS = {
    "file": 0o100000, "directory": 0o040000, "symlink": 0o120000, "fifo": 0o010000, "socket": 0o140000,
    "char-device": 0o020000, "block-device": 0o060000,
}  # fmt: skip
_TOLD = 10
_MODE = re.compile(r"[0-7]{1,4}")
_NOT_READ = "it was not read when it was acquired: the manifest has the reason"


class ViewLayer(msgspec.Struct, frozen=True):
    """One layer of a container, acquired or not."""

    label: str
    """A name for files and people: its number from the top, and what its directory is called."""
    path: bytes
    """Native path of its directory."""
    item: str
    """The archive that has it; empty where it was not acquired."""


class View(msgspec.Struct):
    """What a container is made of."""

    container: Container
    rootfs: RootFs
    layers: tuple[ViewLayer, ...]
    """All of them, from the top down, also those that were not acquired."""
    present: tuple[Layer, ...]
    """Those that were. `Place.layer` counts these."""
    dialect: Dialect
    index: TarIndex
    notes: list[str] = msgspec.field(default_factory=list)
    """What a person must know of it."""

    def union(self, start: int = 0, *, on_problem: OnProblem = lambda _path, _problem: None) -> Union:
        """Merged from layer number `start` of `present` on downwards."""
        return Union(self.present[start:], dialect=self.dialect, on_problem=on_problem)


def open_view(run: ContainerRun, container: Container, index: TarIndex, told: list[Note]) -> View:
    """The layers of one container. `index` is empty; `told` is what it tells.

    Raises `DamagedError`, `SourceError` where nothing says what the container is made of, and what archives raise.
    """
    index.add(run.archive(container.item))
    notes = []
    rootfs = container.rootfs
    if rootfs is None:
        rootfs = rootfs_of(index, container.id)
        if rootfs is None:
            raise SourceError(f"{container.item}: nothing says which layers the container stands on")
        notes.append("the manifest does not say what it is made of: taken from Docker's own records in its archive")
    items = dict.fromkeys(_item_of(path, run, container) for path in rootfs.lowers)
    for item in items:
        if item and item != container.item:
            index.add(run.archive(item))
    _add_recorded(run, [container.item, *(item for item in items if item)], index)
    layers: list[ViewLayer] = []
    present: list[Layer] = []
    for number, path in enumerate((rootfs.upper, *rootfs.lowers)):
        label = f"{number:03d}-{_UNSAFE.sub('_', os.fsdecode(_id_of(path)))[:40] or 'layer'}"
        node = index.node(path) if path else None
        item = (_item_of(path, run, container) or container.item) if node is not None else ""
        layers.append(ViewLayer(label, path, item))
        if node is not None:
            layer = TarLayer(index, path, label)
            present.append(Remapped(layer, rootfs.shift) if any(rootfs.shift) else layer)
    if not present:
        raise SourceError(f"{container.item}: none of the container's layers was acquired")
    missing = [one for one in layers if not one.item and (one.path or one is not layers[0])]
    if missing:
        named = ", ".join(one.label for one in missing[:4]) + (" …" if len(missing) > 4 else "")
        notes.append(
            f"{len(missing)} of {len(layers)} layers were not acquired, and what they hold is missing: {named}"
        )
        known = sum(run.is_known(one.path) for one in missing)
        if known:
            notes.append(
                f"{known} of those were left out since the responder knew them (--layers changed), and were proved: "
                "what is missing here are the image's own layers, as its registry has them"
            )
    if any(rootfs.shift):
        uid, gid = rootfs.shift
        notes.append(f"userns-remap: owners are those in the container; on the machine they had {uid}:{gid} added")
    if rootfs.left_out:
        notes.append(f"{rootfs.left_out} lower layers are not named in the manifest, for want of room")
    used = [container.item, *(item for item in items if item)]
    notes += [f"{item} has {run.gaps[item]} gaps: see the manifest" for item in used if run.gaps.get(item)]
    notes += [str(note) for note in told[:_TOLD]]
    return View(container, rootfs, tuple(layers), tuple(present), _dialect(rootfs, index), index, notes)


def _dialect(rootfs: RootFs, index: TarIndex) -> Dialect:
    """What the acquirer says counts. Beyond that, marks of nested overlays must not be taken for those of this one."""
    fuse = "fuse" in rootfs.driver or (rootfs.driver == "overlay" and index.fuse_marks)
    rootless = b"/.local/share/" in rootfs.upper and index.only_user_marks
    return Dialect(userxattr=rootfs.userxattr or rootless, fuse=fuse)


def _item_of(path: bytes, run: ContainerRun, container: Container) -> str:
    """The item of a layer whose directory this is, or is in. Empty for what is in the container's own archive."""
    above = path
    while above:
        if item := run.layers.get(above):
            return item
        above = above.rpartition(b"/")[0]
    named = f"containers/{container.runtime}/layers/{os.fsdecode(_id_of(path)[:12])}.tar"
    return named if not run.layers and named in run.names else ""


def _id_of(path: bytes) -> bytes:
    """What a layer is called: `overlay2/ID/diff`, `snapshots/12/fs`."""
    parts = path.split(b"/")
    return parts[-2] if len(parts) > 2 and parts[-1] in {b"diff", b"fs"} else parts[-1]


def _add_recorded(run: ContainerRun, items: list[str], index: TarIndex) -> None:
    """What only the manifest has: sockets, and what could not be read."""
    for record in run.records(items, b"member"):
        kind, mode, path = str(record.get("kind")), str(record.get("mode")), bytes_of(record, "path")
        if "offset" in record or kind not in _KINDS or not _MODE.fullmatch(mode) or not path.startswith(b"/"):
            continue
        numbers = [record.get(key) for key in ("uid", "gid", "size", "mtime_ns", "atime_ns", "ctime_ns")]
        uid, gid, size, mtime, atime, ctime = (_number(one) for one in numbers)
        problem = "" if kind == "socket" else _NOT_READ
        meta = Meta(_KINDS[kind] | int(mode, 8), uid, gid, size, 0, mtime, atime, ctime, None, {}, None, None, problem)
        index.add_recorded(path, meta)


def _number(value: object) -> int:
    return value if isinstance(value, int) and abs(value) < 1 << 63 else 0
