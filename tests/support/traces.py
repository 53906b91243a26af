"""What a trace of strace says that a run changed on its machine, its destination apart."""

from __future__ import annotations

import re
from pathlib import Path

_CHANGES = re.compile(
    r"\b(openat?|creat|mknod(at)?|truncate|rename(at2?)?|unlink(at)?|rmdir|chmod|fchmodat|chown|fchownat|utimensat"
    r"|setxattr|lsetxattr|mkdir(at)?|link(at)?|symlink(at)?|mount|umount2)\("
)
_WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TMPFILE|TRUNC|APPEND)")
# Relative to descriptors of the destination: unnamed files, the names that they are given, directories.
_STORES = re.compile(
    r'openat\(\d+, "\.", O_WRONLY\|O_CLOEXEC\|O_TMPFILE|mkdirat\(\d+, "[A-Za-z0-9._-]+", 0700\)'
    r'|linkat\(AT_FDCWD, "/proc/self/fd/\d+", \d+, "[A-Za-z0-9._-]+", AT_SYMLINK_FOLLOW\)'
)
OPTIONS = ("-f", "-qq", "-e", "trace=file,desc", "-e", "signal=none")
"""Of strace, for what is read here."""


def changes(trace: str, to: Path) -> list[str]:
    """Calls that made, changed or removed a name, or opened a file for writing, and were not refused."""
    found = []
    for line in trace.splitlines():
        call = _CHANGES.search(line)
        if call is None or " = -1 " in line or str(to) in line or _STORES.search(line) or '"/dev/null"' in line:
            continue
        if call[1].startswith("open") and not _WRITES.search(line):
            continue
        found.append(line)
    return found


def linked(trace: str) -> set[str]:
    """The names that files were given which had none."""
    return set(re.findall(r'linkat\(AT_FDCWD, "/proc/self/fd/\d+", \d+, "([^"]+)"', trace))
