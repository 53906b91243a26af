"""What tests of the walker need: a report that keeps everything, a tree in either way, mounts that go by themselves."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
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
        stored = b"".join(content.chunks())
        assert len(stored) == sum(length for _, length in extents)
        data = bytearray(content.size)
        for offset, length in extents:
            data[offset : offset + length] = stored[:length]
            stored = stored[length:]
        taken[entry.path] = Taken(entry, bytes(data), extents, content.sha256, content.true_size)
    return taken


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


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
                    _call("unshare", _CLONE_NEWNS | _CLONE_FS)
                    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
                except OSError as error:
                    pytest.skip(f"needs a private mount namespace: {error}")
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
    _call("mount", source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode())


def _call(name: str, *args: Any) -> None:
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
