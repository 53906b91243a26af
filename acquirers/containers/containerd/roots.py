"""Where containerd keeps its data on this machine: every root, each once, with the state directories that go with it.

A root is looked for where distributions put it, where configuration files and the arguments of live daemons say, below
the data roots of Docker, in the homes of users who may run it without root, and where containers are mounted.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Gap, Reason, reason_of
from acquirers.containers.containerd.processes import live_daemons
from acquirers.containers.containerd.settings import Settings, parse_config
from acquirers.containers.docker.roots import DEFAULTS as DOCKER_DEFAULTS
from acquirers.containers.docker.settings import parse_daemon_json, parse_homes
from acquirers.containers.paths import mount_of, resolve
from acquirers.containers.records import MalformedError, Records, TooManyNamesError
from acquirers.root import ForeignMountError, TooLargeError

if TYPE_CHECKING:
    from acquirers.host import Host

DEFAULTS = (
    (b"/var/lib/containerd", b"/run/containerd"),
    (b"/var/lib/rancher/k3s/agent/containerd", b"/run/k3s/containerd"),
    (b"/var/lib/rancher/rke2/agent/containerd", b"/run/k3s/containerd"),
    (b"/var/snap/microk8s/common/var/lib/containerd", b"/var/snap/microk8s/common/run/containerd"),
    (b"/var/lib/k0s/containerd", b"/run/k0s/containerd"),
    (b"/var/lib/host-containerd", b"/run/host-containerd"),  # Bottlerocket's own containers
    *((path + b"/containerd/daemon", b"/run/docker/containerd/daemon") for path in DOCKER_DEFAULTS),
)
"""(root, state)."""
CONFIGS = (
    b"/etc/containerd/config.toml",
    b"/etc/host-containerd/config.toml",
    b"/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    b"/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    b"/var/snap/microk8s/current/args/containerd.toml",
    b"/etc/k0s/containerd.toml",
    b"/run/docker/containerd/containerd.toml",
)
_DOCKER_JSON = b"/etc/docker/daemon.json"
_ROOTLESS = (b"/.local/share/containerd", b"/.local/share/docker/containerd/daemon")
_SHAPE = (
    b"io.containerd.metadata.v1.bolt",
    b"io.containerd.content.v1.content",
    b"io.containerd.snapshotter.v1.overlayfs",
)
_UPPER = re.compile(rb"(/.+)/io\.containerd\.snapshotter\.v1\.[^/]+/snapshots/[0-9]+/fs")
_ROOTFS = re.compile(rb"(/.+)/io\.containerd\.runtime\.v2\.task/[^/]+/[^/]+/rootfs")
_STORED = re.compile(
    rb".*/(?:volumes/[^/]+/_data|(?:overlay2|fuse-overlayfs)/[0-9a-z]{25,64}/(?:diff|merged)|snapshots/[0-9]+/fs)/.+"
)
_MAX_CONFIG = 1 << 20
_MAX_PASSWD = 4 << 20
_MAX_ROOTS = 100
_MAX_TOLD = 200
_MAX_IMPORTED = 200


class ContainerdRoot(msgspec.Struct):
    """One directory in which a containerd keeps, or kept, everything that outlives it."""

    path: bytes
    """Native, links followed."""
    identity: tuple[int, int]
    found_by: list[str] = msgspec.field(default_factory=list)
    states: list[bytes] = msgspec.field(default_factory=list)
    """Native state directories (`/run/containerd`) that go with it and exist."""
    configs: list[bytes] = msgspec.field(default_factory=list)
    pids: list[int] = msgspec.field(default_factory=list)
    links: list[bytes] = msgspec.field(default_factory=list)
    """Symbolic links on the way to it."""


class Found(msgspec.Struct):
    """What discovery brought."""

    roots: list[ContainerdRoot] = msgspec.field(default_factory=list)
    configs: list[bytes] = msgspec.field(default_factory=list)
    """Configuration files that were read."""
    snapshotters: dict[bytes, str] = msgspec.field(default_factory=dict)
    """Directory -> name of snapshotters that a configuration has keep their data elsewhere."""
    denied: list[bytes] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    flags: list[Flag] = msgspec.field(default_factory=list)

    def gap(self, gap: Gap) -> None:
        if len(self.gaps) < _MAX_TOLD and gap not in self.gaps:
            self.gaps.append(gap)


def find_roots(host: Host) -> Found:
    """All roots of the machine, in a fixed order. Raises nothing for what the machine holds."""
    search = _Search(host)
    for path, state in DEFAULTS:
        search.candidate(path, "default", states=(state,))
    for config in CONFIGS:
        search.config(config)
    for docker in _docker_roots(host):
        search.candidate(docker + b"/containerd/daemon", "below a data root of Docker")
    for daemon in live_daemons(host, search.found.gaps):
        how = f"used by the live containerd {daemon.pid}"
        told = search.config(daemon.config_file, pid=daemon.pid) if daemon.config_file is not None else Settings()
        used, with_it = daemon.root or told.root or daemon.default_root, daemon.state or told.state
        with_it = with_it or daemon.default_state
        if used is not None:
            states = (with_it,) if with_it is not None else ()
            search.candidate(used, how, states=states, pid=daemon.pid, told=True)
    search.mounted()
    for home in _homes(host):
        for below in _ROOTLESS:
            search.candidate(home + below, "rootless default")
    search.finish()
    return search.found


class _Search:
    """Candidates become roots here, each (device, inode) once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mounts = host.mounts
        self._seen: dict[tuple[int, int], ContainerdRoot | None] = {}
        self._settings: dict[bytes, Settings] = {}
        self._imported = 0
        self.found = Found()

    def candidate(
        self, path: bytes, how: str, *, states: tuple[bytes, ...] = (), config: bytes | None = None,
        pid: int | None = None, told: bool = False,
    ) -> None:  # fmt: skip
        """Looks whether `path` is a root. What was told and is none is worth a word, a default is not."""
        if not path.startswith(b"/") or len(path) > 4096:
            self.found.gap(Gap(Reason.MALFORMED, f"the root of a containerd ({how}) is no absolute path", path[:4096]))
            return
        try:
            root = self._examine(path, how)
        except PermissionError:
            if path not in self.found.denied and len(self.found.denied) < _MAX_TOLD:
                self.found.denied.append(path)
            return
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self.found.gap(Gap(reason_of(error), f"the root of a containerd ({how}): {error.strerror}", path))
            elif told and len(self.found.flags) < _MAX_TOLD:
                self.found.flags.append(Flag(FlagKind.FINDING, f"no root of a containerd is here ({how})", path))
            return
        if root is None:
            return
        if how not in root.found_by and len(root.found_by) < 20:
            root.found_by.append(how)
        if config is not None and config not in root.configs and len(root.configs) < 20:
            root.configs.append(config)
        if pid is not None and pid not in root.pids:
            root.pids.append(pid)
        for state in states:
            self._state(root, state)

    def _state(self, root: ContainerdRoot, path: bytes) -> None:
        try:
            native, _ = resolve(self._host, path)
            if self._host.is_dir(native) and native not in root.states and len(root.states) < 20:
                root.states.append(native)
        except OSError:
            pass  # gone with the machine's memory: a mounted disk has none

    def _examine(self, path: bytes, how: str) -> ContainerdRoot | None:
        host = self._host
        mount = mount_of(self._mounts, path)
        if mount is not None and not mount.local:
            raise ForeignMountError(mount.fstype)
        identity = host.identity_of(path)
        if identity in self._seen:
            return self._seen[identity]
        native, links = resolve(host, path)
        with Records.open(host, native) as records:
            shaped = any(records.kind(name) is not None for name in _SHAPE)
        root = ContainerdRoot(native, identity, links=links) if shaped else None
        self._seen[identity] = root
        if root is None:
            return None
        if _STORED.fullmatch(native):
            detail = f"the root of a containerd inside of a container ({how}): stored with the layer or volume it is in"
            self.found.flags.append(Flag(FlagKind.ELSEWHERE, detail, native))
            self._seen[identity] = None
            return None
        if len(self.found.roots) >= _MAX_ROOTS:
            self.found.gap(
                Gap(Reason.LIMIT, f"more than {_MAX_ROOTS} roots of containerd: the rest is not taken", native)
            )
            self._seen[identity] = None
            return None
        self.found.roots.append(root)
        return root

    def config(self, path: bytes, *, pid: int | None = None) -> Settings:
        """A configuration file, which may not be there, and what it imports. What it tells first is told here."""
        if path in self._settings:
            return self._settings[path]
        self._settings[path] = Settings()
        data = self._read(path)
        if data is None:
            return Settings()
        self.found.configs.append(path)
        try:
            settings = parse_config(data)
        except MalformedError as error:
            self.found.gap(Gap(Reason.MALFORMED, f"the configuration of a containerd cannot be read: {error}", path))
            return Settings()
        for name, place in settings.snapshotters:
            if len(self.found.snapshotters) < _MAX_ROOTS:
                self.found.snapshotters.setdefault(place, name)
        root, state = settings.root, settings.state
        for other in self._imports(path, settings):
            more = self.config(other, pid=pid)
            root, state = more.root or root, more.state or state
        whole = Settings(root, state)
        self._settings[path] = whole
        if root is not None:
            how = "named in " + path.decode("utf-8", "replace")
            self.candidate(root, how, states=(state,) if state else (), config=path, pid=pid, told=True)
        return whole

    def _imports(self, path: bytes, settings: Settings) -> list[bytes]:
        """The files that a configuration imports; a pattern may stand for the name in a directory."""
        found: list[bytes] = []
        for one in settings.imports:
            place = os.path.normpath(os.path.join(os.path.dirname(path), one))
            directory, name = os.path.split(place)
            if b"*" not in name:
                found.append(place)
                continue
            pattern = re.compile(re.escape(name).replace(rb"\*", rb"[^/]*"))
            try:
                with Records.open(self._host, directory) as records:
                    names = records.names(matching=pattern, limit=_MAX_IMPORTED)
            except TooManyNamesError as error:
                names = error.first
            except OSError:
                continue
            found += [directory + b"/" + match for match, _ in names]
        room = max(0, _MAX_IMPORTED - self._imported)
        self._imported += len(found)
        return found[:room]

    def _read(self, path: bytes) -> bytes | None:
        try:
            return self._host.read(path, _MAX_CONFIG)
        except PermissionError:
            if path not in self.found.denied and len(self.found.denied) < _MAX_TOLD:
                self.found.denied.append(path)
            return None
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                reason = Reason.LIMIT if isinstance(error, TooLargeError) else reason_of(error)
                self.found.gap(Gap(reason, f"the configuration of a containerd: {error.strerror}", path))
            return None

    def mounted(self) -> None:
        """Roots whose snapshots are mounted: what is in use, whatever was configured."""
        for mount in self._mounts:
            if mount.fstype != b"overlay":
                continue
            upper = _UPPER.fullmatch(mount.option(b"upperdir") or b"")
            state = _ROOTFS.fullmatch(mount.point)
            if upper is not None:
                self.candidate(upper[1], "a mounted snapshot", states=(state[1],) if state is not None else ())

    def finish(self) -> None:
        """State directories that Docker's own containerd has, by its place."""
        for root in self.found.roots:
            if root.path.endswith(b"/containerd/daemon"):
                for state in (b"/run/docker/containerd/daemon", b"/run/snap.docker/containerd/daemon"):
                    if not any(state in other.states for other in self.found.roots):
                        self._state(root, state)


def _docker_roots(host: Host) -> list[bytes]:
    """The one that Docker's configuration names; those of live daemons are found with the daemons."""
    try:
        settings = parse_daemon_json(host.read(_DOCKER_JSON, 1 << 18))
    except (OSError, MalformedError):
        return []  # told by the acquirer of Docker
    root = settings.data_root
    return [root] if root is not None and root.startswith(b"/") else []


def _homes(host: Host) -> list[bytes]:
    """Homes of users who may run a daemon without root, and that lie on this machine."""
    try:
        homes = parse_homes(host.read(b"/etc/passwd", _MAX_PASSWD))
    except OSError:
        return []
    mounts = host.mounts
    found = []
    for home in homes:
        mount = mount_of(mounts, home)
        if mount is not None and not mount.local:
            continue
        try:
            os.close(host.open_path(home + b"/.local/share"))
        except OSError:
            continue
        found.append(home)
    return found
