"""Live daemons of containerd, and what their arguments say of the place where they keep their data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Gap, Reason
from acquirers.containers.containerd.settings import parse_arguments
from acquirers.containers.foreign import native_path, same_namespace
from acquirers.root import ForeignMountError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.host import Host

_COMMANDS = (b"containerd", b"host-containerd")
_DEFAULT_ROOT = b"/var/lib/containerd"
_DEFAULT_STATE = b"/run/containerd"
_DEFAULT_CONFIG = b"/etc/containerd/config.toml"
_MAX_DAEMONS = 64


class Daemon(msgspec.Struct, frozen=True):
    """One live containerd; paths are native to the machine, not to the daemon's namespace."""

    pid: int
    root: bytes | None
    state: bytes | None
    config_file: bytes | None
    default_root: bytes | None = None
    """Where it keeps its data when neither arguments nor configuration say so."""
    default_state: bytes | None = None


def live_daemons(host: Host, gaps: list[Gap]) -> Iterator[Daemon]:
    """Every live containerd. What it names and cannot be found from here is added to `gaps`."""
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
        wanted = {
            "root": settings.root,
            "state": settings.state,
            "config": settings.config_file or _DEFAULT_CONFIG,
            "default root": _DEFAULT_ROOT,
            "default state": _DEFAULT_STATE,
        }
        found: dict[str, bytes | None] = {}
        for what, path in wanted.items():
            found[what] = None
            if path is None:
                continue
            try:
                found[what] = native_path(host, process, path, foreign=foreign)
            except ForeignMountError as error:
                detail = f"the {what} of the live containerd {pid}, in its own mount namespace: {error.strerror}"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
                continue
            told = what in {"root", "state"} or (what == "config" and settings.config_file is not None)
            if found[what] is None and told:
                detail = f"the {what} of the live containerd {pid} lies in its own mount namespace"
                gaps.append(Gap(Reason.NOT_CROSSED, detail, path))
        yield Daemon(pid, found["root"], found["state"], found["config"], found["default root"], found["default state"])
