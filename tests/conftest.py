"""What may be skipped: with `CI=true`, a skip that is not listed here, or whose reason is not true, fails the session.

A test says what it needs: `needs root`, `needs dockerd`, `needs strace` and so on, and after a colon whatever it likes.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PROGRAMS = frozenset(
    "age age-keygen bsdtar busybox docker dockerd getcap getfattr ip iptables mkfs.ext4 mkfs.xfs mount openssl setcap "
    "setfacl setfattr strace tar unshare unzstd zstd".split()
)
"""What `scripts/test` installs, and what every system has."""

_NEEDS = re.compile(r"needs ([\w.+-]+)\b")
_MISSING = re.compile(r"([\w.+-]+) is not installed\b")

_skipped: dict[str, str] = {}
"""Test or file -> why it was skipped."""


def problem_of(reason: str) -> str:
    """Why a skip with this reason is not to be accepted, or ""."""
    match = _NEEDS.match(reason) or _MISSING.match(reason)
    need = match[1] if match else ""
    if need == "root":
        return "this is root" if os.geteuid() == 0 else ""
    if need not in PROGRAMS:
        return "not on the list of known skips in tests/conftest.py"
    return "" if shutil.which(need, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None else f"{need} is here"


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
    if os.environ.get("CI") == "true" and _strangers() and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    strangers = _strangers()
    if strangers:
        terminalreporter.section("skips that fail the session when CI=true")
        for line in strangers:
            terminalreporter.write_line(line)
