"""`Host`: one object that stands for the examined machine. Every path that is read goes through it.

So a mounted disk, the live host seen from a pod, or a fixture tree in a test is just another `Host`.
"""

from __future__ import annotations

import enum
import os
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from acquirers import facts as facts_module
from acquirers import mounts as mounts_module
from acquirers.files.tree import Tree, open_tree
from acquirers.root import MAX_CONFIG, MAX_DEPTH, MAX_LINKS, NotARootError, Root, TooLargeError, read_kernel_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.facts import Facts
    from acquirers.mounts import Mount

__all__ = ["MAX_CONFIG", "MAX_DEPTH", "MAX_LINKS", "Host", "Mode", "NotARootError", "TooLargeError"]


class Mode(enum.StrEnum):
    """Which machine a `Host` stands for."""

    HOST = "host"  # the machine this process runs on
    INSIDE = "inside"  # the container this process runs in
    LIVE_ROOT = "live-root"  # the live host, seen from a privileged pod
    DEAD = "dead"  # a mounted disk: nothing of it is running


class Host(Root):
    """The examined machine: its root, its /proc where it is alive, what is mounted, and what it says of itself."""

    def __init__(self, mode: Mode, root: bytes = b"/", proc: bytes | None = b"/proc") -> None:
        self.mode = mode
        self.proc = None if mode is Mode.DEAD else proc
        super().__init__(root)

    @property
    def live(self) -> bool:
        """There are processes to ask."""
        return self.proc is not None

    @cached_property
    def facts(self) -> Facts:
        """Capabilities, namespaces, kernel, ids, clock and identity: read once."""
        return facts_module.read(self, mode=self.mode, proc=self.proc)

    def tree(self, path: bytes, *, recursive: bool = False) -> Tree:
        """The directory `path`, opened for a faithful walk."""
        place = self.follow(path)
        try:
            mounts = self._mounts_below(place.native, path) if recursive else None
            tree = open_tree(place.fd, path, recursive=recursive, mounts=mounts)
            if not tree.clone and not recursive:  # a clone of one mount shows nothing of what is mounted in it
                tree.mounts = self._mounts_below(place.native, path)
            return tree
        finally:
            os.close(place.fd)

    # -- mounts -------------------------------------------------------------------------------------------------------

    @property
    def mounts(self) -> list[Mount]:
        """What is mounted where just now, by native path: containers come and go while a run lasts."""
        if self.mode is Mode.LIVE_ROOT:
            return mounts_module.parse_mountinfo(self.read_proc(b"1/mountinfo"))
        own = mounts_module.parse_mountinfo(read_kernel_file(b"/proc/self/mountinfo"))
        if self.root == b"/":
            return own
        inside = mounts_module.below(own, self.root)
        return [_moved(mount, point[len(self.root) :]) for point, mount in inside.items()]

    def _mount(self, mount_id: int) -> Mount | None:
        found = super()._mount(mount_id)
        if found is None and self.mode is Mode.LIVE_ROOT:  # its root may have been opened by way of /proc/1/root
            found = mounts_module.find_mount(self.read_proc(b"1/mountinfo"), mount_id)
        return found

    def _mounts_below(self, real: bytes, path: bytes) -> dict[bytes, Mount]:
        """Mounts below the real directory, named as a walk that starts at `path` names them."""
        found = mounts_module.below(self.mounts, real)
        base, start = real.rstrip(b"/"), path.rstrip(b"/")
        return {start + point[len(base) :]: mount for point, mount in found.items()}

    # -- processes ----------------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """The processes that /proc shows, ascending."""
        if self.proc is None:
            return []
        return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())

    def read_proc(self, name: bytes, limit: int = 4 * MAX_CONFIG) -> bytes:
        """One file below /proc, cut at `limit` bytes."""
        if self.proc is None:
            raise FileNotFoundError(2, "a mounted disk has no processes")
        return read_kernel_file(os.path.join(self.proc, name), limit)

    def processes_named(self, comm: bytes) -> Iterator[int]:
        """The pids whose command name is `comm`."""
        for pid in self.pids():
            try:
                if self.read_proc(b"%d/comm" % pid, 64).rstrip(b"\n") == comm:
                    yield pid
            except OSError:
                continue


def _moved(mount: Mount, point: bytes) -> Mount:
    return replace(mount, point=point)
