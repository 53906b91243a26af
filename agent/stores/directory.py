"""A directory as store and source.

Objects are written into an unnamed file (`O_TMPFILE`) that gets its name by `linkat` when it is whole: the kernel
refuses a name that is taken, and a run that dies leaves nothing half. Where the filesystem has no unnamed files, a file
named `.partial-…` stands in. Every step is relative to directory descriptors that never follow a link.
What is written does not stay in memory: see `pagecache`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING

from agent.errors import ObjectExistsError, SourceError, StoreError, StoreFullError, UsageError
from agent.stores.base import Listed
from agent.stores.pagecache import WrittenBehind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from acquirers.base import Buffer
    from agent.stores.throttle import Throttle

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PARTIAL = ".partial-"
_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_DEPTH = 32
MAX_LEVELS = 4
"""How deep runs are looked for: a destination in a directory, case, host, run."""


def check_destination(to: str) -> None:
    """Whether a run could be stored below `to`, without creating anything. Raises `UsageError`."""
    path = os.path.abspath(to)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            raise UsageError(f"the destination {to!r} is not there, and neither is the directory above it") from None
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UsageError(f"the destination {to!r} cannot be created: {parent!r} is not writable") from None
        return
    except OSError as error:
        raise UsageError(f"the destination {to!r} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"the destination {to!r} is not a directory")
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"the destination {to!r} is not writable")


def _store_error(error: OSError, what: str) -> StoreError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreFullError(f"the destination is full: {what} could not be written")
    return StoreError(f"{what} could not be written: {error.strerror}")


def _descend(base: int, parts: list[str], *, create: bool) -> int:
    """A descriptor of the directory `parts` below `base`, made 0700 on the way where asked. Raises `OSError`."""
    fd = os.dup(base)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
                    os.fsync(fd)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


class DirectoryUpload:
    """One object on its way into a directory."""

    def __init__(self, directory: int, name: str, leaf: str, throttle: Throttle | None = None) -> None:
        self._directory, self._name, self._leaf, self._throttle = directory, name, leaf, throttle
        self._partial = ""
        try:
            os.stat("/proc/self/fd")  # an unnamed file gets its name through it
            self._fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}:
                raise
            self._partial = PARTIAL + secrets.token_hex(8)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._partial, flags, 0o600, dir_fd=directory)
        self._cache = WrittenBehind(self._fd)

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        try:
            while view:
                piece = view
                if self._throttle is not None:
                    piece = view[: self._throttle.piece]
                    self._throttle.take(len(piece))
                count = os.write(self._fd, piece)
                view = view[count:]
                self._cache.wrote(count)
        except OSError as error:
            raise _store_error(error, self._name) from error

    def commit(self) -> tuple[()]:
        try:
            os.fsync(self._fd)
            self._cache.whole()
            if self._partial:
                os.link(self._partial, self._leaf, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                os.unlink(self._partial, dir_fd=self._directory)
            else:
                source = f"/proc/self/fd/{self._fd}"
                os.link(source, self._leaf, dst_dir_fd=self._directory, follow_symlinks=True)
            self._partial = ""
            os.fsync(self._directory)
        except FileExistsError as error:
            raise ObjectExistsError(f"{self._name} is there already and is not overwritten") from error
        except OSError as error:
            raise _store_error(error, self._name) from error
        finally:
            self.abort()
        return ()

    def abort(self) -> None:
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if self._partial:
                os.unlink(self._partial, dir_fd=self._directory)
        for fd in (self._fd, self._directory):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fd = -1


class DirectoryStore:
    """One run below a destination directory. The destination is made 0700 if its parent exists."""

    authority = "local"

    def __init__(self, to: str, run: str, *, resume: bool = False, throttle: Throttle | None = None) -> None:
        """`run` is `<case>/<host>/<run>`; it must be new, or with `resume` be there. Raises `StoreError`."""
        base = os.path.abspath(to)
        self._throttle = throttle
        self.location = os.path.join(base, run)
        parts = run.split("/")
        try:
            if not resume:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(base, 0o700)
            root = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                above = _descend(root, parts[:-1], create=not resume)
            finally:
                os.close(root)
            try:
                if not resume:
                    os.mkdir(parts[-1], 0o700, dir_fd=above)
                    os.fsync(above)
                self._fd = os.open(parts[-1], _DIRECTORY, dir_fd=above)
            finally:
                os.close(above)
        except OSError as error:
            raise _store_error(error, self.location) from error

    def begin(self, name: str, *, estimate: int | None = None) -> DirectoryUpload:  # noqa: ARG002 - a file needs none
        *parts, leaf = name.split("/")
        try:
            return DirectoryUpload(_descend(self._fd, parts, create=True), name, leaf, self._throttle)
        except OSError as error:
            raise _store_error(error, name) from error

    def moment(self) -> None:
        """A directory has no clock of its own."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileBlob:
    """One stored file."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name
        self.size = os.fstat(fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        parts = []
        try:
            while length > 0 and (data := os.pread(self._fd, length, offset)):
                parts.append(data)
                offset += len(data)
                length -= len(data)
        except OSError as error:
            raise SourceError(f"{self._name} cannot be read: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DirectorySource:
    """A stored run in a directory."""

    def __init__(self, path: str) -> None:
        self.location = os.path.abspath(path)
        try:
            self._fd = os.open(self.location, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path!r} cannot be read: {error.strerror}") from error

    def names(self) -> Iterator[Listed]:
        yield from self._list(self._fd, "", 0)

    def prefetch(self, names: Iterable[str]) -> None:
        """The kernel reads ahead by itself."""

    def _list(self, fd: int, prefix: str, depth: int) -> Iterator[Listed]:
        try:
            with os.scandir(fd) as entries:
                found = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
        except OSError as error:
            raise SourceError(f"{prefix or self.location} cannot be listed: {error.strerror}") from error
        for leaf, status in found:
            name = prefix + leaf
            if stat.S_ISDIR(status.st_mode) and depth < _MAX_DEPTH:
                below = self._open(leaf, _DIRECTORY, fd, name)
                try:
                    yield from self._list(below, name + "/", depth + 1)
                finally:
                    os.close(below)
            else:
                yield Listed(name, status.st_size, stat.S_ISREG(status.st_mode))

    def _open(self, leaf: str, flags: int, directory: int, name: str) -> int:
        try:
            return os.open(leaf, flags, dir_fd=directory)
        except OSError as error:
            raise SourceError(f"{name} cannot be opened: {error.strerror}") from error

    def open(self, name: str) -> FileBlob:
        *parts, leaf = name.split("/")
        if any(part in {"", ".", ".."} for part in (*parts, leaf)):
            raise SourceError(f"{name!r} is not the name of an object")
        try:
            directory = _descend(self._fd, parts, create=False)
        except OSError as error:
            raise SourceError(f"{name} cannot be opened: {error.strerror}") from error
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = self._open(leaf, flags, directory, name)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(f"{name} is not a regular file")
        return FileBlob(fd, name)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_outside_runs(path: str) -> None:
    """Refuses a place inside of a stored run, to which nothing may be added. Raises `UsageError`."""
    here = os.path.realpath(path)
    while here != "/":
        if _is_run(here):
            raise UsageError(f"{path!r} lies inside a stored run, {here!r}: nothing may be added to it")
        here = os.path.dirname(here)


def _is_run(path: str) -> bool:
    """A run is known by its id, or by its account where it was renamed; hosts and cases may be called anything else."""
    account = any(os.path.isfile(os.path.join(path, name)) for name in ("receipt.json", "progress/000000.json"))
    return account or (_RUN.fullmatch(os.path.basename(path)) is not None and os.path.isdir(path))


def find_runs(path: str) -> list[str]:
    """The runs at or below `path`: a run itself, or those of a host, a case or a whole destination, sorted."""
    runs: list[str] = []
    _find(os.path.abspath(path), MAX_LEVELS, runs)
    return runs


def _find(path: str, depth: int, runs: list[str]) -> None:
    if _is_run(path):
        runs.append(path)
        return
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        raise SourceError(f"{path!r} cannot be read: {error.strerror}") from error
    for name in names if depth else ():
        _find(os.path.join(path, name), depth - 1, runs)


def sweep_partials(path: str) -> None:
    """Removes what writers that died left half below a run, on filesystems without unnamed files."""
    for directory, _, names in os.walk(path):
        for name in names:
            if name.startswith(PARTIAL):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(directory, name))
