"""One graph root in short: which containers, layers and volumes there are, and which of them are asked for.

This is kept while a run lasts, so of each thing there is little, and of all things together no more than there is
`Room` for. What a container was started with is read when its turn comes (`container`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason
from acquirers.selectors import matching

if TYPE_CHECKING:
    from acquirers.containers.storage.areas import Areas
    from acquirers.containers.storage.layers import Layer
    from acquirers.containers.storage.libpod import PodmanRecord
    from acquirers.containers.storage.model import ContainerRecord, ImageRecord, LayerRecord
    from acquirers.containers.storage.roots import GraphRoot

ORDER = ("running", "paused", "stopping", "initialized", "removing", "stopped", "exited", "created")
MAX_LISTED = 10_000
"""Volumes that a plan lists. All are taken."""


class Room(msgspec.Struct):
    """What all graph roots of a machine may have together."""

    containers: int = 10_000
    layers: int = 20_000
    """Image layers that are taken."""
    records: int = 50_000
    """Records of layers and of images."""
    unclaimed: int = 20_000
    volumes: int = 50_000
    text: int = 32 << 20
    """Bytes of memory, roughly, that the records of containers take."""


class Entry(msgspec.Struct):
    """One container, from whatever knows of it."""

    id: str
    driver: str
    record: ContainerRecord | None = None
    """Of containers.json. Without it only a directory, or the database of podman, knows of the container."""
    podman: PodmanRecord | None = None
    pod: str = ""
    """Name of podman's pod."""
    volatile: bytes = b""
    """The run root whose records hold it, if these alone do: a reboot takes it away."""
    present: bool = False
    """`<driver>-containers/<id>` is there."""
    state: str = "unknown"
    pid: int = 0
    finding: str = ""
    matched: frozenset[str] = frozenset()
    """The selectors that mean it."""
    selected: bool = False

    @property
    def runtime(self) -> str:
        """Whose it is, as item paths say it."""
        return "crio" if self.record is not None and self.record.kubernetes is not None else "podman"

    @property
    def manager(self) -> str:
        if self.runtime == "crio":
            return "cri-o"
        return "podman" if self.podman is not None else ""  # buildah's containers are in no database

    @property
    def name(self) -> str:
        kubernetes = self.record.kubernetes if self.record is not None else None
        if kubernetes is not None and self.record is not None and self.record.names:
            return self.record.names[0]
        if self.podman is not None and self.podman.name:
            return self.podman.name
        return self.record.names[0] if self.record is not None and self.record.names else ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that it may be asked for by, ids apart."""
        names = dict.fromkeys(self.record.names if self.record is not None else ())
        if self.podman is not None:
            names[self.podman.name] = None
        if self.pod:
            names[self.pod] = None
            names[f"{self.pod}/{self.name}"] = None
        if self.record is not None and self.record.kubernetes is not None:
            names.update(dict.fromkeys(self.record.kubernetes.names()))
        names.pop("", None)
        return tuple(names)

    @property
    def pod_id(self) -> str:
        if self.record is not None and self.record.kubernetes is not None:
            return self.record.kubernetes.pod_id
        return self.podman.pod_id if self.podman is not None else ""

    @property
    def layer(self) -> str:
        return self.record.layer if self.record is not None else ""

    @property
    def volumes(self) -> tuple[str, ...]:
        return self.podman.volumes if self.podman is not None else ()

    def select(self, selectors: Sequence[str]) -> None:
        of_pod = matching(selectors, self.pod_id, ()) if self.pod_id else frozenset()
        self.matched = matching(selectors, self.id, self.names) | of_pod
        self.selected = bool(self.matched) or not selectors


class Use(msgspec.Struct):
    """Who uses a volume."""

    users: int = 0
    selected: bool = False


class Records(msgspec.Struct):
    """What the lists of one driver say."""

    layers: dict[str, LayerRecord] = msgspec.field(default_factory=dict)
    images: dict[str, ImageRecord] = msgspec.field(default_factory=dict)

    def image_layers(self) -> set[str]:
        """Every layer that an image is made of."""
        found: set[str] = set()
        for image in self.images.values():
            for layer_id in image.layers:
                current = layer_id
                while current and current not in found:
                    found.add(current)
                    record = self.layers.get(current)
                    current = record.parent if record is not None else ""
        return found


class Store(msgspec.Struct):
    """One graph root."""

    root: GraphRoot
    areas: Areas
    """Closed: only its paths are of use."""
    records: dict[str, Records] = msgspec.field(default_factory=dict)
    """Driver -> what its lists say."""
    entries: list[Entry] = msgspec.field(default_factory=list)
    """Containers, those that run first."""
    layers: dict[bytes, Layer] = msgspec.field(default_factory=dict)
    """Path -> each image layer that a container or an unclaimed layer stands on."""
    wanted: set[bytes] = msgspec.field(default_factory=set)
    """Those of them that are asked for."""
    unclaimed: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """(driver, layer id) of writable layers that belong to no container."""
    uses: dict[str, Use] = msgspec.field(default_factory=dict)
    """Volumes that a container uses."""
    listed: list[bytes] = msgspec.field(default_factory=list)
    """Volumes, used or not, as many as a plan lists."""
    more_volumes: bool = False
    volume_paths: list[bytes] = msgspec.field(default_factory=list)
    """Directories of volumes, apart from the usual one, where a volume that a container names was found."""
    mount_program: dict[str, bool] = msgspec.field(default_factory=dict)
    """Driver -> fuse-overlayfs mounts it, not the kernel."""
    tmp_dirs: list[bytes] = msgspec.field(default_factory=list)
    databases: list[str] = msgspec.field(default_factory=list)
    """What podman's state was read from."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    @property
    def chosen(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.selected]

    @property
    def runtime(self) -> str:
        """What the items that belong to no one container are filed under."""
        return "crio" if not self.databases and any(one.runtime == "crio" for one in self.entries) else "podman"

    def need(self, layers: Iterable[Layer], room: Room, *, wanted: bool) -> None:
        """Notes image layers. Beyond what there is room for they are a gap, and not taken."""
        for layer in layers:
            if layer.path not in self.layers:
                if room.layers <= 0:
                    self._no_room(room)
                    continue
                room.layers -= 1
                self.layers[layer.path] = layer
            if wanted:
                self.wanted.add(layer.path)

    def _no_room(self, room: Room) -> None:
        if room.layers == 0:  # said once
            room.layers = -1
            detail = f"more image layers than the {Room().layers} that are taken at the most: the rest is not"
            self.gaps.append(Gap(Reason.LIMIT, detail, self.root.path))

    def finding(self, detail: str, where: bytes) -> None:
        self.flags.append(Flag(FlagKind.FINDING, detail, where))
