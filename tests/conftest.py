"""What may be skipped: with `CI=true`, a skip that is not listed here, or whose reason is not true, fails the session.

A test says what it needs: `needs root`, `needs dockerd`, `needs strace` and so on, and after a colon whatever it likes.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_PROGRAMS = (
    "age|age-keygen|bsdtar|busybox|docker|dockerd|getcap|getfattr|jq|mkfs\\.(?:btrfs|ext4|xfs)|mount|nsenter|openssl|"
    "setcap|setfacl|setfattr|strace|tar|unshare|zstd|fincore|gdb|losetup|readelf|radosgw|radosgw-admin|ceph-mon|ceph-osd|ceph|monmaptool|"
    "containerd|ctr|runc|podman|conmon|skopeo|umoci|journalctl|systemd-journald|fuse-overlayfs|mkswap|swapon|"
    "sshd|ip|iptables|mandoc|curl|ansible-playbook|dpkg|dpkg-deb|rpmbuild|umoci|kubectl|shellcheck|qemu-aarch64-static|aarch64-linux-gnu-gcc"
)
"""What `scripts/test` installs, and what every system has."""

_SYS_ADMIN = 21  # include/uapi/linux/capability.h


def _is_root() -> bool:
    """Root that may mount: in an unprivileged container root may not, and its skips say `needs root`, too."""
    status = Path("/proc/self/status").read_text("utf-8", "replace")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return os.geteuid() == 0 and effective is not None and bool(int(effective[1], 16) >> _SYS_ADMIN & 1)


def _is_here(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _has_ml_kem() -> bool:
    try:
        importlib.import_module("cryptography.hazmat.primitives.asymmetric.mlkem")
    except ImportError:
        return False
    return True


def _kernel_is(version: str) -> bool:
    """This kernel is at least that one."""
    have = re.match(r"(\d+)\.(\d+)", platform.release())
    major, minor = version.split(".")
    return have is not None and (int(have[1]), int(have[2])) >= (int(major), int(minor))


KNOWN: tuple[tuple[str, Callable[[str], bool]], ...] = (
    # What a reason begins with, and whether what is missing, the group in it, is here after all.
    (r"needs (root)\b", lambda _: _is_root()),
    (rf"needs ({_PROGRAMS})\b", _is_here),
    (rf"(?:GNU )?({_PROGRAMS}) is not installed\b", _is_here),
    (r"needs (LocalStack)\b", lambda _: (Path(__file__).parents[1] / ".venv-localstack/installed").exists()),
    (r"needs (ML-KEM)\b", lambda _: _has_ml_kem()),
    (r"no (/dev/fuse)\b", os.path.exists),
    (r"no (loop) devices", lambda _: Path("/dev/loop-control").exists()),
    (r"no (/etc/subuid) and", lambda name: Path(name).exists() and Path("/etc/subgid").exists()),
    (r"needs (pyelftools|volatility3|drgn)\b", lambda name: _has_module({"pyelftools": "elftools"}.get(name, name))),
    (r"needs (a kernel that runs programs of 32 bits)", lambda _: False),
    (r"needs (BPF|VMCOREINFO|user namespaces)\b", lambda _: False),
    (r"needs (control groups of version \d with a freezer)", lambda _: False),
    (r"needs (a loop device)", lambda _: False),
    (r"needs (glibc)", lambda _: False),
    (r"needs (a guest's DWARF)", lambda _: False),
    (r"needs (the network)", lambda _: False),
    (r"needs (the binary)", lambda _: (Path(__file__).parents[1] / ".cache/binary/impound").exists()),
    (r"no (Docker 29): IMPOUND_DOCKER29", lambda _: False),
    (r"of (the disk) only", lambda _: False),
    (r"(/dev/kmsg) cannot be read", lambda _: False),
    (r"this kernel has no (btrfs|xfs)\b", lambda name: name in Path("/proc/filesystems").read_text().split()),
    (r"a kernel before (\d+\.\d+)\b", _kernel_is),
    (r"the filesystem has (no access control lists)", lambda _: False),
)

_skipped: dict[str, str] = {}
"""Test or file -> why it was skipped."""


def problem_of(reason: str) -> str:
    """Why a skip with this reason is not to be accepted, or ""."""
    for pattern, is_here in KNOWN:
        if match := re.match(pattern, reason):
            return f"{match[1]} is here" if is_here(match[1]) else ""
    return "not among the known skips in tests/conftest.py"


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[report.nodeid] = reason.removeprefix("Skipped: ")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _strangers() -> list[str]:
    found = {node: (reason, problem_of(reason)) for node, reason in _skipped.items()}
    return [f"{node}: {reason!r}: {problem}" for node, (reason, problem) in sorted(found.items()) if problem]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and session.exitstatus == 0 and _strangers():
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    strangers = _strangers()
    if strangers:
        terminalreporter.section("skips that fail the session when CI=true")
        for line in strangers:
            terminalreporter.write_line(line)
