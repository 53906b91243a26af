"""The files of one container as entries: its root with what is mounted below, and what no walk from there comes by."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from acquirers import syscalls
from acquirers.base import AcquirerError, Flag, FlagKind, Gap, Kind, Reason, Report
from acquirers.files import xattrs
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import Deadlined, guard_for, reason
from acquirers.files.entry import Entry
from acquirers.files.tree import DIRECTORY, Tree, open_noatime
from acquirers.files.walk import walk
from acquirers.live import calls
from acquirers.live.verdicts import Judged, Judgement, Verdict, judged

if TYPE_CHECKING:
    from acquirers.live.entering import Entered
    from acquirers.live.upper import UpperOnly

MAX_TOLD = 100
"""Covered mounts that are told one by one."""
SMALL = 1 << 20
"""Bytes of a file that is mounted by itself (`/etc/hosts`): it is stored in every container that sees it."""


class Trees:
    """Reads what was entered, once. `close` of `Entered` stays the caller's."""

    def __init__(
        self,
        entered: Entered,
        judgement: Judgement,
        report: Report,
        *,
        exclude: frozenset[tuple[int, int]] = frozenset(),
        remote: bool = False,
        upper: UpperOnly | None = None,
        deadline: float,
    ) -> None:
        self._entered = entered
        self._judgement = judgement
        self._report = report
        self._exclude = exclude
        self._remote = remote
        self._upper = upper
        self._deadline = deadline
        self._barred = {mount.point for mount in judgement.remote()}
        self._missed: dict[bytes, Judged] = {}
        self._ids: dict[bytes, int | None] = {}
        self.failed: set[bytes] = set()
        """Points of mounts of which not everything was read."""

    def entries(self) -> Iterator[Entry]:
        """Everything. What belongs to one file or mount is reported, never raised."""
        self._tell()
        judgement, entered = self._judgement, self._entered
        root = judgement.root
        if root.local or (root.verdict is Verdict.REMOTE and self._remote):
            yield from self._watched(self._tree(root, entered.fd, clone=entered.still), root)
        elif root.verdict is not Verdict.REMOTE:
            yield from self._bare_root()
        for mount in judgement.apart():
            yield from self._watched(self._tree(mount, entered.fd, clone=entered.still), mount)
        for mount in judgement.remote() if self._remote else ():
            yield from self._watched(self._tree(mount, entered.fd, clone=entered.still), mount)
        while self._missed:
            mount = self._missed.pop(min(self._missed))
            if entered.clone and entered.in_place >= 0:
                yield from self._tree(mount, entered.in_place, clone=False)
            else:
                self._gap(Reason.VANISHED, "was mounted there, and is no more", mount.point)

    # -- what is known before anything is read ------------------------------------------------------------------------

    def _tell(self) -> None:
        judgement = self._judgement
        for mount in (judgement.root, *judgement.mounts.values()):
            if mount.verdict is Verdict.MACHINE and judgement.reached(mount):
                count = sum(point.startswith(mount.point.rstrip(b"/") + b"/") for point in judgement.mounts)
                more = f", with {count} mounts below it" if count else ""
                self._flag(FlagKind.LEFT_OUT, f"{mount.why}{more}: not stored once more", mount.point)
            elif mount.verdict is Verdict.ELSEWHERE:
                self._flag(FlagKind.ELSEWHERE, f"the same directory is stored in {mount.why}", mount.point)
            elif mount.verdict is Verdict.REMOTE and judgement.reached(mount) and not self._remote:
                self.failed.add(mount.point)
                self._gap(Reason.NOT_CROSSED, f"{mount.why}: read only with --remote", mount.point)
        covered = [mount for mount in judgement.covered if mount.local]
        for hidden in covered[:MAX_TOLD]:
            kind = hidden.fstype.decode("ascii", "replace")
            self._flag(FlagKind.FINDING, f"{kind} is mounted there and covered by another mount", hidden.point)
        if len(covered) > MAX_TOLD:
            self._flag(FlagKind.FINDING, f"{len(covered) - MAX_TOLD} further mounts are covered by others", b"/")
        if self._entered.changed:
            self._flag(FlagKind.CHANGED, "mounts came or went while they were cloned", b"/")

    def _bare_root(self) -> Iterator[Entry]:
        try:
            stat = syscalls.statx(self._entered.fd, b"")
        except OSError as error:
            self._gap(reason(error), error.strerror or str(error), b"/")
            return
        yield Entry(b"/", Kind.of_mode(stat.mode), stat)

    # -- one tree -----------------------------------------------------------------------------------------------------

    def _watched(self, entries: Iterator[Entry], top: Judged) -> Iterator[Entry]:
        """The entries, but for those of mounts that the clone does not have: what lies beneath is not what is seen.

        The kernel leaves unbindable mounts out of a clone (mount_namespaces(7)), and whoever may mount may make one.
        """
        mounts, ids, above = self._judgement.mounts, self._ids, self._judgement.above
        for entry in entries:
            path = entry.path
            if path == top.point:
                ids[path] = entry.stat.mnt_id
            elif path in mounts:
                mount = mounts[path]
                ids[path] = entry.stat.mnt_id
                if mount.local and entry.stat.mnt_id is not None and ids.get(above(path).point) == entry.stat.mnt_id:
                    self._missed[path] = mount
                    continue
            yield entry

    def _tree(self, mount: Judged, base: int, *, clone: bool) -> Iterator[Entry]:
        """What is mounted at one place, opened below the root that `base` points to."""
        guard = Deadlined(self._deadline)
        pointer = -1
        try:
            pointer = guard.call(calls.open_below, base, mount.point)
            mode = guard.call(os.fstat, pointer).st_mode
            if not stat_module.S_ISDIR(mode):
                yield from self._file(mount, pointer, mode)
                return
            fd = guard.call(open_noatime, b".", DIRECTORY, pointer)
        except OSError as error:
            self.failed.add(mount.point)
            self._gap(reason(error), error.strerror or str(error), mount.point)
            return
        finally:
            if pointer >= 0:
                guard.drop(pointer)
            guard.close()
        yield from self._walk(
            mount, Tree(fd, mount.point, clone, self._why_not(clone=clone), recursive=True, mounts=self._mounts())
        )

    def _why_not(self, *, clone: bool) -> str:
        if clone:
            return ""
        return self._entered.why_not or "left out of the clone of its mounts, because it must not be bound elsewhere"

    def _walk(self, mount: Judged, tree: Tree) -> Iterator[Entry]:
        keep = self._keep(mount)
        with tree:
            try:
                yield from walk(tree, self._report, keep=keep, exclude=self._exclude, deadline=self._deadline)
            except AcquirerError as error:
                self.failed.add(mount.point)
                self._report.gap(error.gap())

    def _mounts(self) -> dict[bytes, Judged]:
        """For the walk. With the root among them, which it never looks up, an overlay is called with a deadline."""
        judgement = self._judgement
        return {**judgement.mounts, b"/": judgement.root} if judgement.unsure else judgement.mounts

    def _keep(self, top: Judged) -> Callable[[bytes, Kind], bool]:
        base = top.point.rstrip(b"/") + b"/"
        barred, missed, upper = self._barred, self._missed, self._upper

        def keep(path: bytes, _kind: Kind) -> bool:
            whole = base + path
            if whole in barred:
                return False
            if missed and any(whole.startswith(point + b"/") for point in missed):
                return False
            return upper is None or upper(whole)

        return keep

    def _file(self, mount: Judged, pointer: int, mode: int) -> Iterator[Entry]:
        """What is mounted on a file by itself, where no walk comes by: over one of /proc, most of the time."""
        path = mount.point
        if not stat_module.S_ISREG(mode):
            yield Entry(path, Kind.of_mode(mode), syscalls.statx(pointer, b""))
            return
        how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = open_noatime(b"/proc/self/fd/%d" % pointer, how, -100)
        guard = guard_for(fd, self._deadline)
        reader = Reader(guard, self._report, in_place=not self._entered.still)
        content: FileContent | None = None
        try:
            stat = guard.call(syscalls.statx, fd, b"")
            content = FileContent(reader, fd, path, stat)
            yield Entry(path, Kind.FILE, stat, guard.call(xattrs.read, fd).values, content=content)
        finally:
            if content is not None:
                content.close()
            elif not guard.given_up:
                os.close(fd)
            guard.close()

    # -- telling ------------------------------------------------------------------------------------------------------

    def _gap(self, why: Reason, detail: str, path: bytes) -> None:
        self._report.gap(Gap(why, detail, path))

    def _flag(self, kind: FlagKind, detail: str, path: bytes) -> None:
        self._report.flag(Flag(kind, detail, path))


def keep_small_files(entered: Entered, judgement: Judgement) -> None:
    """Small files that are mounted by themselves are stored in every container that sees them.

    They are what makes an archive a machine of its own (`/etc/hosts`, `/etc/resolv.conf`), and cost less than to say
    where they are.
    """
    for point, mount in list(judgement.mounts.items()):
        if mount.verdict is not Verdict.ELSEWHERE or not _on_solid_ground(judgement, mount):
            continue
        try:
            pointer = calls.open_below(entered.fd, point)
        except OSError:
            continue
        try:
            found = os.fstat(pointer)
        finally:
            os.close(pointer)
        if stat_module.S_ISREG(found.st_mode) and found.st_size <= SMALL:
            judgement.mounts[point] = judged(mount, Verdict.ENTER)


def _on_solid_ground(judgement: Judgement, mount: Judged) -> bool:
    """Nothing on the way to it may fail to answer."""
    while mount is not judgement.root:
        mount = judgement.above(mount.point)
        if mount.verdict is Verdict.REMOTE:
            return False
    return True
