"""What lies in the bucket and should not: uploads that nobody finished, second versions, delete markers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_plus

from agent.delivery.bucket.rows import Row, State
from agent.delivery.bucket.tries import is_probe
from agent.errors import AuthorityError, StoreError
from agent.stores.s3.control import Control, ListedUpload

if TYPE_CHECKING:
    from agent.delivery.bucket.looking import Looking

T = TypeVar("T")

MANY_UPLOADS = 10_000
"""Uploads that are looked through; it is said where there are more."""
COUNTED_UPLOADS = 200
"""Uploads of which the parts are counted: one call for each thousand parts."""
COUNTED_PARTS = 20_000
MANY_VERSIONS = 200_000
SHOWN = 50
GOING_ON_S = 86_400.0
"""An upload younger than this may belong to a run that goes on."""

_RUN = re.compile(r"(?:\A|.*/)([^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})/")


def run_of(name: str) -> str:
    """`case/host/run` of an object below a prefix, "" where it belongs to none."""
    match = _RUN.match(name)
    return match[1] if match else ""


def unfinished(look: Looking, now: datetime | None = None) -> Row:
    """A row with every unfinished upload: key, age, parts, size, initiator; old ones are a finding."""
    control, now = Control(look.client, look.place, look.s3), now or datetime.now(UTC)
    uploads, cut = _limited(_uploads(look), MANY_UPLOADS)
    details, old = [], 0
    runs: dict[str, int] = {}
    for number, upload in enumerate(sorted(uploads, key=lambda one: (one.name, one.initiated))):
        age = (now - upload.initiated).total_seconds()
        old += age > GOING_ON_S
        run = run_of(upload.name)
        runs[run] = runs.get(run, 0) + 1
        if number < SHOWN:
            parts = _parts(control, upload) if number < COUNTED_UPLOADS else "parts not counted"
            of = f"run {run}" if run else "of no run"
            details.append(
                f"{upload.name}: begun {_age(age)} ago by {upload.initiator or 'nobody named'}, {parts}, {of}, "
                f"upload {upload.upload_id}"
            )
    if len(uploads) > SHOWN:
        details.append(f"… and {len(uploads) - SHOWN} more")
    whose = ", ".join(f"{run or 'no run'} ({count})" for run, count in sorted(runs.items())[:5])
    more = "more than " if cut else ""
    found = f"{more}{len(uploads)}, {old} of them older than a day: {whose}" if uploads else "none"
    return Row(
        "unfinished uploads",
        State.FINDING if old else State.OK,
        found,
        "they hold parts of evidence that no list of objects shows, no lock protects, and the lifecycle will remove",
        f"impound finish {look.place}/CASE/HOST/RUN for each run: it completes what a signed record names; "
        "the lifecycle aborts the rest"
        if old
        else "",
        tuple(details),
    )


def _uploads(look: Looking) -> Iterator[ListedUpload]:
    """Keys come percent-encoded: a host may begin an upload under a name that XML cannot hold."""
    marker: dict[str, str] = {}
    while True:
        arguments = {"Prefix": look.prefix(), "EncodingType": "url", **marker}
        answer = look.ask("list_multipart_uploads", "s3:ListBucketMultipartUploads", **arguments) or {}
        for upload in answer.get("Uploads", ()):
            who = upload.get("Initiator") or {}
            yield ListedUpload(
                unquote_plus(str(upload["Key"])).removeprefix(look.prefix()),
                str(upload["UploadId"]),
                upload["Initiated"],
                str(who.get("ID") or who.get("DisplayName") or ""),
            )
        following = {
            "KeyMarker": unquote_plus(str(answer.get("NextKeyMarker", ""))),
            "UploadIdMarker": str(answer.get("NextUploadIdMarker", "")),
        }
        if not answer.get("IsTruncated") or following == marker:
            return
        marker = following


def _parts(control: Control, upload: ListedUpload) -> str:
    try:
        parts = list(itertools.islice(control.parts(upload.name, upload.upload_id), COUNTED_PARTS))
    except AuthorityError:
        return "parts unknown: not allowed: s3:ListMultipartUploadParts"
    except StoreError:
        return "parts could not be listed"
    return f"{len(parts)} parts, {sum(part.size for part in parts)} bytes"


def _age(seconds: float) -> str:
    if seconds < 7200:
        return f"{max(seconds, 0) / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def second_versions(look: Looking) -> Row:
    """A row with every key below the prefix that has more than one version, or a delete marker."""
    entries, cut = _limited(_versions(look), MANY_VERSIONS)
    prefix = look.prefix()
    versions: dict[str, int] = {}
    markers: dict[str, str] = {}
    for key, marker, modified in entries:
        name = key.removeprefix(prefix)
        if marker:
            markers.setdefault(name, modified)
        else:
            versions[name] = versions.get(name, 0) + 1
    twice = {name: count for name, count in versions.items() if count > 1}
    said = [
        *((name, f"{name}: {count} versions{_of(name)}") for name, count in sorted(twice.items())),
        *((name, f"{name}: delete marker of {when}{_of(name)}") for name, when in sorted(markers.items())),
    ]
    foreign = [text for name, text in said if not is_probe(name)]
    ours = [f"{text}: a probe of `impound bucket check`" for name, text in said if is_probe(name)]
    details = foreign + ours
    looked = f"the first {MANY_VERSIONS} versions were looked at" if cut else f"{len(entries)} versions looked at"
    if ours:
        looked += f"; probes of `impound bucket check` left out: {len({name for name, _ in said if is_probe(name)})}"
    keys, marked = (sum(not is_probe(name) for name in names) for names in (twice, markers))
    found = f"{keys} keys with more than one version, {marked} with a delete marker; {looked}"
    return Row(
        "second versions and delete markers",
        State.FINDING if foreign else State.UNKNOWN if cut else State.OK,
        found if foreign or cut else f"none; {looked}",
        "impound never writes a name twice and never deletes: somebody else did, and the oldest is what was stored",
        f"aws s3api list-object-versions --bucket {look.place.bucket} --prefix {prefix or '…'}: read the oldest, "
        "keep all of them" if foreign else "",
        tuple(details[:SHOWN]) + ((f"… and {len(details) - SHOWN} more",) if len(details) > SHOWN else ()),
    )  # fmt: skip


def _of(name: str) -> str:
    run = run_of(name)
    return f", run {run}" if run else ""


def _versions(look: Looking) -> Iterator[tuple[str, bool, str]]:
    marker: dict[str, str] = {}
    while True:
        answer = look.ask("list_object_versions", "s3:ListBucketVersions", Prefix=look.prefix(), **marker) or {}
        for word in ("Versions", "DeleteMarkers"):
            for one in answer.get(word, ()):
                yield str(one["Key"]), word == "DeleteMarkers", f"{one.get('LastModified')}"
        following = {
            "KeyMarker": str(answer.get("NextKeyMarker", "")),
            "VersionIdMarker": str(answer.get("NextVersionIdMarker", "")),
        }
        if not answer.get("IsTruncated") or following == marker:
            return
        marker = following


def _limited(found: Iterator[T], most: int) -> tuple[list[T], bool]:
    listed = list(itertools.islice(found, most + 1))
    return listed[:most], len(listed) > most
