"""What is done with each mount that a container sees: entered, shown from outside, or left to somebody else.

The decision is made from lists of mounts alone, before anything is asked of a filesystem:

- a disk or memory of this machine is entered, and so is an overlay if all its layers lie on those;
- a view of the kernel (proc, sysfs, cgroup, devpts, …) is a directory and nothing more;
- the machine's own root, or a directory that holds what containers are made of (a hostPath of a privileged pod), is
  left out, with a flag that names it: it would be the whole machine once more;
- what was stored already in this run, under the name that another container has for it, is not stored again;
- everything else (nfs, fuse, 9p, ceph, a lazily loaded image layer) is a gap, unless it was asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from acquirers.mounts import Mount, below

if TYPE_CHECKING:
    from acquirers.live.groups import Group

Key = tuple[int, bytes]
"""Device, and the directory of that filesystem that is mounted."""


class Verdict(enum.Enum):
    ENTER = "enter"
    VIEW = "view"  # of the kernel
    REMOTE = "remote"  # may never answer, or acts elsewhere when it is read
    MACHINE = "machine"  # the machine's own root, or what all containers are made of
    ELSEWHERE = "elsewhere"  # stored already


@dataclass(frozen=True, slots=True)
class Judged(Mount):
    """A mount, and what is done with it. To the walker it is local, a view, or neither."""

    verdict: Verdict = Verdict.REMOTE
    why: str = ""

    @property
    def local(self) -> bool:
        return self.verdict is Verdict.ENTER

    @property
    def kernel(self) -> bool:
        """It has an entry, made from outside: only of those that answer."""
        return self.verdict in {Verdict.VIEW, Verdict.MACHINE, Verdict.ELSEWHERE}

    @property
    def key(self) -> Key:
        return self.device, self.root


class Stored(msgspec.Struct, frozen=True):
    """A mount that is in an item of this run, as far as nothing was mounted upon it there."""

    item: str
    covered: frozenset[bytes]
    """Paths below it, relative, upon which something was mounted: what lies there is not stored."""


class Machine(msgspec.Struct):
    """What is known of the machine around the containers."""

    root: Key | None = None
    """Where its own `/` lies."""
    layers: frozenset[Key] = frozenset()
    """Writable layers of the containers that run, as places of their filesystems."""
    overlays: frozenset[int] = frozenset()
    """Devices of overlays that the machine itself has mounted, and whose layers all lie on local filesystems."""
    check: Callable[[Group, Mount], str] = lambda _group, _mount: ""
    """Why an overlay that is a container's root may not answer; "" where nothing is known against it."""


class Judgement(msgspec.Struct):
    """All mounts of one container."""

    root: Judged
    mounts: dict[bytes, Judged] = msgspec.field(default_factory=dict)
    """What is mounted below and can be reached, by its mount point."""
    covered: list[Mount] = msgspec.field(default_factory=list)
    """What lies under another mount, where no path leads."""
    unsure: bool = False
    """The root is an overlay of which it is not known that all its layers answer: it is called with a deadline."""
    _upon: dict[bytes, set[bytes]] = msgspec.field(default_factory=dict)
    """Mount point -> mount points of what lies directly upon that mount."""

    def __post_init__(self) -> None:
        for point in self.mounts:
            self._upon.setdefault(self.above(point).point, set()).add(point)

    def above(self, point: bytes) -> Judged:
        """The mount that a mount point lies on."""
        here = point.rpartition(b"/")[0]
        while here:
            found = self.mounts.get(here)
            if found is not None:
                return found
            here = here.rpartition(b"/")[0]
        return self.root

    def covers(self, mount: Judged) -> frozenset[bytes]:
        """Relative paths in a mount on which other things are mounted."""
        start = len(mount.point.rstrip(b"/")) + 1
        return frozenset(point[start:] for point in self._upon.get(mount.point, ()))

    def apart(self) -> list[Judged]:
        """Mounts that are entered and that no walk from the root comes by, because what they lie on is not entered.

        Not those on the machine's own directories, which are left out with everything that is mounted there.
        """
        found = []
        for point in sorted(self.mounts):
            mount = self.mounts[point]
            above = self.above(point)
            if mount.local and not above.local and not self._on_the_machine(above):
                found.append(mount)
        return found

    def remote(self) -> list[Judged]:
        """Mounts that may not answer."""
        found = [self.mounts[point] for point in sorted(self.mounts)]
        return [mount for mount in found if mount.verdict is Verdict.REMOTE and self.reached(mount)]

    def _on_the_machine(self, mount: Judged) -> bool:
        while mount.verdict is not Verdict.MACHINE:
            if mount is self.root:
                return False
            mount = self.above(mount.point)
        return True

    def reached(self, mount: Judged) -> bool:
        """Whether it is anybody's business: nothing on the way to it is left out with all that is mounted there."""
        return not self._on_the_machine(self.above(mount.point)) if mount is not self.root else True


def judge(
    group: Group,
    machine: Machine,
    stored: Mapping[Key, Stored],
    reserved: Mapping[Key, str],
) -> Judgement | None:
    """What is to be done with each mount of a container. None where its root is in no list.

    `reserved`: roots of other containers, each with the item that will hold it.
    """
    top = group.root
    if top is None:
        return None
    judge_one = _Judge(group, machine)
    mounts = below(group.mounts, b"/")
    judgement = Judgement(judge_one.root(top), {point: judge_one.mount(mount) for point, mount in mounts.items()})
    known = {top.mount_id, *(mount.mount_id for mount in mounts.values())}
    judgement.covered = [mount for mount in group.mounts if mount.mount_id not in known]
    judgement.unsure = top.fstype == b"overlay" and (top.device not in machine.overlays or not judgement.root.local)
    _leave_out_stored(judgement, stored, reserved)
    return judgement


def _leave_out_stored(judgement: Judgement, stored: Mapping[Key, Stored], reserved: Mapping[Key, str]) -> None:
    def again(mount: Judged) -> str:
        if mount is not judgement.root and mount.key in reserved:
            return reserved[mount.key]
        before = stored.get(mount.key)
        return before.item if before is not None and before.covered <= judgement.covers(mount) else ""

    for point, mount in list(judgement.mounts.items()):
        if mount.local and (item := again(mount)):
            judgement.mounts[point] = judged(mount, Verdict.ELSEWHERE, item)
    if judgement.root.local and (item := again(judgement.root)):
        judgement.root = judged(judgement.root, Verdict.ELSEWHERE, item)


class _Judge:
    def __init__(self, group: Group, machine: Machine) -> None:
        self._group = group
        self._machine = machine

    def root(self, mount: Mount) -> Judged:
        if (mount.device, mount.root) == self._machine.root:
            return judged(mount, Verdict.MACHINE, "the root of the machine itself")
        if mount.fstype == b"overlay" and mount.local:
            why = self._machine.check(self._group, mount)
            return judged(mount, Verdict.REMOTE if why else Verdict.ENTER, why)
        return self._otherwise(mount)

    def mount(self, mount: Mount) -> Judged:
        here = mount.device, mount.root
        if here == self._machine.root:
            return judged(mount, Verdict.MACHINE, "the root of the machine itself")
        if any(_within(layer, here) for layer in self._machine.layers):
            return judged(mount, Verdict.MACHINE, "a directory of the machine that holds the layers of containers")
        return self._otherwise(mount)

    def _otherwise(self, mount: Mount) -> Judged:
        if mount.local:
            return judged(mount, Verdict.ENTER)
        if mount.kernel:
            return judged(mount, Verdict.VIEW)
        return judged(mount, Verdict.REMOTE, f"{mount.fstype.decode('ascii', 'replace')} is mounted there")


def judged(mount: Mount, verdict: Verdict, why: str = "") -> Judged:
    return Judged(
        mount.mount_id,
        mount.parent_id,
        mount.device,
        mount.root,
        mount.point,
        mount.options,
        mount.fstype,
        mount.source,
        mount.super_options,
        mount.among,
        verdict,
        why,
    )


def _within(place: Key, above: Key) -> bool:
    """Whether a place of a filesystem lies in another one, or is it."""
    return place[0] == above[0] and (place[1] + b"/").startswith(above[1].rstrip(b"/") + b"/")


def place_of(mounts: Sequence[Mount], path: bytes) -> Key | None:
    """Where a native path without links lies: of the mounts on the way to it, the deepest and uppermost."""
    reachable = {mount.point: mount for mount in below(list(mounts), b"/").values()}
    here = path.rstrip(b"/")
    while here:
        mount = reachable.get(here)
        if mount is not None:
            return mount.device, (mount.root.rstrip(b"/") + path[len(here) :]).rstrip(b"/") or b"/"
        here = here.rpartition(b"/")[0]
    top = next((mount for mount in reversed(mounts) if mount.point == b"/"), None)
    return (top.device, (top.root.rstrip(b"/") + path).rstrip(b"/") or b"/") if top is not None else None
