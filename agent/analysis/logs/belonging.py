"""Whose log a file is: by where it lies, never by its name alone.

A container makes what names it likes in its own files, the names of other containers' logs among them, and a process in
a mount namespace of its own may hold a file that was called like anything there. So a log is a container's own where
the runtime keeps it: below the data root, or among the log paths, that the manifest names for that archive (`about`).
Of a run without a manifest nothing but the names is known: then it must lie in no layer and no volume.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.facts import reduce_name
from agent.analysis.containers import bytes_of
from agent.analysis.logs.names import ROOT, Form, LogFile
from agent.custody.manifest import lines_of
from agent.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from agent.analysis.items import Items
    from agent.analysis.tarstream import TarStream

KUBERNETES = "logs/kubernetes.tar"
CONTAINER_ITEM = re.compile(r"containers/([a-z0-9-]+)/([0-9a-f]{12})-([^/]+)\.tar")
_ITEM = re.compile(r"containers/[a-z0-9-]+/([^/]+)\.tar")
_MANIFEST = re.compile(r"attempt-\d+/manifest\.jsonl")
_POD_LOGS = b"/var/log/pods/"
# Layers and volumes of Docker, containers/storage, containerd and the kubelet.
_FILES = re.compile(
    rb"/(?:overlay2?|fuse-overlayfs)/[^/]+/diff/|/vfs/dir/[^/]+/|/btrfs/subvolumes/[^/]+/|/snapshots/[^/]+/"
    rb"|/volumes/(?:[^/]+/){1,2}_data/|/pods/[^/]+/volumes?(?:-subpaths)?/"
)
_MAX_INDEX = 64 << 20


class Known(msgspec.Struct, frozen=True):
    """Where the runtime of one archive keeps logs, as the manifest says."""

    root: bytes
    """Its data root."""
    logs: frozenset[bytes]
    """Directories of logs that lie elsewhere."""


class Held(msgspec.Struct, frozen=True):
    """One file without a name, and who holds it."""

    path: bytes
    """Its last name, as the holder saw it."""
    label: str
    container: str
    of_the_machine: bool
    """Its holder sees the machine's own mounts: the name is one of the machine's."""


class Owner(msgspec.Struct, frozen=True):
    """The timeline that a file belongs to, and who may ask for it."""

    key: bytes
    container: str
    label: str
    identity: str
    names: tuple[str, ...]
    told: str
    """What a message calls it."""
    foreign: bool = False
    """It only bears the name of a log."""


def known_of(items: Items) -> dict[str, Known]:
    """Item -> what the manifests say of it. Raises `DamagedError`, and what the items raise."""
    found: dict[str, Known] = {}
    for name in filter(_MANIFEST.fullmatch, items.names):
        for line in lines_of(items.stream(name), name):
            if line.startswith((b'{"type":"item"', b'{"type":"stored"')):
                record = _decode(line, name)
                item, about = record.get("item"), record.get("about")
                if isinstance(item, str) and _ITEM.fullmatch(item) and isinstance(about, dict):
                    found[item] = _known(about)
    return found


def _known(about: Mapping[str, object]) -> Known:
    listed = about.get("logs")
    logs = [_bytes(one) for one in listed] if isinstance(listed, list) else []
    logs.append(bytes_of(about, "log_path"))
    root = bytes_of(about, "data_root") or bytes_of(about, "root")
    return Known(root.rstrip(b"/"), frozenset(os.path.dirname(path) for path in logs if path.startswith(b"/")))


def _bytes(value: object) -> bytes:
    """A name in a list of the manifest: text, or an object with its true bytes."""
    if isinstance(value, dict):
        return bytes_of(value, "bytes")
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def is_own(log: LogFile, path: bytes, item: str, known: Known | None) -> bool:
    """Whether a member of an archive lies where the runtime keeps the logs of what that archive is of."""
    native = path.removeprefix(ROOT)
    if item == KUBERNETES:
        return _FILES.search(native) is None
    match = CONTAINER_ITEM.fullmatch(item)
    if log.form is not Form.POD and match is not None and match[2] != log.container[:12]:
        return False
    return _in_place(log, native, known)


def _in_place(log: LogFile, native: bytes, known: Known | None) -> bool:
    if known is None:
        return _FILES.search(native) is None
    if log.form in {Form.DOCKER, Form.CONMON}:
        return log.above == known.root
    if log.form is Form.POD and native.startswith(_POD_LOGS):
        return True
    if log.form is Form.POD:
        return os.path.dirname(native) in known.logs
    return _FILES.search(native) is None and not native.startswith(known.root + b"/")


def is_of_the_machine(log: LogFile, held: Held, known: Mapping[str, Known], met: AbstractSet[bytes]) -> bool:
    """Whether a file without a name was a log that a runtime of the machine kept. `met`: keys of logs that have one."""
    if not held.of_the_machine:
        return False
    if log.key in met or (log.form is Form.POD and held.path.startswith(_POD_LOGS)):
        return True
    if not known:
        return _FILES.search(held.path) is None
    return log.form in {Form.DOCKER, Form.CONMON} and any(log.above == one.root for one in known.values())


def owner_of(log: LogFile, path: bytes, item: str, known: Known | None) -> Owner:
    """Whose log a member of an archive is."""
    match = CONTAINER_ITEM.fullmatch(item)
    if not is_own(log, path, item, known):
        of_item = _ITEM.fullmatch(item)
        holder = of_item[1] if of_item is not None else os.path.basename(item).removesuffix(".tar")
        identity, names = (match[2], (match[3],)) if match is not None else ("", ())
        return _stranger(f"inside-{holder}", item, log, identity, names)
    if match is None:
        return _nobodys(log)
    # Of one container of a pod, each instance has an archive and its own files; what is nobody's is one timeline.
    of_pod = log.form is Form.POD
    key = item.encode() + b"\0" + log.key if of_pod else log.key
    identity = match[2] if of_pod else log.container
    return Owner(key, log.container, f"{match[2]}-{match[3]}", identity, (*log.names, match[3]), match[3])


def owner_of_held(log: LogFile, held: Held, known: Mapping[str, Known], met: AbstractSet[bytes]) -> Owner:
    """Whose log a file without a name was. `met`: keys of the logs that have one."""
    if is_of_the_machine(log, held, known, met):
        return _nobodys(log)
    return _stranger(held.label, "", log, held.container, ())


def _nobodys(log: LogFile) -> Owner:
    """A log that is in no archive of its container."""
    identity = "" if log.form is Form.POD else log.container
    return Owner(log.key, log.container, _label(log), identity, log.names, log.container)


def _stranger(holder: str, item: str, log: LogFile, identity: str, names: tuple[str, ...]) -> Owner:
    """What only bears the name of a log is called by whoever has it, and never joined with that log."""
    key = b"\0".join((item.encode(), holder.encode("utf-8", "surrogatepass"), log.key))
    container = f"{holder}/{log.container}"
    return Owner(key, container, f"{holder}-{_label(log)}", identity, names, holder, foreign=True)


def _label(log: LogFile) -> str:
    return log.container.replace("/", "_") if log.form is Form.POD else log.container[:12]


class _Indexed(msgspec.Struct):
    """One line of `deleted/index.jsonl`. An earlier version said nothing of mounts: then nothing is known."""

    member: str
    path: str
    pid: int = 0
    comm: str = ""
    container: str = ""
    of_the_machine: bool = False


def index_of(archive: TarStream) -> dict[bytes, Held]:
    """Member -> its file, of the first member of `logs/deleted.tar`."""
    data = bytearray()
    for _, piece in archive.content():
        data += piece
        if len(data) > _MAX_INDEX:
            return {}
    found = {}
    for line in bytes(data).split(b"\n"):
        try:
            one = msgspec.json.decode(line, type=_Indexed)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        label = reduce_name(f"held-by-{one.container[:12] or one.pid}-{one.comm}", 60)
        path = one.path.encode("utf-8", "surrogatepass")
        found[one.member.encode()] = Held(path, label, one.container, one.of_the_machine)
    return found


def _decode(line: bytes, what: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{what}: a line is not one that impound wrote") from error
