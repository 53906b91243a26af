"""The directories of one graph root that hold records, opened once: per driver containers, layers, images and files.

Each may be a mount of its own, and people do move one to another disk and leave a link. A link is followed (inside the
machine, never out of it) only when what it leads to has the shape of such a directory. Beside the graph root there are
run roots, whose content a reboot takes away, and image stores, which may be apart from it and shared.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec.structs import replace

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, reason_of
from acquirers.containers.gaps import listed
from acquirers.containers.paths import mount_of, resolve, within
from acquirers.containers.records import MAX_NAMES, MalformedError
from acquirers.containers.storage.lists import Folder
from acquirers.containers.storage.roots import DRIVERS, RUN_ROOT

if TYPE_CHECKING:
    from types import TracebackType

    from acquirers.containers.storage.roots import GraphRoot
    from acquirers.host import Host

OVERLAYS = ("overlay", "overlay2")
"""Names of the one driver whose layers lie on top of each other."""
FILES = {
    "overlay": (b"overlay",),
    "overlay2": (b"overlay2",),
    "vfs": (b"vfs", b"dir"),
    "btrfs": (b"btrfs", b"subvolumes"),
}
"""Where a driver keeps the files of layers, below the root: `<root>/vfs/dir/<layer>`."""
UNSUPPORTED = {
    "zfs": "layers are datasets of a pool, not directories",
    "aufs": "removed from containers/storage: its layers are in aufs/diff",
    "devicemapper": "layers are thin block devices: take an image of the disk",
}
"""Drivers that this version does not read, and what that means."""

_ID = re.compile(rb"[0-9a-f]{64}")


class Area(msgspec.Struct, frozen=True):
    """One directory, open."""

    path: bytes
    """Native, links followed."""
    folder: Folder


class Home(msgspec.Struct, frozen=True):
    """What one driver keeps in one root: the graph root, a run root, or an image store."""

    root: bytes
    driver: str
    containers: Area | None = None
    layers: Area | None = None
    images: Area | None = None
    files: Area | None = None

    def __bool__(self) -> bool:
        return any((self.containers, self.layers, self.images, self.files))


class Driver(msgspec.Struct, frozen=True):
    """One driver of a graph root, with everything that belongs to it."""

    name: str
    graph: Home
    runs: tuple[Home, ...] = ()
    stores: tuple[Home, ...] = ()
    """Image stores, in the order in which a layer is looked for in them."""

    @property
    def homes(self) -> tuple[Home, ...]:
        """Where a layer may lie."""
        return (self.graph, *self.stores)


class Areas:
    """A context manager. What cannot be opened is told in `gaps`; nothing raises for what the disk holds."""

    def __init__(self, host: Host, root: GraphRoot) -> None:
        self._host = host
        self._root = root
        self._stack = ExitStack()
        self._stores: list[Area] = []
        self._mounts = host.mounts
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []
        self.drivers: list[Driver] = []
        self.top: Area | None = None
        self.libpod: Area | None = None
        self.volumes: Area | None = None
        self.run_tops: list[Area] = []

    def __enter__(self) -> Self:
        self.top = self._open(self._root.path, "the graph root")
        if self.top is None:
            return self
        self.libpod = self._below(self.top, b"libpod")
        self.volumes = self._below(self.top, b"volumes")
        runs = self._root.run_roots or ([] if self._root.uid else [RUN_ROOT])
        self.run_tops = [area for path in runs if (area := self._open(path, "a run root", optional=True)) is not None]
        self._stores = [
            area
            for path in self._root.image_stores
            if (area := self._open(path, "an image store")) is not None and area.path != self.top.path
        ]
        self._find_drivers()
        return self

    def _find_drivers(self) -> None:
        for name in DRIVERS:
            graph = self._home(self.top, name) if self.top is not None else Home(self._root.path, name)
            runs = tuple(home for area in self.run_tops if (home := self._home(area, name)))
            if graph or any(home.containers for home in runs):
                stores = tuple(home for area in self._stores if (home := self._home(area, name)))
                self.drivers.append(Driver(name, graph, runs, stores))

    def add_run_root(self, path: bytes) -> bool:
        """Takes a run root along that only a record names, if it is one."""
        if not path.startswith(b"/") or path in {area.path for area in self.run_tops}:
            return False
        area = self._open(path, "a run root", optional=True)
        if area is None or area.path in {known.path for known in self.run_tops}:
            return False
        found = False
        for position, driver in enumerate(self.drivers):
            home = self._home(area, driver.name)
            if home:
                found = True
                self.drivers[position] = replace(driver, runs=(*driver.runs, home))
        if found:
            self.run_tops.append(area)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def readable(self) -> bool:
        """Anything of this graph root can be looked at."""
        return bool(self.drivers)

    def driver(self, name: str) -> Driver | None:
        return next((driver for driver in self.drivers if driver.name == name), None)

    def places(self) -> list[bytes]:
        """The graph root, and what lies outside of it."""
        found = {self._root.path: None}
        homes = [home for driver in self.drivers for home in (*driver.homes, *driver.runs)]
        areas = [area for home in homes for area in (home.containers, home.layers, home.images, home.files)]
        for area in (*areas, self.libpod, self.volumes):
            if area is not None and not any(within(area.path, path) for path in found):
                found[area.path] = None
        return list(found)

    def listing(
        self, area: Area | None, *parts: bytes, matching: re.Pattern[bytes] | None = None, limit: int = MAX_NAMES
    ) -> list[tuple[bytes, Kind]]:
        """The names in a directory of records that match; that there is none is an empty one."""
        if area is None:
            return []
        where = b"/".join((area.path, *parts))
        return listed(area.folder, *parts, where=where, gaps=self.gaps, matching=matching, limit=limit)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _home(self, top: Area, driver: str) -> Home:
        name = driver.encode()
        files: Area | None = top
        for part in FILES.get(driver, ()):
            files = self._below(files, part) if files is not None else None
        return Home(
            top.path,
            driver,
            containers=self._below(top, name + b"-containers"),
            layers=self._below(top, name + b"-layers"),
            images=self._below(top, name + b"-images"),
            files=files if driver in FILES else None,
        )

    def _open(self, path: bytes, what: str, *, optional: bool = False) -> Area | None:
        """A root of any kind. Links on the way to it are followed inside the machine."""
        try:
            native, _ = resolve(self._host, path)
            if self._is_foreign(native):
                return None
            return Area(native, self._stack.enter_context(Folder.open_at(self._host, native)))
        except FileNotFoundError:
            if not optional:
                self.gaps.append(Gap(Reason.VANISHED, f"{what} is not there", path))
        except OSError as error:
            self.gaps.append(Gap(reason_of(error), f"{what}: {error.strerror}", path))
        return None

    def _below(self, top: Area, name: bytes) -> Area | None:
        path = top.path + b"/" + name
        try:
            kind = top.folder.kind(name)
            if kind is None:
                return None
            if kind is Kind.SYMLINK:
                native, _ = resolve(self._host, path)
                self.flags.append(Flag(FlagKind.FINDING, "a link, where containers/storage has a directory", path))
            elif kind is Kind.DIRECTORY:
                native = path
            else:
                self.gaps.append(Gap(Reason.MALFORMED, f"a {kind}, where containers/storage has a directory", path))
                return None
            if self._is_foreign(native):
                return None
            folder = self._stack.enter_context(Folder.open_at(self._host, native))
            if kind is Kind.SYMLINK and not _has_shape(folder, name):
                detail = "a link to something that is no such directory: not followed"
                self.gaps.append(Gap(Reason.MALFORMED, detail, path))
                return None
            return Area(native, folder)
        except (OSError, MalformedError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else Reason.MALFORMED
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.gaps.append(Gap(reason, f"the directory of {name.decode()}: {said}", path))
            return None

    def _is_foreign(self, native: bytes) -> bool:
        mount = mount_of(self._mounts, native)
        if mount is None or mount.local:
            return False
        fstype = mount.fstype.decode("ascii", "replace")
        self.gaps.append(Gap(Reason.NOT_CROSSED, f"on {fstype}, which is not entered", native))
        return True


def _has_shape(folder: Folder, name: bytes) -> bool:
    """Whether a directory elsewhere holds what containers/storage puts into the one of this name."""
    driver, dash, what = name.partition(b"-")
    if dash:
        return any(folder.kind(what + suffix) is Kind.FILE for suffix in (b".json", b".lock"))
    if driver in {b"overlay", b"overlay2"}:
        return folder.kind(b"l") is Kind.DIRECTORY
    if name == b"libpod":
        return folder.kind(b"bolt_state.db") is Kind.FILE or folder.kind(b"db.sql") is Kind.FILE
    if name == b"volumes":
        volumes = folder.names(limit=MAX_NAMES)
        return any(folder.kind(volume, b"_data") is Kind.DIRECTORY for volume, _ in volumes[:100])
    if name in {b"dir", b"subvolumes"}:
        return bool(folder.names(matching=_ID))
    return folder.kind(b"dir") is Kind.DIRECTORY or folder.kind(b"subvolumes") is Kind.DIRECTORY
