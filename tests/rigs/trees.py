"""What tests of the walker need: a report that keeps everything, a tree in either way, mounts that go by themselves."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from acquirers import syscalls
from acquirers.base import Flag, FlagKind, Gap, Kind, Member, Reason
from acquirers.files.tree import Tree, open_tree
from acquirers.files.walk import walk

if TYPE_CHECKING:
    from acquirers.files.entry import Entry
    from acquirers.mounts import Mount

REPOSITORY = Path(__file__).parents[2]

_CLONE_NEWNS = 0x20000
_CLONE_FS = 0x200
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18


@dataclass
class Recorder:
    """A `Report` that keeps what it is told."""

    members: list[Member] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def member(self, member: Member) -> None:
        self.members.append(member)

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def flag(self, flag: Flag) -> None:
        self.flags.append(flag)

    def reasons(self, where: bytes) -> list[Reason]:
        return [gap.reason for gap in self.gaps if gap.where == where]

    def kinds(self, where: bytes) -> list[FlagKind]:
        return [flag.kind for flag in self.flags if flag.where == where]

    @property
    def noticed(self) -> list[tuple[str, bytes]]:
        """Every gap and flag, less that there is no clone."""
        flags = [(str(flag.kind), flag.where) for flag in self.flags if flag.kind is not FlagKind.NO_CLONE]
        return [(str(gap.reason), gap.where) for gap in self.gaps] + flags


@contextmanager
def opened(
    path: Path | str,
    native: bytes | None = None,
    *,
    in_place: bool = False,
    recursive: bool = False,
    mounts: Mapping[bytes, Mount] | None = None,
) -> Iterator[Tree]:
    """The directory as a tree, under its own path unless another is given; `in_place`: the kernel refuses the clone."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        if in_place:
            with mock.patch.object(syscalls, "open_tree_clone", side_effect=PermissionError(1, "not permitted")):
                tree = open_tree(fd, native or os.fsencode(path), mounts=mounts)
        else:
            tree = open_tree(fd, native or os.fsencode(path), recursive=recursive, mounts=mounts)
    finally:
        os.close(fd)
    with tree:
        yield tree


@dataclass(frozen=True)
class Taken:
    """An entry with its content, after the walk has gone on."""

    entry: Entry
    data: bytes | None = None
    """With its holes as zeros."""
    extents: tuple[tuple[int, int], ...] = ()
    sha256: bytes | None = None
    true_size: int | None = None

    @property
    def kind(self) -> Kind:
        return self.entry.kind


def take(entries: Iterable[Entry]) -> dict[bytes, Taken]:
    """Reads everything; path -> what was taken, in the order of the walk."""
    taken: dict[bytes, Taken] = {}
    for entry in entries:
        assert entry.path not in taken
        content = entry.content
        if content is None:
            taken[entry.path] = Taken(entry)
            continue
        extents = tuple(content.extents)
        stored = b"".join(bytes(chunk) for chunk in content.chunks())  # each is valid until the next
        assert len(stored) == sum(length for _, length in extents)
        data = bytearray(content.size)
        for offset, length in extents:
            data[offset : offset + length] = stored[:length]
            stored = stored[length:]
        taken[entry.path] = Taken(entry, bytes(data), extents, content.sha256, content.true_size)
    return taken


def taken(top: Path, report: Recorder, *, in_place: bool = False, **how: Any) -> dict[bytes, Taken]:
    """Everything that a walk through a directory takes."""
    with opened(top, in_place=in_place) as tree:
        return take(walk(tree, report, **how))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# -- trees on a disk ---------------------------------------------------------------------------------------------------

OLD, OLDER = 2_000_000_000, 1_000_000_000
"""A modification, and an access from before it: relatime moves such an access time at the next read."""


def make_every_type(top: Path) -> None:
    """Fills a directory with every type of file, odd names and everything that can hang on a file. Needs root."""
    (top / "file").write_bytes(b"content")
    (top / "empty").touch()
    (top / "hard").hardlink_to(top / "file")
    (top / "link").symlink_to("file")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "dangling").symlink_to(os.fsdecode(b"no\xff where"))
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(top / "socket"))
    os.mknod(top / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(top / "tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    (top / "setuid").write_bytes(b"#!")
    (top / "setuid").chmod(0o4750)
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 22)
        os.pwrite(file.fileno(), b"data", 1 << 21)
    for name in (b"new\nline", b"\xff\xfe\x01", b"n" * 255, b" ", b"-rf *", b"...", "ü".encode(), b"\\x"):
        (top / os.fsdecode(name)).write_bytes(name)
    below = top / "directory" / "deeper"
    below.mkdir(parents=True)
    (top / "directory").chmod(0o3775)
    (below / "file").write_bytes(b"below")
    (top / "hollow").mkdir()
    os.chown(top / "file", 12345, 54321)
    os.setxattr(top / "file", "user.note", b"\x00\xff")
    os.setxattr(top / "directory", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "link", "trusted.on.link", b"1", follow_symlinks=False)
    os.setxattr(top / "whiteout", "security.x", b"2")
    age(top)


def age(top: Path) -> set[bytes]:
    """Gives everything below times from which relatime moves the access time at the next read. Returns the paths."""
    found = paths(top)
    for path in found:
        os.utime(path, ns=(OLDER, OLD), follow_symlinks=False)
    return found


def paths(top: Path) -> set[bytes]:
    """Every path below, and the directory itself."""
    return {os.fsencode(top), *(os.fsencode(path) for path in top.rglob("*"))}


def times(paths: Iterable[bytes]) -> dict[bytes, tuple[int, int, int]]:
    found = {path: os.lstat(path) for path in paths}
    return {path: (here.st_atime_ns, here.st_mtime_ns, here.st_ctime_ns) for path, here in found.items()}


def at(top: Path, name: str | bytes = "") -> bytes:
    return os.path.join(os.fsencode(top), os.fsencode(name)).rstrip(b"/")


# -- mounts -----------------------------------------------------------------------------------------------------------


def in_private_mounts(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a thread with a mount namespace of its own, which takes all that is mounted with it when it ends.

    Skips where this is not permitted. `/proc/self/mountinfo` is the process's; ask `/proc/thread-self/mountinfo`.
    """

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        failures: list[BaseException] = []

        def body() -> None:
            try:
                try:
                    libc_call("unshare", _CLONE_NEWNS | _CLONE_FS)
                    libc_call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
                except OSError as error:
                    pytest.skip(f"needs root: no private mount namespace: {error}")
                test(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that runs the tests
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    return run


def mount(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    libc_call("mount", source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode())


def libc_call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    if getattr(libc, name)(*converted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


# -- other processes --------------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str | Path) -> str:
    """Runs a program in a process of its own and returns what it prints."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"},
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NOBODY = 65534


def become_nobody() -> None:
    """Gives up root for good, in a process of its own. What is imported later may not be readable any more."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
