"""The root of the examined machine: every path below it is resolved inside it.

Links are followed in user space, one component at a time, each by a directory descriptor that follows nothing itself.
So no link leads out, whoever made it and whenever it is changed.

Nor does a path lead onto a filesystem in user space, or one whose server may be gone: whoever asks it can be held there
for ever, and not even be killed. Opening what is mounted somewhere by `O_PATH` does not ask it yet. So each component
is opened, the kernel's list says what it lies on, and only then is anything further done with it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import weakref

import msgspec

from acquirers import syscalls
from acquirers.files.tree import DIRECTORY, open_noatime
from acquirers.mounts import KERNEL, PASSABLE, Mount, find_mount

MAX_LINKS = 40
MAX_DEPTH = 256
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_VIEWS = KERNEL - {b"devtmpfs"}
MAX_CONFIG = 1 << 20
"""Bytes of a configuration file that are ever read into memory, unless the caller says otherwise."""


class NotARootError(Exception):
    """The directory holds none of etc, usr and var."""


class TooLargeError(OSError):
    """A file that should be small is not."""


class ForeignMountError(OSError):
    """A path leads onto a filesystem that may never answer: `Reason.NOT_CROSSED`."""

    def __init__(self, what: bytes) -> None:
        super().__init__(errno.EREMOTE, f"on {what.decode('ascii', 'replace')}, which is not entered")


class _Ground(msgspec.Struct, frozen=True):
    """What a component of a path lies on."""

    mount_id: int | None
    """None: there is no /proc to tell."""
    view: bool = False
    """A view of the kernel, not files that anybody stored."""


class Place(msgspec.Struct, frozen=True):
    """What a path leads to."""

    fd: int
    """`O_PATH`; the caller's to close."""
    native: bytes
    """Its path without links."""
    links: list[bytes]
    """The native paths of the links on the way."""
    view: bool


class Resolver:
    """Follows paths from an open directory, which is `/` to them. Methods raise `OSError`.

    The mount that this directory lies on is trusted, unless it is to be `checked` like all others.
    """

    def __init__(self, root_fd: int, *, checked: bool = False) -> None:
        self._root_fd = root_fd
        self._ground = _Ground(_mount_id(root_fd))
        if checked:
            self._ground = self._enter(root_fd, _Ground(-1))

    def follow(self, path: bytes) -> Place:
        """What `path` names, links followed inside the root."""
        todo = _parts(path)
        fds, grounds = [os.dup(self._root_fd)], [self._ground]
        names: list[bytes] = []
        links: list[bytes] = []
        try:
            while todo:
                part = todo.pop()
                if part == b"..":
                    if names:
                        names.pop()
                        grounds.pop()
                        os.close(fds.pop())
                    continue
                if len(fds) > MAX_DEPTH:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                fds.append(os.open(part, _PATH, dir_fd=fds[-1]))
                grounds.append(self._enter(fds[-1], grounds[-1]))
                names.append(part)
                if not stat.S_ISLNK(os.fstat(fds[-1]).st_mode):
                    continue
                links.append(b"/" + b"/".join(names))
                if len(links) > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = _read_link(fds[-1])
                above = 0 if target.startswith(b"/") else len(names) - 1
                while len(names) > above:
                    names.pop()
                    grounds.pop()
                    os.close(fds.pop())
                todo += _parts(target)
            return Place(fds.pop(), b"/" + b"/".join(names), links, grounds[-1].view)
        finally:
            for fd in fds:
                os.close(fd)

    def open_path(self, path: bytes) -> int:
        """An `O_PATH` descriptor of what `path` names, links followed inside the root."""
        return self.follow(path).fd

    def identity_of(self, path: bytes) -> tuple[int, int]:
        """(device, inode) of what `path` names."""
        fd = self.open_path(path)
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return found.st_dev, found.st_ino

    def _enter(self, fd: int, above: _Ground) -> _Ground:
        """Asks the kernel, and not the filesystem, whether anything may be asked of what was opened."""
        if above.mount_id is None:
            return above
        mount_id = _mount_id(fd)
        if mount_id in {None, above.mount_id}:
            return above
        mount = self._mount(mount_id)
        if mount is None:
            raise ForeignMountError(b"a filesystem that is in no list of mounts")
        if not mount.local and mount.fstype not in PASSABLE:
            raise ForeignMountError(mount.fstype)
        return _Ground(mount_id, mount.fstype in _VIEWS)

    def _mount(self, mount_id: int) -> Mount | None:
        """The mount with that id. Looked up every time: when it is gone, another one gets its id."""
        return find_mount(read_kernel_file(b"/proc/self/mountinfo"), mount_id)


def _parts(path: bytes) -> list[bytes]:
    """The components, the last one first."""
    return [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]


def _mount_id(fd: int) -> int | None:
    """The id of the mount that a descriptor lies on; None where /proc does not tell."""
    try:
        told = read_kernel_file(b"/proc/self/fdinfo/%d" % fd, 4096)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    found = re.search(rb"^mnt_id:\s*(\d+)$", told, re.MULTILINE)
    return int(found[1]) if found else None


def _read_link(fd: int) -> bytes:
    """The text of the link behind an `O_PATH` descriptor, through a clone of its mount that moves no access time.

    Where kernel or privilege refuse the clone, it is read as it lies.
    """
    try:
        clone = syscalls.open_tree_clone(fd, b"", recursive=False)
    except OSError:
        return os.readlink(b"", dir_fd=fd)
    try:
        syscalls.make_inert(clone, recursive=False)
        return os.readlink(b"", dir_fd=clone)
    except OSError:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(clone)


class Root(Resolver):
    """A directory that is a machine's `/`.

    Paths are native and absolute: `/var/lib/docker` is that directory of the examined machine, wherever its root lies.
    Methods raise `OSError`.
    """

    def __init__(self, root: bytes) -> None:
        self.root = os.path.abspath(root)
        wrong = f"{os.fsdecode(self.root)!r} holds none of etc, usr and var"
        try:
            fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NotARootError(wrong) from error
        weakref.finalize(self, os.close, fd).atexit = False
        super().__init__(fd)
        # What a process has as its own `/` is one, even where an image was made from scratch.
        if self.root != b"/" and not any(self.is_dir(name) for name in (b"/etc", b"/usr", b"/var")):
            raise NotARootError(wrong)

    def native(self, path: bytes) -> bytes:
        """`path` with all links followed: the native absolute path that the machine itself would print."""
        place = self.follow(path)
        os.close(place.fd)
        return place.native

    def here(self, path: bytes) -> bytes:
        """How this process would name the native path `path`."""
        return path if self.root == b"/" else self.root + path

    def is_dir(self, path: bytes) -> bool:
        return self._has_type(path, stat.S_ISDIR)

    def is_file(self, path: bytes) -> bool:
        return self._has_type(path, stat.S_ISREG)

    def _has_type(self, path: bytes, test: object) -> bool:
        try:
            fd = self.open_path(path)
        except OSError:
            return False
        try:
            mode = os.fstat(fd).st_mode
        finally:
            os.close(fd)
        return bool(callable(test) and test(mode))

    def read(self, path: bytes, limit: int = MAX_CONFIG) -> bytes:
        """The content of one small regular file. Raises `TooLargeError` beyond `limit` bytes."""
        place = self.follow(path)
        try:
            if place.view:
                raise OSError(errno.EINVAL, "a view of the kernel, not a file that anybody stored")
            if not stat.S_ISREG(os.fstat(place.fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            fd = self._open(place)
        finally:
            os.close(place.fd)
        return _read_regular(fd, limit)

    def _open(self, place: Place) -> int:
        """Opens what was looked at, whatever has its name now."""
        how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return open_noatime(b"/proc/self/fd/%d" % place.fd, how, place.fd)
        except FileNotFoundError:  # no /proc
            head, _, name = place.native.rpartition(b"/")
            directory = self.open_path(head)
            try:
                return open_noatime(name, how | os.O_NOFOLLOW, directory)
            finally:
                os.close(directory)

    def names(self, path: bytes) -> list[bytes]:
        """The names in one directory, sorted. For directories whose size a configuration bounds."""
        fd = self.open_path(path)
        try:
            listing = open_noatime(b".", DIRECTORY, fd)
        finally:
            os.close(fd)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(listing))
        finally:
            os.close(listing)


def _read_regular(fd: int, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "not a regular file")
        data = b""
        while chunk := os.read(fd, limit + 1 - len(data)):
            data += chunk
            if len(data) > limit:
                raise TooLargeError(27, f"larger than {limit} bytes")
        return data
    finally:
        os.close(fd)


def read_kernel_file(path: bytes, limit: int = 4 * MAX_CONFIG) -> bytes:
    """A kernel file, which has no size to trust: read to its end or to `limit` bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        left = limit
        while left and (chunk := os.read(fd, min(left, 1 << 16))):
            parts.append(chunk)
            left -= len(chunk)
        return b"".join(parts)
    finally:
        os.close(fd)
