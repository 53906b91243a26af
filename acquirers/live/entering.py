"""The files of a container, opened from outside, so that reading them can change nothing.

A child opens the container's namespaces and root through `/proc/<pid>`, joins its mount namespace, and clones what is
mounted there: detached, read-only, without access times, devices or links to follow, in no list of mounts. It sends the
descriptor of that clone (`SCM_RIGHTS`, unix(7)) and ends. So this process stays where it is, nothing that happens in
the container later (a pivot, an unmount, its end) changes what the clone shows, and no path of it leads elsewhere. A
clone is refused outside of the namespace it is made in (`open_tree(2)`: EINVAL).

Where the kernel has no clones (before Linux 5.12), or this user may make none, what `/proc/<pid>/root` leads to is read
in place, with `O_NOATIME`. It is a directory to begin at and no path that is ever resolved: the walk opens every name
from the directory that holds it, without following.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Self

import msgspec

from acquirers import syscalls
from acquirers.base import AcquirerError, Reason
from acquirers.live import calls
from acquirers.live.groups import MAX_MOUNTINFO
from acquirers.root import read_kernel_file
from acquirers.snapshot.placing import read_below
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch

if TYPE_CHECKING:
    from types import TracebackType

PATIENCE = Patience(first=10.0, later=2.0, generous=2)
_TRIES = 3
_POINTER = os.O_PATH | os.O_CLOEXEC


class Entered(msgspec.Struct):
    """What a container sees, open. A context manager."""

    fd: int
    """`O_PATH`, its root: of a clone, or in place."""
    in_place: int
    """`O_PATH`, its root in place; -1 where it could not be opened besides."""
    clone: bool
    """`fd` is of a clone."""
    still: bool
    """Reading through `fd` moves no access time."""
    mountinfo: bytes
    """As the process had it when the clone was made."""
    why_not: str = ""
    changed: bool = False
    """The list of mounts was another one when the clone was made than after it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (self.fd, self.in_place):
            if fd >= 0:
                os.close(fd)
        self.fd = self.in_place = -1


class _Notes(msgspec.Struct, omit_defaults=True):
    clone: bool = False
    still: bool = False
    why_not: str = ""
    changed: bool = False
    error: int = 0
    pointer: bool = False
    """Of the root in place, for what a clone leaves out."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Notes)


def enter(directory: int, base: bytes, patience: Patience = PATIENCE) -> Entered:
    """`directory` is `/proc/<pid>`, open; `base` as `placing.Process.base` has it. Raises `AcquirerError`."""
    calls.libc()  # before the fork: a child that sees another root may load nothing
    found: Entered | None = None
    pointer = -1
    trouble = AcquirerError(Reason.VANISHED, "the container has ended")
    watch: Watch[bytes] = Watch(lambda task: _enter(directory, task), keep=[directory], patience=patience)
    try:
        with closing(watch.run([base])) as events:
            for event in events:
                if isinstance(event, Ended):
                    if event.outcome is Outcome.STUCK:
                        trouble = AcquirerError(Reason.STUCK, f"its mounts could not be cloned: {event.detail}")
                    elif event.outcome is Outcome.DIED:
                        trouble = AcquirerError(Reason.INTERNAL, f"its mounts could not be cloned: {event.detail}")
                elif event.notes:
                    notes = _decode.decode(event.notes)
                    if notes.pointer:
                        pointer = event.fd
                    elif notes.error:
                        trouble = _trouble(notes.error)
                    elif event.fd >= 0:
                        found = Entered(
                            event.fd, -1, notes.clone, notes.still, event.data, notes.why_not, notes.changed
                        )
    except OSError as error:
        trouble = AcquirerError(Reason.INTERNAL, f"no child could be started: {error.strerror}")
    if found is None:
        if pointer >= 0:
            os.close(pointer)
        raise trouble
    found.in_place = pointer
    return found


def enter_own() -> Entered:
    """What this process itself sees. Raises `AcquirerError`."""
    try:
        root = os.open(b"/", _POINTER | os.O_DIRECTORY)
        mountinfo = read_kernel_file(b"/proc/thread-self/mountinfo", MAX_MOUNTINFO)
    except OSError as error:
        raise _trouble(error.errno or 5) from error
    tree = -1
    try:
        tree = syscalls.open_tree_clone(root, b"", recursive=True)
        still = calls.make_read_only(tree)
    except OSError as error:
        if tree >= 0:
            os.close(tree)
        why_not = f"no detached clone of its mounts: {error.strerror}"
        return Entered(root, os.dup(root), clone=False, still=False, mountinfo=mountinfo, why_not=why_not)
    why_not = "" if still else "a read-only clone of its mounts, but their access times are locked"
    return Entered(tree, root, clone=True, still=still, mountinfo=mountinfo, why_not=why_not)


def _trouble(number: int) -> AcquirerError:
    error = OSError(number, os.strerror(number))
    reason = Reason.DENIED if isinstance(error, PermissionError) else Reason.VANISHED
    return AcquirerError(reason, f"its root cannot be opened: {error.strerror}")


# -- in the child -----------------------------------------------------------------------------------------------------


def _enter(directory: int, base: bytes) -> Iterator[Part]:
    try:
        root = os.open(base + b"root", _POINTER | os.O_DIRECTORY, dir_fd=directory)
        before = read_below(directory, base + b"mountinfo", MAX_MOUNTINFO)
    except OSError as error:
        yield Part(notes=_encode(_Notes(error=error.errno or 5)), last=True)
        return
    yield Part(notes=_encode(_Notes(pointer=True)), fd=os.dup(root))
    tree = -1
    notes = _Notes()
    try:
        _join(directory, base)
        yield Part()
        for _ in range(_TRIES):
            tree = syscalls.open_tree_clone(root, b"", recursive=True)
            after = read_below(directory, base + b"mountinfo", MAX_MOUNTINFO)
            notes.changed, before = before != after, after
            if not notes.changed:
                break
            os.close(tree)
            tree = -1
        if tree < 0:  # somebody mounts without end
            tree = syscalls.open_tree_clone(root, b"", recursive=True)
        notes.still = calls.make_read_only(tree)
        notes.clone = True
        if not notes.still:
            notes.why_not = "a read-only clone of its mounts, but their access times are locked"
    except OSError as error:
        notes.why_not = f"no detached clone of its mounts: {error.strerror}"
        if tree >= 0:
            with suppress(OSError):
                os.close(tree)
        tree = root
    yield Part(before, _encode(notes), tree, last=True)


def _join(directory: int, base: bytes) -> None:
    """Joins the mount namespace; where this user may not, by way of the user namespace that owns it."""
    mnt = os.open(base + b"ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    user = os.open(base + b"ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        calls.setns(mnt, calls.CLONE_NEWNS)
    except PermissionError:
        calls.setns(user, calls.CLONE_NEWUSER)
        calls.setns(mnt, calls.CLONE_NEWNS)
