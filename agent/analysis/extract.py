"""Unpacking an acquired archive on the analyst's machine (`impound open --extract`).

Everything in an archive may be hostile: it comes from a machine that somebody else may have controlled. Whatever its
members are called and whatever they are,

- nothing is made outside the output directory: it is empty at the start, every component of a name is opened below the
  one above without following links, and everything is made with O_EXCL or its like, so that nothing is overwritten;
- nothing is made that acts by itself, unless a faithful extraction was asked for: no device, FIFO or set-ID bit;
- memory stays flat, and a member that this filesystem cannot take is told and left out instead of ending it all.

Regular files come with their content and holes, directories, symbolic links and hard links as they were, all with
access and modification times to the nanosecond. What is not restored is counted and told: see `Summary`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Kind
from agent.analysis.notes import Note, NoteKind, OnNote, path_parts
from agent.analysis.restore import Restorer
from agent.analysis.tarstream import ByteStream, TarStream
from agent.analysis.trail import Trail
from agent.errors import StoreError, StoreFullError, UsageError

if TYPE_CHECKING:
    from agent.analysis.tarheader import Header

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What a filesystem says of one name, link or size, and not of itself.
_OF_ONE_MEMBER = {
    errno.EACCES, errno.EEXIST, errno.EFBIG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK,
    errno.ENAMETOOLONG, errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EOPNOTSUPP, errno.EOVERFLOW,
    errno.EPERM, errno.ENOSYS,
}  # fmt: skip


class Summary(msgspec.Struct, frozen=True):
    """What an extraction made, and what it did not."""

    made: Mapping[Kind, int]
    """Members that are there now, by what they are."""
    content: int
    """Bytes that were written, without holes."""
    unrestored: Mapping[NoteKind, int]
    """What is not as in the archive, by kind: members, and of `XATTR` attributes."""
    left_out: int
    """Members that are not there for another reason, each of which was told."""

    @property
    def whole(self) -> bool:
        """Whether every member and everything about it was restored."""
        return not (self.left_out or self.unrestored)


def extract(stream: ByteStream, output: int | Path, *, on_note: OnNote, faithful: bool = False) -> Summary:
    """Unpacks one archive into `output`: an empty directory, by descriptor or path, or a path to be made (0700).

    Members keep their names, `[root]` included. `faithful` restores what `tar -x --xattrs` does: set-ID and sticky bits
    and FIFOs, and as root owners, devices and all attributes. Keep such an output where nobody else can enter it.

    Raises `DamagedError` for an archive that is not whole or not an archive: what was unpacked until then stays, except
    the file that it broke off in; `StoreFullError`, `StoreError` when the output takes no more; `UsageError` for an
    output that is not an empty directory; `SourceError` when the stream fails. What else it raises goes through.
    """
    fd = os.dup(output) if isinstance(output, int) else _open_output(output)
    try:
        with os.scandir(fd) as found:
            if next(found, None) is not None:
                raise UsageError("the directory to unpack into is not empty")
        return _Extraction(TarStream(stream), fd, on_note, faithful=faithful).run()
    finally:
        os.close(fd)


def _open_output(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot unpack into {path}: {error.strerror}") from error


class _Extraction:
    def __init__(self, archive: TarStream, fd: int, on_note: OnNote, *, faithful: bool) -> None:
        self._archive = archive
        self._trail = Trail(fd)
        self._restorer = Restorer(on_note, faithful=faithful)
        self._on_note = on_note
        self._faithful = faithful
        self._made: Counter[Kind] = Counter()
        self._content = 0
        self._left_out = 0

    def run(self) -> Summary:
        try:
            for header in self._archive:
                self._member(header)
            self._trail.close()
        except OSError as error:  # of a directory that was left
            raise _store_error(error) from error
        finally:
            self._trail.abandon()
        return Summary(dict(self._made), self._content, dict(self._restorer.unrestored), self._left_out)

    def _member(self, header: Header) -> None:
        try:
            parts = path_parts(header.name)
            made = self._make(header, parts)
        except ValueError as error:
            self._leave_out(NoteKind.REFUSED, header, str(error))
        except OSError as error:
            if error.errno not in _OF_ONE_MEMBER:
                raise _store_error(error) from error
            self._leave_out(NoteKind.FAILED, header, error.strerror or errno.errorcode.get(error.errno or 0, "refused"))
        else:
            if made:
                self._made[header.kind] += 1

    def _leave_out(self, kind: NoteKind, header: Header, detail: str) -> None:
        self._left_out += 1
        self._on_note(Note(kind, header.name, detail))

    def _make(self, header: Header, parts: list[bytes]) -> bool:
        """Makes one member. False: its kind is not restored. Raises `ValueError` for what is refused, and `OSError`."""
        if header.kind is Kind.DIRECTORY:
            if parts:  # the output itself stays as it is
                fd = self._trail.enter(parts)
                self._trail.finish_with(self._restorer.directory(fd, header, lambda: self._trail.path))
            return True
        if not parts or header.name.endswith(b"/"):
            raise ValueError("the name of a directory for what is none")
        if header.kind is Kind.HARDLINK:
            self._hard_link(header, parts)
        elif header.kind is Kind.FILE:
            self._file(header, self._trail.enter(parts[:-1]), parts[-1])
        elif header.kind is Kind.SYMLINK:
            parent = self._trail.enter(parts[:-1])
            os.symlink(_text(header.link_name), parts[-1], dir_fd=parent)
            self._restorer.named(parent, parts[-1], header, mode=False)
        else:
            return self._node(header, parts)
        return True

    def _file(self, header: Header, parent: int, name: bytes) -> None:
        extents = self._archive.sparse_map()
        if extents is not None and not extents.aligned:
            detail = "GNU tar takes the parts of this sparse file from other places than bsdtar and impound"
            self._on_note(Note(NoteKind.AMBIGUOUS, header.name, detail))
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            for offset, piece in self._archive.content():
                _write(fd, piece, offset)
                self._content += len(piece)
            if header.real_size is not None:
                os.ftruncate(fd, header.real_size)
            self._restorer.file(fd, header)
        except BaseException:
            # A part of a file must never pass for the file.
            os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _hard_link(self, header: Header, parts: list[bytes]) -> None:
        """Links to a regular file of this extraction, which is all that can be in the output."""
        target = path_parts(header.link_name)
        if not target:
            raise ValueError("a hard link without a target")
        try:
            handle = os.open(target[-1], _HANDLE, dir_fd=self._trail.enter(target[:-1], make=False))
        except FileNotFoundError:
            raise ValueError("a hard link to what was not unpacked") from None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError("a hard link to what is no regular file")
            parent = self._trail.enter(parts[:-1])
            # By descriptor: what was looked at is what is linked to.
            os.link(f"/proc/self/fd/{handle}", parts[-1], dst_dir_fd=parent, follow_symlinks=True)
        finally:
            os.close(handle)

    def _node(self, header: Header, parts: list[bytes]) -> bool:
        """A FIFO or a device."""
        restorer = self._restorer

        def where() -> bytes:
            return header.name

        if header.kind is Kind.FIFO:
            if not self._faithful:
                restorer.leave_out(NoteKind.FIFO, where, "named pipes are not made")
                return False
            type_, device = stat.S_IFIFO, 0
        else:
            if not restorer.privileged:
                if header.kind is Kind.CHAR_DEVICE and header.device == (0, 0):
                    restorer.leave_out(NoteKind.WHITEOUT, where, "marks of deleted files (overlay) are not made")
                else:
                    restorer.leave_out(NoteKind.DEVICE, where, "devices are not made")
                return False
            type_ = stat.S_IFCHR if header.kind is Kind.CHAR_DEVICE else stat.S_IFBLK
            device = _device(header.device)
        parent = self._trail.enter(parts[:-1])
        os.mknod(parts[-1], type_ | 0o600, device, dir_fd=parent)
        restorer.named(parent, parts[-1], header, mode=True)
        return True


def _write(fd: int, piece: memoryview, offset: int) -> None:
    while piece:
        written = os.pwrite(fd, piece, offset)
        piece = piece[written:]
        offset += written


def _device(numbers: tuple[int, int]) -> int:
    try:
        return os.makedev(*numbers)
    except OverflowError:
        raise ValueError("device numbers that no system has") from None


def _text(link_name: bytes) -> bytes:
    if b"\0" in link_name:
        raise ValueError("a symbolic link with a NUL in it")
    return link_name


def _store_error(error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreFullError(f"cannot unpack: {error.strerror}")
    return StoreError(f"cannot unpack: {error.strerror or error}")
