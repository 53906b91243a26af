"""Giving what was unpacked the owner, attributes, mode and times that the archive has for it, as far as that is safe.

By default nothing is restored that could act on the analyst's machine or needs root: permissions are those bits of the
mode that read, write and execute, attributes are those of `user.*`. A faithful extraction also restores set-ID and
sticky bits, and, as root, owners and all attributes. Whatever is left out is counted and told once for each kind.

The order is that of GNU tar (extract.c, `set_stat`), because each step can undo an earlier one: a change of owner
clears set-ID bits and `security.capability`, a mode may deny the setting of attributes, and all of it moves times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agent.analysis.notes import Note, NoteKind, OnNote

if TYPE_CHECKING:
    from agent.analysis.tarheader import Header
    from agent.analysis.trail import Finish

MAX_PENDING = 1 << 20
"""Bytes of attributes that are kept for directories until these are left."""

_NO_ID = 0xFFFFFFFF  # (uid_t) -1: "do not change" in chown(2)

Where = Callable[[], bytes]
"""The name of a member, made only if there is something to tell."""


class Restorer:
    """Applies what a header says, and counts what it does not apply."""

    def __init__(self, on_note: OnNote, *, faithful: bool) -> None:
        self._on_note = on_note
        self._faithful = faithful
        self.privileged = faithful and os.geteuid() == 0
        self._self = os.geteuid(), os.getegid()
        self._pending = 0
        self.unrestored: Counter[NoteKind] = Counter()

    def leave_out(self, kind: NoteKind, where: Where, detail: str) -> None:
        """Counts something that is not restored; the first of its kind is told."""
        self.unrestored[kind] += 1
        if self.unrestored[kind] == 1:
            self._on_note(Note(kind, where(), detail))

    def file(self, fd: int, header: Header) -> None:
        """A regular file, by its descriptor. Raises no `OSError`."""

        def where() -> bytes:
            return header.name

        self._owner(lambda: os.chown(fd, header.uid, header.gid), header, where)
        self._xattrs(fd, header.xattrs, where)
        self._mode(fd, header.mode, where)
        self._times(fd, header.mtime_ns, header.atime_ns, where)

    def directory(self, fd: int, header: Header, path: Where) -> Finish:
        """A directory: what is harmless to those who are still to write into it, now; the rest when it is left.

        The rest holds no name, since the names of all directories that are open may be long: `path` tells it.
        """

        def where() -> bytes:
            return header.name

        self._owner(lambda: os.chown(fd, header.uid, header.gid), header, where)
        # A default access control list would be inherited by everything that is made below.
        late = {name: value for name, value in header.xattrs.items() if name.startswith(b"system.")}
        self._xattrs(fd, {name: value for name, value in header.xattrs.items() if name not in late}, where)
        weight = sum(len(name) + len(value) for name, value in late.items())
        if self._pending + weight > MAX_PENDING:
            for _ in late:
                self.leave_out(NoteKind.XATTR, where, "too many attributes of directories that are open")
            late, weight = {}, 0
        self._pending += weight
        mode, mtime_ns, atime_ns = header.mode, header.mtime_ns, header.atime_ns

        def finish(fd: int) -> None:
            self._pending -= weight
            self._xattrs(fd, late, path)
            self._mode(fd, mode, path)
            self._times(fd, mtime_ns, atime_ns, path)

        return finish

    def named(self, parent: int, name: bytes, header: Header, *, mode: bool) -> None:
        """What has no descriptor: a symbolic link (which has no mode), a FIFO, a device. This extraction made it."""

        def where() -> bytes:
            return header.name

        def own() -> None:
            os.chown(name, header.uid, header.gid, dir_fd=parent, follow_symlinks=False)

        # There is no call for an attribute of a name below a descriptor; /proc has a path for the descriptor.
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        self._owner(own, header, where)
        self._xattrs(path, header.xattrs, where)
        if mode:
            self._mode(path, header.mode, where)
        self._times(path, header.mtime_ns, header.atime_ns, where)

    def _owner(self, own: Callable[[], None], header: Header, where: Where) -> None:
        if not self.privileged:
            if (header.uid, header.gid) != self._self:
                self.leave_out(NoteKind.OWNER, where, "owners are not restored")
            return
        if max(header.uid, header.gid) >= _NO_ID:
            self.leave_out(NoteKind.OWNER, where, "an owner that no system has")
            return
        try:
            own()
        except OSError as error:
            self.leave_out(NoteKind.OWNER, where, f"an owner could not be restored: {_reason(error)}")

    def _xattrs(self, place: int | bytes, xattrs: Mapping[bytes, bytes], where: Where) -> None:
        for name, value in xattrs.items():
            if not (self.privileged or name.startswith(b"user.")):
                self.leave_out(NoteKind.XATTR, where, "only attributes of 'user.*' are restored")
                continue
            try:
                os.setxattr(place, name, value, follow_symlinks=not isinstance(place, bytes))
            except (OSError, ValueError) as error:
                # Also ENOSPC, with which ext4 says that its room for the attributes of one file is used up.
                self.leave_out(NoteKind.XATTR, where, f"an attribute could not be set: {_reason(error)}")

    def _mode(self, place: int | bytes, mode: int, where: Where) -> None:
        if not self._faithful and mode & 0o7000:
            self.leave_out(NoteKind.MODE, where, "set-ID and sticky bits are not restored")
            mode &= 0o777
        try:
            os.chmod(place, mode)
            # The kernel drops set-group-ID without a word for a group that the caller is not in.
            refused = mode & 0o7000 and os.stat(place).st_mode & 0o7777 != mode
        except OSError as error:
            self.leave_out(NoteKind.MODE, where, f"a mode could not be restored: {_reason(error)}")
        else:
            if refused:
                self.leave_out(NoteKind.MODE, where, "the kernel cleared a set-ID bit")

    def _times(self, place: int | bytes, mtime_ns: int, atime_ns: int | None, where: Where) -> None:
        follow = not isinstance(place, bytes)
        try:
            if atime_ns is None:
                atime_ns = os.stat(place, follow_symlinks=follow).st_atime_ns
            os.utime(place, ns=(atime_ns, mtime_ns), follow_symlinks=follow)
            status = os.stat(
                place, follow_symlinks=follow
            )  # a filesystem cuts off what it cannot hold, and says nothing
        except (OSError, OverflowError) as error:
            self.leave_out(NoteKind.TIMES, where, f"times could not be restored: {_reason(error)}")
        else:
            if (status.st_atime_ns, status.st_mtime_ns) != (atime_ns, mtime_ns):
                self.leave_out(NoteKind.TIMES, where, "times that the filesystem cannot hold")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "a value that the system cannot hold"
