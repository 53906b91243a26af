"""From a container to its writable layer and the image layers below it: layerdb and the overlay directories.

Two independent records say which layers belong together: layerdb (`image/<driver>/layerdb`: chain ids, parents and
cache ids) and the driver's own `lower` files with their short links (`<driver>/l/XXXX -> ../<id>/diff`). Both are
read; what either of them names is taken, and that they disagree is a finding. Of vfs and btrfs, whose layers are whole
copies, there is layerdb alone. Format: moby `layer/filestore.go`, `daemon/graphdriver/overlay2/overlay.go`,
`daemon/graphdriver/{vfs,btrfs}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason
from acquirers.containers.docker.areas import COPIES, OVERLAYS, Areas
from acquirers.containers.gaps import gap_of
from acquirers.containers.records import MalformedError

if TYPE_CHECKING:
    from acquirers.containers.records import Records

UNSUPPORTED = {
    "overlay": "the first overlay driver, removed from Docker 24: its layers are hard-linked copies",
    "aufs": "removed from Docker 24: its layers are in aufs/diff",
    "zfs": "layers are datasets of a pool, not directories",
    "devicemapper": "layers are thin block devices: take an image of the disk",
    "windowsfilter": "Windows containers",
}
"""Drivers of the classic store that this version does not read, and what that means."""

# Cache ids are 64 hexadecimal digits, or what BuildKit names its snapshots.
_LAYER_ID = re.compile(r"[0-9a-f]{64}|[0-9a-z]{25}")
_MOUNT_ID = re.compile(r"[0-9a-f]{64}")
_INIT_ID = re.compile(r"[0-9a-f]{64}-init")
_DIRECTORY = re.compile(rb"[0-9a-f]{64}(?:-init)?")
_RECORD = re.compile(rb"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SHORT = re.compile(rb"l/([A-Z0-9]{26})")
_TARGET = re.compile(rb"\.\./([0-9a-f]{64}-init|[0-9a-f]{64}|[0-9a-z]{25})/diff")
_MAX_CHAIN = 500
_MAX_LOWER = 1 << 16
_MAX_KNOWN = 20_000
"""Records of image layers that are kept, so as not to be read again for the next container."""


class Layer(msgspec.Struct, frozen=True):
    """One image layer: `<root>/<driver>/<id>`."""

    driver: str
    id: str
    """The cache id, which names its directory."""
    chain_id: str = ""
    diff_id: str = ""
    """Digest of the layer's uncompressed tar, as the image's configuration names it."""
    size: int | None = None
    """Bytes of the layer's files, as layerdb has it."""


class Writable(msgspec.Struct):
    """What a container wrote, and what lies below it."""

    driver: str
    mount_id: str
    init_id: str = ""
    present: bool = False
    """Its directory is there, of a driver that is read."""
    layers: tuple[Layer, ...] = ()
    """Image layers, the topmost first."""
    links: tuple[bytes, ...] = ()
    """Names in `<driver>/l` of all these directories: see `LayerStore.add_links`."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)


class _Chain(msgspec.Struct):
    """One opinion on what lies below a container."""

    layers: list[Layer] = msgspec.field(default_factory=list)
    trouble: list[Gap] = msgspec.field(default_factory=list)


class LayerStore:
    """The layers of one data root. Nothing here raises for what the disk holds."""

    def __init__(self, areas: Areas) -> None:
        self._areas = areas
        self._layers: dict[tuple[str, str], tuple[Layer, str]] = {}
        self._by_id: dict[tuple[str, str], Layer] = {}

    def writable(self, container: str, driver: str) -> Writable | None:
        """The writable layer of a container. None when layerdb has no record of it."""
        image = self._areas.image
        for name in self._drivers(driver):
            where = (name.encode(), b"layerdb", b"mounts", container.encode())
            if image is not None and _is_directory(image, where):
                return self._mounted(image, name, where)
        return None

    def from_mount_id(self, driver: str, mount_id: str) -> Writable | None:
        """The writable layer that is known by its directory only. None when there is no such directory."""
        overlay = self._areas.overlay(driver)
        if overlay is None or not _MOUNT_ID.fullmatch(mount_id) or not _is_directory(overlay, (mount_id.encode(),)):
            return None
        found = Writable(driver, mount_id, present=True)
        if _is_directory(overlay, (mount_id.encode() + b"-init",)):
            found.init_id = mount_id + "-init"
        chain = self._by_links(found, overlay)
        found.layers = tuple(chain.layers)
        found.gaps += chain.trouble
        return found

    def mounts(self) -> dict[str, str]:
        """Container id -> driver, of all containers that layerdb knows."""
        found: dict[str, str] = {}
        image = self._areas.image
        for driver in self._drivers(""):
            if image is None:
                break
            for name, kind in self._areas.listing(image, driver.encode(), b"layerdb", b"mounts", matching=_RECORD):
                if kind is Kind.DIRECTORY:
                    found.setdefault(name.decode("ascii"), driver)
        return found

    def unclaimed(self, claimed: set[str], needed: Mapping[tuple[str, str], Layer]) -> Iterator[tuple[str, str]]:
        """(driver, mount id) of writable layers that no container claims.

        First those with an init layer beside them, then what neither a container nor an image names and nothing else
        stands on. `needed`, image layers by (driver, id), may grow with each of them: they stand on layers, too.
        """
        for driver in (*OVERLAYS, *COPIES):
            overlay = self._areas.overlay(driver)
            if overlay is None:
                continue
            listed = self._areas.listing(overlay, matching=_DIRECTORY)
            names = {name.decode("ascii") for name, kind in listed if kind is Kind.DIRECTORY}
            left = sorted(name for name in names if not name.endswith("-init") and name not in claimed)
            yield from ((driver, name) for name in left if name + "-init" in names)
            nameless = {name for name in left if name + "-init" not in names and (driver, name) not in needed}
            for name in self._nameless(driver, nameless, overlay):
                if (driver, name) not in needed:
                    yield driver, name

    def _nameless(self, driver: str, names: set[str], overlay: Records) -> list[str]:
        """Those of the directories that hold a layer and are none of an image's, what stands on others first."""
        image = self._areas.image
        where = (driver.encode(), b"layerdb", b"sha256")
        if image is not None and names:
            for record, _ in self._areas.listing(image, *where, matching=_RECORD):
                names.discard(_optional(image, _LAYER_ID, "cache-id", *where, record))
        if driver in COPIES:  # nothing in one names what it was copied from
            return sorted(names)
        layers = [name for name in names if _is_directory(overlay, (name.encode(), b"diff"))]
        if len(layers) > _MAX_KNOWN:
            return sorted(layers)  # more than are taken: the order is no longer worth its while
        below: set[str] = set()
        for name in layers:
            below.update(layer.id for layer in self._by_links(Writable(driver, name), overlay).layers)
        return sorted(layers, key=lambda name: (name in below, name))

    def _drivers(self, first: str) -> list[str]:
        names = [name for name in self._areas.image_drivers if name != first]
        return [first, *names] if first in self._areas.image_drivers else names

    def _mounted(self, image: Records, driver: str, where: tuple[bytes, ...]) -> Writable | None:
        path = self._areas.image_path + b"/" + b"/".join(where)
        found = Writable(driver, "")
        try:
            found.mount_id = _word(image, _MOUNT_ID, "mount-id", *where)
        except (OSError, MalformedError) as error:
            found.gaps.append(gap_of("the writable layer cannot be found", error, path + b"/mount-id"))
            return found
        try:
            found.init_id = _word(image, _INIT_ID, "init-id", *where)
        except FileNotFoundError:
            pass  # not every kind of container has one
        except (OSError, MalformedError) as error:
            found.gaps.append(gap_of("the init layer cannot be found", error, path + b"/init-id"))
        if driver not in OVERLAYS and driver not in COPIES:
            meaning = UNSUPPORTED.get(driver, "a driver that this version does not know")
            found.gaps.append(Gap(Reason.UNSUPPORTED, f"the writable layer, driver {driver[:40]!r}: {meaning}", path))
            return found
        overlay = self._areas.overlay(driver)
        if overlay is None:
            detail = f"the directory {driver} of the writable layer is not there"
            found.gaps.append(Gap(Reason.MALFORMED, detail, path))
            return found
        if not _is_directory(overlay, (found.mount_id.encode(),)):
            directory = self._areas.overlay_path(driver) + b"/" + found.mount_id.encode()
            found.gaps.append(Gap(Reason.VANISHED, "the writable layer is not there", directory))
        else:
            found.present = True
        by_layerdb = self._by_layerdb(image, driver, where, overlay)
        if driver in COPIES:
            found.layers = tuple(by_layerdb.layers)
            found.gaps += by_layerdb.trouble
        else:
            self._join(found, by_layerdb, self._by_links(found, overlay), path)
        return found

    def _join(self, found: Writable, by_layerdb: _Chain, by_links: _Chain, path: bytes) -> None:
        """Both opinions together. Only what neither of them leads to is a gap."""
        known = {layer.id for layer in by_layerdb.layers}
        more = [layer for layer in by_links.layers if layer.id not in known]
        found.layers = (*by_layerdb.layers, *more)
        if by_layerdb.trouble and by_links.trouble:
            found.gaps += by_layerdb.trouble + by_links.trouble
            return
        for chain, other in ((by_layerdb, "the overlay's own records"), (by_links, "layerdb")):
            for gap in chain.trouble:
                detail = f"{gap.detail}; all image layers are known from {other}"
                found.flags.append(Flag(FlagKind.FINDING, detail, gap.where))
        same = [layer.id for layer in by_layerdb.layers] == [layer.id for layer in by_links.layers]
        if not (same or by_layerdb.trouble or by_links.trouble):
            detail = "layerdb and the overlay's own records name different image layers: both are taken"
            found.flags.append(Flag(FlagKind.FINDING, detail, path))

    def _by_layerdb(self, image: Records, driver: str, where: tuple[bytes, ...], overlay: Records) -> _Chain:
        chain = _Chain()
        path = self._areas.image_path + b"/" + b"/".join(where)
        try:
            digest = _word(image, _DIGEST, "parent", *where)
        except FileNotFoundError:
            return chain  # an image without layers
        except (OSError, MalformedError) as error:
            chain.trouble.append(gap_of("the parent cannot be found", error, path + b"/parent"))
            return chain
        seen: set[str] = set()
        while digest:
            where = (driver.encode(), b"layerdb", b"sha256", digest.removeprefix("sha256:").encode())
            path = self._areas.image_path + b"/" + b"/".join(where)
            if digest in seen or len(seen) >= _MAX_CHAIN:
                fault = "leads back to itself" if digest in seen else f"has more than {_MAX_CHAIN} layers"
                chain.trouble.append(Gap(Reason.MALFORMED, f"the chain of image layers {fault}", path))
                break
            seen.add(digest)
            try:
                layer, parent = self._layer(image, driver, digest, where)
            except (OSError, MalformedError) as error:
                chain.trouble.append(gap_of("an image layer cannot be found", error, path))
                break
            self._add(chain, layer, overlay, path)
            digest = parent
        return chain

    def _layer(self, image: Records, driver: str, digest: str, where: tuple[bytes, ...]) -> tuple[Layer, str]:
        """One record of layerdb and its parent, read once however many containers stand on it."""
        known = self._layers.get((driver, digest))
        if known is not None:
            return known
        cache_id = _word(image, _LAYER_ID, "cache-id", *where)
        try:
            parent = _word(image, _DIGEST, "parent", *where)
        except FileNotFoundError:
            parent = ""  # the lowest one
        size = _optional(image, re.compile(r"\d{1,18}"), "size", *where)
        diff_id = _optional(image, _DIGEST, "diff", *where)
        layer = Layer(driver, cache_id, digest, diff_id, int(size) if size else None)
        if len(self._layers) >= _MAX_KNOWN:
            self._layers.clear()
            self._by_id.clear()
        self._layers[driver, digest] = layer, parent
        self._by_id[driver, cache_id] = layer
        return layer, parent

    def _by_links(self, found: Writable, overlay: Records) -> _Chain:
        chain = _Chain()
        if found.driver in COPIES:
            return chain
        base = self._areas.overlay_path(found.driver)
        where = base + b"/" + found.mount_id.encode() + b"/lower"
        try:
            lower = overlay.read(found.mount_id.encode(), b"lower", limit=_MAX_LOWER).strip()
        except (OSError, MalformedError) as error:
            if found.init_id or not isinstance(error, FileNotFoundError):
                chain.trouble.append(gap_of("the layers below the writable one are not named", error, where))
            return chain
        parts = lower.split(b":")
        if len(parts) > _MAX_CHAIN:
            chain.trouble.append(Gap(Reason.MALFORMED, f"{len(parts)} layers below the writable one", where))
        for part in parts[:_MAX_CHAIN]:
            short = _SHORT.fullmatch(part)
            if short is None:
                chain.trouble.append(Gap(Reason.MALFORMED, "the name of a layer is no short link", where))
                continue
            link = base + b"/" + part
            try:
                target = _TARGET.fullmatch(overlay.link(b"l", short[1]))
            except (OSError, MalformedError) as error:
                chain.trouble.append(gap_of("the short link of a layer", error, link))
                continue
            if target is None:
                chain.trouble.append(Gap(Reason.MALFORMED, "the short link of a layer leads to no layer", link))
            elif not target[1].endswith(b"-init"):
                layer_id = target[1].decode()
                layer = self._by_id.get((found.driver, layer_id), Layer(found.driver, layer_id))
                self._add(chain, layer, overlay, link)
        return chain

    def _add(self, chain: _Chain, layer: Layer, overlay: Records, where: bytes) -> None:
        if not _is_directory(overlay, (layer.id.encode(),)):
            chain.trouble.append(Gap(Reason.VANISHED, f"the image layer {layer.id} is not there", where))
        elif layer not in chain.layers:
            chain.layers.append(layer)

    def add_links(self, found: Writable) -> None:
        """The short links of the writable layer, of its init layer and of all layers below."""
        overlay = self._areas.overlay(found.driver)
        if overlay is None or not found.mount_id or found.driver in COPIES:
            return
        names: dict[bytes, None] = {}
        directories = [found.mount_id, found.init_id, *(layer.id for layer in found.layers)]
        for directory in directories:
            if directory:
                try:
                    name = overlay.read(directory.encode(), b"link", limit=64).strip()
                except (OSError, MalformedError):
                    continue  # not there: nothing is lost, the directory is taken by its own name
                names[b"l/" + name] = None
        try:
            lower = overlay.read(found.mount_id.encode(), b"lower", limit=_MAX_LOWER)
        except (OSError, MalformedError):
            lower = b""  # noted already
        names.update(dict.fromkeys(lower.strip().split(b":")))
        found.links = tuple(match[1] for match in map(_SHORT.fullmatch, names) if match is not None)


def _is_directory(records: Records, parts: tuple[bytes, ...]) -> bool:
    try:
        return records.kind(*parts) is Kind.DIRECTORY
    except (OSError, MalformedError):
        return False


def _word(records: Records, pattern: re.Pattern[str], name: str, *where: bytes) -> str:
    word = records.text(*where, name.encode(), limit=256)
    if not pattern.fullmatch(word):
        raise MalformedError(f"{name} is not what it should be: {word[:80]!r}")
    return word


def _optional(records: Records, pattern: re.Pattern[str], name: str, *where: bytes) -> str:
    try:
        return _word(records, pattern, name, *where)
    except (OSError, MalformedError):
        return ""  # said of the layer in the manifest, and needed for nothing
