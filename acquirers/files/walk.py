"""Going through a directory of the examined machine, by open directories only.

What is named is looked at from the directory that holds it, without following, so that nothing which is renamed, swapped
or mounted meanwhile can lead elsewhere, and no path is too long. What is not a regular file or a directory is never
opened. There is no recursion, and nothing that grows with the tree: directories are read in pieces, names of
subdirectories wait in bounded number, and of deep paths only the last `OPEN_LEVELS` directories are kept open; the way
back up is `..`, if it leads to the directory that we came from.

What is mounted below is entered where the tree says that it is local. Reading a network filesystem or one in user space
can take forever or change things elsewhere: it is a gap, to be closed by asking for that path.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acquirers import syscalls
from acquirers.base import AcquirerError, Flag, FlagKind, Gap, Kind, Reason, Report
from acquirers.files import xattrs
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import DEADLINE, Guard, StuckError, guard_for, reason
from acquirers.files.entry import Entry
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.files.xattrs import EMPTY, Attributes

if TYPE_CHECKING:
    from acquirers.files.tree import Tree
    from acquirers.mounts import Mount
    from acquirers.syscalls import Stat

OPEN_LEVELS = 32
"""Directories on the way down that are kept open."""
MAX_DEPTH = 1 << 14
MAX_PATH = 1 << 20
"""Levels and bytes of a path beyond which nothing is entered: some filesystems set no limit."""

BATCH = 1 << 12
"""Subdirectories of one directory that wait before the rest of its names is read."""
MAX_WAITING = 1 << 16
"""Subdirectories that wait on all levels together: about 10 MiB."""
MAX_NAMES = 50_000_000
"""Names of one directory: readdir has been known to go round in circles (btrfs before Linux 6.5)."""

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# include/linux/fs_types.h; 0 is DT_UNKNOWN, for filesystems that keep no type beside the name.
_KINDS = {
    1: Kind.FIFO,
    2: Kind.CHAR_DEVICE,
    4: Kind.DIRECTORY,
    6: Kind.BLOCK_DEVICE,
    8: Kind.FILE,
    10: Kind.SYMLINK,
    12: Kind.SOCKET,
}


def walk(
    tree: Tree,
    report: Report,
    *,
    keep: Callable[[bytes, Kind], bool] | None = None,
    exclude: frozenset[tuple[int, int]] = frozenset(),
    deadline: float = DEADLINE,
) -> Iterator[Entry]:
    """The directory itself and everything below, each directory before its contents.

    `keep` is asked with the path relative to the tree and the type that its directory tells; what it refuses is left out
    wholly, not opened and not reported. Directories whose (device, inode) is in `exclude` are not entered. Where the
    filesystem is not local, a call that takes longer than `deadline` seconds is given up.

    What belongs to one file is reported, never raised. Raises `AcquirerError` when the directory itself cannot be read.
    """
    walker = _Walker(tree, report, keep, exclude, guard_for(tree.fd, deadline))
    try:
        yield from walker.walk()
    finally:
        walker.close()


@dataclass(slots=True)
class _Level:
    """A directory on the way from the root of the tree to where the walk is."""

    name: bytes
    fd: int
    """-1: closed for the time being, or lost."""
    stat: Stat
    waiting: deque[bytes] = field(default_factory=deque)
    """Subdirectories that are still to be entered."""
    cookie: int = 0
    """Where its listing stands, for `lseek`."""
    names: int = 0
    listed: bool = False
    """There are no further names."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.dev, self.stat.ino


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look at a name found."""

    stat: Stat
    attributes: Attributes = EMPTY
    fd: int = -1
    target: bytes | None = None
    changed: bool = False
    """It was another file a moment before."""
    error: OSError | None = None
    """Why it could not be opened, or its text not be read."""

    @property
    def kind(self) -> Kind:
        return Kind.of_mode(self.stat.mode)


class _Walker:
    def __init__(
        self,
        tree: Tree,
        report: Report,
        keep: Callable[[bytes, Kind], bool] | None,
        exclude: frozenset[tuple[int, int]],
        guard: Guard,
    ) -> None:
        self._tree = tree
        self._report = report
        self._keep = keep
        self._exclude = exclude
        self._guard = guard
        self._reader = Reader(guard, report, in_place=not tree.clone)
        self._base = tree.path.rstrip(b"/") + b"/"
        self._below = b""  # path of the deepest level, relative to the tree: empty, or with a slash at its end
        self._levels: list[_Level] = []
        self._entered: set[tuple[int, int, int | None]] = set()
        self._waiting = 0
        self._content: FileContent | None = None
        self._proc: bool | None = None  # whether /proc/self/fd can be used; None: not yet asked
