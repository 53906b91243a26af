"""Where Docker keeps its data on this machine: every data root, each once, found without asking a daemon.

A root is looked for at its default places, where configuration files, systemd units and arguments of live daemons
say, where overlay filesystems are mounted, below each of these for user namespaces (`<uid>.<gid>`), and in the homes
of users who may run it without root.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason, reason_of
from acquirers.containers.docker.daemons import live_daemons
from acquirers.containers.docker.settings import MAX_LINES, is_cut, parse_daemon_json, parse_homes, parse_lines
from acquirers.containers.paths import mount_of, resolve
from acquirers.containers.records import MalformedError, Records, TooManyNamesError
from acquirers.containers.search import Findings, outermost
from acquirers.root import ForeignMountError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acquirers.containers.docker.settings import Settings
    from acquirers.host import Host
    from acquirers.mounts import Mount

DEFAULTS = (b"/var/lib/docker", b"/var/snap/docker/common/var-lib-docker")
DAEMON_JSON = (b"/etc/docker/daemon.json", b"/var/snap/docker/current/config/daemon.json")
UNIT_DIRECTORIES = (
    b"/etc/systemd/system",
    b"/run/systemd/system",
    b"/usr/lib/systemd/system",
    b"/lib/systemd/system",
)
VARIABLES = (b"/etc/default/docker", b"/etc/sysconfig/docker", b"/etc/conf.d/docker", b"/etc/sysconfig/docker-storage")

_MAX_CONFIG = 1 << 18
_MAX_PASSWD = 4 << 20
_MAX_DROP_INS = 100
_MAX_NAMES = 10_000
"""Names of a directory that may be a data root: a real one has some twenty."""
_MAX_PATH = 4096
_MAX_SOURCES = 20
"""Of one data root: what else names it is told of nowhere, and was read."""
_SHAPE = (b"containers", b"image", b"overlay2")
_REMAPPED = re.compile(rb"\d{1,10}\.\d{1,10}")
_STORED = re.compile(rb"/(?:volumes/[^/]+/_data|(?:overlay2|fuse-overlayfs)/[0-9a-z]{25,64}/(?:diff|merged))(?:/|\Z)")
_MERGED = re.compile(rb"(/.+)/(?:overlay2|fuse-overlayfs)/[0-9a-z]{25,64}/merged")


class DataRoot(msgspec.Struct):
    """One directory in which a daemon keeps, or kept, everything."""

    path: bytes
    """Native, links followed: as the daemon itself writes it into its records."""
    identity: tuple[int, int]
    found_by: list[str]
    configs: list[bytes] = msgspec.field(default_factory=list)
    """Configuration files that name it."""
    pids: list[int] = msgspec.field(default_factory=list)
    """Live daemons that use it."""
    links: list[bytes] = msgspec.field(default_factory=list)
    """Symbolic links on the way to it: without them nobody finds it where it was configured."""


class Found(Findings):
    """What discovery brought."""

    what = "data roots"

    roots: list[DataRoot] = msgspec.field(default_factory=list)
    denied: list[bytes] = msgspec.field(default_factory=list)
    """Paths at which there is, or should be, one, and which this process may not look at."""
    unseen: list[bytes] = msgspec.field(default_factory=list)
    """Home directories that were not looked into: those of other users, those on a network filesystem."""


def find_roots(host: Host) -> Found:
    """All data roots of the machine, in a fixed order. Raises nothing for what the machine holds."""
    search = _Search(host)
    for path in DEFAULTS:
        search.candidate(path, "default")
    for path in DAEMON_JSON:
        search.daemon_json(path)
    for path in _units(host, UNIT_DIRECTORIES, search.found):
        search.lines(path)
    for path in VARIABLES:
        search.lines(path)
    for daemon in live_daemons(host, search.found.gaps):
        if daemon.config_file is not None:
            search.daemon_json(daemon.config_file, pid=daemon.pid)
        if daemon.data_root is not None:
            search.candidate(daemon.data_root, f"used by the live dockerd {daemon.pid}", pid=daemon.pid)
    for mount in search.mounts:
        if mount.fstype == b"overlay" and (match := _MERGED.fullmatch(mount.point)):
            search.candidate(match[1], "a mounted overlay filesystem")
    for home in _homes(host, search.found):
        if not _may_enter(host, home, search.mounts, search.found):
            search.found.unseen.append(home)
            continue
        search.candidate(home + b"/.local/share/docker", "rootless default")
        search.daemon_json(home + b"/.config/docker/daemon.json")
        for path in _units(host, (home + b"/.config/systemd/user",), search.found):
            search.lines(path)
    search.found.roots = outermost(search.found.roots, _STORED, "Docker data root", search.found)
    return search.found


class _Search:
    """Candidates become roots here, each (device, inode) once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.mounts = host.mounts
        """Taken once: a machine may have thousands of mounts, and thousands of homes."""
        self._seen: dict[tuple[int, int], DataRoot | None] = {}
        self._read_already: set[bytes] = set()
        self.found = Found()

    def candidate(self, path: bytes, how: str, *, config: bytes | None = None, pid: int | None = None) -> None:
        """Looks whether `path` is a data root. What was told and is none is worth a word, a default is not."""
        try:
            root = self._examine(path, how)
        except PermissionError:
            if path not in self.found.denied:
                self.found.denied.append(path)
            return
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self.found.gap(Gap(reason_of(error), f"a Docker data root ({how}): {error.strerror}", path))
            elif config is not None or pid is not None:
                self.found.flag(Flag(FlagKind.FINDING, f"no Docker data root is here ({how})", path))
            return
        if root is None:
            return
        if how not in root.found_by and len(root.found_by) < _MAX_SOURCES:
            root.found_by.append(how)
        if config is not None and config not in root.configs:
            self._add_config(root, config)
        if pid is not None and pid not in root.pids:
            root.pids.append(pid)

    def _add_config(self, root: DataRoot, config: bytes) -> None:
        if len(root.configs) < _MAX_SOURCES:
            root.configs.append(config)
            return
        detail = f"more than {_MAX_SOURCES} configuration files name the data root: this one is not taken"
        self.found.gap(Gap(Reason.LIMIT, detail, config))

    def _examine(self, path: bytes, how: str) -> DataRoot | None:
        host = self._host
        mount = mount_of(self.mounts, path)
        if mount is not None and not mount.local:
            # Not even looked at: a dead server would hold the whole run.
            detail = f"a Docker data root ({how}) on {mount.fstype.decode('ascii', 'replace')}, which is not entered"
            self.found.gap(Gap(Reason.NOT_CROSSED, detail, path))
            return None
        identity = host.identity_of(path)
        if identity in self._seen:
            return self._seen[identity]
        shaped = any(_is_directory(host, path + b"/" + name) for name in _SHAPE)
        native, links = resolve(host, path)
        root = DataRoot(native, identity, []) if shaped else None
        self._seen[identity] = root
        if root is not None:
            root.links = links
            self.found.roots.append(root)
        self._remapped(native)
        if root is None and not host.is_dir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return root

    def _remapped(self, path: bytes) -> None:
        """`userns-remap` moves the whole tree into a child that is named after the remapped root."""
        try:
            names = _names(self._host, path)
        except TooManyNamesError as error:
            detail = f"{error.strerror}: not searched for the data roots of user namespaces"
            self.found.gap(Gap(Reason.LIMIT, detail, path))
            names = [name for name, _ in error.first]
        except OSError:
            # May be passed through but not listed: a root of its own was noted, a child would need its name.
            if path not in self.found.denied:
                self.found.denied.append(path)
            return
        for name in names:
            if _REMAPPED.fullmatch(name):
                self.candidate(path + b"/" + name, "user namespace of " + path.decode("utf-8", "replace"))

    def daemon_json(self, path: bytes, *, pid: int | None = None) -> None:
        """A configuration file of the daemon, which may not be there."""
        if pid is None and path in self._read_already:
            return  # several units and variables may name the same one
        self._read_already.add(path)
        data = self._read(path)
        if data is None:
            return
        try:
            settings = parse_daemon_json(data)
        except MalformedError as error:
            detail = f"the configuration of a Docker daemon cannot be read: {error}"
            self.found.gap(Gap(Reason.MALFORMED, detail, path))
            return
        self._follow(settings, path, pid)

    def lines(self, path: bytes) -> None:
        """A unit file, or a file of shell variables."""
        data = self._read(path)
        if data is None:
            return
        if is_cut(data):
            detail = f"the configuration of a Docker daemon has more than {MAX_LINES} lines: the rest was not looked at"
            self.found.gap(Gap(Reason.LIMIT, detail, path))
        self._follow(parse_lines(data), path, None)

    def _follow(self, settings: Settings, source: bytes, pid: int | None) -> None:
        if settings.data_root is not None and self._is_path(settings.data_root, "data root", source):
            how = "named in " + source.decode("utf-8", "replace")
            self.candidate(settings.data_root, how, config=source, pid=pid)
        if settings.config_file is not None and self._is_path(settings.config_file, "configuration file", source):
            self.daemon_json(settings.config_file)

    def _is_path(self, told: bytes, what: str, source: bytes) -> bool:
        """What is relative, or to be filled in by systemd or a shell, leads nowhere from here: a gap."""
        if told.startswith(b"/") and len(told) < _MAX_PATH:
            return True
        detail = f"the {what} of a Docker daemon is no absolute path, and was not looked for: {told[:200]!r}"
        self.found.gap(Gap(Reason.MALFORMED, detail, source))
        return False

    def _read(self, path: bytes) -> bytes | None:
        try:
            return self._host.read(path, _MAX_CONFIG)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                detail = f"the configuration of a Docker daemon: {error.strerror}"
                self.found.gap(Gap(_reason(error), detail, path))
            return None


def _is_directory(host: Host, path: bytes) -> bool:
    """Raises `PermissionError`, because what may not be seen is not absent. Nor is what is mounted from elsewhere."""
    try:
        fd = host.open_path(path)
    except PermissionError:
        raise
    except ForeignMountError:
        return True
    except OSError:
        return False
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _units(host: Host, directories: tuple[bytes, ...], found: Found) -> Iterator[bytes]:
    """docker.service and its drop-ins, in whatever of the directories they are."""
    for directory in directories:
        yield directory + b"/docker.service"
        drop_ins = directory + b"/docker.service.d"
        try:
            names = _names(host, drop_ins)
        except TooManyNamesError as error:
            names = [name for name, _ in error.first]
        except ForeignMountError as error:
            found.gap(Gap(Reason.NOT_CROSSED, f"drop-ins for a Docker daemon: {error.strerror}", drop_ins))
            continue
        except OSError:
            continue  # hardly any machine has them; what may not be listed belongs to root, as the data root does
        if len(names) > _MAX_DROP_INS:
            detail = f"{len(names)} drop-ins or more, of which {_MAX_DROP_INS} were looked at"
            found.gap(Gap(Reason.LIMIT, detail, drop_ins))
        for name in names[:_MAX_DROP_INS]:
            if name.endswith(b".conf"):
                yield drop_ins + b"/" + name


def _may_enter(host: Host, home: bytes, mounts: Sequence[Mount], found: Found) -> bool:
    """Whether a home directory can be looked into: not that of another user, not one on a server that may be dead."""
    mount = mount_of(mounts, home)
    if mount is not None and not mount.local:
        return False
    try:
        os.close(host.open_path(home))
    except ForeignMountError as error:
        # Once for all homes that lie side by side: links to a file server are many.
        found.gap(Gap(Reason.NOT_CROSSED, f"home directories {error.strerror}", os.path.dirname(home)))
        return False
    except OSError:
        pass  # told by what is looked for in it
    try:
        _is_directory(host, home + b"/.local")
    except PermissionError:
        return False
    return True


def _homes(host: Host, found: Found) -> list[bytes]:
    """The homes of everybody who may run a daemon without root. Whose are not read from here are a gap."""
    path = b"/etc/passwd"
    what = "the data roots of rootless daemons"
    try:
        data = host.read(path, _MAX_PASSWD)
    except FileNotFoundError:
        return []
    except OSError as error:
        found.gap(Gap(_reason(error), f"{what} were not looked for, the list of homes: {error.strerror}", path))
        return []
    if is_cut(data):
        detail = f"{what} were looked for in the homes of the first {MAX_LINES} lines only"
        found.gap(Gap(Reason.LIMIT, detail, path))
    return parse_homes(data)


def _names(host: Host, path: bytes) -> list[bytes]:
    """The names of a directory that should have few. Raises `TooManyNamesError`, which holds some."""
    with Records.open(host, path) as records:
        return [name for name, _ in records.names(limit=_MAX_NAMES)]


def _reason(error: OSError) -> Reason:
    return Reason.LIMIT if isinstance(error, TooLargeError) else reason_of(error)
