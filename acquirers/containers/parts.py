"""An item made of several directories of the machine, one after the other, in one archive."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import AcquirerError, Buffer, Flag, FlagKind, Gap, Kind, Reason, Report, Scope, reason_of
from acquirers.containers.paths import mount_of, resolve
from acquirers.files.archive import ArchiveWriter
from acquirers.files.walk import walk

if TYPE_CHECKING:
    from acquirers.files.entry import Entry
    from acquirers.host import Host
    from acquirers.mounts import Mount

_MAX_TOLD = 50

Keep = Callable[[bytes, Kind], bool]
"""Is asked with the path relative to the directory. What it refuses is neither opened nor told of."""


class Part(msgspec.Struct, frozen=True):
    """One directory, or what `keep` leaves of it."""

    path: bytes
    """Native and absolute. It is free of links, or it is not read."""
    keep: Callable[[Report], Keep] | None = None
    """Makes the filter; the report is for what it leaves out and ought to be told."""
    recursive: bool = False
    """What is mounted below belongs to it."""
    optional: bool = False
    """That it is not there is nothing to tell."""
    mounted: frozenset[bytes] | None = None
    """Names in it that the runtime mounts the same files upon: taken is what lies beneath. Any other mount there is a
    finding. None: it may have any."""


class Archive(msgspec.Struct, frozen=True):
    """`Item.read` of several parts. What is known before anything is read is told first."""

    host: Host
    scope: Scope
    parts: Sequence[Part]
    gaps: Sequence[Gap] = ()
    flags: Sequence[Flag] = ()

    def __call__(self, report: Report) -> Iterator[Buffer]:
        for gap in self.gaps:
            report.gap(gap)
        for flag in self.flags:
            report.flag(flag)
        writer = ArchiveWriter(report)
        mounts = self.host.mounts
        points = sorted({mount.point for mount in mounts})
        for part in self.parts:
            yield from writer.add(self._entries(part, mounts, points, report))
        yield from writer.close()

    def _entries(self, part: Part, mounts: Sequence[Mount], points: Sequence[bytes], report: Report) -> Iterator[Entry]:
        """The files of one part. Whatever goes wrong with it costs this part and no other."""
        try:
            mount = mount_of(mounts, part.path)
            if mount is not None and not mount.local:
                fstype = mount.fstype.decode("ascii", "replace")
                report.gap(Gap(Reason.NOT_CROSSED, f"on {fstype}, which is not entered", part.path))
                return
            if resolve(self.host, part.path)[1]:
                report.gap(Gap(Reason.MALFORMED, "a link, where a directory should be: not followed", part.path))
                return
            below = _below(points, part.path)
            if part.mounted is not None:
                _tell_of_mounts(part, below, part.path in points, report)
            with self.host.tree(part.path, recursive=part.recursive) as tree:
                keep = part.keep(report) if part.keep is not None else None
                if below and not tree.clone and not part.recursive:
                    keep = _not_beneath(part.path, frozenset(below), keep, report)
                yield from walk(tree, report, keep=keep, exclude=self.scope.exclude)
        except AcquirerError as error:
            report.gap(error.gap())
        except OSError as error:
            if not (part.optional and isinstance(error, FileNotFoundError)):
                report.gap(Gap(reason_of(error), error.strerror or str(error), part.path))
        except Exception as error:  # noqa: BLE001 - a fault in one directory must not cost the others
            report.gap(Gap(Reason.INTERNAL, f"{type(error).__name__}: {str(error)[:200]}", part.path))


def only(names: frozenset[bytes]) -> Callable[[Report], Keep]:
    """Just these names of the directory itself, and nothing below them."""
    return lambda _: lambda path, _kind: path in names


def one_file(path: bytes) -> Part:
    """A file by itself, which may not be there."""
    return Part(os.path.dirname(path), only(frozenset({os.path.basename(path)})), optional=True)


def top_level(root: bytes, keep: Keep, told: Keep, detail: str) -> Callable[[Report], Keep]:
    """Of a runtime's own directory what lies directly in it and `keep` says; where `told` says so, with a word."""

    def make(report: Report) -> Keep:
        named = 0

        def kept(path: bytes, kind: Kind) -> bool:
            nonlocal named
            if b"/" in path:
                return False
            if named < _MAX_TOLD and told(path, kind):
                named += 1
                more = " (nor is anything that follows)" if named == _MAX_TOLD else ""
                report.flag(Flag(FlagKind.ELSEWHERE, detail + more, root + b"/" + path))
            return keep(path, kind)

        return kept

    return make


def _below(points: Sequence[bytes], path: bytes) -> Sequence[bytes]:
    """Of sorted mount points those below a directory."""
    start = path.rstrip(b"/") + b"/"
    return points[bisect_left(points, start) : bisect_left(points, start[:-1] + b"0")]  # "0" follows "/"


def _tell_of_mounts(part: Part, below: Sequence[bytes], covered: bool, report: Report) -> None:
    if covered:
        detail = "something is mounted over the layer's directory: taken is that, and not what lies beneath it"
        report.flag(Flag(FlagKind.FINDING, detail, part.path))
    strange = [point for point in below if part.mounted is not None and point[len(part.path) + 1 :] not in part.mounted]
    for point in strange[:_MAX_TOLD]:
        detail = "something is mounted in the layer, which containers may see: taken is what lies beneath it"
        report.flag(Flag(FlagKind.FINDING, detail, point))


def _not_beneath(base: bytes, points: frozenset[bytes], keep: Keep | None, report: Report) -> Keep:
    """Without a clone nobody sees what lies beneath a mount."""

    def kept(path: bytes, kind: Kind) -> bool:
        if base + b"/" + path in points:
            detail = "a mount: what lies beneath it cannot be seen where it is read in place"
            report.flag(Flag(FlagKind.ELSEWHERE, detail, base + b"/" + path))
            return False
        return keep is None or keep(path, kind)

    return kept
