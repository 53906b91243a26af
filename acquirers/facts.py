"""What is read once about the machine and about this process: the first record of every manifest."""

from __future__ import annotations

import os
import platform
import re
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import asdict

from acquirers import identity as identity_module
from acquirers import syscalls
from acquirers.root import read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.root import Root

# include/uapi/linux/capability.h, in order of their bit.
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()


class Clock(msgspec.Struct, frozen=True):
    """Readings of the machine's clocks, in nanoseconds, taken one after the other, and the kernel's own view."""

    wall_ns: int
    monotonic_ns: int
    boottime_ns: int
    discipline: Mapping[str, int] | None
    """`adjtimex(2)`, modes 0: state, status bits, offset, frequency, maximum and estimated error."""


class Facts(msgspec.Struct, frozen=True):
    """The machine as it presents itself, and what this process may do on it."""

    mode: str
    hostname: str
    kernel: str
    kernel_version: str
    architecture: str
    os_release: Mapping[str, str]
    boot_id: str
    machine_id: str
    uptime_s: float | None
    clock: Clock
    uid: int
    gid: int
    capabilities: tuple[str, ...]
    seccomp: int | None
    no_new_privs: int | None
    namespaces: Mapping[str, int]
    lockdown: str
    identity: Mapping[str, object] = msgspec.field(default_factory=dict)

    @property
    def root(self) -> bool:
        return self.uid == 0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def host_key(self) -> str:
        """The `<host>` of the store: the instance id where known, else task and node, else the hostname."""
        known = self.identity
        ec2 = known.get("ec2")
        if isinstance(ec2, dict) and isinstance(ec2.get("instance_id"), str):
            return reduce_name(ec2["instance_id"])
        parts = [known.get(name) for name in ("ecs_task", "kubernetes_node")]
        named = [part for part in parts if isinstance(part, str) and part]
        return reduce_name("-".join([*named, self.hostname or "unnamed"]))


def reduce_name(name: str | bytes, limit: int = 100) -> str:
    """A name that the machine gave, reduced to `[A-Za-z0-9._-]`, without a leading dot, never empty."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    reduced = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:limit]
    return re.sub(r"^\.+", "_", reduced) or "_"


def clock() -> Clock:
    try:
        discipline: dict[str, int] | None = asdict(syscalls.adjtimex())
    except (OSError, AttributeError):
        discipline = None
    return Clock(time.time_ns(), time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), discipline)


def _status() -> dict[str, str]:
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _capabilities(status: Mapping[str, str]) -> tuple[str, ...]:
    try:
        bits = int(status.get("CapEff", "0"), 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)


def _namespaces() -> dict[str, int]:
    found = {}
    for name in ("mnt", "pid", "net", "user", "uts", "ipc", "cgroup", "time"):
        try:
            found[name] = os.stat(f"/proc/self/ns/{name}").st_ino
        except OSError:
            continue
    return found


def _text(root: Root, path: bytes, limit: int = 4096) -> str:
    try:
        return root.read(path, limit).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _kernel_text(proc: bytes | None, name: bytes) -> str:
    if proc is None:
        return ""
    try:
        return read_kernel_file(os.path.join(proc, name), 4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _os_release(root: Root) -> dict[str, str]:
    text = _text(root, b"/etc/os-release", 65536) or _text(root, b"/usr/lib/os-release", 65536)
    found = {}
    for line in text.splitlines()[:200]:
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[A-Z0-9_]{1,40}", key):
            found[key] = value.strip("\"'")[:200]
    return found


def _lockdown() -> str:
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii", errors="replace") as file:
            match = re.search(r"\[(\w+)\]", file.read(200))
    except OSError:
        return ""
    return match[1] if match else ""


def read(root: Root, *, mode: str, proc: bytes | None) -> Facts:
    """Everything at once. What cannot be read is empty; nothing here raises for a strange machine."""
    status = _status()
    uname = platform.uname()
    live = proc is not None
    uptime = _kernel_text(proc, b"uptime").partition(" ")[0]
    hostname = _text(root, b"/etc/hostname", 256) if mode in {"dead", "live-root"} else uname.node
    return Facts(
        mode=mode,
        hostname=hostname or (uname.node if live else ""),
        kernel=uname.release if live else "",
        kernel_version=uname.version if live else "",
        architecture=uname.machine,
        os_release=_os_release(root),
        boot_id=_kernel_text(proc, b"sys/kernel/random/boot_id"),
        machine_id=_text(root, b"/etc/machine-id"),
        uptime_s=float(uptime) if re.fullmatch(r"\d+(\.\d+)?", uptime) else None,
        clock=clock(),
        uid=os.geteuid(),
        gid=os.getegid(),
        capabilities=_capabilities(status),
        seccomp=int(status["Seccomp"]) if status.get("Seccomp", "").isdigit() else None,
        no_new_privs=int(status["NoNewPrivs"]) if status.get("NoNewPrivs", "").isdigit() else None,
        namespaces=_namespaces(),
        lockdown=_lockdown(),
        identity=identity_module.read(root, inside=mode == "inside") if live else {},
    )
