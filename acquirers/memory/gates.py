"""What stands between this process and physical memory, in words: capability, lockdown, namespace, kernel version."""

from __future__ import annotations

import errno
import re
import resource
import sys
from typing import TYPE_CHECKING, NamedTuple

from acquirers.host import Mode
from acquirers.memory import bpf

if TYPE_CHECKING:
    from acquirers.facts import Facts
    from acquirers.host import Host

ARCHITECTURES = frozenset({"x86_64", "aarch64"})
INITIAL_USER_NAMESPACE = 0xEFFF_FFFD
"""PROC_USER_INIT_INO, include/linux/proc_ns.h: the inode of the machine's own user namespace."""

_ON_THE_NODE = "acquire from the machine itself, or from a privileged pod with hostPID and --live-root"
AS_ROOT = "run as root of the machine itself, or in a privileged pod"
_CONFIDENTIAL = "none while the machine runs: lockdown only ends with a restart"
_ENOTSUPP = 524  # include/linux/errno.h: has no name outside the kernel


class Why(NamedTuple):
    reason: str
    remedy: str = ""


def machine(host: Host) -> Why | None:
    """Why no source can work at all here; None if one can."""
    if host.mode is Mode.DEAD:
        return Why("a mounted disk has no memory", "acquire from the running machine")
    if host.mode is Mode.INSIDE:
        return Why("inside a container: physical memory belongs to the machine below", _ON_THE_NODE)
    if sys.maxsize < 1 << 32:
        return Why("this Python has 32 bits", "run it with a Python of 64 bits")
    if host.facts.architecture not in ARCHITECTURES:
        known = " and ".join(sorted(ARCHITECTURES))
        return Why(f"physical memory of {host.facts.architecture} is not supported, only {known}")
    return None


def version(facts: Facts) -> tuple[int, int] | None:
    """Major and minor number of the running kernel."""
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", facts.kernel)
    return (int(match[1]), int(match[2])) if match else None


def before(facts: Facts, major: int, minor: int) -> bool:
    """Whether the kernel calls itself older. Vendors bring features to older ones: only to be said after a failure."""
    found = version(facts)
    return found is not None and found < (major, minor)


def foreign_namespace(facts: Facts) -> bool:
    """In a user namespace that is not the machine's own, capabilities count for nothing here."""
    return facts.namespaces.get("user", INITIAL_USER_NAMESPACE) != INITIAL_USER_NAMESPACE


def iomem(facts: Facts) -> Why:
    """Why /proc/iomem shows zeros."""
    if foreign_namespace(facts):
        return Why("/proc/iomem hides all addresses in a user namespace", AS_ROOT)
    if "sys_admin" not in facts.capabilities:
        return Why("/proc/iomem hides all addresses without CAP_SYS_ADMIN", AS_ROOT)
    return Why("/proc/iomem hides all addresses", AS_ROOT)


def kcore(error: OSError, facts: Facts) -> Why:
    """Why /proc/kcore could not be opened."""
    code = error.errno
    if code == errno.ENOENT:
        return Why("this kernel has no /proc/kcore (CONFIG_PROC_KCORE), or it is masked")
    if code not in {errno.EPERM, errno.EACCES}:
        return Why(_failed(error))
    if facts.lockdown == "confidentiality":
        return Why("lockdown mode confidentiality forbids /proc/kcore", _CONFIDENTIAL)
    if foreign_namespace(facts):
        return Why("in a user namespace nobody may open /proc/kcore", AS_ROOT)
    if "sys_rawio" not in facts.capabilities:
        return Why("/proc/kcore needs CAP_SYS_RAWIO", AS_ROOT)
    suspects = "a security module" if facts.lockdown else "lockdown, whose mode is not to be seen, or a security module"
    return Why(
        f"/proc/kcore is refused ({_failed(error)}) in spite of CAP_SYS_RAWIO, perhaps by {suspects}",
        "see what the kernel, SELinux or AppArmor logged",
    )


def bpf_beforehand(facts: Facts) -> Why | None:
    """Why loading a program need not be tried: it would only be noise in the audit log."""
    may = set(facts.capabilities)
    if foreign_namespace(facts):
        return Why("in a user namespace no BPF program may read the kernel", AS_ROOT)
    if "sys_admin" not in may and not {"bpf", "perfmon"} <= may:
        return Why("eBPF needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN", AS_ROOT)
    if facts.lockdown == "confidentiality":
        return Why("lockdown mode confidentiality takes probe_read_kernel from BPF programs", _CONFIDENTIAL)
    return None


def bpf_failed(error: bpf.UnavailableError, facts: Facts) -> Why:
    """Why one of the steps failed."""
    code = error.errno
    if code == errno.ENOSYS:
        return Why("this kernel has no bpf(2) (CONFIG_BPF_SYSCALL), or a sandbox hides it")
    if error.step in {"map", "load"} and code == errno.EPERM and before(facts, 5, 11):
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if limit != resource.RLIM_INFINITY:
            return Why(
                f"kernels before 5.11 count BPF maps against RLIMIT_MEMLOCK: {limit} bytes, a reader needs "
                f"{bpf.SIZE + (1 << 16)}",
                "start it with `ulimit -l unlimited`",
            )
    if code in {errno.EPERM, errno.EACCES} and error.step != "load":
        return Why(f"bpf(2) is refused ({error}): seccomp or a security module", AS_ROOT)
    if error.step in {"map", "mmap", "load"} and before(facts, 5, 5):
        return Why("eBPF needs Linux 5.10: before 5.5 there is no probe_read_kernel")
    if error.step == "run" and code in {errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP} and before(facts, 5, 10):
        return Why("eBPF needs Linux 5.10: before it, a raw tracepoint program cannot be run by hand")
    perhaps = "" if facts.lockdown or error.step != "load" else ": perhaps lockdown, whose mode is not to be seen"
    return Why(f"eBPF failed at {error} ({errno.errorcode.get(code, code)}){perhaps}")


def _failed(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, str(error.errno))}: {error.strerror}"
