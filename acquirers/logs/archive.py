"""One archive made of the places of a group. Whatever goes wrong with one place costs no other."""

from __future__ import annotations

import os
import re
import stat as stat_module
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import AcquirerError, Buffer, Gap, Kind, Reason, Report, Scope, reason_of
from acquirers.files.archive import ArchiveWriter
from acquirers.files.walk import walk

if TYPE_CHECKING:
    from acquirers.files.entry import Entry
    from acquirers.host import Host
    from acquirers.logs.places import Keep, Place

_GONE = frozenset({Reason.VANISHED})
Key = tuple[int, int, re.Pattern[bytes] | None, object]


class Archive(msgspec.Struct, frozen=True):
    """`Item.read` of several places."""

    host: Host
    scope: Scope
    places: Sequence[Place]
    gaps: Sequence[Gap] = ()

    def __call__(self, report: Report) -> Iterator[Buffer]:
        for gap in self.gaps:
            report.gap(gap)
        writer = ArchiveWriter(report)
        done: set[Key] = set()
        links: dict[bytes, None] = {}
        for place in self.places:
            yield from writer.add(self._guarded(place.path, partial(self._place, place, done, links, report), report))
        for link in links:
            yield from writer.add(self._guarded(link, partial(self._link, link, report), report))
        yield from writer.close()

    def _guarded(self, path: bytes, make: Callable[[], Iterator[Entry]], report: Report) -> Iterator[Entry]:
        try:
            yield from make()
        except AcquirerError as error:
            report.gap(error.gap())
        except OSError as error:
            reason = reason_of(error)
            if reason not in _GONE:  # most places are on no machine
                report.gap(Gap(reason, error.strerror or str(error), path))
        except Exception as error:  # noqa: BLE001 - a fault in one place must not cost the others
            report.gap(Gap(Reason.INTERNAL, f"{type(error).__name__}: {str(error)[:200]}", path))

    def _place(self, place: Place, done: set[Key], links: dict[bytes, None], report: Report) -> Iterator[Entry]:
        found = self.host.follow(place.path)
        try:
            stat = os.fstat(found.fd)
        finally:
            os.close(found.fd)
        if found.view or not stat_module.S_ISDIR(stat.st_mode):
            return
        key = stat.st_dev, stat.st_ino, place.names, place.keep
        if key in done:  # another name of the same directory
            links.update(dict.fromkeys(found.links))
            return
        done.add(key)
        links.update(dict.fromkeys(found.links))
        with self.host.tree(found.native, recursive=place.recursive) as tree:
            more = place.keep(report, found.native) if place.keep is not None else None
            yield from walk(tree, report, keep=_filter(place, more), exclude=self.scope.exclude)

    def _link(self, link: bytes, report: Report) -> Iterator[Entry]:
        """A link on the way to a place: without it nobody finds that place where everybody looks for it."""
        directory, _, name = link.rpartition(b"/")
        with self.host.tree(directory or b"/") as tree:
            yield from walk(tree, report, keep=lambda path, _kind: path == name)


def _filter(place: Place, more: Keep | None) -> Keep | None:
    if place.names is None:
        return more

    def keep(path: bytes, kind: Kind) -> bool:
        return place.takes(path) and (more is None or more(path, kind))

    return keep
