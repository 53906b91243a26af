"""The directories of one data root that hold records, opened once: containers, image, the overlay drivers, volumes.

Each may be a mount of its own, and people do move one to another disk and leave a link. A link is followed (inside the
machine, never out of it) only when what it leads to has the shape of such a directory.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason, reason_of
from acquirers.containers.gaps import listed
from acquirers.containers.paths import mount_of, resolve, within
from acquirers.containers.records import MAX_NAMES, MalformedError, Records

if TYPE_CHECKING:
    from types import TracebackType

    from acquirers.host import Host

OVERLAYS = ("overlay2", "fuse-overlayfs")
"""Drivers whose directories are laid out as `layers` reads them."""
COPIES = {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes"}
"""Drivers whose layers are whole root filesystems, copies or snapshots of all that is below them: where these lie."""

_CONTAINER = re.compile(rb"[0-9a-f]{64}")
_LAYER = re.compile(rb"[0-9a-f]{64}(?:-init)?")
_DRIVER = re.compile(rb"[a-z0-9][a-z0-9_-]{0,39}")
_MAX_DRIVERS = 100


class _Area(msgspec.Struct):
    path: bytes
    """Native, links followed."""
    records: Records


class Areas:
    """A context manager. What cannot be opened is told in `gaps`; nothing raises for what the disk holds."""

    def __init__(self, host: Host, root: bytes) -> None:
        self._host = host
        self._root = root
        self._open: dict[str, _Area] = {}
        self._stack = ExitStack()
        self.gaps: list[Gap] = []
        self.flags: list[Flag] = []
        self.image_drivers: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            with Records.open(self._host, self._root) as top:
                for name in ("containers", "image", "volumes", *OVERLAYS, *COPIES):
                    self._enter(top, name)
        except OSError as error:
            self.gaps.append(Gap(reason_of(error), f"the data root: {error.strerror}", self._root))
        if self.image is not None:
            drivers = self.listing(self.image, matching=_DRIVER, limit=_MAX_DRIVERS)
            self.image_drivers = tuple(name.decode() for name, kind in drivers if kind is Kind.DIRECTORY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def image(self) -> Records | None:
        return self._records("image")

    @property
    def image_path(self) -> bytes:
        return self.path("image")

    @property
    def containers(self) -> Records | None:
        return self._records("containers")

    @property
    def volumes(self) -> Records | None:
        return self._records("volumes")

    def overlay(self, driver: str) -> Records | None:
        return self._records(driver)

    def overlay_path(self, driver: str) -> bytes:
        return self.path(driver)

    def files_path(self, driver: str, layer: str) -> bytes:
        """The directory with the files of a layer, the image's or the writable one."""
        path = self.path(driver) + b"/" + layer.encode()
        return path if driver in COPIES else path + b"/diff"

    def path(self, name: str) -> bytes:
        """The native path of an area, where its link leads to if it is one."""
        area = self._open.get(name)
        return area.path if area is not None else self._root + b"/" + COPIES.get(name, name).encode()

    @property
    def readable(self) -> bool:
        """Anything of this data root can be looked at."""
        return bool(self._open)

    def places(self) -> list[bytes]:
        """The data root, and where the links in it lead to."""
        outside = [area.path for area in self._open.values() if not within(area.path, self._root)]
        return [self._root, *outside]

    def listing(
        self, records: Records, *parts: bytes, matching: re.Pattern[bytes] | None = None, limit: int = MAX_NAMES
    ) -> list[tuple[bytes, Kind]]:
        """The names in a directory of records that match; that there is none is an empty one."""
        where = self._where(records, parts)
        return listed(records, *parts, where=where, gaps=self.gaps, matching=matching, limit=limit)

    def _where(self, records: Records, parts: tuple[bytes, ...]) -> bytes:
        base = next((area.path for area in self._open.values() if area.records is records), self._root)
        return b"/".join((base, *parts))

    def _records(self, name: str) -> Records | None:
        area = self._open.get(name)
        return area.records if area is not None else None

    def _enter(self, top: Records, name: str) -> None:
        parts = COPIES.get(name, name).encode().split(b"/")
        path = b"/".join((self._root, *parts))
        try:
            kind = top.kind(*parts)
            if kind is None:
                return
            if kind is Kind.SYMLINK:
                native, _ = resolve(self._host, path)
                self.flags.append(Flag(FlagKind.FINDING, "a link, where Docker has a directory", path))
            elif kind is Kind.DIRECTORY:
                native = path
            else:
                self.gaps.append(Gap(Reason.MALFORMED, f"a {kind}, where Docker has a directory", path))
                return
            mount = mount_of(self._host.mounts, native)
            if mount is not None and not mount.local:
                fstype = mount.fstype.decode("ascii", "replace")
                self.gaps.append(Gap(Reason.NOT_CROSSED, f"on {fstype}, which is not entered", native))
                return
            records = self._stack.enter_context(Records.open(self._host, native))
            if kind is Kind.SYMLINK and not _has_shape(records, name):
                detail = "a link to something that is no such directory: not followed"
                self.gaps.append(Gap(Reason.MALFORMED, detail, path))
                return
            self._open[name] = _Area(native, records)
        except (OSError, MalformedError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else Reason.MALFORMED
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.gaps.append(Gap(reason, f"the directory of {name}: {said}", path))


def _has_shape(records: Records, name: str) -> bool:
    """Whether a directory elsewhere holds what Docker puts into the one of this name."""
    if name == "containers":
        return any(records.names(matching=_CONTAINER))
    if name == "image":
        drivers = records.names(matching=_DRIVER, limit=_MAX_DRIVERS)
        return any(records.kind(entry, b"layerdb") is Kind.DIRECTORY for entry, _ in drivers)
    if name == "volumes":
        return records.kind(b"metadata.db") is Kind.FILE
    if name in COPIES:
        return any(records.names(matching=_LAYER))
    return records.kind(b"l") is Kind.DIRECTORY
