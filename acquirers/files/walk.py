"""Going through a directory of the examined machine, by open directories only.

A name is looked at from the directory that holds it, without following, so that nothing which is renamed, swapped or
mounted meanwhile leads elsewhere, and no path is too long. What is not a regular file or a directory is never opened.
There is no recursion, and nothing grows with the tree: directories are read in pieces, the names of subdirectories wait
in bounded number, and only so many directories are open (`descent`).

What is mounted below is entered where the tree says that it is local. Reading a network filesystem or one in user space
can take forever or change things elsewhere: it is a gap, to be closed by asking for that path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from acquirers import syscalls
from acquirers.base import AcquirerError, Flag, FlagKind, Gap, Kind, Reason, Report
from acquirers.files import xattrs
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import DEADLINE, Guard, StuckError, guard_of, reason
from acquirers.files.descent import Descent, Level
from acquirers.files.entry import Entry
from acquirers.files.look import look, open_directory, open_file

if TYPE_CHECKING:
    from acquirers.files.tree import Tree
    from acquirers.files.xattrs import Attributes
    from acquirers.mounts import Mount
    from acquirers.syscalls import Stat

P = ParamSpec("P")
T = TypeVar("T")

MAX_DEPTH = 1 << 14
MAX_PATH = 1 << 20
"""Levels and bytes of a path beyond which nothing is entered: some filesystems set no limit."""

BATCH = 1 << 12
"""Subdirectories of one directory that wait before the rest of its names is read."""
MAX_WAITING = 1 << 16
"""Subdirectories that wait on all levels together: about 10 MiB."""
MAX_NAMES = 50_000_000
"""Names of one directory: readdir has been known to go round in circles (btrfs before Linux 6.5)."""

# include/linux/fs_types.h; 0 is DT_UNKNOWN, for filesystems that keep no type beside the name.
_KINDS = {
    1: Kind.FIFO, 2: Kind.CHAR_DEVICE, 4: Kind.DIRECTORY, 6: Kind.BLOCK_DEVICE, 8: Kind.FILE, 10: Kind.SYMLINK,
    12: Kind.SOCKET,
}  # fmt: skip


def walk(
    tree: Tree,
    report: Report,
    *,
    keep: Callable[[bytes, Kind], bool] | None = None,
    exclude: frozenset[tuple[int, int]] = frozenset(),
    deadline: float = DEADLINE,
) -> Iterator[Entry]:
    """The directory itself and everything below, each directory before its contents.

    `keep` is asked with the path relative to the tree and the type that the listing tells; what it refuses is left out
    wholly, not opened and not reported. Directories whose (device, inode) is in `exclude` are not entered. Where the
    filesystem is not local, a call that takes longer than `deadline` seconds is given up.

    What belongs to one file is reported, never raised. Raises `AcquirerError` when the directory itself cannot be read.
    """
    walker = _Walker(tree, report, keep, exclude, guard_of(tree, deadline))
    try:
        yield from walker.walk()
    finally:
        walker.close()


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
        self._descent = Descent(guard)
        self._waiting = 0  # subdirectories, on all levels
        self._content: FileContent | None = None
        self._proc: bool | None = None  # whether /proc/self/fd can be used; None: not asked yet

    def walk(self) -> Iterator[Entry]:
        yield self._root()
        while self._descent:
            if self._guard.given_up:
                detail = "calls to this filesystem did not return: the rest of the directory was not read"
                self._gap(Reason.STUCK, detail, self._tree.path)
                return
            level = self._descent.deepest
            if level.waiting:
                self._waiting -= 1
                entry = self._enter(level, level.waiting.popleft())
                if entry is not None:
                    yield entry
                    self._release()
            elif not level.listed:
                yield from self._list(level)
            else:
                self._leave()

    def close(self) -> None:
        self._release()
        self._descent.close()
        self._guard.close()

    def _release(self) -> None:
        if self._content is not None:
            self._content.close()
            self._content = None

    # -- directories --------------------------------------------------------------------------------------------------

    def _root(self) -> Entry:
        tree = self._tree
        if not tree.clone:
            self._flag(FlagKind.NO_CLONE, tree.why_not or "read in place", tree.path)
        try:
            stat = self._guard.call(syscalls.statx, tree.fd, b"")
            seen = self._guard.call(open_directory, tree.fd, b".", stat)
            level = Level(b"", seen.fd, seen.stat)
            self._descent.push(level)
            self._guard.call(syscalls.getdents, seen.fd)
            self._guard.call(os.lseek, seen.fd, 0, os.SEEK_SET)
        except OSError as error:
            raise AcquirerError(reason(error), _text(error), tree.path) from error
        if level.identity in self._exclude:
            level.listed = True
            self._flag(FlagKind.LEFT_OUT, "the destination of this run", tree.path)
        self._look_at_attributes(seen.attributes, tree.path)
        return Entry(tree.path, Kind.DIRECTORY, seen.stat, seen.attributes.values)

    def _leave(self) -> None:
        lost = self._descent.pop()
        if not self._descent:
            return
        level = self._descent.deepest
        if lost is not None:
            if level.waiting or not level.listed:
                detail = f"the way back to it was lost, and what was left of it is not read: {_text(lost)}"
                self._gap(reason(lost), detail, self._here())
            self._waiting -= len(level.waiting)
            level.waiting.clear()
            level.listed = True
        elif not level.listed:
            self._seek(level)

    def _list(self, level: Level) -> Iterator[Entry]:
        """What is no directory, as its name is read. Subdirectories wait."""
        mounts, keep, guard = self._tree.mounts, self._keep, self._guard
        below = self._descent.below
        above = self._base + below
        while not level.listed and len(level.waiting) < BATCH:
            try:
                found = guard.call(syscalls.getdents, level.fd)
            except OSError as error:
                self._not_listed(level, error)
                return
            if not found:
                self._listed(level)
                return
            level.names += len(found)
            for name, number, cookie in found:
                level.cookie = cookie
                path = above + name
                if not name or b"/" in name:  # the kernel refuses such a name since Linux 5.4
                    self._gap(Reason.MALFORMED, f"its directory holds the impossible name {name!r}", self._here())
                    continue
                kind = _KINDS.get(number) or self._kind(level, name, path)
                if kind is None or (keep is not None and not keep(below + name, kind)):
                    continue
                mount = mounts.get(path) if mounts else None
                if mount is not None and not mount.local:
                    entry = self._not_entered(level, name, path, mount)
                elif kind is Kind.DIRECTORY:
                    level.waiting.append(name)
                    self._waiting += 1
                    if self._waiting < MAX_WAITING:
                        continue
                    self._seek(level)
                    return
                else:
                    entry = self._leaf(level, name, path, kind)
                if entry is not None:
                    yield entry
                    self._release()
                if guard.given_up:
                    return
            if level.names > MAX_NAMES:
                level.listed = True
                self._gap(Reason.LIMIT, f"more than {MAX_NAMES} names: the rest was not read", self._here())

    def _seek(self, level: Level) -> None:
        """Goes on behind the last name that was taken, when its turn comes."""
        try:
            self._guard.call(os.lseek, level.fd, level.cookie, os.SEEK_SET)
        except OSError as error:
            self._not_listed(level, error)

    def _not_listed(self, level: Level, error: OSError) -> None:
        level.listed = True
        self._gap(reason(error), f"not all of its names could be read: {_text(error)}", self._here())

    def _listed(self, level: Level) -> None:
        level.listed = True
        try:
            now = self._guard.call(os.fstat, level.fd)
        except OSError:
            return  # its names were read, which is what counts
        if now.st_mtime_ns != level.stat.mtime_ns:
            self._flag(FlagKind.CHANGED, "names came or went while it was listed", self._here())
        self._look_at_atime(level.stat, now.st_atime_ns, self._here())

    def _enter(self, level: Level, name: bytes) -> Entry | None:
        """A subdirectory, which from now on is the deepest level."""
        path = self._base + self._descent.below + name
        mounted = path in self._tree.mounts
        before = self._ask(path, syscalls.statx, level.fd, name)
        if before is None:
            return None
        kind = Kind.of_mode(before.mode)
        if kind is not Kind.DIRECTORY:  # something else has taken its place since it was listed
            if self._keep is not None and not self._keep(self._descent.below + name, kind):
                return None
            return self._leaf(level, name, path, kind)
        if _crosses(before, level.stat, mounted=mounted):
            self._not_crossed(path)
            return None
        if self._barred(before, path, mounted=mounted):
            return self._unopened(level, name, path, kind, None)
        try:
            seen = self._guard.call(open_directory, level.fd, name, before)
        except OSError as error:
            return self._unopened(level, name, path, kind, error)
        if seen.changed:
            self._flag(FlagKind.CHANGED, "was replaced by another directory while it was opened", path)
            if _crosses(seen.stat, level.stat, mounted=mounted) or self._barred(seen.stat, path, mounted=mounted):
                self._guard.drop(seen.fd)
                self._gap(Reason.VANISHED, "was replaced by a directory that is not entered here", path)
                return None
        self._look_at_attributes(seen.attributes, path)
        self._descent.push(Level(name, seen.fd, seen.stat))
        return Entry(path, kind, seen.stat, seen.attributes.values)

    def _barred(self, stat: Stat, path: bytes, *, mounted: bool) -> bool:
        """Says why a directory is not entered."""
        if (stat.dev, stat.ino) in self._exclude:
            self._flag(FlagKind.LEFT_OUT, "the destination of this run", path)
        elif len(self._descent) >= MAX_DEPTH or len(path) > MAX_PATH:
            self._gap(Reason.LIMIT, f"deeper than {MAX_DEPTH} directories or {MAX_PATH} bytes of path", path)
        elif stat in self._descent and not mounted:
            self._gap(Reason.MALFORMED, "a directory that contains itself", path)
        else:
            return False
        return True

    # -- mounts -------------------------------------------------------------------------------------------------------

    def _not_entered(self, level: Level, name: bytes, path: bytes, mount: Mount) -> Entry | None:
        """What another filesystem than a local one is mounted on."""
        if not mount.kernel:
            self._not_crossed(path, mount)
            return None
        stat = self._ask(path, syscalls.statx, level.fd, name)
        return Entry(path, Kind.of_mode(stat.mode), stat) if stat else None

    def _not_crossed(self, path: bytes, mount: Mount | None = None) -> None:
        what = f"{os.fsdecode(mount.fstype)} is mounted there" if mount else "mounted since the list of mounts was read"
        self._gap(Reason.NOT_CROSSED, f"{what}: read only when asked for", path)

    # -- everything else ----------------------------------------------------------------------------------------------

    def _kind(self, level: Level, name: bytes, path: bytes) -> Kind | None:
        """The type of a name whose directory does not tell it."""
        if path in self._tree.mounts:
            return Kind.DIRECTORY
        stat = self._ask(path, syscalls.statx, level.fd, name)
        return Kind.of_mode(stat.mode) if stat else None

    def _leaf(self, level: Level, name: bytes, path: bytes, kind: Kind) -> Entry | None:
        if kind is not Kind.FILE:
            return self._unopenable(level, name, path)
        try:
            seen = self._guard.call(open_file, level.fd, name, self._reader.in_place)
        except OSError as error:
            return self._unopened(level, name, path, kind, error)
        if seen.stat.mnt_id != level.stat.mnt_id and path not in self._tree.mounts:
            self._guard.drop(seen.fd)
            self._not_crossed(path)
            return None
        content = self._content = FileContent(self._reader, seen.fd, path, seen.stat)
        if seen.changed:
            self._flag(FlagKind.CHANGED, "was replaced by another file while it was opened", path)
        self._look_at_attributes(seen.attributes, path)
        return Entry(path, kind, seen.stat, seen.attributes.values, None, content)

    def _unopenable(self, level: Level, name: bytes, path: bytes) -> Entry | None:
        """A link, device, FIFO or socket."""
        seen = self._ask(path, look, level.fd, name, self._has_proc(level, path))
        if seen is None:
            return None
        kind = seen.kind
        if kind in {Kind.FILE, Kind.DIRECTORY}:
            self._gap(Reason.VANISHED, f"was replaced by a {kind} while it was looked at", path)
            return None
        if seen.error is not None:
            self._gap(reason(seen.error), f"its text could not be read: {_text(seen.error)}", path)
        if seen.changed:
            self._flag(FlagKind.CHANGED, "was replaced while it was read", path)
        elif seen.atime_ns is not None:
            self._look_at_atime(seen.stat, seen.atime_ns, path)
        self._look_at_attributes(seen.attributes, path)
        return Entry(path, kind, seen.stat, seen.attributes.values, seen.target)

    def _unopened(self, level: Level, name: bytes, path: bytes, kind: Kind, error: OSError | None) -> Entry | None:
        """What its directory knows of a file or directory that is not opened, or could not be."""
        seen = None
        if not isinstance(error, StuckError):
            try:
                seen = self._guard.call(look, level.fd, name, self._has_proc(level, path))
            except OSError as unseen:
                error = error or unseen
        if seen is not None and seen.kind is not kind:
            self._gap(Reason.VANISHED, f"was replaced by a {seen.kind} while it was looked at", path)
            return None
        if error is not None:
            self._gap(reason(error), _text(error), path, seen.stat.size if seen and kind is Kind.FILE else None)
        if seen is None:
            return None
        self._look_at_attributes(seen.attributes, path)
        return Entry(path, kind, seen.stat, seen.attributes.values)

    def _has_proc(self, level: Level, path: bytes) -> bool:
        if self._proc is None:
            try:
                self._proc = self._guard.call(xattrs.proc_serves, level.fd)
            except OSError:
                self._proc = False
            if not self._proc:
                detail = "no /proc: extended attributes of what is not opened are not read, here and further on"
                self._flag(FlagKind.LEFT_OUT, detail, path)
        return self._proc

    def _ask(self, path: bytes, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """A call that belongs to one file: its failure is a gap."""
        try:
            return self._guard.call(function, *args, **kwargs)
        except OSError as error:
            self._gap(reason(error), _text(error), path)
            return None

    # -- telling ------------------------------------------------------------------------------------------------------

    def _here(self) -> bytes:
        """The native path of the deepest level."""
        return (self._base + self._descent.below).rstrip(b"/") or b"/"

    def _look_at_attributes(self, attributes: Attributes, path: bytes) -> None:
        if attributes.error is not None:
            what = f"{attributes.lost} extended attributes" if attributes.lost else "its extended attributes"
            self._gap(reason(attributes.error), f"{what} could not be read: {_text(attributes.error)}", path)

    def _look_at_atime(self, before: Stat, atime_ns: int, path: bytes) -> None:
        if self._reader.in_place and before.atime_ns != atime_ns:
            self._flag(FlagKind.ATIME_MOVED, f"access time {before.atime_ns} is now {atime_ns}", path)

    def _gap(self, why: Reason, detail: str, path: bytes, missing: int | None = None) -> None:
        self._report.gap(Gap(why, detail, path, missing))

    def _flag(self, kind: FlagKind, detail: str, path: bytes) -> None:
        self._report.flag(Flag(kind, detail, path))


def _text(error: OSError) -> str:
    return error.strerror or str(error)


def _crosses(stat: Stat, parent: Stat, *, mounted: bool) -> bool:
    """Whether a directory lies on a mount that is not known. A btrfs subvolume has its own device and no mount."""
    if mounted:
        return False
    if stat.mnt_id is None or parent.mnt_id is None:
        return stat.dev != parent.dev
    return stat.mnt_id != parent.mnt_id
