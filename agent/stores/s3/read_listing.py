"""What lies below a prefix, with all of its versions.

A run is create-only, so that of every key the first version is the evidence, and whatever came after it is not: another
version, or a mark that the object was deleted. Both are seen only by a listing of versions (`s3:ListBucketVersions`).
Without that right the current objects are listed, and a reader has to be told so.

Everything a listing says is the server's word. Its numbers are checked, it is bounded, and it must come to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from agent.errors import SourceError
from agent.stores.s3.read_errors import NotAllowedError, readable

MAX_KEYS = 10_000_000
"""Objects, versions and marks below one prefix."""
_MAX_EMPTY = 1000
"""Pages in a row that hold nothing."""


class Entry(msgspec.Struct, frozen=True):
    """One version of an object, or a delete marker, as a page has it."""

    key: str
    size: int
    etag: str
    version_id: str
    """"" where the listing knows no versions."""
    modified: str
    """UTC, to the second: `2026-11-22 17:45:00`."""
    marker: bool = False


class Found(msgspec.Struct):
    """One key: its first version, and what the store has beside it."""

    first: Entry | None = None
    newest: Entry | None = None
    versions: int = 0
    marked: str = ""
    """When it was last marked as deleted."""

    def add(self, entry: Entry) -> None:
        """Takes in what a listing says next. S3 gives the versions of a key newest first."""
        if entry.marker:
            self.marked = max(self.marked, entry.modified)
            return
        self.newest = self.newest or entry
        self.first = entry
        self.versions += 1

    @property
    def problem(self) -> str:
        """What the store tells against the object; "" for nothing."""
        told = []
        if self.newest is not None and self.versions > 1:
            told.append(f"has {self.versions} versions: something was put over it on {self.newest.modified} UTC")
        if self.marked:
            left = "" if self.first is not None else ", and nothing is left of it"
            told.append(f"was marked deleted on {self.marked} UTC{left}")
        return "; ".join(told)


class Level(msgspec.Struct):
    """One level of a hierarchy: the names directly below a prefix."""

    objects: set[str] = msgspec.field(default_factory=set)
    prefixes: set[str] = msgspec.field(default_factory=set)


class Lister:
    """Listings of one bucket, with versions as long as that is allowed. Methods raise `SourceError`."""

    def __init__(self, client: Any, bucket: str, owner: str) -> None:
        self._client, self._bucket, self._account = client, bucket, owner
        self._owner = {"ExpectedBucketOwner": owner} if owner else {}
        self.versions = True
        """False once it is known that versions cannot be listed."""

    def objects(self, prefix: str) -> dict[str, Found]:
        """Every key below `prefix` ("" or with a slash at its end), less the prefix."""
        found: dict[str, Found] = {}
        for entries, _ in self._pages(prefix, ""):
            for entry in entries:
                found.setdefault(entry.key[len(prefix) :], Found()).add(entry)
        return found

    def level(self, prefix: str) -> Level:
        """What is directly below `prefix`. Servers that know no delimiter for versions tell all that is deeper, too."""
        level = Level()
        for entries, prefixes in self._pages(prefix, "/"):
            for key in (*(entry.key for entry in entries), *prefixes):
                name, below, _ = key[len(prefix) :].partition("/")
                (level.prefixes if below else level.objects).add(name)
        return level

    def holds(self, prefix: str) -> bool:
        """Whether there is anything whose key begins so."""
        return any(entries for entries, _ in self._pages(prefix, "", at_most=1))

    def _pages(self, prefix: str, delimiter: str, at_most: int = 1000) -> Iterator[tuple[list[Entry], list[str]]]:
        if self.versions:
            pages = self._walk(self._page_of_versions, "s3:ListBucketVersions", prefix, delimiter, at_most)
            try:
                first = next(pages)
            except NotAllowedError:
                self.versions = False
            else:
                yield first
                yield from pages
                return
        yield from self._walk(self._page_of_objects, "s3:ListBucket", prefix, delimiter, at_most)

    def _walk(
        self,
        page: Callable[[dict[str, Any]], tuple[list[Entry], dict[str, Any], dict[str, str]]],
        needs: str,
        prefix: str,
        delimiter: str,
        at_most: int,
    ) -> Iterator[tuple[list[Entry], list[str]]]:
        """Every page, checked. `page` gives its entries, the answer, and the marker of the next page."""
        what = f"s3://{self._bucket}/{prefix} cannot be listed"
        marker: dict[str, str] = {}
        count = empty = 0
        while True:
            wanted = {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": at_most, **self._owner, **marker}
            with readable(what, needs, owner=self._account):
                entries, answer, following = page(wanted | ({"Delimiter": delimiter} if delimiter else {}))
                prefixes = [str(one["Prefix"]) for one in answer.get("CommonPrefixes", ())]
            if not all(key.startswith(prefix) for key in (*(entry.key for entry in entries), *prefixes)):
                raise SourceError(f"{what}: the server names what was not asked for")
            count += len(entries) + len(prefixes)
            empty = 0 if entries or prefixes else empty + 1
            if count > MAX_KEYS:
                raise SourceError(f"{what}: more than {MAX_KEYS} objects lie there")
            yield entries, prefixes
            if not answer.get("IsTruncated"):
                return
            if not following or following == marker or empty > _MAX_EMPTY:
                raise SourceError(f"{what}: the server does not come to an end")
            marker = following

    def _page_of_versions(self, wanted: dict[str, Any]) -> tuple[list[Entry], dict[str, Any], dict[str, str]]:
        answer = self._client.list_object_versions(**wanted)
        entries = [_entry(one, str(one["VersionId"])) for one in answer.get("Versions", ())]
        entries += [_marker(one) for one in answer.get("DeleteMarkers", ())]
        following = {"KeyMarker": answer.get("NextKeyMarker"), "VersionIdMarker": answer.get("NextVersionIdMarker")}
        return entries, answer, {name: str(value) for name, value in following.items() if value}

    def _page_of_objects(self, wanted: dict[str, Any]) -> tuple[list[Entry], dict[str, Any], dict[str, str]]:
        answer = self._client.list_objects_v2(**wanted)
        token = answer.get("NextContinuationToken")
        entries = [_entry(one, "") for one in answer.get("Contents", ())]
        return entries, answer, {"ContinuationToken": str(token)} if token else {}


def _entry(one: dict[str, Any], version_id: str) -> Entry:
    size = int(one["Size"])
    if size < 0:
        raise ValueError(size)
    return Entry(str(one["Key"]), size, str(one.get("ETag") or ""), version_id, _date(one))


def _marker(one: dict[str, Any]) -> Entry:
    return Entry(str(one["Key"]), 0, "", str(one.get("VersionId") or ""), _date(one), marker=True)


def _date(one: dict[str, Any]) -> str:
    date = one.get("LastModified")
    return date.strftime("%Y-%m-%d %H:%M:%S") if isinstance(date, datetime) else "an unknown day"
