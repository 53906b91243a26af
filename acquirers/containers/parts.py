"""An item made of several directories of the machine, one after the other, in one archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acquirers.base import AcquirerError, Buffer, Flag, Gap, Kind, Reason, Report, Scope, reason_of
from acquirers.containers.paths import mount_of, resolve
from acquirers.files.archive import ArchiveWriter
from acquirers.files.walk import walk

if TYPE_CHECKING:
    from acquirers.files.entry import Entry
    from acquirers.host import Host
    from acquirers.mounts import Mount

Keep = Callable[[bytes, Kind], bool]
"""Is asked with the path relative to the directory. What it refuses is neither opened nor told of."""


@dataclass(frozen=True, slots=True)
class Part:
    """One directory, or what `keep` leaves of it."""

    path: bytes
    """Native and absolute. It is free of links, or it is not read."""
    keep: Callable[[Report], Keep] | None = None
    """Makes the filter; the report is for what it leaves out and ought to be told."""
    recursive: bool = False
    """What is mounted below belongs to it."""
    optional: bool = False
    """That it is not there is nothing to tell."""


@dataclass(frozen=True, slots=True)
class Archive:
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
        for part in self.parts:
            yield from writer.add(self._entries(part, mounts, report))
        yield from writer.close()

    def _entries(self, part: Part, mounts: Sequence[Mount], report: Report) -> Iterator[Entry]:
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
            with self.host.tree(part.path, recursive=part.recursive) as tree:
                keep = part.keep(report) if part.keep is not None else None
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


def without(*names: bytes) -> Callable[[Report], Keep]:
    """Everything but these names of the directory itself."""
    left_out = frozenset(names)
    return lambda _: lambda path, _kind: path.partition(b"/")[0] not in left_out
