"""The small records of a container runtime, read below one directory without following a single link.

What a runtime writes decides what is read next, and whoever owns the machine could have written it. So a name is one
component, a link is only ever read as text, sizes and counts are bounded, and nothing but a regular file is opened.
Reading goes through a `Tree`, so that not even a symbolic link's access time moves.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from acquirers.base import Kind
from acquirers.files.tree import DIRECTORY, open_noatime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from acquirers.files.tree import Tree
    from acquirers.host import Host

MAX_JSON = 4 << 20
"""Bytes of one record: the largest real ones (many labels and environment variables) are a few hundred KiB."""
MAX_NAMES = 100_000
"""Names of one directory that are looked at."""

_T = TypeVar("_T")


class MalformedError(ValueError):
    """A record is not what its format says."""


class TooManyNamesError(OSError):
    """A directory has more names than are looked at."""

    def __init__(self, first: list[tuple[bytes, Kind]]) -> None:
        super().__init__(errno.EFBIG, f"more than {len(first)} names")
        self.first = first


class Records:
    """One directory of records. A context manager. Methods raise `OSError`; `parts` are names, one component each."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @classmethod
    def open(cls, host: Host, path: bytes) -> Self:
        return cls(host.tree(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tree.close()

    def names(
        self, *parts: bytes, matching: re.Pattern[bytes] | None = None, limit: int = MAX_NAMES
    ) -> list[tuple[bytes, Kind]]:
        """The names in a directory with their types, sorted. Raises `TooManyNamesError`, which holds the first ones.

        What does not match is not kept and does not count: nobody can crowd out what is looked for.
        """
        fd = self._directory(parts)
        try:
            found: list[tuple[bytes, Kind]] = []
            listing = open_noatime(b".", DIRECTORY, fd)
            try:
                with os.scandir(listing) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if matching is not None and not matching.fullmatch(name):
                            continue
                        if len(found) == limit:
                            raise TooManyNamesError(sorted(found))
                        found.append((name, _kind(name, fd)))
            finally:
                os.close(listing)
        finally:
            os.close(fd)
        return sorted(found)

    def kind(self, *parts: bytes) -> Kind | None:
        """The type of a file, a link being a link; None when there is none."""
        try:
            directory = self._directory(parts[:-1])
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return None
            raise
        try:
            _check(parts[-1])
            return Kind.of_mode(os.stat(parts[-1], dir_fd=directory, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return None
        finally:
            os.close(directory)

    def read(self, *parts: bytes, limit: int = MAX_JSON) -> bytes:
        """The content of a regular file. Raises `MalformedError` when it is none or larger than `limit` bytes."""
        fd = self.open_file(*parts)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise MalformedError(f"{size} bytes, of which at most {limit} are read as a record")
            data = bytearray()
            while len(data) <= limit and (chunk := os.read(fd, min(1 << 16, limit + 1 - len(data)))):
                data += chunk
        finally:
            os.close(fd)
        if len(data) > limit:
            raise MalformedError(f"grew beyond {limit} bytes")
        return bytes(data)

    def chunks(self, *parts: bytes, limit: int) -> Iterator[bytes]:
        """The content of a regular file that is too large to be held. Raises `MalformedError` beyond `limit` bytes."""
        fd = self.open_file(*parts)
        try:
            while chunk := os.read(fd, 1 << 16):
                limit -= len(chunk)
                if limit < 0:
                    raise MalformedError("larger than what is read of such a file")
                yield chunk
        finally:
            os.close(fd)

    def open_file(self, *parts: bytes) -> int:
        """A descriptor of a regular file, for reading. Raises `MalformedError` when it is none."""
        directory = self._directory(parts[:-1])
        try:
            _check(parts[-1])
            mode = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                raise MalformedError(f"a {Kind.of_mode(mode)}, where a file should be")
            fd = open_noatime(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise MalformedError("changed its type while it was opened")
        return fd

    def text(self, *parts: bytes, limit: int = 4096) -> str:
        """The content of a file that holds one word: an id, a digest, a number. Raises `MalformedError`."""
        try:
            return self.read(*parts, limit=limit).decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise MalformedError("not a word of plain text") from error

    def link(self, *parts: bytes) -> bytes:
        """The text of a symbolic link. Raises `MalformedError` when it is none."""
        directory = self._directory(parts[:-1])
        try:
            _check(parts[-1])
            return os.readlink(parts[-1], dir_fd=directory)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise MalformedError("no symbolic link") from error
            raise
        finally:
            os.close(directory)

    def _directory(self, parts: tuple[bytes, ...]) -> int:
        fd = os.dup(self._tree.fd)
        try:
            for part in parts:
                _check(part)
                deeper = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = deeper
        except BaseException:
            os.close(fd)
            raise
        return fd


def _check(name: bytes) -> None:
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise MalformedError("a name that is not one component of a path")


def _kind(name: bytes, dir_fd: int) -> Kind:
    try:
        return Kind.of_mode(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return Kind.UNKNOWN


def decode(data: bytes | msgspec.Raw, kind: type[_T]) -> _T:
    """One JSON document. Members that `kind` does not name cost no memory. Raises `MalformedError`, nothing else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise MalformedError("JSON nested too deeply") from error
    except UnicodeDecodeError as error:
        raise MalformedError("JSON that is not UTF-8") from error
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise MalformedError(f"JSON: {str(error)[:200]}") from error
