"""Where runs are read from: a directory or a bucket, told apart by how SRC is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.job import S3
from agent.stores import directory
from agent.stores.base import Source

if TYPE_CHECKING:
    from agent.stores.s3.place import Place

SCHEME = "s3://"


class OpenSource(Source, Protocol):
    """A source that is to be closed."""

    def close(self) -> None: ...


class FoundRun(msgspec.Struct, frozen=True):
    """A run that is there to be read."""

    location: str
    make: Callable[[], OpenSource]


def find_runs(source: str, s3: S3 | None = None) -> list[FoundRun]:
    """The runs at or below SRC: a run itself, or those of a host, a case or a whole destination, sorted.

    `s3` says how the bucket is reached. Raises `SourceError`, `UsageError`.
    """
    if not source.startswith(SCHEME):
        return [FoundRun(path, partial(directory.DirectorySource, path)) for path in directory.find_runs(source)]
    from agent.stores.s3.client import standard
    from agent.stores.s3.place import parse_place
    from agent.stores.s3.read_finding import find_places
    from agent.stores.s3.source import S3Source

    settings = s3 or S3()
    place = parse_place(source)
    client = standard(settings)

    def make(found: Place) -> OpenSource:
        return S3Source(found, settings, client=client)

    return [FoundRun(str(found), partial(make, found)) for found in find_places(client, place, settings.bucket_owner)]


def open_source(run: FoundRun) -> OpenSource:
    """Raises `SourceError`."""
    return run.make()
