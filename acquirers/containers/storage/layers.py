"""From a container to its writable layer and the image layers below it.

Two independent records say which layers belong together: layers.json (parents) and the overlay driver's own `lower`
files with their short links (`overlay/l/XXXX -> ../<id>/diff`). Both are read; what either of them names is taken, and
that they disagree is a finding. A layer lies in the graph root or in one of its image stores. Format: containers/
storage `layers.go`, `drivers/overlay/overlay.go`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Kind, Reason
from acquirers.containers.gaps import gap_of
from acquirers.containers.records import MalformedError
from acquirers.containers.storage.areas import OVERLAYS, UNSUPPORTED, Area, Driver
from acquirers.containers.storage.model import ID

if TYPE_CHECKING:
    from acquirers.containers.storage.areas import Areas, Home
    from acquirers.containers.storage.lists import Folder
    from acquirers.containers.storage.model import LayerRecord

_SHORT = re.compile(rb"l/([A-Z0-9]{26})")
_TARGET = re.compile(rb"\.\./([0-9a-f]{64})/diff")
_DIRECTORY = re.compile(rb"[0-9a-f]{64}")
_MAX_CHAIN = 500
"""overlay.go: maxDepth."""
_MAX_LOWER = 1 << 16
_MAX_ORDERED = 20_000
"""Unclaimed layers beyond which it is not worth its while to say which of them stands on which."""


class Layer(msgspec.Struct, frozen=True):
    """One layer whose directory is there."""

    driver: str
    id: str
    path: bytes
    """Its directory, `<root>/overlay/<id>` or `<root>/vfs/dir/<id>`."""
    root: bytes
    """The graph root or image store that it lies in."""
    diff_id: str = ""
    """Digest of the layer's uncompressed tar, as the image's configuration names it."""
    chain_id: str = ""
    size: int | None = None
    """Bytes of that tar."""

    @property
    def content(self) -> bytes:
        """The directory that holds the files."""
        return self.path + b"/diff" if self.driver in OVERLAYS else self.path


class Writable(msgspec.Struct):
    """What a container wrote, and what lies below it."""

    layer: Layer | None
    """None when its directory is not there."""
    id: str
    layers: tuple[Layer, ...] = ()
    """Image layers, the topmost first. With a driver whose layers are whole copies just the one it was made from."""
    links: tuple[tuple[bytes, bytes], ...] = ()
    """(directory, name) of the short links of all these layers."""
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)


class _Chain(msgspec.Struct):
    """One opinion on what lies below a container."""

    layers: list[Layer] = msgspec.field(default_factory=list)
    trouble: list[Gap] = msgspec.field(default_factory=list)


class LayerStore:
    """The layers of one driver of a graph root. Nothing here raises for what the disk holds."""

    def __init__(self, areas: Areas, driver: Driver, records: Mapping[str, LayerRecord]) -> None:
        self._areas = areas
        self._driver = driver
        self._records = records

    def writable(self, layer_id: str) -> Writable:
        """The writable layer of that id."""
        found = Writable(None, layer_id)
        where = self._where(layer_id)
        if self._driver.name in UNSUPPORTED:
            meaning = UNSUPPORTED[self._driver.name]
            detail = f"the writable layer, driver {self._driver.name!r}: {meaning}"
            found.gaps.append(Gap(Reason.UNSUPPORTED, detail, where))
            return found
        found.layer = self._find(layer_id)
        if found.layer is None:
            found.gaps.append(Gap(Reason.VANISHED, "the writable layer is not there", where))
        else:
            self._check_content(found.layer, found.gaps)
        record = self._records.get(layer_id)
        if record is not None and record.incomplete:
            detail = "the writable layer was being made, or being deleted, when its record was written"
            found.flags.append(Flag(FlagKind.FINDING, detail, where))
        by_records = self._by_records(layer_id)
        if self._driver.name in OVERLAYS:
            self._join(found, by_records, self._by_links(layer_id))
        else:
            found.layers = tuple(by_records.layers[:1])
            found.gaps += by_records.trouble[:1]
        for layer in found.layers:
            self._check_content(layer, found.gaps)
        return found

    def unclaimed(self, claimed: set[str], image_layers: set[str], needed: Mapping[bytes, Layer]) -> Iterator[str]:
        """Ids of layers in the graph root that no container claims and no image is made of.

        What stands on others comes first. `needed`, image layers by their path, may grow with each of them.
        """
        area = self._driver.graph.files
        listed = self._areas.listing(area, matching=_DIRECTORY)
        names = [name.decode("ascii") for name, kind in listed if kind is Kind.DIRECTORY]
        left = [
            name
            for name in names
            if not (name in claimed or name in image_layers or self._digested(name)) and self._find(name) is not None
        ]
        below: set[str] = set()
        for name in left if len(left) <= _MAX_ORDERED else ():
            below.update(layer.id for layer in self._below(name))
        for name in sorted(left, key=lambda name: (name in below, name)):
            layer = self._find(name)
            if layer is not None and layer.path not in needed:
                yield name

    def _below(self, layer_id: str) -> list[Layer]:
        return [*self._by_records(layer_id).layers, *self._by_links(layer_id).layers]

    def _digested(self, layer_id: str) -> bool:
        record = self._records.get(layer_id)
        return record is not None and record.digested

    def links(self, found: Writable) -> tuple[tuple[bytes, bytes], ...]:
        """The short links of the writable layer and of all layers below, as the driver names them."""
        if self._driver.name not in OVERLAYS:
            return ()
        names: dict[tuple[bytes, bytes], None] = {}
        for layer in (found.layer, *found.layers):
            home = self._home_of(layer) if layer is not None else None
            if layer is None or home is None or home.files is None:
                continue
            try:
                name = home.files.folder.read(layer.id.encode(), b"link", limit=64).strip()
            except (OSError, MalformedError):
                continue  # nothing is lost: the directory is taken by its own name
            if _SHORT.fullmatch(b"l/" + name):
                names[home.files.path + b"/l", name] = None
        for part in self._lower(found.id):
            for home in self._driver.homes:
                match = _SHORT.fullmatch(part)
                if match is None or home.files is None:
                    continue
                if _kind(home.files.folder, b"l", match[1]) is Kind.SYMLINK:
                    names[home.files.path + b"/l", match[1]] = None
        return tuple(names)

    # -- two opinions -------------------------------------------------------------------------------------------------

    def _join(self, found: Writable, by_records: _Chain, by_links: _Chain) -> None:
        """Both opinions together, in the order that the driver mounts. Only what neither leads to is a gap."""
        first, other = (by_links, by_records) if not by_links.trouble else (by_records, by_links)
        known = {layer.path for layer in first.layers}
        full = {layer.path: layer for layer in by_records.layers}
        found.layers = (
            *(full.get(layer.path, layer) for layer in first.layers),
            *(layer for layer in other.layers if layer.path not in known),
        )
        if by_records.trouble and by_links.trouble:
            found.gaps += by_records.trouble + by_links.trouble
            return
        for chain, elsewhere in ((by_records, "the overlay's own records"), (by_links, "layers.json")):
            for gap in chain.trouble:
                detail = f"{gap.detail}; all image layers are known from {elsewhere}"
                found.flags.append(Flag(FlagKind.FINDING, detail, gap.where))
        same = [layer.id for layer in by_records.layers] == [layer.id for layer in by_links.layers]
        if not (same or by_records.trouble or by_links.trouble):
            detail = "layers.json and the overlay's own records name different image layers: both are taken"
            found.flags.append(Flag(FlagKind.FINDING, detail, self._where(found.id)))

    def _by_records(self, layer_id: str) -> _Chain:
        chain = _Chain()
        where = self._records_path()
        record = self._records.get(layer_id)
        if record is None:
            chain.trouble.append(Gap(Reason.MALFORMED, f"layers.json has no record of the layer {layer_id}", where))
            return chain
        seen = {layer_id}
        parents: list[str] = []
        while record.parent:
            if record.parent in seen or len(parents) >= _MAX_CHAIN:
                fault = "leads back to itself" if record.parent in seen else f"has more than {_MAX_CHAIN} layers"
                chain.trouble.append(Gap(Reason.MALFORMED, f"the chain of layers {fault}", where))
                break
            seen.add(record.parent)
            parents.append(record.parent)
            following = self._records.get(record.parent)
            if following is None:
                detail = f"layers.json has no record of the layer {record.parent}"
                chain.trouble.append(Gap(Reason.MALFORMED, detail, where))
                break
            record = following
        chain_ids = _chain_ids([self._records[parent] for parent in parents if parent in self._records])
        for parent in parents:
            self._add(chain, parent, where, chain_ids.get(parent, "") if not chain.trouble else "")
        return chain

    def _by_links(self, layer_id: str) -> _Chain:
        chain = _Chain()
        where = self._where(layer_id) + b"/lower"
        try:
            parts = self._lower(layer_id, strict=True)
        except FileNotFoundError:
            return chain  # nothing lies below it
        except (OSError, MalformedError) as error:
            chain.trouble.append(gap_of("the layers below the writable one are not named", error, where))
            return chain
        if len(parts) > _MAX_CHAIN:
            chain.trouble.append(Gap(Reason.MALFORMED, f"{len(parts)} layers below the writable one", where))
        for part in parts[:_MAX_CHAIN]:
            self._follow(chain, part, where)
        return chain

    def _lower(self, layer_id: str, *, strict: bool = False) -> list[bytes]:
        """The names in a layer's `lower`, the topmost first. `strict` raises what reading raises."""
        area = self._driver.graph.files
        try:
            if area is None:
                raise FileNotFoundError
            text = area.folder.read(layer_id.encode(), b"lower", limit=_MAX_LOWER).strip()
        except (OSError, MalformedError):
            if strict:
                raise
            return []
        return text.split(b":") if text else []

    def _follow(self, chain: _Chain, part: bytes, where: bytes) -> None:
        short = _SHORT.fullmatch(part)
        if short is None:
            chain.trouble.append(Gap(Reason.MALFORMED, "the name of a layer is no short link", where))
            return
        trouble: Gap | None = None
        for home in self._driver.homes:
            if home.files is None:
                continue
            link = home.files.path + b"/" + part
            try:
                target = _TARGET.fullmatch(home.files.folder.link(b"l", short[1]))
            except (OSError, MalformedError) as error:
                trouble = trouble or gap_of("the short link of a layer", error, link)
                continue
            if target is not None:
                self._add(chain, target[1].decode("ascii"), link, "")
                return
            trouble = Gap(Reason.MALFORMED, "the short link of a layer leads to no layer", link)
        chain.trouble.append(trouble or Gap(Reason.MALFORMED, "the short link of a layer leads nowhere", where))

    def _add(self, chain: _Chain, layer_id: str, where: bytes, chain_id: str) -> None:
        layer = self._find(layer_id, chain_id)
        if layer is None:
            chain.trouble.append(Gap(Reason.VANISHED, f"the image layer {layer_id} is not there", where))
        elif layer.path not in {known.path for known in chain.layers}:
            chain.layers.append(layer)

    # -- directories --------------------------------------------------------------------------------------------------

    def _find(self, layer_id: str, chain_id: str = "") -> Layer | None:
        """A layer by its id, where it lies."""
        if not ID.fullmatch(layer_id):
            return None
        record = self._records.get(layer_id)
        for home in self._driver.homes:
            if home.files is not None and _kind(home.files.folder, layer_id.encode()) is Kind.DIRECTORY:
                return Layer(
                    self._driver.name,
                    layer_id,
                    home.files.path + b"/" + layer_id.encode(),
                    home.root,
                    record.diff_id if record is not None else "",
                    chain_id,
                    record.size if record is not None else None,
                )
        return None

    def _check_content(self, layer: Layer, gaps: list[Gap]) -> None:
        """Layers whose files are somewhere else, or packed."""
        home = self._home_of(layer)
        if home is None or home.files is None or self._driver.name not in OVERLAYS:
            return
        name = layer.id.encode()
        kind = _kind(home.files.folder, name, b"diff")
        if kind is Kind.SYMLINK:
            detail = "its files are a link (an additional layer store, or made to mislead): not followed"
            gaps.append(Gap(Reason.NOT_CROSSED, detail, layer.content))
        elif kind is not Kind.DIRECTORY:
            gaps.append(Gap(Reason.VANISHED, "the files of the layer are not there", layer.content))
        elif _kind(home.files.folder, name, b"composefs-data") is not None:
            detail = "a layer of composefs: the names of its files are in composefs-data, which is taken and not read"
            gaps.append(Gap(Reason.UNSUPPORTED, detail, layer.path + b"/composefs-data"))

    def _home_of(self, layer: Layer) -> Home | None:
        return next((home for home in self._driver.homes if home.root == layer.root), None)

    def _where(self, layer_id: str) -> bytes:
        files: Area | None = self._driver.graph.files
        base = files.path if files is not None else self._driver.graph.root + b"/" + self._driver.name.encode()
        return base + b"/" + layer_id.encode()

    def _records_path(self) -> bytes:
        layers = self._driver.graph.layers
        name = self._driver.name.encode() + b"-layers"
        return (layers.path if layers is not None else self._driver.graph.root + b"/" + name) + b"/layers.json"


def _chain_ids(records: list[LayerRecord]) -> dict[str, str]:
    """Id -> chain id, as far down as every digest is known: sha256 of "<chain id below> <diff id>" (OCI image-spec)."""
    found: dict[str, str] = {}
    chain_id = ""
    for record in reversed(records):
        if not record.diff_id:
            return found
        text = f"{chain_id} {record.diff_id}".encode()
        chain_id = "sha256:" + hashlib.sha256(text).hexdigest() if chain_id else record.diff_id
        found[record.id] = chain_id
    return found


def _kind(folder: Folder, *parts: bytes) -> Kind | None:
    try:
        return folder.kind(*parts)
    except (OSError, MalformedError):
        return None
