"""The containers of a run, and the archives that hold the layers of each.

What the acquirers said of each item (`about` in the manifest) names the directories that a container's root filesystem
is merged of: `rootfs` of containers, `path` of layers. Of a run that left no manifest (it was killed) nothing but the
archives is known: then the records of Docker in a container's own archive are asked (`agent.analysis.dockerrootfs`).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from acquirers.base import FlagKind
from acquirers.selectors import matching
from agent.analysis.items import items_of
from agent.analysis.opening import write_below
from agent.custody.manifest import lines_of
from agent.errors import DamagedError, SourceError, StoreError, UsageError
from agent.stores.directory import DirectorySource
from agent.stores.sources import SCHEME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from agent.analysis.items import Items
    from agent.analysis.tarindex import TarIndex
    from agent.job import S3
    from agent.sealing import Identity
    from agent.stores.base import Blob

MAX_LOWERS = 4096
MAX_KNOWN = 100_000
_ITEM = b'{"type":"item"'
_MANIFEST = re.compile(r"attempt-\d+/manifest\.jsonl")
_OF_CONTAINER = re.compile(r"containers/([a-z0-9]+)/([0-9A-Za-z_-]{1,12})-(.+)\.tar")
_REMAPPED = re.compile(rb"(\d{1,10})\.(\d{1,10})")
_NAMED = 20


class RootFs(msgspec.Struct, frozen=True):
    """What a root filesystem is merged of: native paths of directories."""

    driver: str = ""
    upper: bytes = b""
    lowers: tuple[bytes, ...] = ()
    """From the top down."""
    userxattr: bool = False
    shift: tuple[int, int] = (0, 0)
    """What the container's user 0 and group 0 are on the machine: not 0 with `userns-remap`."""
    left_out: int = 0
    """Lower layers that the manifest does not name, for want of room."""


class Container(msgspec.Struct, frozen=True):
    """One container of a run."""

    item: str
    """Its archive."""
    runtime: str
    id: str
    names: tuple[str, ...]
    about: Mapping[str, object]
    rootfs: RootFs | None
    """None: the manifest does not say."""

    @property
    def name(self) -> str:
        return self.names[0] if self.names else ""


class ContainerRun(msgspec.Struct):
    """The containers of one run. Archives are opened when they are asked for."""

    containers: tuple[Container, ...]
    layers: Mapping[bytes, str]
    """Native path of a layer's directory -> the item that holds it."""
    layer_abouts: Mapping[bytes, Mapping[str, object]]
    """Native path of a layer's directory -> what was said of its item."""
    names: tuple[str, ...]
    run: str
    machine: str
    """What `uname` says of the machine: x86_64, aarch64; empty where the manifest does not say."""
    directory: str
    """For temporary files; it goes with this."""
    known_layers: Mapping[bytes, str]
    """Native path of a layer that was left out, since the responder knew it -> what was said of that."""
    gaps: Mapping[str, int]
    """Item -> how many gaps it has, where it has any."""
    _items: Items
    _opened: DirectorySource | None
    _spooled: DirectorySource
    records_index: TarIndex | None = None
    """Of all that runtimes have written down, once somebody has asked for it."""
    _blobs: dict[str, Blob] = msgspec.field(default_factory=dict)

    def find(self, selector: str) -> Container:
        """The one container that is meant: by id, the beginning of it, or any name. Raises `UsageError`."""
        found = [one for one in self.containers if matching([selector], one.id, one.names)]
        exact = [one for one in found if selector in (one.id, *one.names)]
        found = exact if len(exact) == 1 else found
        if len(found) == 2 and found[0].id == found[1].id:  # Docker 29: Docker has its records, containerd its files
            files = [one for one in found if one.rootfs is not None]
            found = [_with_records(files[0], found)] if len(files) == 1 else found
        if len(found) == 1:
            return found[0]
        those = found or list(self.containers)
        listed = ", ".join(f"{one.name or one.id[:12]} ({one.id[:12]})" for one in those[:_NAMED])
        more = f" and {len(those) - _NAMED} more" if len(those) > _NAMED else ""
        if found:
            raise UsageError(f"--container {selector!r} fits {len(found)}: {listed}{more}")
        there = f"there are {listed}{more}" if those else "no container is in this run"
        raise UsageError(f"--container {selector!r} is not in this run; {there}")

    def is_known(self, path: bytes) -> bool:
        """Whether a layer, or the directory of one that a path lies in, was left out since the responder knew it."""
        return path in self.known_layers or path.rpartition(b"/")[0] in self.known_layers

    def archive(self, item: str) -> Blob:
        """An item that can be read anywhere: what is sealed is opened into the temporary directory, as a whole.

        Raises `DamagedError`, `IdentityError`, `SourceError`, `StoreError`.
        """
        blob = self._blobs.get(item)
        if blob is None:
            if self._opened is not None:
                blob = self._opened.open(item)
            else:
                fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    write_below(fd, item, self._items.stream(item))
                finally:
                    os.close(fd)
                blob = self._spooled.open(item)
            self._blobs[item] = blob
        return blob

    def runtime_items(self, container: Container) -> list[str]:
        """Archives with the databases of its runtime: those of several daemons, if there were several."""
        start = f"containers/{container.runtime}/runtime"
        return [name for name in self.names if name.startswith(start) and name.endswith(".tar")]

    def records(self, items: Iterable[str], prefix: bytes) -> Iterator[dict[str, object]]:
        """Lines of the manifests that begin so and belong to one of these items."""
        wanted = tuple(b'{"type":"%s","item":%s,' % (prefix, msgspec.json.encode(item)) for item in items)
        for name in self.names:
            if _MANIFEST.fullmatch(name):
                for line in lines_of(self._items.stream(name), name):
                    if line.startswith(wanted):
                        yield _decode(line, name)

    def close(self) -> None:
        if self.records_index is not None:
            self.records_index.close()
        for blob in self._blobs.values():
            blob.close()


@contextlib.contextmanager
def containers_of(
    source: str,
    identities: Sequence[Identity],
    *,
    beside: str,
    signers: Collection[str] = (),
    receipts: Collection[str] = (),
    s3: S3 | None = None,
) -> Iterator[ContainerRun]:
    """The containers of one run, sealed or opened. Temporary files lie in a new directory beside the file `beside`.

    Raises `DamagedError`, `IdentityError`, `SourceError`, `StoreError`, `UsageError`.
    """
    with contextlib.ExitStack() as stack:
        items = stack.enter_context(items_of(source, identities, signers=signers, receipts=receipts, s3=s3))
        try:
            directory = tempfile.mkdtemp(prefix=".impound-", dir=os.path.dirname(os.path.abspath(beside)))
        except OSError as error:
            raise StoreError(f"no temporary directory could be made beside {beside!r}: {error.strerror}") from error
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        opened = None if source.startswith(SCHEME) else stack.enter_context(contextlib.closing(DirectorySource(source)))
        if opened is not None and not _is_opened(opened, items.names):
            opened = None
        spooled = stack.enter_context(contextlib.closing(DirectorySource(directory)))
        run = _read(items, directory, opened, spooled)
        stack.callback(run.close)
        yield run


def _is_opened(source: DirectorySource, names: Sequence[str]) -> bool:
    """Whether items lie there under their own names."""
    if not names:
        return False
    try:
        source.open(names[0]).close()
    except SourceError:
        return False
    return True


def _read(items: Items, directory: str, opened: DirectorySource | None, spooled: DirectorySource) -> ContainerRun:
    there = set(items.names)
    abouts: dict[str, Mapping[str, object]] = {}
    gaps: dict[str, int] = {}
    known: dict[bytes, str] = {}
    run = machine = ""
    for name in items.names:
        if not _MANIFEST.fullmatch(name):
            continue
        for line in lines_of(items.stream(name), name):
            if line.startswith(b'{"type":"flag"') and b'"kind":"known"' in line:
                record = _decode(line, name)
                if record.get("kind") == FlagKind.KNOWN and len(known) < MAX_KNOWN:
                    known[bytes_of(record, "where").rstrip(b"/")] = _text(record.get("detail"))
            elif line.startswith((_ITEM, b'{"type":"stored"', b'{"type":"run"')):
                record = _decode(line, name)
                item = record.get("item")
                about = record.get("about")
                if record["type"] == "run":
                    run, facts = _text(record.get("run")), record.get("machine")
                    machine = _text(facts.get("architecture")) if isinstance(facts, dict) else machine
                elif isinstance(item, str) and isinstance(about, dict) and item in there:
                    abouts[item] = about
                elif isinstance(item, str) and isinstance(record.get("gaps"), int) and record["gaps"]:
                    gaps[item] = int(str(record["gaps"]))
    containers = []
    layers: dict[bytes, str] = {}
    layer_abouts: dict[bytes, Mapping[str, object]] = {}
    for name in items.names:
        about = abouts.get(name, {})
        if "/layers/" in name and name.startswith("containers/"):
            path = bytes_of(about, "path")
            if path:
                layers.setdefault(path.rstrip(b"/"), name)
                layer_abouts.setdefault(path.rstrip(b"/"), about)
        elif container := _container(name, about):
            containers.append(container)
    return ContainerRun(
        tuple(containers), layers, layer_abouts, items.names, run, machine, directory, known, gaps, items, opened,
        spooled,
    )  # fmt: skip


def _with_records(files: Container, both: Iterable[Container]) -> Container:
    """With what the other one knows: which image it is, above all."""
    names = dict.fromkeys((*files.names, *(name for one in both for name in one.names)))
    about = {key: value for one in both for key, value in one.about.items() if one is not files}
    about.update((key, value) for key, value in files.about.items() if value or key not in about)
    return replace(files, names=tuple(names), about=about)


def _container(item: str, about: Mapping[str, object]) -> Container | None:
    match = _OF_CONTAINER.fullmatch(item)
    # Databases of a second daemon are `runtime-2`, layers beyond a hundred `overlay2-unclaimed`: no containers.
    if match is None or not (about.get("id") or about.get("unclaimed") or re.fullmatch("[0-9a-f]{12}", match[2])):
        return None
    name = bytes_of(about, "name").decode("utf-8", "backslashreplace")
    pod, namespace = _text(about.get("pod")), _text(about.get("namespace"))
    names = [name or match[3], pod, f"{namespace}/{pod}" if pod else "", f"{namespace}/{pod}/{name}" if pod else ""]
    return Container(
        item=item,
        runtime=match[1],
        id=_text(about.get("id")) or match[2],
        names=tuple(one for one in names if one),
        about=about,
        rootfs=_rootfs(about.get("rootfs")),
    )


def _rootfs(value: object) -> RootFs | None:
    if not isinstance(value, dict):
        return None
    listed = value.get("lowers")
    lowers = [bytes_of(one, "bytes") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    upper = bytes_of(value, "upper").rstrip(b"/")
    if not upper and not lowers:
        return None
    left_out = value.get("lowers_left_out")
    return RootFs(
        driver=_text(value.get("driver")),
        upper=upper,
        lowers=tuple(one.rstrip(b"/") for one in lowers[:MAX_LOWERS] if one),
        userxattr=value.get("userxattr") is True,
        shift=shift_of(bytes_of(value, "remapped")),
        left_out=left_out if isinstance(left_out, int) else max(len(lowers) - MAX_LOWERS, 0),
    )


def shift_of(remapped: bytes) -> tuple[int, int]:
    """Of `UID.GID`, as Docker names a data root."""
    match = _REMAPPED.fullmatch(remapped)
    return (int(match[1]), int(match[2])) if match is not None else (0, 0)


def bytes_of(about: Mapping[str, object], key: str) -> bytes:
    """The true bytes of a name in a manifest: `X_b64` where there is one, else `X`; empty for what is no such thing."""
    encoded = about.get(key + "_b64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return b""
    return _text(about.get(key)).encode("utf-8", "surrogateescape")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _decode(line: bytes, what: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{what}: a line is not one that impound wrote") from error
