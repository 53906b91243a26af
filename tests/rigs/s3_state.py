"""What the strict S3 holds: buckets, versions of objects, unfinished uploads."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.rigs.s3_bodies import Blob, hasher_of
from tests.rigs.s3_errors import S3Error

MIN_PART = 5 << 20
MAX_PART = 5 << 30
MAX_PARTS = 10_000


@dataclass(slots=True, eq=False)
class Version:
    """One version of an object, or a delete marker."""

    key: str
    version_id: str
    modified: float
    parts: list[Blob] = field(default_factory=list)
    etag: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """What the client gave to be kept: content-type, x-amz-meta-*."""
    checksum: tuple[str, str] | None = None
    """Algorithm and base64 (with `-N` where it is a checksum of the parts' checksums)."""
    marker: bool = False
    mode: str = ""
    until: float = 0.0
    hold: bool = False
    sealed_by: dict[str, str] = field(default_factory=dict)
    """The SSE headers of an answer."""
    owner: str = ""

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive), across parts."""
        for part in self.parts:
            if start < part.size and end > 0:
                yield from part.read(max(start, 0), min(end, part.size))
            start, end = start - part.size, end - part.size


@dataclass(slots=True, eq=False)
class Upload:
    """A multipart upload that was begun."""

    key: str
    upload_id: str
    initiated: float
    initiator: str
    algorithm: str
    """Checksum algorithm that was asked for at the start, or ""."""
    composite: bool
    headers: dict[str, str] = field(default_factory=dict)
    sealed_by: dict[str, str] = field(default_factory=dict)
    lock: tuple[str, float, bool] = ("", 0.0, False)
    parts: dict[int, tuple[Blob, float]] = field(default_factory=dict)
    """Number -> body and when it came."""
    replaced: int = 0
    """How often a part was put over another one."""


@dataclass(slots=True, eq=False)
class Bucket:
    """A bucket with its own documents."""

    name: str
    owner: str
    region: str
    created: float
    versioning: str = ""
    locked: bool = False
    default_mode: str = ""
    default_days: int = 0
    policy: dict[str, Any] | None = None
    documents: dict[str, bytes] = field(default_factory=dict)
    """Subresource -> document as it was put."""
    objects: dict[str, list[Version]] = field(default_factory=dict)
    """Key -> versions, the current one last."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    vanished: bool = False

    def current(self, key: str) -> Version | None:
        """The object that a reader without a version sees."""
        versions = self.objects.get(key)
        return None if not versions or versions[-1].marker else versions[-1]

    def version(self, key: str, version_id: str) -> Version:
        """That version, or the current one for "". Raises `S3Error`."""
        versions = self.objects.get(key, [])
        if not version_id:
            if not versions:
                raise S3Error("NoSuchKey", more={"Key": key})
            return versions[-1]
        for version in versions:
            if version.version_id == version_id:
                return version
        more = {"Key": key, "VersionId": version_id}
        raise S3Error("NoSuchVersion", "The specified version does not exist.", more=more)

    def upload(self, key: str, upload_id: str) -> Upload:
        found = self.uploads.get(upload_id)
        if found is None or found.key != key:
            raise S3Error("NoSuchUpload", more={"UploadId": upload_id})
        return found

    def add(self, version: Version, now: float, lock: tuple[str, float, bool]) -> None:
        """Makes it the current version, under the lock that was asked for or that is the bucket's default."""
        mode, until, hold = lock
        if not mode and self.default_mode and not version.marker:
            mode, until = self.default_mode, now + self.default_days * 86_400
        version.mode, version.until, version.hold = mode, until, hold
        version.version_id = secrets.token_urlsafe(24) if self.versioning == "Enabled" else "null"
        versions = self.objects.setdefault(version.key, [])
        if version.version_id == "null":
            for old in [old for old in versions if old.version_id == "null"]:
                versions.remove(old)
        versions.append(version)


def complete(upload: Upload, listed: list[tuple[int, str, dict[str, str]]], min_part: int) -> tuple[list[Blob], str]:
    """The parts that an upload is completed with, and their composite checksum or "". Raises `S3Error`.

    `listed`: number, ETag and checksums as the request names them.
    """
    if not listed:
        raise S3Error("MalformedXML", "The XML you provided was not well-formed")
    numbers = [number for number, _, _ in listed]
    if numbers != sorted(set(numbers)):
        raise S3Error("InvalidPartOrder", "The list of parts was not in ascending order.")
    found = []
    for number, etag, sums in listed:
        blob = upload.parts.get(number, (None, 0.0))[0]
        same = blob is not None and blob.etag == etag.strip('"')
        if blob is None or not same or any(blob.sums.get(name) != value for name, value in sums.items()):
            raise S3Error(
                "InvalidPart",
                "One or more of the specified parts could not be found.  The part may not have been uploaded, or the "
                "specified entity tag may not match the part's entity tag.",
                more={"UploadId": upload.upload_id, "PartNumber": str(number), "ETag": etag.strip('"')},
            )
        if upload.algorithm and upload.composite and upload.algorithm not in sums:
            raise S3Error(
                "InvalidRequest",
                f"The upload was created using a {upload.algorithm.lower()} checksum. The complete request must "
                f"include the checksum for each part. It was missing for part {number} in the request.",
            )
        found.append(blob)
    for number, blob in zip(numbers[:-1], found[:-1], strict=True):
        if blob.size < min_part:
            raise S3Error(
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed size",
                more={"ProposedSize": str(blob.size), "MinSizeAllowed": str(min_part), "PartNumber": str(number)},
            )
    composite = ""
    if upload.algorithm and upload.composite:
        composite = composite_of(upload.algorithm, [blob.sums[upload.algorithm] for blob in found])
    return found, composite


def composite_of(algorithm: str, sums: list[str]) -> str:
    """The checksum over the checksums of the parts, base64, with the number of parts."""
    raw = b"".join(base64.b64decode(value) for value in sums)
    if algorithm in {"SHA256", "SHA1"}:
        digest = hashlib.new(algorithm.lower(), raw, usedforsecurity=False).digest()
    else:
        hasher = hasher_of(algorithm)
        hasher.update(memoryview(raw))
        digest = hasher.digest()
    return f"{base64.b64encode(digest).decode()}-{len(sums)}"


def etag_of(blobs: list[Blob]) -> str:
    """The ETag of an object made of parts: it ends in their number."""
    joined = "".join(blob.etag for blob in blobs).encode()
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(blobs)}"


def iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def parse_iso(text: str) -> float:
    """Raises `S3Error`."""
    try:
        parsed = dt.datetime.fromisoformat(text)
    except ValueError:
        raise S3Error("InvalidArgument", "a date must be in ISO 8601") from None
    if parsed.tzinfo is None:
        raise S3Error("InvalidArgument", "a date must name its offset")
    return parsed.timestamp()
