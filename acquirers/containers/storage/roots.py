"""Where containers/storage lies on this machine: every graph root, each once, found without asking a daemon.

A graph root is looked for at its default places, where configuration and the arguments of live processes say, where
overlay filesystems are mounted, and in the homes of everybody. What belongs to it (run roots, image stores, the
directories of podman) is noted with it, and looked at later.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason, reason_of
from acquirers.containers.paths import mount_of, resolve
from acquirers.containers.records import MalformedError, Records, TooManyNamesError
from acquirers.containers.search import MAX_TOLD, Findings, outermost
from acquirers.containers.storage.processes import live_processes
from acquirers.containers.storage.settings import Told, User, expand, is_cut, parse_config, parse_users
from acquirers.root import ForeignMountError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acquirers.host import Host
    from acquirers.mounts import Mount

DEFAULT = b"/var/lib/containers/storage"
RUN_ROOT = b"/run/containers/storage"
CONFIGS = (
    b"/usr/share/containers/storage.conf", b"/etc/containers/storage.conf", b"/etc/containers/containers.conf",
    b"/etc/crio/crio.conf",
)  # fmt: skip
CONFIG_DIRECTORIES = (b"/etc/containers/containers.conf.d", b"/etc/crio/crio.conf.d")

DRIVERS = ("overlay", "vfs", "btrfs", "zfs", "aufs", "devicemapper", "overlay2")
_SHAPE = re.compile(rb"(?:%s)-(?:containers|layers|images)" % "|".join(DRIVERS).encode())
_MERGED = re.compile(rb"(/.+)/overlay/[0-9a-f]{64}/merged")
_STORED = re.compile(rb"/(?:volumes/[^/]+/_data|overlay/[0-9a-f]{64}/(?:diff|merged)|vfs/dir/[0-9a-f]{64})(?:/|\Z)")

_MAX_CONFIG = 1 << 16
_MAX_PASSWD = 4 << 20
_MAX_NAMES = 10_000
_MAX_PATH = 4096
_MAX_SOURCES = 20


class GraphRoot(msgspec.Struct):
    """One directory in which containers/storage keeps everything that outlives a boot."""

    path: bytes
    """Native, links followed."""
    identity: tuple[int, int]
    uid: int = 0
    """Whose directory it is."""
    found_by: list[str] = msgspec.field(default_factory=list)
    run_roots: list[bytes] = msgspec.field(default_factory=list)
    image_stores: list[bytes] = msgspec.field(default_factory=list)
    """Where images lie apart from it, or are shared; the one that is written first."""
    volume_paths: list[bytes] = msgspec.field(default_factory=list)
    tmp_dirs: list[bytes] = msgspec.field(default_factory=list)
    configs: list[bytes] = msgspec.field(default_factory=list)
    """Configuration files that name it."""
    pids: list[int] = msgspec.field(default_factory=list)
    links: list[bytes] = msgspec.field(default_factory=list)
    """Symbolic links on the way to it."""
    owner: User | None = None
    """Whose it is, when it was looked for in a home."""
    transient: bool = False

    def note(self, told: Told) -> None:
        """What was said along with it."""
        for path, kept in (
            (told.run_root, self.run_roots), (told.image_store, self.image_stores),
            *((store, self.image_stores) for store in told.more_stores),
            (told.volume_path, self.volume_paths), (told.tmp_dir, self.tmp_dirs),
        ):  # fmt: skip
            if path.startswith(b"/") and len(path) < _MAX_PATH and path not in kept and len(kept) < _MAX_SOURCES:
                kept.append(os.path.normpath(path))
        self.transient |= told.transient


class Found(Findings):
    """What discovery brought."""

    what = "graph roots"

    roots: list[GraphRoot] = msgspec.field(default_factory=list)
    denied: list[bytes] = msgspec.field(default_factory=list)
    unseen: list[bytes] = msgspec.field(default_factory=list)
    """Home directories that were not looked into."""
    configs: list[bytes] = msgspec.field(default_factory=list)
    """Configuration files of any kind outside of the usual directories."""
    homes: list[bytes] = msgspec.field(default_factory=list)
    """Homes in which there is something of podman."""


def find_roots(host: Host) -> Found:
    """All graph roots of the machine, in a fixed order. Raises nothing for what the machine holds."""
    search = _Search(host)
    told = [(path, one) for path in _system_configs(host, search.found) if (one := search.config(path)) is not None]
    system = Told(run_root=RUN_ROOT)
    search.candidate(DEFAULT, "default", system)
    rootless = ""
    for path, one in told:
        rootless = one.rootless_root or rootless
        search.told(one, f"named in {_readable(path)}", config=path)
    for _, one in told:  # crio.conf may name no root, and then uses that of storage.conf
        search.note_default(one)
    for process in live_processes(host, search.found.gaps):
        how = f"used by the live {process.command} {process.pid}"
        search.told(process.told, how, pid=process.pid)
        for path in process.told.configs:
            search.named_config(path, how, process.pid)
        if process.data_home and not process.told.graph_root:
            search.candidate(process.data_home, how, process.told, pid=process.pid)
        if process.config_home:
            search.named_config(process.config_home + b"/containers/storage.conf", how, process.pid)
    for mount in search.mounts:
        if mount.fstype in {b"overlay", b"fuse.fuse-overlayfs"} and (match := _MERGED.fullmatch(mount.point)):
            search.candidate(match[1], "a mounted overlay filesystem", Told())
    for user in _users(host, search.found):
        search.home(user, rootless)
    search.found.roots = outermost(search.found.roots, _STORED, "graph root", search.found)
    return search.found


class _Search:
    """Candidates become roots here, each (device, inode) once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.mounts = host.mounts
        self._seen: dict[tuple[int, int], GraphRoot | None] = {}
        self._read_already: set[bytes] = set()
        self.found = Found()

    def told(self, told: Told, how: str, *, config: bytes | None = None, pid: int | None = None) -> None:
        """A root that somebody names, with what was said along with it."""
        if not told.graph_root:
            return
        if not told.graph_root.startswith(b"/") or len(told.graph_root) >= _MAX_PATH:
            detail = f"a graph root that is no absolute path, and was not looked for ({how}): {told.graph_root[:200]!r}"
            self.found.gap(Gap(Reason.MALFORMED, detail, config or b""))
            return
        self.candidate(told.graph_root, how, told, config=config, pid=pid)

    def note_default(self, told: Told) -> None:
        """What a configuration says without naming a root belongs to the default one."""
        default = next((root for root in self.found.roots if root.path == DEFAULT or DEFAULT in root.links), None)
        if default is not None and not told.graph_root:
            default.note(told)

    def candidate(
        self,
        path: bytes,
        how: str,
        told: Told,
        *,
        config: bytes | None = None,
        pid: int | None = None,
        owner: User | None = None,
    ) -> None:
        """Looks whether `path` is a graph root. What was told and is none is worth a word, a default is not."""
        try:
            root = self._examine(path, how)
        except PermissionError:
            if path not in self.found.denied:
                self.found.denied.append(path)
            return
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self.found.gap(Gap(reason_of(error), f"a graph root ({how}): {error.strerror}", path))
            elif pid is not None:
                self.found.flag(Flag(FlagKind.FINDING, f"no graph root is here ({how})", path))
            return
        if root is None:
            return
        root.note(told)
        root.owner = root.owner or owner
        if how not in root.found_by and len(root.found_by) < _MAX_SOURCES:
            root.found_by.append(how)
        if config is not None and config not in root.configs and len(root.configs) < _MAX_SOURCES:
            root.configs.append(config)
        if pid is not None and pid not in root.pids and len(root.pids) < _MAX_SOURCES:
            root.pids.append(pid)

    def _examine(self, path: bytes, how: str) -> GraphRoot | None:
        host = self._host
        mount = mount_of(self.mounts, path)
        if mount is not None and not mount.local:
            detail = f"a graph root ({how}) on {mount.fstype.decode('ascii', 'replace')}, which is not entered"
            self.found.gap(Gap(Reason.NOT_CROSSED, detail, path))
            return None
        identity = host.identity_of(path)
        if identity in self._seen:
            return self._seen[identity]
        native, links = resolve(host, path)
        root = GraphRoot(native, identity, _stat(host, native).st_uid, links=links) if _shaped(host, native) else None
        self._seen[identity] = root
        if root is not None:
            self.found.roots.append(root)
        elif not host.is_dir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return root

    def config(self, path: bytes) -> Told | None:
        """What a file of configuration says, once; None when there is none."""
        if path in self._read_already:
            return None
        self._read_already.add(path)
        try:
            return parse_config(self._host.read(path, _MAX_CONFIG))
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
                reason = Reason.LIMIT if isinstance(error, TooLargeError) else reason_of(error)
                self.found.gap(Gap(reason, f"the configuration of containers/storage: {error.strerror}", path))
        except MalformedError as error:
            detail = f"the configuration of containers/storage cannot be read: {error}"
            self.found.gap(Gap(Reason.MALFORMED, detail, path))
        return None

    def named_config(self, path: bytes, how: str, pid: int | None) -> None:
        """A file of configuration that a process names."""
        if not path.startswith(b"/") or len(path) >= _MAX_PATH:
            return
        told = self.config(path)
        if told is None:
            return
        if path not in self.found.configs and len(self.found.configs) < MAX_TOLD:
            self.found.configs.append(path)
        self.told(told, f"named in {_readable(path)}, {how}", config=path, pid=pid)

    def home(self, user: User, rootless: str) -> None:
        """What somebody without root keeps."""
        home = user.home
        if not _may_enter(self._host, home, self.mounts, self.found):
            self.found.unseen.append(home)
            return
        run = f"/run/user/{user.uid}/containers".encode()
        defaults = Told(run_root=run, tmp_dir=f"/run/user/{user.uid}/libpod/tmp".encode())
        before = len(self.found.roots)
        if user.uid:
            self.candidate(home + b"/.local/share/containers/storage", "rootless default", defaults, owner=user)
            if rootless:
                path = expand(rootless, user)
                self.candidate(path, "rootless storage path of the machine", defaults, owner=user)
        for name in (b"storage.conf", b"containers.conf"):
            config = home + b"/.config/containers/" + name
            told = self.config(config)
            if told is None:
                continue
            self._of_user(user, told, config, defaults)
        something = len(self.found.roots) > before or self._host.is_dir(home + b"/.config/containers")
        if something and home not in self.found.homes:
            self.found.homes.append(home)

    def _of_user(self, user: User, told: Told, config: bytes, defaults: Told) -> None:
        how = f"named in {_readable(config)}"
        for text in (told.graph_root.decode("utf-8", "surrogateescape"), told.rootless_root):
            if text:
                path = expand(text, user)
                if not path.startswith(b"/") or len(path) >= _MAX_PATH:
                    detail = f"a graph root that is no absolute path, and was not looked for: {path[:200]!r}"
                    self.found.gap(Gap(Reason.MALFORMED, detail, config))
                    continue
                self.candidate(path, how, told, config=config, owner=user)
                self.candidate(path, how, defaults, config=config, owner=user)
        if not told.graph_root:
            for root in self.found.roots:
                if root.owner == user:
                    root.note(told)


def _readable(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def _shaped(host: Host, path: bytes) -> bool:
    """Whether a directory holds what containers/storage puts into one. Raises `PermissionError`."""
    try:
        with Records.open(host, path) as records:
            return bool(records.names(matching=_SHAPE, limit=100))
    except TooManyNamesError:
        return True
    except PermissionError:
        if _passable(host, path):
            return True
        raise
    except OSError:
        return False


def _passable(host: Host, path: bytes) -> bool:
    """It cannot be listed, and yet what should be in it can be seen."""
    for driver in DRIVERS:
        try:
            if stat.S_ISDIR(_stat(host, path + f"/{driver}-layers".encode()).st_mode):
                return True
        except OSError:
            continue
    return False


def _stat(host: Host, path: bytes) -> os.stat_result:
    fd = host.open_path(path)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _system_configs(host: Host, found: Found) -> Iterator[bytes]:
    yield from CONFIGS
    for directory in CONFIG_DIRECTORIES:
        try:
            with Records.open(host, directory) as records:
                names = [name for name, _ in records.names(limit=_MAX_NAMES)]
        except TooManyNamesError as error:
            names = [name for name, _ in error.first]
        except OSError:
            continue
        if len(names) > 100:
            found.gap(Gap(Reason.LIMIT, f"{len(names)} files or more, of which 100 were looked at", directory))
        yield from (directory + b"/" + name for name in names[:100] if not name.startswith(b"."))


def _may_enter(host: Host, home: bytes, mounts: Sequence[Mount], found: Found) -> bool:
    """Whether a home can be looked into: not that of another user, not one on a server that may be dead."""
    mount = mount_of(mounts, home)
    if mount is not None and not mount.local:
        return False
    try:
        os.close(host.open_path(home))
        os.close(host.open_path(home + b"/.local"))
    except ForeignMountError as error:
        found.gap(Gap(Reason.NOT_CROSSED, f"home directories {error.strerror}", os.path.dirname(home)))
        return False
    except PermissionError:
        return False
    except OSError:
        pass  # it is not there, or has nothing of the kind
    return True


def _users(host: Host, found: Found) -> list[User]:
    """Everybody who may run podman without root. Whose homes are not read from here are a gap."""
    path = b"/etc/passwd"
    what = "graph roots of users without root"
    try:
        data = host.read(path, _MAX_PASSWD)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = Reason.LIMIT if isinstance(error, TooLargeError) else reason_of(error)
        found.gap(Gap(reason, f"{what} were not looked for, the list of homes: {error.strerror}", path))
        return []
    if is_cut(data):
        found.gap(Gap(Reason.LIMIT, f"{what} were looked for in the homes of the first lines only", path))
    return parse_users(data)
