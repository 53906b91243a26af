"""Docker daemons that run now, and what their arguments say of the place where they keep their data.

A daemon may live in another mount namespace (snap, rootless, Docker in Docker): its paths are translated.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Reason
from acquirers.containers.docker.settings import parse_arguments
from acquirers.containers.foreign import native_path, same_namespace
from acquirers.root import ForeignMountError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host

# The command names, cut to 15 bytes by the kernel: moby's, and that of RHEL 7.
_COMMANDS = (b"dockerd", b"dockerd-current")
_DEFAULT = b"/var/lib/docker"
_MAX_DAEMONS = 64


class Daemon(msgspec.Struct, frozen=True):
    """One live dockerd; paths are native to the machine, not to the daemon's namespace."""

    pid: int
    data_root: bytes | None
    config_file: bytes | None


def live_daemons(host: Host, gaps: list[Gap]) -> Iterator[Daemon]:
    """Every live dockerd. What it names and cannot be found from here is added to `gaps`."""
    if host.proc is None:
        return
    pids = sorted({pid for command in _COMMANDS for pid in host.processes_named(command)})
    for pid in pids[:_MAX_DAEMONS]:
        process = os.path.join(host.proc, b"%d" % pid)
        try:
            arguments = host.read_proc(b"%d/cmdline" % pid, 1 << 16).rstrip(b"\0").split(b"\0")
        except OSError:
            continue  # it ended
        settings = parse_arguments(arguments[1:])
        foreign = not same_namespace(host, process)
        told = settings.data_root
        if told is None and foreign and settings.config_file is None:
            told = _default_of(host, process)
        found = {}
        for what, path in (("data root", told), ("configuration", settings.config_file)):
            if path is None:
                continue
            try:
                native = native_path(host, process, path, foreign=foreign)
            except ForeignMountError as error:
                detail = f"the {what} of the live dockerd {pid}, in its own mount namespace: {error.strerror}"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
                continue
            if native is None:
                detail = f"the {what} of the live dockerd {pid} lies in its own mount namespace, with no path from here"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
            else:
                found[what] = native
        yield Daemon(pid, found.get("data root"), found.get("configuration"))


def _default_of(host: Host, process: bytes) -> bytes:
    """Where this daemon keeps its data when nobody says so: `getDefaultDataRoot`, moby daemon/config."""
    try:
        rootless = os.stat(process).st_uid != 0
        pairs = host.read_proc(os.path.join(process, b"environ"), 1 << 17).split(b"\0") if rootless else []
    except OSError:
        return _DEFAULT
    environment = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    home, data = environment.get(b"HOME", b""), environment.get(b"XDG_DATA_HOME", b"")
    if data.startswith(b"/"):
        return data + b"/docker"
    return home + b"/.local/share/docker" if home.startswith(b"/") else _DEFAULT
